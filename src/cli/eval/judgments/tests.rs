use std::io::Write as _;

use super::*;
use crate::model::Model;

/// Of the bundled model: grades 0 to 3, documents as title and text.
fn profile() -> Profile {
    Model::bundled().expect("loads").profile
}

fn read_all(text: &str, profile: &Profile) -> Result<Judgments> {
    read(file(text).path(), &HashSet::new(), profile)
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().expect("made");
    file.write_all(text.as_bytes()).expect("written");
    file
}

fn line(query: &str, document: &str, grade: f64, fold: i64) -> String {
    serde_json::json!({"query_id": query, "query": "x", "doc_id": document, "title": "t", "text": "",
                       "grade": grade, "max_grade": 3, "fold": fold})
    .to_string()
}

#[test]
fn queries_are_gathered_in_order_and_by_fold() {
    let lines = [line("a", "1", 3.0, 1), line("b", "2", 0.0, 2), line("a", "3", 1.5, 1), String::new()];
    let file = file(&lines.join("\n"));
    let profile = profile();
    let ids = |folds: &[i64]| {
        let found = read(file.path(), &folds.iter().copied().collect(), &profile).expect("reads");
        let ids =
            |query: &Query| (query.id.clone(), query.judged.iter().map(|j| j.id.clone()).collect::<Vec<_>>());
        found.queries.iter().map(ids).collect::<Vec<_>>()
    };
    let expect = |query: &str, documents: &[&str]| {
        (query.to_owned(), documents.iter().map(|d| (*d).to_owned()).collect())
    };
    assert_eq!(ids(&[]), [expect("a", &["1", "3"]), expect("b", &["2"])]);
    assert_eq!(ids(&[2]), [expect("b", &["2"])]);
    let error = read(file.path(), &HashSet::from([9]), &profile).expect_err("refused");
    assert!(error.message().ends_with(": has no judgments of the folds asked for"), "{error}");
}

#[test]
fn a_bad_line_is_named() {
    let profile = profile();
    let refused = |text: &str| {
        let file = file(text);
        let path = file.path().display().to_string();
        let error = read(file.path(), &HashSet::new(), &profile).expect_err("refused");
        error.message().strip_prefix(&format!("{path}: ")).expect("begins with the path").to_owned()
    };
    let good = line("a", "1", 3.0, 1);
    assert_eq!(
        refused(&format!("{good}\n{}", line("a", "2", 4.0, 1))),
        "line 2: grade 4 is not in 0 to max_grade 3"
    );
    for max_grade in ["1e308", "100000.0", "1000.5"] {
        let long = good.replace("\"max_grade\":3", &format!("\"max_grade\":{max_grade}"));
        let expected = format!("line 2: max_grade: {max_grade}, over the limit of 1000");
        assert_eq!(refused(&format!("{good}\n{long}")), expected);
    }
    assert_eq!(
        refused("[\"q\", \"x\", \"d\", null, \"t\", null, 2, 3, null, null, null]"),
        "line 1: is an array, not an object"
    );
    assert!(refused("{\"query\": 5}").starts_with("line 1: invalid type"));
    let expected = "line 1: query_id: \"1.5\" is neither a text nor a whole number";
    assert!(refused("{\"query_id\": 1.5}").starts_with(expected));
    let empty = good.replace("\"query\":\"x\"", "\"query\":\" \"");
    assert_eq!(refused(&format!("{good}\n\n{empty}")), "line 3: query: is empty (query_id \"a\")");
    assert_eq!(refused("\n"), "has no judgments");
    let other = good.replace("\"query\":\"x\"", "\"query\":\"y\"").replace("\"1\"", "\"2\"");
    let expected = "line 2: query_id \"a\" is another query's: \"x\" in line 1, and here \"y\"";
    assert_eq!(refused(&format!("{good}\n{other}")), expected);
    let expected = "line 3: doc_id \"1\" is judged for query_id \"a\" in line 1 already";
    assert_eq!(refused(&format!("{good}\n{}\n{good}", line("b", "1", 0.0, 1))), expected);
    let of = |fields: &str| refused(&format!("{{\"query\": \"x\", \"text\": \"t\"{fields}}}"));
    assert_eq!(of(""), "line 1: grade: is missing");
    assert_eq!(of(", \"grade\": true"), "line 1: grade: is neither a name nor a number");
    assert_eq!(
        of(", \"grade\": 5"),
        "line 1: grade 5 is not in the model's 0 to 3; say max_grade if the scale is another"
    );
    let named = "line 1: grade \"x\" is none of the model's grades [\"0\", \"1\", \"2\", \"3\"]";
    assert_eq!(of(", \"grade\": \"x\""), named);
    assert_eq!(of(", \"grade\": 1, \"document\": 7"), "line 1: document: is neither a text nor an object");
    assert_eq!(of(", \"distribution\": {\"1\": 1}"), "has no judgments");
}

