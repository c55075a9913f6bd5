//! Files of judged documents.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
};

use serde::{Deserialize, de::IgnoredAny};
use serde_json::Value;

use crate::{
    error::{Error, Result, listed, shown},
    profile::{Profile, ScoreRead},
};

/// The longest scale of grades: tables and pictures have a row and a column for each.
const MOST_GRADES: f64 = 1000.0;

/// What is judged in one file.
#[derive(Clone, Debug, Default)]
pub(in crate::cli) struct Judgments {
    /// The file's path.
    origin: String,
    pub(in crate::cli) queries: Vec<Query>,
    /// Lines left out: a teacher's distribution is no judgment.
    ungraded: usize,
}

/// A query and its judged documents, in the file's order.
#[derive(Clone, Debug)]
pub(in crate::cli) struct Query {
    pub(in crate::cli) id: String,
    pub(in crate::cli) text: String,
    pub(in crate::cli) judged: Vec<Judged>,
}

/// A judged document.
#[derive(Clone, Debug)]
pub(in crate::cli) struct Judged {
    pub(in crate::cli) id: String,
    pub(in crate::cli) max_grade: f64,
    /// As the profile renders it.
    pub(in crate::cli) text: String,
    /// The line's own.
    pub(in crate::cli) instruction: Option<String>,
    /// Path and line, for errors.
    pub(in crate::cli) place: String,
    grade: f64,
}

#[derive(Deserialize)]
struct Line {
    query_id: Option<String>,
    query: String,
    doc_id: Option<String>,
    title: Option<String>,
    text: Option<String>,
    document: Option<Value>,
    grade: Option<Value>,
    max_grade: Option<f64>,
    distribution: Option<IgnoredAny>,
    instruction: Option<String>,
    fold: Option<i64>,
}

impl Judgments {
    /// What has no part in the figures or the lowest, if anything.
    pub(in crate::cli) fn note(&self) -> Option<String> {
        let judged = || self.queries.iter().flat_map(|query| &query.judged);
        let (blank, all) = (judged().filter(|judged| judged.is_blank()).count(), judged().count());
        let blank =
            (blank > 0).then(|| format!("{blank} of {all} documents have no text and were not scored"));
        let left = (self.ungraded > 0)
            .then(|| format!("{} lines have a distribution but no grade and were left out", self.ungraded));
        let told: Vec<String> = [blank, left].into_iter().flatten().collect();
        (!told.is_empty()).then(|| format!("{}: {}", self.origin, told.join("; ")))
    }
}

impl Judged {
    /// The grade as a part of the best one, in \[0, 1\].
    pub(in crate::cli) fn target(&self) -> f64 {
        self.grade / self.max_grade
    }

    /// Whether there is nothing to score.
    pub(in crate::cli) fn is_blank(&self) -> bool {
        self.text.trim().is_empty()
    }
}

/// Reads a file for a model of this profile; of all folds if none is named.
///
/// `Invalid`, naming path, line and what is wrong, or that no line is left.
pub(in crate::cli) fn read(path: &Path, folds: &HashSet<i64>, profile: &Profile) -> Result<Judgments> {
    let origin = path.display().to_string();
    let text = std::fs::read_to_string(path)
        .map_err(|cause| Error::invalid(&origin, format!("cannot be read: {cause}")))?;
    let mut found = Judgments { origin: origin.clone(), ..Judgments::default() };
    let mut seen = Seen::default();
    let mut places: HashMap<String, usize> = HashMap::new();
    for (number, text) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
        let refused = |problem: String| Error::invalid(&origin, format!("line {number}: {problem}"));
        let line = parse(text).map_err(refused)?;
        let grade = grade(&line, profile).map_err(refused)?;
        let text = document(&line, profile).map_err(refused)?;
        seen.check(&line, number).map_err(refused)?;
        if !folds.is_empty() && !line.fold.is_some_and(|fold| folds.contains(&fold)) {
            continue;
        }
        let Some((grade, max_grade)) = grade else {
            found.ungraded += 1;
            continue;
        };
        let query_id = line.query_id.unwrap_or_else(|| line.query.clone());
        let place = *places.entry(query_id.clone()).or_insert_with(|| {
            found.queries.push(Query { id: query_id, text: line.query, judged: Vec::new() });
            found.queries.len() - 1
        });
        found.queries[place].judged.push(Judged {
            id: line.doc_id.unwrap_or_else(|| number.to_string()),
            max_grade,
            text,
            instruction: line.instruction,
            place: format!("{origin}: line {number}"),
            grade,
        });
    }
    if found.queries.is_empty() {
        let of = if folds.is_empty() { "" } else { " of the folds asked for" };
        return Err(Error::invalid(&origin, format!("has no judgments{of}")));
    }
    Ok(found)
}

