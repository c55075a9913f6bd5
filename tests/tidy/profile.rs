//! Every key of a profile is in its reference.

use crate::{read, report};

const FILE: &str = "src/profile/file.rs";
const REFERENCE: &str = "docs/profile.md";

/// The keys that the tables of a profile take, but for the tables themselves.
fn keys(source: &str) -> impl Iterator<Item = (&str, &str)> {
    let fields = source.lines().filter_map(|line| line.trim().strip_prefix("pub(super) ")?.split_once(": "));
    fields.filter(|(name, _)| !name.contains(' '))
}

/// What the reference does not tell of.
fn missing(source: &str, reference: &str) -> Vec<String> {
    let told = |name: &str, kind: &str| {
        let headings = [format!("`[{name}]`"), format!("`[[{name}]]`"), format!("`[explain.{name}]`")];
        let row = format!("`{name}`");
        let is_table = kind.contains("Table");
        let rows = || reference.lines().filter_map(|line| line.strip_prefix("| ")?.split(" |").next());
        if is_table {
            headings.iter().any(|heading| reference.contains(heading))
        } else {
            rows().any(|cell| cell.contains(&row))
        }
    };
    keys(source)
        .filter(|(name, kind)| !told(name, kind))
        .map(|(name, _)| format!("{FILE}: {name} is not in {REFERENCE}"))
        .collect()
}

#[test]
fn a_key_that_is_not_told_of_is_found() {
    let source =
        "pub(super) struct File {\n    pub(super) name: String,\n    pub(super) score: ScoreTable,\n}";
    assert_eq!(missing(source, "| `name` | |\n## `[score]`"), [""; 0]);
    assert_eq!(missing(source, "`name`\n").len(), 2);
}

#[test]
fn every_key_of_a_profile_is_in_its_reference() {
    assert!(keys(&read(FILE)).count() > 25, "the keys are found");
    report(&missing(&read(FILE), &read(REFERENCE)));
}
