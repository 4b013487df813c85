//! Parts of a representation that are stored, answer, and grow together (RFC 9111 sections 3.3 and 3.4).
#![cfg(feature = "testing")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod stage;

use http::{Request, request::Parts};
use http_body::Body;
use http_body_util::{BodyExt, Empty};
use larder::{BodyError, Cache, CacheLayer, Caching, CompleteLayer, Policy, Purge};
use stage::{Answer, Fields, LONG, Reply, Stage, answer, honest, joined, reply, told, wait};
use tower::{Layer, ServiceExt};

const WHOLE: &str = "0123456789";

/// An origin that answers one range of ten bytes, and whatever else with all of them.
fn in_parts(head: &Parts, _: usize) -> Reply {
    let tag = ("etag", "\"a\"");
    let Some(range) = head.headers.get("range") else { return reply(200, &[("cache-control", LONG), tag], WHOLE) };
    let (first, last) = range.to_str().unwrap().trim_start_matches("bytes=").split_once('-').unwrap();
    let (first, last) = (first.parse::<usize>().unwrap(), last.parse::<usize>().unwrap_or(9));
    let stated = format!("bytes {first}-{last}/10");
    reply(206, &[("cache-control", LONG), tag, ("content-range", &stated)], &WHOLE[first..=last])
}

async fn range(stage: &Stage, range: &str) -> Answer {
    stage.get(&[("range", range)]).await
}