/// What the lines so far are about, each with the first line that said it.
#[derive(Default)]
struct Seen {
    queries: HashMap<String, (String, usize)>,
    documents: HashMap<(String, String), usize>,
}

impl Seen {
    /// One id is one query, and a document is judged once for it: figures of merit would be of neither.
    fn check(&mut self, line: &Line, number: usize) -> Result<(), String> {
        let id = line.query_id.as_ref().unwrap_or(&line.query);
        let (text, first) = self.queries.entry(id.clone()).or_insert_with(|| (line.query.clone(), number));
        if *text != line.query {
            return Err(format!(
                "query_id {id:?} is another query's: {} in line {first}, and here {}",
                shown(text),
                shown(&line.query)
            ));
        }
        let Some(document) = &line.doc_id else { return Ok(()) };
        match self.documents.insert((id.clone(), document.clone()), number) {
            None => Ok(()),
            Some(first) => {
                Err(format!("doc_id {document:?} is judged for query_id {id:?} in line {first} already"))
            }
        }
    }
}

fn parse(line: &str) -> Result<Line, String> {
    let line: Line = serde_json::from_str(line).map_err(|cause| cause.to_string())?;
    if line.query.trim().is_empty() {
        let id = line.query_id.as_ref().unwrap_or(&line.query);
        return Err(format!("query: is empty (query_id {id:?})"));
    }
    Ok(line)
}

/// The document's text: as it is, or its fields put into the profile's template.
fn document(line: &Line, profile: &Profile) -> Result<String, String> {
    match &line.document {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Object(fields)) => Ok(profile.render_document(fields)),
        Some(_) => Err("document: is neither a text nor an object".to_owned()),
        None => {
            let field = |name: &str, text: &Option<String>| Some((name.to_owned(), text.clone()?.into()));
            let fields = [field("title", &line.title), field("text", &line.text)];
            Ok(profile.render_document(&fields.into_iter().flatten().collect()))
        }
    }
}

/// The grade and the best one of its scale: the line's own or, for names and where it has none, the
/// model's. `None` where a teacher's distribution stands for it.
fn grade(line: &Line, profile: &Profile) -> Result<Option<(f64, f64)>, String> {
    let (grade, max_grade) = match (&line.grade, line.max_grade) {
        (None, _) if line.distribution.is_some() => return Ok(None),
        (None, _) => return Err("grade: is missing".to_owned()),
        (Some(Value::String(name)), _) => {
            let (low, high) = ends(profile);
            (named(name, profile)? - low, high - low)
        }
        (Some(given), max_grade) => {
            let grade = given.as_f64().ok_or("grade: is neither a name nor a number")?;
            match max_grade {
                Some(max_grade) => (grade, max_grade),
                None => own(grade, ends(profile))?,
            }
        }
    };
    if max_grade > MOST_GRADES {
        // With all of its digits a large number is no message.
        return Err(format!("max_grade: {max_grade:?}, over the limit of {MOST_GRADES}"));
    }
    if !(max_grade > 0.0 && (0.0..=max_grade).contains(&grade)) {
        return Err(format!("grade {grade} is not in 0 to max_grade {max_grade}"));
    }
    // Grades are counted as whole numbers, which a shorter scale has not.
    Ok(Some(if max_grade < 1.0 { (grade / max_grade, 1.0) } else { (grade, max_grade) }))
}

