//! The commands that need no server, as a user runs them.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde_json::Value;

#[path = "commands/outputs.rs"]
mod outputs;
#[path = "commands/refusals.rs"]
mod refusals;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// `verdict` on a golden checkpoint.
fn command(arguments: &[&str], checkpoint: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_verdict"));
    command.args(arguments).args(["--threads", "1", "--model"]).arg(golden(checkpoint));
    command.env_remove("VERDICT_MODEL");
    command
}

/// Runs `verdict` on a golden checkpoint with an input.
fn verdict(arguments: &[&str], checkpoint: &str, input: &str) -> Output {
    let mut child = command(arguments, checkpoint)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("written");
    child.wait_with_output().expect("ends")
}

fn lines(output: &Output) -> Vec<Value> {
    let text = String::from_utf8(output.stdout.clone()).expect("text");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn score_keeps_the_order_and_puts_errors_in_their_place() {
    let many: String = (0..200)
        .map(|i| format!("{{\"query\": \"q\", \"document\": \"{}\"}}\n", "word ".repeat(1 + i * 7 % 40)))
        .collect();
    let bad = "{\"query\": \"q\", \"document\": 7}\n\n{\"query\": \"q\"}\nnot json\n";
    let last = "{\"query\": \"q\", \"documents\": [\"a\", {\"id\": \"x\", \"title\": \"b\"}]}";
    let output = verdict(&["score"], "qwen3", &format!("{many}{bad}{last}"));
    assert_eq!(output.status.code(), Some(1), "{}", errors(&output));
    assert!(errors(&output).ends_with("verdict: 3 of the lines failed; see their error objects\n"));
    let lines = lines(&output);
    assert_eq!(lines.len(), 204);
    let tokens = |line: &Value| line["results"][0]["tokens"].as_u64().expect("counted");
    let alone = |i: usize| {
        let line = many.lines().nth(i).expect("there");
        tokens(&self::lines(&verdict(&["score"], "qwen3", line))[0])
    };
    assert_eq!((tokens(&lines[0]), tokens(&lines[17])), (alone(0), alone(17)));
    let error = |index: usize| (lines[index]["line"].clone(), lines[index]["error"]["message"].clone());
    assert_eq!(
        error(200),
        (201.into(), "document: invalid type: integer `7`, expected a string or an object".into())
    );
    assert_eq!(error(201), (203.into(), "documents: is missing".into()));
    assert_eq!(error(202).0, 204);
    assert_eq!(lines[202]["error"]["code"], "invalid");
    assert_eq!(lines[203]["results"][1]["id"], "x");
}

#[test]
fn score_answers_a_line_with_the_same_numbers_wherever_it_stands() {
    let line = "{\"query\": \"q\", \"document\": \"some words\"}\n";
    let output = verdict(&["score"], "llama3", &line.repeat(30));
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    let scores: Vec<_> =
        lines(&output).iter().map(|line| line["results"][0]["relevance_score"].clone()).collect();
    assert_eq!(scores.len(), 30);
    assert!(scores.iter().all(|score| score.is_number() && *score == scores[0]));
}

#[test]
fn score_explains_when_asked() {
    let output = verdict(&["score", "--explain"], "qwen3", "{\"query\": \"q\", \"document\": \"words\"}");
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    let reason = &lines(&output)[0]["results"][0]["reason"];
    assert!(reason["text"].is_string() && reason["finish_reason"].is_string(), "{reason}");
}

#[test]
fn prompt_prints_the_ids_that_are_scored() {
    let pair = r#"{"query": "red <|0|> shoe", "document": {"title": "blue", "text": "<|answer|>"}}"#;
    let long = serde_json::json!({"query": "q", "documents": ["a", "word ".repeat(400)]}).to_string();
    let folder = tempfile::tempdir().expect("made");
    let input = folder.path().join("requests.jsonl");
    std::fs::write(&input, format!("{pair}\n{{\"query\": 5}}\n\n{long}\n")).expect("written");
    let (model, input) = (golden("qwen3").display().to_string(), input.display().to_string());
    let output = plain(&["prompt", "--model", &model, "--input", &input]);
    assert_eq!(output.status.code(), Some(1), "{}", errors(&output));
    let rows = lines(&output);
    let prompts = |row: usize| rows[row]["prompts"].as_array().expect("prompts").clone();
    let ids = |prompt: &Value| -> Vec<u64> {
        prompt["ids"].as_array().expect("ids").iter().filter_map(Value::as_u64).collect()
    };
    let first = ids(&prompts(0)[0]);
    // The control tokens are the template's three: those in the texts are text.
    assert_eq!(first.iter().filter(|&&id| id >= 283).copied().collect::<Vec<_>>(), [284, 285, 286]);
    assert_eq!((rows[1]["line"].as_u64(), rows.len()), (Some(2), 3));
    assert!(
        rows[1]["error"]["message"].as_str().is_some_and(|text| text.starts_with("query")),
        "{}",
        rows[1]
    );
    let long = prompts(2);
    assert_eq!((long[0]["truncated"].as_bool(), long[1]["truncated"].as_bool()), (Some(false), Some(true)));
    let scored = &lines(&verdict(&["score"], "qwen3", &format!("{pair}\n")))[0]["results"][0];
    assert_eq!(scored["tokens"].as_u64(), Some(first.len() as u64));
    let document: Vec<_> =
        long[1]["document"].as_array().expect("range").iter().filter_map(Value::as_u64).collect();
    assert_eq!(document.len(), 2);
    assert_eq!(ids(&long[1])[..document[0] as usize], ids(&long[0])[..document[0] as usize]);
}

#[test]
fn verify_passes_on_supported_checkpoints_and_fails_past_the_tolerance() {
    for name in ["qwen3", "qwen3-sharded", "qwen2", "llama3"] {
        let output = verdict(&["verify", "--prompts", "8", "--tolerance", "1e-4"], name, "");
        assert_eq!(output.status.code(), Some(0), "{name}: {}", errors(&output));
        assert!(String::from_utf8_lossy(&output.stdout).contains("pass: 8 prompts"));
    }
    let output = verdict(&["verify", "--tolerance", "1e-12"], "qwen3", "");
    assert_eq!(output.status.code(), Some(1));
    assert!(errors(&output).contains("over the tolerance of 1e-12"), "{}", errors(&output));
    let output = verdict(&["verify"], "yarn", "");
    assert_eq!(output.status.code(), Some(3));
    assert!(errors(&output).contains("has no RoPE scaling \"yarn\""), "{}", errors(&output));
}

#[test]
fn eval_reads_judgments() {
    let mut file = tempfile::NamedTempFile::new().expect("made");
    for (document, grade) in [("blank", 0), ("one two", 2), ("three", 1), ("four five six", 0)] {
        let text = if document == "blank" { "" } else { document };
        let line = serde_json::json!({"query_id": "q", "query": "x", "doc_id": document, "title": "", "text": text,
                                      "grade": grade, "max_grade": 2, "fold": 1});
        writeln!(file, "{line}").expect("written");
    }
    let path = file.path().to_str().expect("text").to_owned();
    let output = verdict(&["eval", "--json", "--judgments", &path], "qwen3", "");
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    assert_eq!(errors(&output), format!("{path}: 1 of 4 documents have no text and were not scored\n"));
    let stem = file.path().file_stem().expect("named").to_str().expect("text");
    let figures = &lines(&output)[0]["sets"][stem].clone();
    assert_eq!((&figures["queries"], &figures["pairs"]), (&1.into(), &4.into()));
    for figure in ["ndcg_10", "accuracy", "mrr", "macro_f1", "calibration_error"] {
        assert!((0.0..=1.0).contains(&figures[figure].as_f64().expect("a number")), "{figures}");
    }
    let dir = tempfile::tempdir().expect("made");
    let same = dir.path().join(stem).with_extension("jsonl").display().to_string();
    std::fs::copy(&path, &same).expect("copied");
    let output = verdict(&["eval", "--json", "--judgments", &path, &same], "qwen3", "");
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    let sets = &lines(&output)[0]["sets"];
    assert_eq!(sets.as_object().map(serde_json::Map::len), Some(3), "{sets}");
    assert_eq!((&sets[&path], &sets[&same], &sets["macro"]["pairs"]), (figures, figures, &8.into()));
    let place = |name: &str| dir.path().join(name).to_str().expect("text").to_owned();
    let (run, table, picture, grades) =
        (place("run.txt"), place("table.tsv"), place("reliability.svg"), place("confusion.svg"));
    let files =
        ["--save-run", &run, "--per-query", &table, "--reliability", &picture, "--confusion", &grades];
    let output = verdict(&[&["eval", "--judgments", &path][..], &files].concat(), "qwen3", "");
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    let read = |path: &str| std::fs::read_to_string(path).expect("written");
    assert_eq!(read(&run).lines().count(), 4);
    assert!(read(&table).starts_with("set\tquery\tdocuments\tndcg_10\tmrr\n"), "{}", read(&table));
    assert!(read(&picture).contains("<circle") && read(&grades).contains(">predicted grade<"));
    let output = verdict(&["eval", "--fold", "9", "--judgments", &path], "qwen3", "");
    assert_eq!(output.status.code(), Some(2));
    assert!(errors(&output).contains("has no judgments of the folds asked for"), "{}", errors(&output));
}

#[test]
fn eval_asks_as_the_lines_say() {
    let dir = tempfile::tempdir().expect("made");
    let figures = |name: &str, more: &str, arguments: &[&str]| {
        let path = dir.path().join(name).to_str().expect("text").to_owned();
        let line = |i: usize| {
            let text = "word ".repeat(i + 1);
            format!(
                "{{\"query\": \"x\", \"doc_id\": \"{i}\", \"document\": \"{text}\", \"grade\": \"{}\"{more}}}\n",
                i % 3
            )
        };
        std::fs::write(&path, (0..9).map(line).collect::<String>()).expect("written");
        let run = dir.path().join("run").to_str().expect("text").to_owned();
        let words = [&["eval", "--judgments", &path, "--save-run", &run][..], arguments].concat();
        let output = verdict(&words, "qwen3", "");
        assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
        std::fs::read_to_string(&run).expect("written")
    };
    let asked = figures("a.jsonl", ", \"instruction\": \"be strict\"", &["--instruction", "be kind"]);
    assert_eq!(asked, figures("b.jsonl", "", &["--instruction", "be strict"]));
    assert_ne!(asked, figures("c.jsonl", "", &["--instruction", "be kind"]));
    let named = figures("d.jsonl", ", \"query_id\": \"a b\"", &[]);
    let twice = dir.path().join("twice.jsonl");
    let line =
        |id: &str| format!("{{\"query\": \"x\", \"doc_id\": \"{id}\", \"document\": \"d\", \"grade\": 0}}\n");
    std::fs::write(&twice, line("a b") + &line("a_b")).expect("written");
    let (twice, run) = (twice.display().to_string(), dir.path().join("run").display().to_string());
    let output = verdict(&["eval", "--judgments", &twice, "--save-run", &run], "qwen3", "");
    assert_eq!(output.status.code(), Some(2));
    let expected =
        format!("--save-run: {twice}: line 2: document \"a_b\" of query \"x\" would be there twice");
    assert!(errors(&output).contains(&expected), "{}", errors(&output));
    assert!(named.lines().all(|line| line.starts_with("a_b Q0 ") && line.split(' ').count() == 6), "{named}");
}

/// Runs `verdict` without a model.
fn plain(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_verdict"))
        .args(arguments)
        .env_remove("VERDICT_MODEL")
        .output()
        .expect("runs")
}

#[test]
fn runs_are_measured_and_compared_as_trec_eval_does() {
    let dir = tempfile::tempdir().expect("made");
    let file = |name: &str, text: &str| {
        std::fs::write(dir.path().join(name), text).expect("written");
        dir.path().join(name).to_str().expect("text").to_owned()
    };
    let qrels = file("qrels", "1 0 a 2\n1 0 b 0\n1 0 c 1\n2 0 a 1\n3 0 a 1\n");
    // Equal scores: c before a. Query 2 has no relevant document in the run, query 3 is not run.
    let first = file("first", "1 Q0 a 1 0.5 x\n1 Q0 b 9 0.7 x\n1 Q0 c 2 0.5 x\n2 Q0 z 1 1 x\n");
    let second = file("second", "1 Q0 a 1 3 x\n1 Q0 c 2 2 x\n2 Q0 a 1 1 x\n");
    let output = plain(&["eval", "--json", "--qrels", &qrels, "--run", &first, "--run", &second]);
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    let found = &lines(&output)[0];
    let log3 = 3_f64.log2();
    let expected = (1.0 / log3 + 2.0 / 2.0) / (2.0 + 1.0 / log3) / 2.0;
    let near = |value: &Value, expected: f64| (value.as_f64().expect("a number") - expected).abs() < 1e-12;
    assert!(near(&found["runs"][0]["ndcg_10"], expected) && near(&found["runs"][0]["mrr"], 0.25), "{found}");
    assert!(near(&found["runs"][1]["ndcg_10"], 1.0) && near(&found["difference"]["mean"], expected - 1.0));
    let bad = file("bad", "1 Q0 a 1 high x\n");
    let output = plain(&["eval", "--qrels", &qrels, "--run", &bad]);
    assert_eq!(output.status.code(), Some(2));
    assert!(errors(&output).contains("line 1: score \"high\" is not a number"), "{}", errors(&output));
    let output = plain(&["eval"]);
    assert!(errors(&output).contains("--judgments: is missing"), "{}", errors(&output));
}

#[test]
fn a_calibration_is_written_into_the_model() {
    let dir = tempfile::tempdir().expect("made");
    for file in std::fs::read_dir(golden("qwen3")).expect("there") {
        let file = file.expect("read").path();
        std::fs::copy(&file, dir.path().join(file.file_name().expect("named"))).expect("copied");
    }
    let judged = dir.path().join("judged.jsonl");
    std::fs::write(&judged, outputs::judgments(7)).expect("written");
    let toml = dir.path().join("relevance.toml");
    let before = std::fs::read_to_string(&toml).expect("read");
    let calibrate = || {
        let (judged, dir) = (judged.to_str().expect("text"), dir.path().to_str().expect("text"));
        plain(&["calibrate", "--write", "--threads", "1", "--judgments", judged, "--model", dir])
    };
    let output = calibrate();
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(printed.contains("[calibration]\ntemperature = "), "{printed}");
    assert!(printed.contains("\npoints = [[0.0, 0.0], "), "{printed}");
    let table = &printed[printed.find("[calibration]").expect("printed")..];
    assert!(std::fs::read_to_string(&toml).expect("read").contains(table), "{printed}");
    // A probe that cannot hold: nothing is written.
    let probe = "\n[[probes]]\nquery = \"q\"\ndocument = \"d\"\nmin_score = 1.0\n";
    std::fs::write(&toml, format!("{before}{probe}")).expect("written");
    let output = calibrate();
    assert_eq!(output.status.code(), Some(3), "{}", errors(&output));
    assert_eq!(std::fs::read_to_string(&toml).expect("read"), format!("{before}{probe}"));
}