#[test]
fn lines_are_those_that_training_reads() {
    let text = r#"{"query_id": "q1", "query": "red shoes", "doc_id": "d7", "title": "Crimson", "text": "sneaker", "grade": 2, "max_grade": 3}
        {"query": "red shoes", "document": {"title": "Lamp", "brand": "Ours"}, "grade": "0", "instruction": "strict"}
        {"query": "red shoes", "text": "Blue shoes", "distribution": {"1": 0.3, "2": 0.7}}
        {"query_id": null, "doc_id": 44, "query": "red shoes", "document": " as it is ", "grade": 3, "fold": null}
        {"query": "red shoes", "document": {"brand": "Ours"}, "grade": 0.1, "max_grade": 0.2}"#;
    let found = read_all(text, &profile()).expect("reads");
    let shown = |query: &Query| {
        let document = |j: &Judged| (j.id.clone(), j.text.clone(), j.target, j.scale.clone());
        (query.id.clone(), query.judged.iter().map(document).collect::<Vec<_>>())
    };
    let document = |id: &str, text: &str, target, scale| (id.to_owned(), text.to_owned(), target, scale);
    let own = || Scale::Model([0.0, 1.0 / 3.0, 2.0 / 3.0, 1.0].into());
    let others = [
        document("2", "Lamp", 0.0, own()),
        document("44", " as it is ", 1.0, own()),
        document("5", "", 0.5, Scale::Whole(1.0)),
    ];
    let expected = [
        ("q1".to_owned(), vec![document("d7", "Crimson sneaker", 2.0 / 3.0, Scale::Whole(3.0))]),
        ("red shoes".to_owned(), others.to_vec()),
    ];
    assert_eq!(found.queries.iter().map(shown).collect::<Vec<_>>(), expected);
    let second = &found.queries[1].judged[0];
    assert_eq!(second.instruction.as_deref(), Some("strict"));
    assert!(second.place.ends_with(": line 2"), "{}", second.place);
    let note = found.note().expect("something is left out");
    let expected = ": 1 of 4 documents have no text and were not scored; \
                    1 lines have a distribution but no grade and were left out";
    assert!(note.ends_with(expected), "{note}");
    assert_eq!(read_all(&line("a", "1", 3.0, 1), &profile()).expect("reads").note(), None);
}

#[test]
fn a_model_of_uneven_grades_has_a_scale_of_its_own() {
    let mut profile = profile();
    for (grade, value) in profile.grades.iter_mut().zip([10.0, 0.0, 10.0, 100.0]) {
        grade.value = value;
    }
    let line = "{\"query\": \"x\", \"text\": \"t\", \"grade\": 10}";
    let judged = &read_all(line, &profile).expect("reads").queries[0].judged[0];
    assert_eq!((judged.target, judged.scale.clone()), (0.1, Scale::Model([0.0, 0.1, 1.0].into())));
}

#[test]
fn names_are_read_as_the_score_is() {
    let mut profile = profile();
    profile.read = ScoreRead::Softmax { positive: 2, negative: 3 };
    let grade = |grade: &str| {
        let text = format!("{{\"query\": \"x\", \"text\": \"t\", \"grade\": {grade}}}");
        read_all(&text, &profile).map(|found| found.queries[0].judged[0].target)
    };
    assert_eq!(grade("\"2\"").expect("reads"), 1.0);
    assert_eq!(grade("\"3\"").expect("reads"), 0.0);
    assert_eq!(grade("0.5").expect("reads"), 0.5);
    let refused = grade("\"1\"").expect_err("refused");
    assert!(refused.message().contains("is neither score.positive nor score.negative"), "{refused}");
}