fn own(grade: f64, (low, high): (f64, f64)) -> Result<(f64, f64), String> {
    if !(low..=high).contains(&grade) {
        return Err(format!(
            "grade {grade} is not in the model's {low} to {high}; say max_grade if the scale is another"
        ));
    }
    Ok((grade - low, high - low))
}

/// A grade's value by its name.
fn named(name: &str, profile: &Profile) -> Result<f64, String> {
    let place = profile.grades.iter().position(|grade| grade.name == name).ok_or_else(|| {
        let names = listed(profile.grades.iter().map(|grade| grade.name.as_str()));
        format!("grade {} is none of the model's grades {names}", shown(name))
    })?;
    match profile.read {
        ScoreRead::Expected => Ok(profile.grades[place].value),
        ScoreRead::Softmax { positive, .. } if place == positive => Ok(1.0),
        ScoreRead::Softmax { negative, .. } if place == negative => Ok(0.0),
        ScoreRead::Softmax { .. } => Err(format!(
            "grade {name:?} is neither score.positive nor score.negative: the score has no place for it"
        )),
    }
}

/// The ends of the model's own scale.
fn ends(profile: &Profile) -> (f64, f64) {
    match profile.read {
        ScoreRead::Softmax { .. } => (0.0, 1.0),
        ScoreRead::Expected => {
            let values = profile.grades.iter().map(|grade| grade.value);
            values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)))
        }
    }
}

#[cfg(test)]
mod tests {
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
            let ids = |query: &Query| {
                (query.id.clone(), query.judged.iter().map(|j| j.id.clone()).collect::<Vec<_>>())
            };
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
        assert!(refused("{\"query_id\": 5}").starts_with("line 1: invalid type"));
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
        assert_eq!(
            of(", \"grade\": 1, \"document\": 7"),
            "line 1: document: is neither a text nor an object"
        );
        assert_eq!(of(", \"distribution\": {\"1\": 1}"), "has no judgments");
    }

    #[test]
    fn lines_are_those_that_training_reads() {
        let text = r#"{"query_id": "q1", "query": "red shoes", "doc_id": "d7", "title": "Crimson", "text": "sneaker", "grade": 2, "max_grade": 3}
            {"query": "red shoes", "document": {"title": "Lamp", "brand": "Ours"}, "grade": "0", "instruction": "strict"}
            {"query": "red shoes", "text": "Blue shoes", "distribution": {"1": 0.3, "2": 0.7}}
            {"query_id": null, "query": "red shoes", "document": " as it is ", "grade": 3, "fold": null}
            {"query": "red shoes", "document": {"brand": "Ours"}, "grade": 0.1, "max_grade": 0.2}"#;
        let found = read_all(text, &profile()).expect("reads");
        let shown = |query: &Query| {
            let document = |j: &Judged| (j.id.clone(), j.text.clone(), j.grade, j.max_grade);
            (query.id.clone(), query.judged.iter().map(document).collect::<Vec<_>>())
        };
        let document = |id: &str, text: &str, grade, most| (id.to_owned(), text.to_owned(), grade, most);
        let others = [
            document("2", "Lamp", 0.0, 3.0),
            document("4", " as it is ", 3.0, 3.0),
            document("5", "", 0.5, 1.0),
        ];
        let expected = [
            ("q1".to_owned(), vec![document("d7", "Crimson sneaker", 2.0, 3.0)]),
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
    fn names_are_read_as_the_score_is() {
        let mut profile = profile();
        profile.read = ScoreRead::Softmax { positive: 2, negative: 3 };
        let grade = |grade: &str| {
            let text = format!("{{\"query\": \"x\", \"text\": \"t\", \"grade\": {grade}}}");
            read_all(&text, &profile).map(|found| found.queries[0].judged[0].target())
        };
        assert_eq!(grade("\"2\"").expect("reads"), 1.0);
        assert_eq!(grade("\"3\"").expect("reads"), 0.0);
        assert_eq!(grade("0.5").expect("reads"), 0.5);
        let refused = grade("\"1\"").expect_err("refused");
        assert!(refused.message().contains("is neither score.positive nor score.negative"), "{refused}");
    }
}
