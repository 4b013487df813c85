//! Parts of a representation that are stored, answer, and grow together (RFC 9111 sections 3.3 and 3.4).
#![cfg(feature = "testing")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod stage;

use http::request::Parts;
use larder::{Cache, CacheLayer, Policy};
use stage::{Answer, LONG, Reply, Stage, honest, reply, told, wait};

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
