//! What a gateway that is started with `--sealed` holds beyond the protocol: the hardening cases of published attacks.
//!
//! Each test is named after its case. An attacker's request goes first, then a victim's plain one, which must never get
//! what the first made the upstream produce. Cases that hold without `--sealed` too are tried both ways.

mod attacks_wire;

use attacks_wire::*;
use bytes::Bytes;
use http::Request;
use http_body::Frame;
use http_body_util::{BodyExt, Channel};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::net::TcpStream;

const SEALED: &[&str] = &["--sealed"];
const BOTH: [&[&str]; 2] = [&[], SEALED];
const OLD: &str = "Last-Modified: Mon, 01 Jan 2024 00:00:00 GMT\r\n";

/// What the victim gets from a sealed gateway after `attack`, of an upstream that answers with the plain page unless it
/// sees a field that ought to be unknown to it.
async fn unkeyed(attack: &str, stumbles: &'static str) -> String {
    let site = Site::start(SEALED, move |request| {
        let known = ["host:", "via:", "content-length:", "transfer-encoding:", "range:", "if-range:"];
        let unknown = request.split("\r\n\r\n").next().unwrap_or_default().to_lowercase();
        let unknown = unknown.split("\r\n").skip(1).any(|line| !known.iter().any(|name| line.starts_with(name)));
        if unknown { stumbles.to_owned() } else { fresh("body") }
    })
    .await;
    let first = site.ask(attack).await;
    let answer = site.ask(VICTIM).await;
    assert!(is_hit(&site.ask(VICTIM).await), "{attack:?}: {first}\n{answer}");
    assert!(!site.saw("evil"), "{attack:?} reaches the upstream");
    answer
}

/// Each of these lines alone, and all at once.
async fn all_unkeyed(lines: &[&str], stumbles: &'static str) {
    let all = lines.iter().map(|line| format!("{line}\r\n")).collect::<String>();
    for fields in lines.iter().map(|line| format!("{line}\r\n")).chain([all]) {
        let answer = unkeyed(&get("/page", &fields), stumbles).await;
        assert!(answer.starts_with("HTTP/1.1 200") && body(&answer) == "body", "{fields:?}: {answer}");
    }
}

/// The upstream builds links with what a proxy is believed to have said of the host.
#[tokio::test]
async fn unkeyed_forwarding() {
    all_unkeyed(
        &[
            "X-Forwarded-Host: evil",
            "x-forwarded-host: evil",
            "X-Forwarded-Server: evil",
            "X-Forwarded-Port: 1337 evil",
            "X-Forwarded-Prefix: /evil",
            "X-Forwarded-For: evil",
            "X-Host: evil",
            "X-HTTP-Host-Override: evil",
            "X-Original-Host: evil",
            "X-Real-IP: evil",
            "Forwarded: host=evil",
            "Via: 1.1 evil",
            "X_Forwarded_Host: evil",
        ],
        "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 20\r\n\r\n<script src=//evil/>",
    )
    .await;
}

/// The upstream believes that it was asked over plain HTTP, and sends everybody to where they are.
#[tokio::test]
async fn unkeyed_scheme_redirect() {
    all_unkeyed(
        &[
            "X-Forwarded-Proto: http",
            "X-Forwarded-Protocol: http",
            "X-Forwarded-Scheme: nothttps",
            "X-Forwarded-SSL: off",
            "X-URL-Scheme: http",
            "Front-End-Https: off",
            "CloudFront-Forwarded-Proto: http",
        ],
        "HTTP/1.1 301 Moved\r\nCache-Control: max-age=60\r\nLocation: https://shop/page\r\nContent-Length: 0\r\n\r\n",
    )
    .await;
    for scheme in ["http", "https", "ftp", "HTTP"] {
        let answer = unkeyed(&get("/page", "").replacen("/page", &format!("{scheme}://shop/page"), 1), "").await;
        assert!(body(&answer) == "body", "{scheme}: {answer}");
    }
}

/// The upstream answers for another path than the one that was asked for.
#[tokio::test]
async fn unkeyed_url_rewrite() {
    all_unkeyed(
        &["X-Original-URL: /evil", "X-Rewrite-URL: /evil", "X-Original-URI: /evil", "X-Forwarded-Path: /evil"],
        "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 5\r\n\r\nadmin",
    )
    .await;
}

