//! Files of judged documents.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
};

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// The longest scale of grades: tables and pictures have a row and a column for each.
const MOST_GRADES: f64 = 1000.0;

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
    grade: f64,
    title: String,
    text: String,
}

#[derive(Deserialize)]
struct Line {
    query_id: String,
    query: String,
    doc_id: String,
    #[serde(default)]
    title: String,
    #[serde(default)]
    text: String,
    grade: f64,
    max_grade: f64,
    #[serde(default)]
    fold: Option<i64>,
}

impl Judged {
    /// The grade as a part of the best one, in \[0, 1\].
    pub(in crate::cli) fn target(&self) -> f64 {
        self.grade / self.max_grade
    }

    /// Whether there is nothing to score.
    pub(in crate::cli) fn is_blank(&self) -> bool {
        self.title.trim().is_empty() && self.text.trim().is_empty()
    }

    /// What the profile renders.
    pub(in crate::cli) fn fields(&self) -> Map<String, Value> {
        [("title", &self.title), ("text", &self.text)]
            .into_iter()
            .map(|(name, value)| (name.to_owned(), Value::String(value.clone())))
            .collect()
    }
}

/// Reads a file; of all folds if none is named.
///
/// `Invalid`, naming path, line and what is wrong, or that no line is left.
pub(in crate::cli) fn read(path: &Path, folds: &HashSet<i64>) -> Result<Vec<Query>> {
    let origin = path.display().to_string();
    let text = std::fs::read_to_string(path)
        .map_err(|cause| Error::invalid(&origin, format!("cannot be read: {cause}")))?;
    let mut queries: Vec<Query> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let line = parse(line)
            .map_err(|problem| Error::invalid(&origin, format!("line {}: {problem}", index + 1)))?;
        if !folds.is_empty() && !line.fold.is_some_and(|fold| folds.contains(&fold)) {
            continue;
        }
        let Line { query_id, query, doc_id, title, text, grade, max_grade, .. } = line;
        let place = *places.entry(query_id.clone()).or_insert_with(|| {
            queries.push(Query { id: query_id, text: query, judged: Vec::new() });
            queries.len() - 1
        });
        queries[place].judged.push(Judged { id: doc_id, max_grade, grade, title, text });
    }
    if queries.is_empty() {
        let of = if folds.is_empty() { "" } else { " of the folds asked for" };
        return Err(Error::invalid(&origin, format!("has no judgments{of}")));
    }
    Ok(queries)
}

fn parse(line: &str) -> Result<Line, String> {
    let line: Line = serde_json::from_str(line).map_err(|cause| cause.to_string())?;
    if line.query.trim().is_empty() {
        return Err(format!("query: is empty (query_id {:?})", line.query_id));
    }
    if line.max_grade > MOST_GRADES {
        // With all of its digits a large number is no message.
        return Err(format!("max_grade: {:?}, over the limit of {MOST_GRADES}", line.max_grade));
    }
    if !(line.max_grade > 0.0 && (0.0..=line.max_grade).contains(&line.grade)) {
        return Err(format!("grade {} is not in 0 to max_grade {}", line.grade, line.max_grade));
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

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
        let ids = |folds: &[i64]| {
            let queries = read(file.path(), &folds.iter().copied().collect()).expect("reads");
            let ids = |query: &Query| {
                (query.id.clone(), query.judged.iter().map(|j| j.id.clone()).collect::<Vec<_>>())
            };
            queries.iter().map(ids).collect::<Vec<_>>()
        };
        let expect = |query: &str, documents: &[&str]| {
            (query.to_owned(), documents.iter().map(|d| (*d).to_owned()).collect())
        };
        assert_eq!(ids(&[]), [expect("a", &["1", "3"]), expect("b", &["2"])]);
        assert_eq!(ids(&[2]), [expect("b", &["2"])]);
        let error = read(file.path(), &HashSet::from([9])).expect_err("refused");
        assert!(error.message().ends_with(": has no judgments of the folds asked for"), "{error}");
    }

    #[test]
    fn a_bad_line_is_named() {
        let refused = |text: &str| {
            let file = file(text);
            let path = file.path().display().to_string();
            let error = read(file.path(), &HashSet::new()).expect_err("refused");
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
    }
}
