//! What the commands refuse, and in which words.

use std::{fs::OpenOptions, process::Command};

use super::{command, errors, outputs::judgments, plain};

/// `verdict` without a model, to be given its streams.
fn command_of(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_verdict"));
    command.args(arguments).env_remove("VERDICT_MODEL");
    command
}

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

#[test]
fn the_input_is_never_written_over() {
    let dir = tempfile::tempdir().expect("made");
    let place = |name: &str| dir.path().join(name).to_str().expect("text").to_owned();
    let (input, link, hard) = (place("pairs.jsonl"), place("link.jsonl"), place("hard.jsonl"));
    let lines = "{\"query\": \"q\", \"document\": \"d\"}\n";
    std::fs::write(&input, lines).expect("written");
    std::os::unix::fs::symlink(&input, &link).expect("linked");
    std::fs::hard_link(&input, &hard).expect("linked");
    for command in ["score", "prompt"] {
        for output in [&input, &link, &hard] {
            let refused = plain(&[command, "--input", &input, "--output", output]);
            assert_eq!(refused.status.code(), Some(2), "{}", errors(&refused));
            let expected = format!(
                "verdict: output: {output} is the file of the input, {input}, and would be emptied\n"
            );
            assert_eq!(errors(&refused), expected);
            assert_eq!(std::fs::read_to_string(&input).expect("read"), lines);
        }
        let file = || OpenOptions::new().read(true).append(true).open(&input).expect("opens");
        let standard = command_of(&[command]).stdin(file()).stdout(file()).output().expect("runs");
        assert_eq!(standard.status.code(), Some(2), "{}", errors(&standard));
        assert!(
            errors(&standard).contains("output: standard output is the file of the input, standard input")
        );
    }
}

#[test]
fn a_calibration_needs_pairs() {
    let dir = tempfile::tempdir().expect("made");
    let path = dir.path().join("judged.jsonl");
    let all = judgments(4);
    let lines = |count: usize| all.lines().take(count).map(|line| format!("{line}\n")).collect::<String>();
    let blank = lines(20).replace("\"text\":\"word ", "\"text\":\"\",\"was\":\"word ");
    let calibrate = |text: &str| {
        std::fs::write(&path, text).expect("written");
        let arguments = ["calibrate", "--judgments", path.to_str().expect("text")];
        command(&arguments, "qwen3").output().expect("runs")
    };
    for (text, pairs) in [(blank, 0), (lines(1), 1), (lines(19), 19)] {
        let refused = calibrate(&text);
        assert_eq!(refused.status.code(), Some(2), "{pairs}: {}", errors(&refused));
        let expected = format!("verdict: --judgments: {pairs} pairs can be scored; at least 20 are needed\n");
        assert_eq!(errors(&refused), expected);
        assert!(refused.stdout.is_empty());
    }
    let fitted = calibrate(&lines(20));
    assert_eq!(fitted.status.code(), Some(0), "{}", errors(&fitted));
}

#[test]
fn what_cannot_be_read_is_named_by_its_path() {
    let dir = tempfile::tempdir().expect("made");
    let path = dir.path().to_str().expect("text");
    for command in ["score", "prompt"] {
        let refused = plain(&[command, "--input", path]);
        assert_eq!(refused.status.code(), Some(2), "{}", errors(&refused));
        assert_eq!(errors(&refused), format!("verdict: {path} cannot be read: is a directory\n"));
    }
}

#[test]
fn judgments_that_cannot_be_scored_are_named_by_line_or_query() {
    let dir = tempfile::tempdir().expect("made");
    let path = dir.path().join("judged.jsonl");
    let eval = |text: &str| {
        std::fs::write(&path, text).expect("written");
        let refused =
            command(&["eval", "--judgments", path.to_str().expect("text")], "qwen3").output().expect("runs");
        (refused.status.code(), errors(&refused))
    };
    let file = path.display();
    assert_eq!(eval(""), (Some(2), format!("verdict: {file}: has no judgments\n")));
    let good = judgments(1);
    let empty = good.replace("\"query\":\"q0\"", "\"query\":\"\"");
    let expected = format!("verdict: {file}: line 6: query: is empty (query_id \"0\")\n");
    assert_eq!(eval(&format!("{good}{empty}")), (Some(2), expected));
    let long = good.replace("\"query\":\"q0\"", &format!("\"query\":\"{}\"", "q".repeat(20_000)));
    let (code, said) = eval(&long);
    assert_eq!(code, Some(1), "{said}");
    let expected = format!("verdict: {file}: line 1: query 0: query: 20000 bytes, over the limit of 16384");
    assert!(said.contains(&expected), "{said}");
    let long = good.replacen("\"word word word \"", &format!("\"{}\"", "w".repeat((1 << 20) + 1)), 1);
    let (code, said) = eval(&long);
    assert_eq!(code, Some(1), "{said}");
    let expected =
        format!("verdict: {file}: line 3: query 0, document 2: 1048577 bytes, over the limit of 1048576");
    assert!(said.contains(&expected), "{said}");
}

#[test]
fn a_document_judged_or_ranked_twice_is_refused_by_line() {
    let dir = tempfile::tempdir().expect("made");
    let file = |name: &str, text: &str| {
        std::fs::write(dir.path().join(name), text).expect("written");
        dir.path().join(name).to_str().expect("text").to_owned()
    };
    let (qrels, run) =
        (file("qrels", "1 0 a 2\n1 0 b 1\n2 0 a 0\n"), file("run", "1 Q0 a 1 2 x\n2 Q0 a 1 1 x\n"));
    let (judged, ranked) =
        (file("judged", "1 0 a 2\n1 0 a 2\n"), file("ranked", "1 Q0 a 1 2 x\n\n1 Q0 a 2 1 x\n"));
    assert_eq!(plain(&["eval", "--qrels", &qrels, "--run", &run]).status.code(), Some(0));
    for (qrels, run, place) in
        [(&judged, &run, format!("{judged}: line 2")), (&qrels, &ranked, format!("{ranked}: line 3"))]
    {
        let refused = plain(&["eval", "--qrels", qrels, "--run", run]);
        assert_eq!(refused.status.code(), Some(2), "{}", errors(&refused));
        assert_eq!(
            errors(&refused),
            format!("verdict: {place}: document \"a\" is there twice for query \"1\"\n")
        );
    }
}

#[test]
fn a_calibration_of_one_query_does_not_say_that_it_was_not_seen() {
    let dir = tempfile::tempdir().expect("made");
    let path = dir.path().join("judged.jsonl");
    let header = |text: &str| {
        std::fs::write(&path, text).expect("written");
        let arguments = ["calibrate", "--judgments", path.to_str().expect("text")];
        let output = command(&arguments, "qwen3").output().expect("runs");
        assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
        String::from_utf8_lossy(&output.stdout).lines().next().expect("a header").to_owned()
    };
    let line = |i: usize| {
        format!(
            "{{\"query\": \"q\", \"document\": \"{}\", \"grade\": {}, \"max_grade\": 2}}\n",
            "word ".repeat(i + 1),
            i % 3
        )
    };
    let one: String = (0..25).map(line).collect();
    assert_eq!(header(&one), "# 25 pairs. On the same pairs that were fitted, for there is one query only:");
    assert_eq!(header(&judgments(5)), "# 25 pairs. On queries that the fit did not see, 5 parts in turn:");
}
