//! Attacks on what lies in Redis: names and entries made of a request's bytes, values that are none, purges that reach
//! further than they say, and traces of what was refused.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod attacks_wire;
mod redis_entries;

use attacks_wire::*;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use larder::{Cache, CacheLayer, Caching, Key, Purge, codec, semantics::Namespace};
use larder_tests::RedisServer;
use redis_entries::{connect, entry, until};
use std::{collections::BTreeSet, convert::Infallible, fs, sync::Arc};
use tower::{Layer, ServiceExt, service_fn};

const LARGE: usize = 200_000;

fn on(redis: &RedisServer) -> [String; 1] {
    [format!("--redis={}", redis.url())]
}

/// Asks until Redis answers with what was stored there.
async fn is_stored(site: &Site, request: &str) {
    until("it is stored", async || is_far(&site.ask(request).await)).await;
}

/// Whether Redis had the answer, and not the memory of what is on its way there.
fn is_far(answer: &str) -> bool {
    is_hit(answer) && field(answer, "cache-status").ends_with("detail=far")
}

/// The names of what is stored for a page: an entry, a rule and its variants, a manifest and its chunks; no tickets.
fn names(redis: &RedisServer, path: &str) -> Vec<String> {
    let all = redis.cli(&["KEYS", &format!("gateway:v1:{{route:GET:shop:{path}}}*")]);
    let mut names: Vec<String> = all.lines().filter(|name| !name.ends_with(":t")).map(str::to_owned).collect();
    names.sort();
    names
}

/// A request spells the name of another's entry, of its ticket, of its variant, or a pattern.
#[tokio::test]
async fn names_cannot_be_forged() {
    let redis = RedisServer::start();
    let site = Site::start(&[&on(&redis)[0]], |request| {
        let line = request.split("\r\n").next().unwrap_or_default();
        response(
            "200 OK",
            &format!("{FRESH}Vary: X-A\r\n"),
            &format!("{line} {} {}", field(request, "host"), field(request, "x-a")),
        )
    })
    .await;
    let digest = "0".repeat(32);
    let targets = [
        "/page".to_owned(),
        "/page}".to_owned(),
        "/page}:t".to_owned(),
        format!("/page}}:v:{digest}"),
        "/page%7D:t".to_owned(),
        "/page:t".to_owned(),
        "/{page}".to_owned(),
        "/page}{page".to_owned(),
        "/*".to_owned(),
        "/pag?".to_owned(),
        "/pag%3F".to_owned(),
        "/[p]age".to_owned(),
        "/page%0d%0aDEL%20x".to_owned(),
        "/page%00".to_owned(),
        "/page\"x".to_owned(),
        "/page?}:t".to_owned(),
        "/page%3F}:t".to_owned(),
        "/:shop:/page".to_owned(),
        "/\u{e9}".to_owned(),
        format!("/{}", "a".repeat(600)),
        format!("/{}", "a".repeat(601)),
        format!("/{}}}:t", "a".repeat(600)),
    ];
    let hosts = ["shop", "shop:80", "shop:", "shop:GET", "page}:t", "a*", "[::1]", "shop%7D"];
    let values = ["", "}:t", ":v:0", "*", "\u{e9}", "a b"];
    let mut answered = Vec::new();
    for (target, host, value) in targets
        .iter()
        .map(|target| (target.as_str(), "shop", ""))
        .chain(hosts.map(|host| ("/page", host, "")))
        .chain(values.map(|value| ("/varied", "shop", value)))
    {
        let request = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nX-A: {value}\r\nConnection: close\r\n\r\n");
        let first = site.ask(&request).await;
        if first.starts_with("HTTP/1.1 200") {
            assert!(
                body(&first).starts_with(&format!("GET {target} "))
                    && body(&first).to_ascii_lowercase().contains(&host.to_ascii_lowercase()),
                "{request}: {first}"
            );
            is_stored(&site, &request).await;
            answered.push((request, body(&first).to_owned()));
        }
    }
    assert!(answered.len() > 25, "{answered:?}");
    for (request, text) in &answered {
        assert_eq!(body(&site.ask(request).await), text, "{request}");
    }
    let plain = |char: char| char.is_ascii_graphic() && !"{}*[]\"\\".contains(char);
    let control = ["{gateway}:clock", "{gateway}:gen", "{gateway}:log"];
    for name in redis.cli(&["KEYS", "*"]).lines().filter(|name| !control.contains(name)) {
        let inner = name.strip_prefix("gateway:v1:{").and_then(|rest| rest.split_once('}'));
        let (key, suffix) = inner.unwrap_or_else(|| panic!("{name}"));
        let is_variant = suffix.strip_prefix(":v:").is_some_and(|digest| digest.len() == 32);
        assert!(key.starts_with("route:GET:") && key.chars().all(plain), "{name}");
        assert!(suffix.is_empty() || suffix == ":t" || is_variant, "{name}");
    }
}