/// The upstream answers another method than the one that was asked for.
#[tokio::test]
async fn unkeyed_method_override() {
    all_unkeyed(
        &[
            "X-HTTP-Method-Override: POST",
            "X-HTTP-Method: PUT",
            "X-Method-Override: HEAD",
            "X-HTTP-Method-Override: evil",
        ],
        "HTTP/1.1 404 Not Found\r\nCache-Control: max-age=60\r\nContent-Length: 2\r\n\r\nno",
    )
    .await;
}

/// A cookie is written into a page for everybody.
#[tokio::test]
async fn unkeyed_cookie() {
    all_unkeyed(
        &["Cookie: language=evil", "cookie: a=b; fehost=\"};evil()\"", "Cookie: \r\nCookie: x=evil", "Cookie2: evil"],
        "HTTP/1.1 200 OK\r\nCache-Control: public, max-age=60\r\nContent-Length: 4\r\n\r\nevil",
    )
    .await;
}

/// Scripts of one site may read the page, and those of no other.
#[tokio::test]
async fn unkeyed_origin() {
    all_unkeyed(
        &[
            "Origin: https://evil",
            "Origin: null",
            "Referer: https://evil/",
            "Sec-Fetch-Site: cross-site",
            "Access-Control-Request-Method: evil",
        ],
        "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nAccess-Control-Allow-Origin: https://evil\r\n\
         Content-Length: 3\r\n\r\nfor",
    )
    .await;
}

/// A body in a coding that the victim cannot undo.
#[tokio::test]
async fn unkeyed_encoding() {
    all_unkeyed(
        &[
            "Accept-Encoding: gzip",
            "Accept-Encoding: br;q=1, *;q=0",
            "Accept-Encoding: x-evil",
            "TE: gzip",
            "TE: trailers\r\nConnection: TE",
            "A-IM: gzip",
        ],
        "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n\x1f\u{b}",
    )
    .await;
}

/// A client that asks for the upstream itself is heard, but not shown as it is.
#[tokio::test]
async fn unkeyed_beside_client_directives() {
    for directive in ["no-cache", "no-store", "max-age=0", "min-fresh=1000", "max-stale", "no-cache, no-store"] {
        let site = Site::start(&["--sealed", "--honor-client-directives"], |request| {
            fresh(if has(request, "x-forwarded-host") { "evil" } else { "body" })
        })
        .await;
        for _ in 0..2 {
            site.ask(&get("/page", &format!("Cache-Control: {directive}\r\nX-Forwarded-Host: evil\r\n"))).await;
            let answer = site.ask(VICTIM).await;
            assert_eq!(body(&answer), "body", "{directive}: {answer}");
        }
    }
}

/// A request that passes as it is, for its credentials or its method, leaves nothing for others.
#[tokio::test]
async fn unkeyed_beside_what_passes() {
    for (method, fields) in [
        ("GET", "Authorization: Basic YTpi\r\n"),
        ("HEAD", "Authorization: Basic YTpi\r\n"),
        ("HEAD", ""),
        ("POST", "Content-Length: 0\r\n"),
        ("PUT", "Content-Length: 0\r\n"),
        ("QUERY", "Content-Length: 0\r\n"),
        ("GET", "Content-Length: 0\r\n"),
        ("GET", "Range: bytes=0-1\r\n"),
        ("GET", "If-None-Match: \"e\"\r\n"),
    ] {
        for directive in ["public, max-age=60", "s-maxage=60", "max-age=60, must-revalidate"] {
            let site = Site::start(SEALED, move |request| {
                let fields = format!("Cache-Control: {directive}\r\nContent-Location: /page\r\nETag: \"e\"\r\n");
                response("200 OK", &fields, if has(request, "x-forwarded-host") { "evil" } else { "body" })
            })
            .await;
            let attack = get("/page", &format!("{fields}X-Forwarded-Host: evil\r\n")).replacen("GET", method, 1);
            let first = site.ask(&attack).await;
            let answer = site.ask(VICTIM).await;
            assert!(
                answer.starts_with("HTTP/1.1 200") && body(&answer) == "body",
                "{method} {fields:?}: {first}\n{answer}"
            );
        }
    }
}

/// While a resource is known to be uncacheable its requests pass, and are stored again as soon as they may be.
#[tokio::test]
async fn unkeyed_after_a_refusal() {
    for refused in ["Cache-Control: private\r\n", "Cache-Control: max-age=60\r\nSet-Cookie: a=1\r\n", "Vary: *\r\n", ""]
    {
        let requests = AtomicUsize::new(0);
        let site = Site::start(SEALED, move |request| {
            let fields = if requests.fetch_add(1, Ordering::SeqCst) < 2 { refused } else { FRESH };
            response("200 OK", fields, if has(request, "x-forwarded-host") { "evil" } else { "body" })
        })
        .await;
        site.ask(VICTIM).await;
        assert_eq!(field(&site.ask(VICTIM).await, "x-cache"), "BYPASS", "{refused:?}");
        site.ask(&get("/page", "X-Forwarded-Host: evil\r\n")).await;
        let answer = site.ask(VICTIM).await;
        assert_eq!(body(&answer), "body", "{refused:?}: {answer}");
    }
}

