//! The bundled model as a user meets it: everyday examples are ranked right, and reasons hold.

use std::{
    collections::BTreeSet,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::{Value, json};

const KINDS: [&str; 4] = ["relevant", "paraphrase", "near", "irrelevant"];

/// `training/mini/everyday.jsonl`: a query, and a text of each kind that the example has.
fn examples() -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("training/mini/everyday.jsonl");
    let text = std::fs::read_to_string(path).expect("there");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// The texts of an example, by kind.
fn texts(example: &Value) -> Vec<(&'static str, &str)> {
    KINDS.iter().filter_map(|kind| Some((*kind, example[*kind].as_str()?))).collect()
}

/// The answers of `verdict score --explain` on the bundled model.
fn answers(examples: &[Value]) -> Vec<Value> {
    let mut child = Command::new(env!("CARGO_BIN_EXE_verdict"))
        .args(["score", "--explain"])
        .env_remove("VERDICT_MODEL")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let requests: String = examples
        .iter()
        .map(|example| {
            let documents: Vec<&str> = texts(example).into_iter().map(|(_, text)| text).collect();
            let all: Vec<usize> = (0..documents.len()).collect();
            let query = &example["query"];
            format!("{}\n", json!({"query": query, "documents": documents, "explain_indices": all}))
        })
        .collect();
    child.stdin.take().expect("piped").write_all(requests.as_bytes()).expect("written");
    let output = child.wait_with_output().expect("ends");
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).expect("text");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn words(text: &str) -> BTreeSet<String> {
    text.to_lowercase()
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Words listed under `match` that are in the document, of all listed there.
fn matches(document: &str, reason: &Value) -> (usize, usize) {
    let listed = reason["sections"]["match"].as_str().unwrap_or_default();
    if listed == "none" {
        return (0, 0);
    }
    let document = words(document);
    // A stem is enough: "boil" is in a text that has "boiling".
    let stem = |word: &str| word.chars().take(4).collect::<String>();
    let there = |word: &String| document.iter().any(|other| other.starts_with(&stem(word)));
    let listed = words(listed);
    (listed.iter().filter(|word| there(word)).count(), listed.len())
}

#[test]
fn everyday_examples_are_ranked_right_and_explained() {
    let examples = examples();
    let answers = answers(&examples);
    assert_eq!(answers.len(), examples.len());
    let (mut paraphrases, mut above) = (0, 0);
    let (mut reasons, mut whole, mut consistent) = (0, 0, 0);
    let (mut found, mut listed) = (0, 0);
    for (example, answer) in examples.iter().zip(&answers) {
        let texts = texts(example);
        let score = |kind: &str| {
            let place = texts.iter().position(|(other, _)| *other == kind)?;
            answer["results"][place]["relevance_score"].as_f64()
        };
        let (relevant, irrelevant) =
            (score("relevant").expect("scored"), score("irrelevant").expect("scored"));
        assert!(relevant > irrelevant + 0.4, "{}: {relevant} against {irrelevant}", example["query"]);
        if let Some(near) = score("near") {
            assert!(relevant > near + 0.2, "{}: {relevant} against {near}", example["query"]);
        }
        if let Some(paraphrase) = score("paraphrase") {
            paraphrases += 1;
            above += usize::from(paraphrase > irrelevant);
        }
        for ((_, text), result) in texts.iter().zip(answer["results"].as_array().expect("results")) {
            let (reason, label) = (&result["reason"], result["label"].as_str().expect("a label"));
            reasons += 1;
            whole += usize::from(reason["sections"].is_object());
            let verdict = reason["sections"]["verdict"].as_str().unwrap_or_default();
            let first = label.to_lowercase();
            consistent += usize::from(verdict.starts_with(&first));
            let (there, all) = matches(text, reason);
            (found, listed) = (found + there, listed + all);
        }
    }
    let share = |part: usize, of: usize| part as f64 / of as f64;
    assert!(
        share(above, paraphrases) >= 0.9,
        "{above} of {paraphrases} paraphrases over the irrelevant text"
    );
    // Under `[explain.grounding]` these two are certain, and not only likely.
    assert_eq!(whole, reasons, "all sections are there");
    assert_eq!(consistent, reasons, "the verdict is the grade's");
    assert!(share(found, listed) >= 0.8, "{found} of {listed} words under match are in the text");
}
