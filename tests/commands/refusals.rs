//! What the commands refuse, and in which words.

use super::{errors, plain};

#[test]
fn too_many_threads_are_refused_before_anything_is_opened() {
    let dir = tempfile::tempdir().expect("made");
    let output = dir.path().join("out.jsonl");
    std::fs::write(&output, "kept\n").expect("written");
    let path = output.to_str().expect("text");
    let refused = plain(&["score", "--threads", "100000", "--output", path]);
    assert_eq!(refused.status.code(), Some(2), "{}", errors(&refused));
    let said = errors(&refused);
    assert!(said.contains("--threads") && said.contains("is 100000, over the limit of "), "{said}");
    assert_eq!(std::fs::read_to_string(&output).expect("read"), "kept\n");
    // A model that is not there ends a start that goes on.
    let refused = plain(&["serve", "--threads", "100000", "--port", "0", "--model", "/nonexistent"]);
    assert_eq!(refused.status.code(), Some(2), "{}", errors(&refused));
    assert!(errors(&refused).starts_with("verdict: threads: is 100000, over the limit of "));
}

#[test]
fn a_scale_that_no_table_holds_is_refused_by_line() {
    let dir = tempfile::tempdir().expect("made");
    let path = dir.path().join("judged.jsonl");
    for (grade, max_grade) in [("1e-300", "1e308"), ("1", "100000.0")] {
        let line = format!(
            "{{\"query_id\": \"q\", \"query\": \"x\", \"doc_id\": \"d\", \"text\": \"t\", \
             \"grade\": {grade}, \"max_grade\": {max_grade}}}\n"
        );
        std::fs::write(&path, line).expect("written");
        let output = plain(&["eval", "--judgments", path.to_str().expect("text")]);
        assert_eq!(output.status.code(), Some(2), "{}", errors(&output));
        let expected =
            format!("verdict: {}: line 1: max_grade: {max_grade}, over the limit of 1000\n", path.display());
        assert_eq!(errors(&output), expected);
    }
}
