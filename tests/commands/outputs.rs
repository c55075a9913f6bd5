//! Where what is written does not arrive: a reader that left, and a full disk.

use std::{
    fs::{File, OpenOptions},
    path::Path,
    process::{Output, Stdio},
};

use super::{command, errors};

/// Judgments of a few queries with five documents each, on a scale up to 2.
pub(super) fn judgments(queries: usize) -> String {
    let line = |query: usize, i: usize| {
        serde_json::json!({"query_id": query.to_string(), "query": format!("q{query}"), "doc_id": i.to_string(),
                           "text": "word ".repeat(i + 1), "grade": i % 3, "max_grade": 2})
    };
    (0..queries).flat_map(|query| (0..5).map(move |i| format!("{}\n", line(query, i)))).collect()
}

/// Every command that prints, with what it reads.
fn printing(dir: &Path) -> Vec<Vec<String>> {
    let file = |name: &str, text: &str| {
        std::fs::write(dir.join(name), text).expect("written");
        dir.join(name).to_str().expect("text").to_owned()
    };
    let judged = file("judged.jsonl", &judgments(5));
    let pairs = file("pairs.jsonl", &"{\"query\": \"q\", \"document\": \"d\"}\n".repeat(3));
    let commands = [
        vec!["eval", "--judgments", &judged],
        vec!["eval", "--json", "--judgments", &judged],
        vec!["calibrate", "--judgments", &judged],
        vec!["verify", "--prompts", "2"],
        vec!["score", "--input", &pairs],
    ];
    commands.into_iter().map(|words| words.into_iter().map(str::to_owned).collect()).collect()
}

fn run(arguments: &[String], output: impl Into<Stdio>) -> Output {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    command(&arguments, "qwen3").stdin(Stdio::null()).stdout(output).output().expect("runs")
}

fn full() -> File {
    OpenOptions::new().write(true).open("/dev/full").expect("a full disk")
}

#[test]
fn a_reader_that_left_ends_a_command_quietly() {
    let dir = tempfile::tempdir().expect("made");
    for arguments in printing(dir.path()) {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let output = run(&arguments, writer);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", errors(&output));
        assert_eq!(errors(&output), "", "{arguments:?}");
    }
}

#[test]
fn a_full_disk_is_told_and_exits_with_1() {
    let dir = tempfile::tempdir().expect("made");
    for arguments in printing(dir.path()) {
        let output = run(&arguments, full());
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", errors(&output));
        let said = errors(&output);
        assert!(said.contains("verdict: standard output cannot be written: No space left"), "{said}");
    }
}

#[test]
fn progress_that_cannot_be_told_does_not_end_the_work() {
    let dir = tempfile::tempdir().expect("made");
    let (pairs, scores) = (dir.path().join("pairs.jsonl"), dir.path().join("scores.jsonl"));
    std::fs::write(&pairs, "{\"query\": \"q\", \"document\": \"d\"}\n").expect("written");
    let words =
        ["score", "--input", pairs.to_str().expect("text"), "--output", scores.to_str().expect("text")];
    let status = command(&words, "qwen3").stdin(Stdio::null()).stderr(full()).status().expect("runs");
    assert_eq!(status.code(), Some(0));
    assert_eq!(std::fs::read_to_string(&scores).expect("written").lines().count(), 1);
}