/// A spelling of the host that the key does not tell apart makes the upstream answer for one that it does not know.
#[tokio::test]
async fn key_host_spelling() {
    for options in BOTH {
        for host in ["SHOP", "Shop"] {
            let site = Site::start(options, |request| fresh(&format!("//{}/", field(request, "host")))).await;
            let first = site.ask(&VICTIM.replace("shop", host)).await;
            let answer = site.ask(VICTIM).await;
            assert_eq!(body(&answer), "//shop/", "{options:?} {host:?}: {first}");
        }
    }
}

/// A GET with a body: the upstream reads its parameters there, and the cache does not look.
#[tokio::test]
async fn fat_get() {
    for options in BOTH {
        for (fields, content) in [
            ("Content-Length: 4\r\n", "evil"),
            ("Content-Length: 4\r\nContent-Type: application/x-www-form-urlencoded\r\n", "evil"),
            ("Transfer-Encoding: chunked\r\n", "4\r\nevil\r\n0\r\n\r\n"),
            ("Content-Length: 4\r\nX-HTTP-Method-Override: POST\r\n", "evil"),
            ("Content-Length: 4\r\nConnection: content-length\r\n", "evil"),
            ("Content-Length: 4\r\nExpect: 100-continue\r\n", "evil"),
        ] {
            let site =
                Site::start(options, |request| fresh(if body(request).contains("evil") { "evil" } else { "good" }))
                    .await;
            let first = site.ask(&(get("/page", fields) + content)).await;
            let answer = site.ask(VICTIM).await;
            assert_eq!(body(&answer), "good", "{options:?} {fields:?}: {first}");
        }
    }
}

/// The same over HTTP/2, where no field needs to say that there is a body.
#[tokio::test]
async fn fat_get_over_http_2() {
    for options in BOTH {
        let site =
            Site::start(options, |request| fresh(if body(request).contains("evil") { "evil" } else { "good" })).await;
        let stream = TokioIo::new(TcpStream::connect(site.gateway).await.unwrap());
        let (mut client, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
        tokio::spawn(connection);
        let (mut sender, content) = Channel::<Bytes>::new(1);
        sender.try_send(Frame::data(Bytes::from("evil"))).unwrap();
        drop(sender);
        let response = client.send_request(Request::get("http://shop/page").body(content).unwrap()).await.unwrap();
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "evil");
        assert_eq!(body(&site.ask(VICTIM).await), "good", "{options:?}");
    }
}

/// An answer that opens a session is given to everybody.
#[tokio::test]
async fn set_cookie() {
    for options in [&[][..], SEALED, &["--default-ttl=60"], &["--sealed", "--default-ttl=60"]] {
        for directive in ["max-age=60", "public, max-age=60", "s-maxage=60", "x"] {
            let site = Site::start(options, move |_| {
                let fields = format!("Cache-Control: {directive}\r\nSet-Cookie: session=1\r\n{OLD}");
                response("200 OK", &fields, "body")
            })
            .await;
            for number in 1..=2 {
                assert!(!is_hit(&site.ask(VICTIM).await), "{options:?} {directive}");
                assert_eq!(site.requests(), number, "{options:?} {directive}");
            }
        }
    }
}

/// A private page of which the upstream says nothing, under a name that looks static.
#[tokio::test]
async fn deception_silent() {
    for options in [&[][..], SEALED, &["--default-ttl=60"], &["--sealed", "--default-ttl=60"]] {
        for target in
            ["/account/x.css", "/account;x.css", "/account%2fx.css", "/account%00.css", "/account?x.css", "/robots.txt"]
        {
            for credentials in [
                "Cookie: user=alice\r\n",
                "Authorization: Basic YTpi\r\n",
                "Cookie: user=alice\r\nAuthorization: x\r\n",
            ] {
                let site = Site::start(options, |request| {
                    let is_known = has(request, "cookie") || has(request, "authorization");
                    response("200 OK", OLD, if is_known { "secret" } else { "login" })
                })
                .await;
                site.ask(&get(target, credentials)).await;
                let answer = site.ask(&get(target, "")).await;
                assert_eq!(body(&answer), "login", "{options:?} {target} {credentials:?}");
            }
        }
    }
}