/// What an application reads of a request and gives back, before the same Redis.
fn layer_on(cache: &Cache) -> CacheLayer {
    cache.layer().key_fn(|head| Key::new("page").part(head.uri.path()))
}

/// `X-Cache` and the body of what the application answers at a path: `content`, with a tag.
async fn ask(layer: &CacheLayer, path: &str, tag: &str, content: &Bytes) -> (String, Bytes) {
    let (tag, content) = (tag.to_owned(), content.clone());
    let app = service_fn(move |_: Request<Empty<Bytes>>| {
        let mut response = Response::new(Full::new(content.clone()));
        response.extensions_mut().insert(Caching::new().tag(&tag));
        async { Ok::<_, Infallible>(response) }
    });
    let response =
        layer.layer(app).oneshot(Request::builder().uri(path).body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
    let x_cache = response.headers()["x-cache"].to_str().unwrap().to_owned();
    (x_cache, response.into_body().collect().await.unwrap().to_bytes())
}

async fn cache_on(redis: &RedisServer) -> Cache {
    Cache::builder().store(connect(&redis.url()).await).build().unwrap()
}

/// A body, or a piece of one, is the very bytes of an entry of another's.
#[tokio::test]
async fn entries_cannot_be_forged() {
    let redis = RedisServer::start();
    let (writer, reader) = (layer_on(&cache_on(&redis).await), layer_on(&cache_on(&redis).await));
    let store = connect(&redis.url()).await;
    let name = Namespace::default().entry(Key::new("page").part("/victim")).name();
    let forged = codec::encode(&Arc::unwrap_or_clone(entry(&store, "evil")), &name);
    for content in [forged.clone(), forged.repeat(LARGE / forged.len()).into()] {
        let stored = async |path: &str, content: &Bytes| {
            until("it is stored", async || ask(&writer, path, "", content).await.0 == "HIT").await;
            ask(&reader, path, "", &Bytes::from_static(b"not stored")).await
        };
        let path = format!("/{}", content.len());
        assert_eq!(stored(&path, &content).await, ("HIT".to_owned(), content.clone()));
        assert_eq!(ask(&writer, "/victim", "", &Bytes::from_static(b"body")).await.1, "body");
        assert_eq!(
            stored("/victim", &Bytes::from_static(b"body")).await,
            ("HIT".to_owned(), Bytes::from_static(b"body"))
        );
    }
}

/// What a Redis holds of `/page`, which is whole, `/varied`, which has a rule, and `/large`, which is in chunks.
async fn stored_pages(redis: &RedisServer) -> Site {
    Site::start(&[&on(redis)[0]], |request| match request.split(' ').nth(1) {
        Some("/large") => fresh(&"a".repeat(LARGE)),
        Some("/varied") => response("200 OK", &format!("{FRESH}Vary: X-A\r\n"), "body"),
        _ => fresh("body"),
    })
    .await
}

/// Damages one of the values that are stored of a page, in Redis' own language, where it is `value` and lies at `name`:
/// nobody must notice, and the next fill must replace it.
async fn damaged(redis: &RedisServer, site: &Site, path: &str, part: usize, damage: &str) {
    let request = get(path, "");
    let all = loop {
        names(redis, path).iter().for_each(|name| drop(redis.cli(&["DEL", name])));
        is_stored(site, &request).await;
        let all = names(redis, path);
        // Pieces of a fill that came to its end while they were removed are read by nobody.
        let fills: BTreeSet<&str> = all.iter().filter_map(|name| name.split_once(":b:")?.1.split(':').next()).collect();
        if fills.len() <= 1 {
            break all;
        }
    };
    let name = &all[part];
    redis.cli(&["EVAL", &format!("local name = KEYS[1] local value = redis.call('GET', name) {damage}"), "1", name]);
    let answer = site.ask(&request).await;
    assert!(answer.starts_with("HTTP/1.1 200") && !is_hit(&answer), "{name} {damage}: {answer}");
    assert_eq!(body(&answer).len(), if path == "/large" { LARGE } else { 4 }, "{name} {damage}: {answer}");
    let replaced = async || is_far(&site.ask(&request).await);
    until(&format!("{name} is replaced after {damage}"), replaced).await;
}

/// A value as it is set in its own place.
fn set(value: &str) -> String {
    format!("redis.call('SET', name, {value})")
}

/// A foreign, truncated or damaged value answers nobody, and is replaced.
#[tokio::test]
async fn hostile_values_are_misses() {
    let redis = RedisServer::start();
    let site = stored_pages(&redis).await;
    is_stored(&site, &get("/other", "")).await;
    let other = names(&redis, "/other").remove(0);
    let mut damages: Vec<String> =
        (0..16).map(|part| set(&format!("string.sub(value, 1, #value * {part} / 16)"))).collect();
    let foreign =
        ["'hello'", "value .. 'more'", "'LRDR'", "'LRDC'", "string.rep('\\255', 100)", "string.sub(value, 2)"];
    damages.extend(foreign.map(set));
    damages.push(set("string.sub(value, 1, 8) .. string.rep('\\255', #value - 8)"));
    damages.push(format!("redis.call('COPY', '{other}', name, 'REPLACE')"));
    damages.push("redis.call('DEL', name)".to_owned());
    for (path, parts) in [("/page", 1), ("/varied", 2), ("/large", 5)] {
        for (part, damage) in (0..parts).flat_map(|part| damages.iter().map(move |damage| (part, damage))) {
            damaged(&redis, &site, path, part, damage).await;
        }
        // Lengths and counts that are larger than anything: of an entry, a rule, a manifest.
        damaged(&redis, &site, path, 0, &set("string.sub(value, 1, 24) .. string.rep('\\255', #value - 24)")).await;
    }
}

/// A value of another type answers nobody, and is replaced.
async fn of_another_type(path: &str, part: usize) {
    let redis = RedisServer::start();
    let site = stored_pages(&redis).await;
    for words in ["'LPUSH', name, 'hello'", "'HSET', name, 'a', 'b'", "'SADD', name, 'hello'"] {
        damaged(&redis, &site, path, part, &format!("redis.call('DEL', name) redis.call({words})")).await;
    }
}

#[tokio::test]
async fn values_of_another_type_are_misses() {
    for (path, part) in [("/page", 0), ("/varied", 0), ("/varied", 1), ("/large", 0)] {
        of_another_type(path, part).await;
    }
}

#[tokio::test]
async fn chunks_of_another_type_are_misses() {
    of_another_type("/large", 1).await;
    of_another_type("/large", 4).await;
}

/// A tag or a key that looks like a pattern, or like a name of the store's own, purges what it names and nothing else.
#[tokio::test]
async fn purges_cannot_be_widened() {
    let redis = RedisServer::start();
    let cache = cache_on(&redis).await;
    let (layer, content) = (layer_on(&cache), Bytes::from_static(b"body"));
    let tags = [
        "a",
        "b",
        "ab",
        "a*",
        "*",
        "?",
        "[ab]",
        "[^b]",
        "a\nb",
        "a\r\nFLUSHALL\r\n",
        "a}",
        "{a}",
        "a:b",
        "tag:a",
        "clock",
        "{larder}:clock",
        "{larder}:tag:a",
        "larder:v1:*",
        "a\0",
        "a\0b",
        "%61",
        "a%2A",
        "\u{e9}",
        "\\*",
        "a\"b",
        "a b",
    ];
    let path = |index: usize| format!("/{}", Key::new("").part(tags[index]).as_str().replace('%', "%25"));
    let fill = async || {
        for (index, tag) in tags.iter().enumerate() {
            until("it is stored", async || ask(&layer, &path(index), tag, &content).await.0 == "HIT").await;
        }
    };
    fill().await;
    for purged in 0..tags.len() {
        let purges = [
            Purge::tag(tags[purged]),
            Purge::key(Key::new("page").part(http::Uri::try_from(path(purged)).unwrap().path())),
        ];
        for purge in purges {
            cache.purge(purge.clone()).await.unwrap();
            for index in (0..tags.len()).filter(|index| *index != purged) {
                let (x_cache, _) = ask(&layer, &path(index), tags[index], &content).await;
                assert_eq!(x_cache, "HIT", "{purge:?} removes what is tagged {:?}", tags[index]);
            }
            let gone = ask(&layer, &path(purged), tags[purged], &content).await;
            assert_eq!(gone.0, "MISS", "{purge:?}");
            fill().await;
        }
    }
    for pattern in
        ["*", "page:*", "page*", "page", "pag?", "{page}", "page}*", "page:", "", "larder:v1:*", "page:%2F*", "page\n"]
    {
        let purged = cache.purge(Purge::key(pattern)).await.unwrap();
        assert_eq!(purged.resources, 0, "{pattern:?}");
    }
    for pattern in ["", " ", "c*", "[a-z]", "a*b", "larder"] {
        cache.purge(Purge::tag(pattern)).await.unwrap();
    }
    for (index, tag) in tags.iter().enumerate() {
        assert_eq!(ask(&layer, &path(index), tag, &content).await.0, "HIT", "{tag:?}");
    }
}

/// Nothing of a request that is refused, or whose answer is, has ever been written to Redis.
#[tokio::test]
async fn nothing_of_what_is_refused_is_stored() {
    // Whatever was written stands in this file, also what is gone.
    let redis = RedisServer::builder().arg("--appendonly", "yes").arg("--aof-use-rdb-preamble", "no").start();
    let written = || -> Vec<u8> {
        let folder = redis.socket_path().with_file_name("appendonlydir");
        let files = fs::read_dir(folder).unwrap().map(|file| fs::read(file.unwrap().path()).unwrap());
        files.collect::<Vec<_>>().concat()
    };
    let holds = |text: &str| written().windows(text.len()).any(|bytes| bytes.eq_ignore_ascii_case(text.as_bytes()));
    let [url] = on(&redis);
    for options in [&[&*url][..], &[&*url, "--sealed"], &[&*url, "--honor-client-directives"]] {
        let site = Site::start(options, |request| {
            let echo = request.replace("\r\n", " ");
            let fields = match request.split(['/', ' ']).nth(2).unwrap_or_default() {
                "plain" => return fresh("the control is stored"),
                "private" => "Cache-Control: private, max-age=60\r\n",
                "no-store" => "Cache-Control: no-store, max-age=60\r\n",
                "no-cache" => "Cache-Control: no-cache\r\n",
                "malformed" => "Cache-Control: max-age=60, x=\"\r\n",
                "session" => "Cache-Control: max-age=60\r\nSet-Cookie: needle=1\r\n",
                "star" => "Cache-Control: max-age=60\r\nVary: *\r\n",
                "silent" => "",
                "lengths" => "Cache-Control: max-age=60\r\nContent-Length: 4\r\n",
                _ => FRESH,
            };
            response("200 OK", fields, &echo)
        })
        .await;
        let needle = "X-Needle: needle\r\nCookie: needle=needle\r\nReferer: http://needle/\r\n";
        let mut requests = Vec::new();
        for path in "private no-store no-cache malformed session star silent lengths".split(' ') {
            requests.push(get(&format!("/{path}"), needle));
            requests.push(get(&format!("/{path}"), needle).replacen("GET", "HEAD", 1));
        }
        for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "QUERY", "PURGE", "get", "NEEDLE"] {
            requests
                .push(get("/fresh", &format!("{needle}Content-Length: 6\r\n")).replacen("GET", method, 1) + "needle");
        }
        for fields in ["Content-Length: 6\r\n", "Authorization: Basic needle\r\nContent-Length: 6\r\n"] {
            requests.push(get("/fresh", &format!("{needle}{fields}")) + "needle");
        }
        requests.push(get("/fresh", &format!("{needle}Authorization: Basic needle\r\n")));
        requests.push(get("/fresh", &format!("{needle}Transfer-Encoding: chunked\r\n")) + "6\r\nneedle\r\n0\r\n\r\n");
        // Of what is no request at all, not even the target.
        for fields in [
            "Host: needle\r\n",
            "Transfer-Encoding: gzip\r\n",
            "Content-Length: 1\r\nContent-Length: 2\r\n",
            "Content-Length: x\r\n",
            "X-Meta: a\0needle\r\n",
            "X-Meta: a\rneedle\r\n",
            " X-Folded: needle\r\n",
            "X-Needle : needle\r\n",
        ] {
            requests.push(get("/needle?needle", &format!("{needle}{fields}")));
        }
        requests.push(get("/needle", &format!("{needle}X-Big: {}\r\n", "needle".repeat(100_000))));
        requests.push(get("/needle", needle).replacen("shop", "needle@shop", 1));
        requests.push(get("http://needle@shop/needle", needle));
        requests.push(get("/needle needle", needle));
        requests.push("CONNECT needle:443 HTTP/1.1\r\nHost: needle:443\r\nConnection: close\r\n\r\n".to_owned());
        for request in &requests {
            let answer = site.ask(request).await;
            assert!(!is_hit(&answer) && !answer.contains("; stored;"), "{request:?}: {answer}");
        }
        is_stored(&site, &get("/plain", "")).await;
        assert!(holds("the control is stored"));
        assert!(!holds("needle"), "{options:?}: {}", String::from_utf8_lossy(&written()));
        redis.cli(&["FLUSHALL"]);
    }
}
