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