#[tokio::test(start_paused = true)]
async fn a_stored_part_answers_for_what_it_has() {
    let stage = Stage::shared(in_parts);
    assert_eq!(range(&stage, "bytes=4-8").await.told(), told("MISS", 206, "45678"));
    for (asked, body, stated) in [
        ("bytes=4-8", "45678", "bytes 4-8/10"),
        ("bytes=5-6", "56", "bytes 5-6/10"),
        ("bytes=8-8", "8", "bytes 8-8/10"),
    ] {
        let answer = range(&stage, asked).await;
        assert_eq!(answer.told(), told("HIT", 206, body), "{asked}");
        assert_eq!(
            (answer.field("content-range"), answer.field("content-length")),
            (stated.to_owned(), body.len().to_string())
        );
    }
    let several = range(&stage, "bytes=4-4,8-8").await;
    assert_eq!((several.status, several.x_cache()), (206, "HIT".to_owned()));
    assert!(several.body.contains("Content-Range: bytes 8-8/10\r\n\r\n8\r\n"), "{}", several.body);
    assert_eq!(range(&stage, "bytes=10-").await.status, 416, "the length of the whole is known");
    assert_eq!(stage.get(&[("if-none-match", "\"a\"")]).await.status, 304);
    assert_eq!(stage.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_a_part_has_not_is_asked_of_the_origin() {
    for asked in ["bytes=0-4", "bytes=3-5", "bytes=6-", "bytes=9-9"] {
        let stage = Stage::shared(in_parts);
        range(&stage, "bytes=4-8").await;
        let answer = range(&stage, asked).await;
        assert_eq!((answer.status, answer.x_cache()), (206, "MISS".to_owned()), "{asked}");
        assert!(answer.tells("detail=partial") && answer.tells("fwd=partial"), "{answer:?}");
    }
    let stage = Stage::shared(in_parts);
    range(&stage, "bytes=4-8").await;
    assert_eq!(stage.get(&[]).await.told(), told("MISS", 200, WHOLE));
    assert_eq!(range(&stage, "bytes=0-2").await.told(), told("HIT", 206, "012"), "the whole has taken its place");
    assert_eq!(stage.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_part_is_no_answer_to_head_nor_to_a_condition_on_another() {
    let stage = Stage::shared(in_parts);
    range(&stage, "bytes=4-8").await;
    assert_ne!(stage.ask("HEAD", "/page", &[]).await.x_cache(), "HIT");
    let other = stage.get(&[("range", "bytes=4-5"), ("if-range", "\"b\"")]).await;
    assert_ne!(other.x_cache(), "HIT");
}

#[tokio::test(start_paused = true)]
async fn parts_grow_together_into_the_whole() {
    let stage = Stage::shared(in_parts);
    for asked in ["bytes=0-3", "bytes=4-6", "bytes=6-9"] {
        assert_eq!(range(&stage, asked).await.x_cache(), "MISS", "{asked}");
    }
    let answer = stage.get(&[]).await;
    assert_eq!(answer.told(), told("HIT", 200, WHOLE));
    assert_eq!((answer.field("content-range"), answer.field("content-length")), (String::new(), "10".to_owned()));
    assert_eq!(stage.calls(), 3);
}

#[tokio::test(start_paused = true)]
async fn parts_of_two_representations_are_never_one() {
    let stage = Stage::shared(|head, call| {
        let mut answer = in_parts(head, call)?;
        if call > 1 {
            answer.headers_mut().insert("etag", "\"b\"".parse().unwrap());
        }
        Ok(answer)
    });
    range(&stage, "bytes=0-4").await;
    range(&stage, "bytes=5-9").await;
    assert_eq!(stage.get(&[]).await.x_cache(), "MISS");
    let stage = Stage::shared(|head, call| {
        let mut answer = in_parts(head, call)?;
        answer.headers_mut().remove("etag");
        Ok(answer)
    });
    range(&stage, "bytes=0-4").await;
    range(&stage, "bytes=5-9").await;
    assert_eq!(range(&stage, "bytes=5-9").await.x_cache(), "HIT", "the later one has taken the place of the other");
    assert_eq!(stage.get(&[]).await.x_cache(), "MISS");
}

#[tokio::test(start_paused = true)]
async fn a_part_that_nobody_asked_for_or_that_cannot_be_placed_is_not_stored() {
    for (fields, asked) in [
        (&[("cache-control", LONG), ("content-range", "bytes 0-4/10")][..], None),
        (&[("cache-control", LONG), ("content-range", "bytes 0-4/*")], Some("bytes=0-4")),
        (&[("cache-control", LONG), ("content-type", "multipart/byteranges; boundary=x")], Some("bytes=0-4")),
        (
            &[("cache-control", LONG), ("content-range", "bytes 0-4/10"), ("content-range", "bytes 5-9/10")],
            Some("bytes=0-4"),
        ),
        (&[("cache-control", "no-store"), ("content-range", "bytes 0-4/10")], Some("bytes=0-4")),
    ] {
        let stage = Stage::shared(move |_, _| reply(206, fields, "01234"));
        let asked: Vec<_> = asked.map(|range| ("range", range)).into_iter().collect();
        for _ in 0..2 {
            assert_eq!(stage.get(&asked).await.told(), told("MISS", 206, "01234"), "{fields:?}");
            wait(61).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_part_that_is_stale_is_confirmed_before_it_answers() {
    let stage = Stage::shared(|head, call| match call {
        1 => {
            let mut answer = in_parts(head, call)?;
            answer.headers_mut().insert("cache-control", "max-age=10".parse().unwrap());
            Ok(answer)
        }
        _ => honest(head, "\"a\"", LONG, WHOLE),
    });
    range(&stage, "bytes=4-8").await;
    wait(20).await;
    assert_eq!(range(&stage, "bytes=5-6").await.told(), told("REVALIDATED", 206, "56"));
    assert_eq!(range(&stage, "bytes=5-6").await.told(), told("HIT", 206, "56"));
}

#[tokio::test(start_paused = true)]
async fn a_stale_part_is_never_the_answer_to_a_request_for_the_whole() {
    let stage = Stage::shared(|head, call| match call {
        1 => {
            let mut answer = in_parts(head, call)?;
            answer.headers_mut().insert("cache-control", "max-age=10, stale-if-error=1000".parse().unwrap());
            Ok(answer)
        }
        _ => reply(503, &[], "down"),
    });
    range(&stage, "bytes=4-8").await;
    assert_eq!(stage.get(&[]).await.told(), told("MISS", 503, "down"));
    wait(20).await;
    assert_eq!(stage.get(&[]).await.told(), told("MISS", 503, "down"));
    assert_eq!(range(&stage, "bytes=4-5").await.told(), told("STALE", 206, "45"));
}

#[tokio::test(start_paused = true)]
async fn an_application_and_a_sealed_layer_store_no_parts() {
    let sealed = CacheLayer::with_policy(Cache::in_memory(), Policy::shared_cache()).sealed();
    for stage in [Stage::application(in_parts), Stage::new(sealed, in_parts)] {
        for _ in 0..2 {
            assert_eq!(range(&stage, "bytes=4-8").await.told(), told("MISS", 206, "45678"));
            wait(61).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_in_answer_to_a_range_is_not_stored_for_others() {
    for status in [400, 403, 404, 416, 500] {
        let stage = Stage::shared(move |head, _| match head.headers.get("range") {
            Some(_) => reply(status, &[("cache-control", LONG)], "bad range"),
            None => reply(200, &[("cache-control", LONG)], WHOLE),
        });
        assert_eq!(range(&stage, "bytes=cow").await.status, status);
        assert_eq!(stage.get(&[]).await.told(), told("MISS", 200, WHOLE), "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_digest_goes_only_with_what_it_was_made_of() {
    let digests = ["content-digest", "content-md5"];
    let made_of = move |answer: Reply| {
        let mut answer = answer?;
        for name in digests {
            answer.headers_mut().insert(name, "of this".parse().unwrap());
        }
        answer.headers_mut().insert("repr-digest", "of the whole".parse().unwrap());
        Ok(answer)
    };
    let told_by = |answer: &Answer| {
        assert_eq!(answer.field("repr-digest"), "of the whole", "{answer:?}");
        digests.map(|name| answer.field(name))
    };
    let (of_this, of_nothing) = (["of this", "of this"].map(str::to_owned), [String::new(), String::new()]);
    let stage = Stage::shared(move |head, call| made_of(in_parts(head, call)));
    assert_eq!(told_by(&stage.get(&[]).await), of_this);
    assert_eq!(told_by(&stage.get(&[]).await), of_this);
    assert_eq!(told_by(&stage.ask("HEAD", "/page", &[]).await), of_this);
    for asked in ["bytes=2-4", "bytes=2-4,7-8", "bytes=10-"] {
        assert_eq!(told_by(&range(&stage, asked).await), of_nothing, "{asked}");
    }
    assert_eq!(told_by(&stage.get(&[("if-none-match", "\"a\"")]).await), of_nothing);
    let stage = Stage::shared(move |head, call| made_of(in_parts(head, call)));
    range(&stage, "bytes=0-3").await;
    assert_eq!(told_by(&range(&stage, "bytes=0-3").await), of_this);
    assert_eq!(told_by(&range(&stage, "bytes=1-3").await), of_nothing);
    range(&stage, "bytes=4-8").await;
    assert_eq!(told_by(&range(&stage, "bytes=0-8").await), of_nothing);
    assert_eq!(told_by(&completed(&stage, "GET", &[]).await), of_nothing);
    assert_eq!(told_by(&stage.get(&[]).await), of_nothing);
}

/// What a client gets where parts are completed.
async fn completed(stage: &Stage, method: &str, fields: Fields<'_>) -> Answer {
    let origin = CompleteLayer::new(Empty::new).layer(stage.origin.clone());
    answer(stage.layer.layer(origin), method, "/page", fields).await.unwrap()
}

/// An origin as [`in_parts`], whose second answer has this field besides.
fn with_the_rest(field: (&'static str, &'static str)) -> impl Fn(&Parts, usize) -> Reply + Send + Sync + 'static {
    move |head, call| {
        let mut answer = in_parts(head, call)?;
        if call == 2 {
            answer.headers_mut().insert(field.0, field.1.parse().unwrap());
        }
        Ok(answer)
    }
}

/// `Range` and `If-Range` of the requests that the origin saw, but for the first, which brought the part.
fn asked(stage: &Stage) -> Vec<(String, String)> {
    let seen = stage.origin.seen.lock().unwrap();
    seen.iter().skip(1).map(|(_, headers)| (joined(headers, "range"), joined(headers, "if-range"))).collect()
}

fn asks(of: &[(&str, &str)]) -> Vec<(String, String)> {
    of.iter().map(|(range, condition)| ((*range).to_owned(), (*condition).to_owned())).collect()
}

#[tokio::test(start_paused = true)]
async fn the_rest_of_a_part_is_asked_for_alone() {
    for (part, rest) in [("bytes=0-3", "bytes=4-"), ("bytes=7-9", "bytes=0-6")] {
        let stage = Stage::shared(in_parts);
        range(&stage, part).await;
        let whole = completed(&stage, "GET", &[]).await;
        assert_eq!(whole.told(), told("MISS", 200, WHOLE), "{part}");
        assert_eq!(
            (whole.field("content-range"), whole.field("content-length"), whole.field("etag")),
            (String::new(), "10".to_owned(), "\"a\"".to_owned())
        );
        assert_eq!(asked(&stage), asks(&[(rest, "\"a\"")]));
        assert_eq!(stage.get(&[]).await.told(), told("HIT", 200, WHOLE), "the whole is stored");
    }
}

#[tokio::test(start_paused = true)]
async fn more_than_the_rest_is_put_in_its_place_too() {
    for came in ["bytes 2-9/10", "bytes 0-9/10"] {
        let stage = Stage::shared(move |head, call| match call {
            1 => in_parts(head, call),
            _ => {
                let fields = [("etag", "\"a\""), ("content-range", came)];
                reply(206, &fields, &WHOLE[came[6..7].parse().unwrap()..])
            }
        });
        range(&stage, "bytes=0-3").await;
        assert_eq!(completed(&stage, "GET", &[]).await.told(), told("MISS", 200, WHOLE), "{came}");
        assert_eq!(stage.calls(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn an_origin_that_has_another_representation_by_now_sends_it() {
    let stage = Stage::shared(|head, call| match call {
        1 => in_parts(head, call),
        _ => reply(200, &[("cache-control", LONG), ("etag", "\"b\"")], "another"),
    });
    range(&stage, "bytes=0-3").await;
    assert_eq!(completed(&stage, "GET", &[]).await.told(), told("MISS", 200, "another"));
    assert_eq!(stage.get(&[]).await.told(), told("HIT", 200, "another"));
    assert_eq!(stage.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_put_together_is_asked_for_as_a_whole() {
    let cow = |status, etag: &'static str, stated: &'static str| {
        let fields = [("cache-control", LONG), ("etag", etag), ("content-range", stated)];
        reply(status, if stated.is_empty() { &fields[..2] } else { &fields }, "456789")
    };
    for (status, etag, stated) in [
        (206, "\"b\"", "bytes 4-9/10"),
        (206, "W/\"a\"", "bytes 4-9/10"),
        (206, "\"a\"", "bytes 4-8/10"),
        (206, "\"a\"", "bytes 5-9/10"),
        (206, "\"a\"", "bytes 4-9/11"),
        (206, "\"a\"", "bytes 4-9/*"),
        (206, "\"a\"", "bytes 9-4/10"),
        (206, "\"a\"", ""),
        (304, "\"a\"", ""),
        (416, "\"a\"", "bytes */4"),
        (400, "\"a\"", ""),
        (500, "\"a\"", ""),
    ] {
        let stage = Stage::shared(move |head, call| match call {
            2 => cow(status, etag, stated),
            _ => in_parts(head, call),
        });
        range(&stage, "bytes=0-3").await;
        assert_eq!(completed(&stage, "GET", &[]).await.told(), told("MISS", 200, WHOLE), "{status} {etag} {stated}");
        assert_eq!(asked(&stage), asks(&[("bytes=4-", "\"a\""), ("", "")]));
        assert_eq!(stage.get(&[]).await.told(), told("HIT", 200, WHOLE));
    }
}

#[tokio::test(start_paused = true)]
async fn a_rest_that_contradicts_itself_is_asked_for_as_a_whole() {
    for field in [
        ("content-length", "3"),
        ("content-length", "8"),
        ("content-length", "18446744073709551612"),
        ("content-length", "6, 7"),
        ("content-length", "six"),
        ("content-type", "Multipart/ByteRanges; boundary=x"),
    ] {
        let stage = Stage::shared(with_the_rest(field));
        range(&stage, "bytes=0-3").await;
        assert_eq!(completed(&stage, "GET", &[]).await.told(), told("MISS", 200, WHOLE), "{field:?}");
        assert_eq!(asked(&stage), asks(&[("bytes=4-", "\"a\""), ("", "")]));
    }
    let stage = Stage::shared(|head, call| {
        let mut answer = in_parts(head, call)?;
        answer.headers_mut().insert("transfer-encoding", "chunked".parse().unwrap());
        Ok(answer)
    });
    range(&stage, "bytes=0-3").await;
    let whole = completed(&stage, "GET", &[]).await;
    assert_eq!((whole.told(), whole.field("transfer-encoding").as_str()), (told("MISS", 200, WHOLE), ""));
}

#[tokio::test(start_paused = true)]
async fn parts_that_are_coded_otherwise_are_never_one() {
    for (coding, other) in [(Some("gzip"), "br"), (None, "gzip")] {
        let stage = Stage::shared(move |head, call| {
            let mut answer = in_parts(head, call)?;
            let coding = if call == 2 { Some(other) } else { coding };
            if let Some(coding) = coding {
                answer.headers_mut().insert("content-encoding", coding.parse().unwrap());
            }
            Ok(answer)
        });
        range(&stage, "bytes=0-3").await;
        let whole = completed(&stage, "GET", &[]).await;
        assert_eq!(
            (whole.told(), whole.field("content-encoding").as_str()),
            (told("MISS", 200, WHOLE), coding.unwrap_or(""))
        );
        assert_eq!(asked(&stage), asks(&[("bytes=4-", "\"a\""), ("", "")]));
    }
    let coded = Stage::shared(|head, call| {
        let mut answer = in_parts(head, call)?;
        if call == 1 {
            answer.headers_mut().insert("content-encoding", "gzip".parse().unwrap());
        }
        Ok(answer)
    });
    range(&coded, "bytes=0-3").await;
    let whole = completed(&coded, "GET", &[]).await;
    assert_eq!((whole.told(), whole.field("content-encoding").as_str()), (told("MISS", 200, WHOLE), "gzip"));
    assert_eq!(coded.calls(), 2, "a part need not say it again");
}

#[tokio::test(start_paused = true)]
async fn an_origin_that_cannot_be_reached_is_not_asked_twice() {
    let stage = Stage::shared(|head, call| match call {
        1 => in_parts(head, call),
        _ => {
            let mut answer = reply(504, &[], "too slow")?;
            answer.extensions_mut().insert(Caching::unreachable());
            Ok(answer)
        }
    });
    range(&stage, "bytes=0-3").await;
    assert_eq!(completed(&stage, "GET", &[]).await.status, 504);
    assert_eq!(stage.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_rest_of_a_part_without_a_strong_validator_is_of_use_only_if_it_is_the_whole() {
    const MODIFIED: (&str, &str) = ("last-modified", "Mon, 01 Jan 2024 00:00:00 GMT");
    for (validator, asked_first) in [(None, "bytes=4-"), (Some(("etag", "W/\"a\"")), ""), (Some(MODIFIED), "")] {
        let with = move |answer: Reply| {
            let mut answer = answer?;
            answer.headers_mut().remove("etag");
            if let Some((name, value)) = validator {
                answer.headers_mut().insert(name, value.parse().unwrap());
            }
            Ok(answer)
        };
        let in_parts_only = Stage::shared(move |head, call| with(in_parts(head, call)));
        range(&in_parts_only, "bytes=0-3").await;
        assert_eq!(completed(&in_parts_only, "GET", &[]).await.told(), told("MISS", 200, WHOLE));
        assert_eq!(asked(&in_parts_only)[0], (asked_first.to_owned(), String::new()), "{validator:?}");
        let whole_next = Stage::shared(move |head, call| match call {
            1 => with(in_parts(head, call)),
            _ => reply(200, &[("cache-control", LONG)], WHOLE),
        });
        range(&whole_next, "bytes=0-3").await;
        assert_eq!(completed(&whole_next, "GET", &[]).await.told(), told("MISS", 200, WHOLE));
        assert_eq!(asked(&whole_next), asks(&[(asked_first, "")]), "{validator:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn only_a_client_that_wants_the_whole_has_it_completed() {
    for (method, fields) in
        [("GET", &[("range", "bytes=2-8")][..]), ("GET", &[("if-match", "\"a\"")]), ("HEAD", &[]), ("POST", &[])]
    {
        let stage = Stage::shared(in_parts);
        range(&stage, "bytes=0-3").await;
        completed(&stage, method, fields).await;
        let range = fields.iter().find(|field| field.0 == "range").map_or("", |field| field.1);
        assert_eq!(asked(&stage), asks(&[(range, "")]), "{method} {fields:?}");
    }
    let stage = Stage::shared(in_parts);
    range(&stage, "bytes=4-5").await;
    assert_eq!(completed(&stage, "GET", &[]).await.told(), told("MISS", 200, WHOLE));
    assert_eq!(asked(&stage), asks(&[("", "")]), "no one range has all that is missing");
}

#[tokio::test(start_paused = true)]
async fn a_rest_of_another_length_breaks_off_and_is_not_stored() {
    for (part, stated, came, seen) in [
        ("bytes=0-3", "bytes 4-9/10", "456", "0123456"),
        ("bytes=0-3", "bytes 4-9/10", "", "0123"),
        ("bytes=0-3", "bytes 4-9/10", "4567890", "0123"),
        ("bytes=7-9", "bytes 0-6/10", "01234", "01234"),
        ("bytes=7-9", "bytes 0-6/10", "0123456XYZ", ""),
    ] {
        let stage = Stage::shared(move |head, call| match call {
            1 => in_parts(head, call),
            _ => reply(206, &[("cache-control", LONG), ("etag", "\"a\""), ("content-range", stated)], came),
        });
        range(&stage, part).await;
        let origin = CompleteLayer::new(Empty::new).layer(stage.origin.clone());
        let request = Request::builder().uri("/page").header("host", "shop.example").body(Empty::new()).unwrap();
        let response = stage.layer.layer(origin).oneshot(request).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-length"], "10");
        assert_eq!(response.body().size_hint().exact(), Some(10));
        let mut body = response.into_body();
        let mut read = String::new();
        let error = loop {
            match body.frame().await.expect("an error") {
                Ok(frame) => read.push_str(std::str::from_utf8(&frame.into_data().unwrap()).unwrap()),
                Err(error) => break error,
            }
        };
        assert_eq!((read.as_str(), error), (seen, BodyError::Inner(BodyError::Broken)), "{part} {came}");
        assert_eq!(stage.get(&[]).await.told(), told("MISS", 206, came), "{part} {came}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_told_of_a_part_to_who_knew_the_rest_is_not_stored() {
    let stage = Stage::shared(|head, call| {
        let mut answer = in_parts(head, call)?;
        if !head.headers.contains_key("if-range") {
            answer.headers_mut().insert("content-type", "application/pdf".parse().unwrap());
        }
        Ok(answer)
    });
    let resumed = stage.get(&[("range", "bytes=0-3"), ("if-range", "\"a\"")]).await;
    assert_eq!((resumed.status, resumed.field("content-type")), (206, String::new()));
    let whole = completed(&stage, "GET", &[]).await;
    assert_eq!((whole.told(), whole.field("content-type").as_str()), (told("MISS", 200, WHOLE), "application/pdf"));
    assert_eq!(asked(&stage), asks(&[("", "")]));
}

#[tokio::test(start_paused = true)]
async fn a_tag_of_either_part_reaches_the_whole() {
    for is_completed in [true, false] {
        for strips in [true, false] {
            let cache = Cache::in_memory();
            let layer = CacheLayer::with_policy(cache.clone(), Policy::shared_cache());
            let layer = if strips { layer.strip_tags() } else { layer };
            for tag in ["first", "rest"] {
                let stage = Stage::new(layer.clone(), |head, call| {
                    let mut answer = in_parts(head, call)?;
                    let tag = if call == 1 { "first" } else { "rest" };
                    answer.headers_mut().insert("cache-tag", tag.parse().unwrap());
                    Ok(answer)
                });
                range(&stage, "bytes=0-3").await;
                match is_completed {
                    true => _ = completed(&stage, "GET", &[]).await,
                    false => _ = range(&stage, "bytes=4-9").await,
                }
                assert_eq!(stage.get(&[]).await.told(), told("HIT", 200, WHOLE));
                cache.purge(Purge::tag(tag)).await.unwrap();
                assert_ne!(stage.get(&[]).await.x_cache(), "HIT", "{is_completed} {strips} {tag}");
                cache.purge(Purge::all()).await.unwrap();
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_that_is_not_about_the_range_is_passed_on() {
    for status in [401, 403, 404, 410, 429, 502, 503, 504] {
        let stage = Stage::shared(move |head, call| match call {
            1 => in_parts(head, call),
            _ => reply(status, &[], "no"),
        });
        range(&stage, "bytes=0-3").await;
        assert_eq!(completed(&stage, "GET", &[]).await.told(), told("MISS", status, "no"));
        assert_eq!(stage.calls(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn what_another_cache_around_has_of_a_response_is_not_stored_by_this_one() {
    let inner = CacheLayer::with_policy(Cache::in_memory(), Policy::shared_cache()).no_default_ttl().sealed();
    let stage = Stage::shared(in_parts);
    range(&stage, "bytes=0-3").await;
    let origin = inner.layer(CompleteLayer::new(Empty::new).layer(stage.origin.clone()));
    assert_eq!(
        answer(stage.layer.layer(origin), "GET", "/page", &[]).await.unwrap().told(),
        told("MISS, MISS", 200, WHOLE)
    );
    assert_eq!(asked(&stage), asks(&[("", "")]));
}

#[tokio::test(start_paused = true)]
async fn a_rest_that_may_not_be_stored_goes_to_its_client_only() {
    for field in [("cache-control", "no-store"), ("cache-control", "private"), ("set-cookie", "a=1")] {
        let stage = Stage::shared(with_the_rest(field));
        range(&stage, "bytes=0-3").await;
        let whole = completed(&stage, "GET", &[]).await;
        assert_eq!((whole.told(), whole.field(field.0).as_str()), (told("MISS", 200, WHOLE), field.1));
        assert_eq!(stage.get(&[]).await.x_cache(), "BYPASS", "{field:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_the_whole_shares_the_one_that_is_completed() {
    let stage = Stage::shared(in_parts);
    range(&stage, "bytes=0-3").await;
    let (one, other) = tokio::join!(completed(&stage, "GET", &[]), completed(&stage, "GET", &[]));
    assert_eq!((one.told(), other.told()), (told("MISS", 200, WHOLE), told("MISS", 200, WHOLE)));
    assert!(!one.tells("collapsed") && other.tells("collapsed"), "{other:?}");
    assert_eq!(stage.calls(), 2);
}
