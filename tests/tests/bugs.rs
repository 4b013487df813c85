//! The page of bugs that others had: the tests that it names exist, and it has what tests refer to.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every Rust source of the crates and of the tests.
fn sources() -> Vec<String> {
    let (mut folders, mut sources) = (vec![root().join("crates"), root().join("tests")], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                sources.push(fs::read_to_string(&path).expect("a source"));
            }
        }
    }
    sources
}

/// The number at the beginning of a text.
fn number(text: &str) -> Option<u32> {
    text.split(|byte: char| !byte.is_ascii_digit()).next()?.parse().ok()
}

#[test]
fn the_page_of_bugs_names_tests_that_exist_and_has_what_tests_refer_to() {
    let page = fs::read_to_string(root().join("tests/BUGS.md")).expect("the page");
    let (cases, rows) = page.split_once("## Other caches").expect("two lists");
    let numbers = |list: &str| -> BTreeSet<u32> {
        list.lines().filter_map(|line| number(line.strip_prefix("| ")?.trim_start())).collect()
    };
    let sources = sources();
    assert!(sources.len() > 100, "{} sources", sources.len());

    let listed = page.lines().filter(|line| line.starts_with("| "));
    let named: BTreeSet<&str> =
        listed.flat_map(|line| line.split('`').skip(1).step_by(2)).filter(|name| name.contains('_')).collect();
    assert!(named.len() > 50, "{named:?}");
    let is_test = |name: &&str| sources.iter().any(|source| source.contains(&format!("fn {name}(")));
    let lost: Vec<_> = named.iter().filter(|name| !is_test(name)).collect();
    assert!(lost.is_empty(), "no tests: {lost:?}");

    let after = |word: &str| -> BTreeSet<u32> {
        sources.iter().flat_map(|source| source.split(word).skip(1)).filter_map(number).collect()
    };
    for (word, known) in [("/// Case ", numbers(cases)), ("fn row_", numbers(rows))] {
        let referred = after(word);
        assert!(referred.len() > 10 && referred.is_subset(&known), "{word:?}: {referred:?} but {known:?}");
    }
}