/// A bad `Range`, which a sealed upstream sees where nothing is stored, gives an error that the upstream marks fresh.
#[tokio::test]
async fn range_416() {
    for range in ["bytes=cow", "bytes=9-", "bytes=-0", "cow", "bytes=5-1", "bytes=0-0,0-0,0-0"] {
        for (options, status) in [
            (&[][..], "416 Range Not Satisfiable"),
            (&[], "206 Partial Content"),
            (SEALED, "416 Range Not Satisfiable"),
            (SEALED, "206 Partial Content"),
            (SEALED, "400 Bad Request"),
            (SEALED, "403 Forbidden"),
            (SEALED, "500 Internal Server Error"),
            (SEALED, "200 OK"),
        ] {
            let site = Site::start(options, move |request| {
                if has(request, "range") { response(status, FRESH, "bad") } else { fresh("body") }
            })
            .await;
            let first = site.ask(&get("/page", &format!("Range: {range}\r\n"))).await;
            let answer = site.ask(VICTIM).await;
            let is_page = answer.starts_with("HTTP/1.1 200") && body(&answer) == "body";
            assert!(is_page, "{options:?} {range} {status}: {first}\n{answer}");
        }
    }
}

/// The upstream stumbles over a field, and marks its error fresh as everything: sealed, it never sees the field.
#[tokio::test]
async fn error_fresh() {
    let large = format!("X-Big: {}", "a".repeat(20 << 10));
    let cookie = format!("Cookie: a={}", "a".repeat(20 << 10));
    for error in [
        "HTTP/1.1 400 Bad Request\r\nCache-Control: max-age=60\r\nContent-Length: 3\r\n\r\nbad",
        "HTTP/1.1 404 Not Found\r\nCache-Control: public, s-maxage=60\r\nContent-Length: 3\r\n\r\nbad",
        "HTTP/1.1 503 Unavailable\r\nExpires: Fri, 01 Jan 2100 00:00:00 GMT\r\nContent-Length: 3\r\n\r\nbad",
    ] {
        all_unkeyed(
            &[
                "X-Bad: 1",
                "Accept: \u{e9}",
                "Accept-Language: **evil",
                "Accept-Charset: evil",
                "If-None-Match: evil",
                "If-Match: \"evil\"",
                "If-Modified-Since: evil",
                "If-Unmodified-Since: Mon, 01 Jan 2001 00:00:00 GMT",
                "Expect: evil",
                "Upgrade: evil",
                "Connection: Upgrade\r\nUpgrade: h2c",
                "Connection: Host",
                "Connection: X-Evil\r\nX-Evil: 1",
                "Content-Type: evil",
                "Content-Encoding: evil",
                "Max-Forwards: 0",
                "User-Agent: () { :;}; evil",
                "Proxy: evil",
                "Purpose: prefetch",
                "X-Middleware-Prefetch: 1",
                "Rsc: 1",
                &large,
                &cookie,
            ],
            error,
        )
        .await;
    }
}

/// Anybody asks the cache to forget a page.
#[tokio::test]
async fn purge_open() {
    for options in BOTH {
        let site = Site::start(options, |request| {
            let allowed = request.starts_with("GET ");
            if allowed { fresh("body") } else { response("405 Method Not Allowed", "Allow: GET\r\n", "no") }
        })
        .await;
        site.ask(VICTIM).await;
        let methods =
            "PURGE BAN BANURL REFRESH FLUSH INVALIDATE PURGETAG URIBAN SOFTPURGE REFETCH purge DELETE".split(' ');
        let named = |name| {
            ["*", "1", ".*", "/page", "no-cache", "\"shop\""].map(|value| get("/page", &format!("{name}: {value}\r\n")))
        };
        let fields =
            "X-Purge X-Purge-Key X-Purge-Regex X-Ban X-Ban-Url X-Cache-Tags Cache-Tag Surrogate-Key xkey-purge \
                      X-Invalidate X-Refresh X-Magento-Tags-Pattern Cache-Control Pragma Cache-Group-Invalidation \
                      Cache-Groups"
                .split(' ')
                .flat_map(named);
        for attack in methods.map(|method| VICTIM.replacen("GET", method, 1)).chain(fields) {
            site.ask(&attack).await;
            let answer = site.ask(VICTIM).await;
            assert!(is_hit(&answer) && body(&answer) == "body", "{options:?} {attack:?}: {answer}");
        }
    }
}
