//! What holds for whatever bytes come, asked of the cases that were written by hand, and of those that a fuzzer found to
//! take ways of their own. `cargo xtask fuzz` looks for more.

#[path = "../../fuzz/src/lib.rs"]
#[expect(unreachable_pub, reason = "the fuzzer's targets reach it")]
mod properties;

use properties::{dates, directives, envelope, keys, ranges, vary};
use std::{fs, path::Path};

/// Asks a property of every case in its corpus.
fn replay(corpus: &str, hold: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(corpus);
    let cases = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<_> = cases.map(|case| case.expect("a file").path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} is empty", folder.display());
    for path in paths {
        // Shown when it fails.
        println!("{}", path.display());
        hold(&fs::read(&path).expect("a file"));
    }
}

#[test]
fn directives_are_read_as_the_grammar_has_them_and_what_forbids_storing_is_not_stored() {
    replay("directives", directives::hold);
}

#[test]
fn dates_come_to_what_arithmetic_without_bounds_has_and_nothing_is_fresh_again() {
    replay("dates", dates::hold);
}

#[test]
fn no_variant_answers_a_request_that_says_something_else() {
    replay("vary", vary::hold);
}

#[test]
fn the_parts_of_an_answer_lie_inside_the_body_and_are_what_was_sent() {
    replay("ranges", ranges::hold);
}

#[test]
fn no_text_spells_the_key_of_another() {
    replay("keys", keys::hold);
}

#[test]
fn bytes_are_read_as_the_entry_that_was_written_or_as_none() {
    replay("envelope", envelope::hold);
}
