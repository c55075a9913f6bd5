//! Files of judged documents.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
};

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, IgnoredAny},
};
use serde_json::Value;

use crate::{
    cli::files,
    error::{Error, Result, listed, shown},
    profile::{Profile, ScoreRead},
};

use super::metrics::Scale;

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
    /// The grade as a part of the best one, in \[0, 1\].
    pub(in crate::cli) target: f64,
    /// The grades that it is one of.
    pub(in crate::cli) scale: Scale,
    /// As the profile renders it.
    pub(in crate::cli) text: String,
    /// The line's own.
    pub(in crate::cli) instruction: Option<String>,
    /// Path and line, for errors.
    pub(in crate::cli) place: String,
}

#[derive(Deserialize)]
struct Line {
    #[serde(default, deserialize_with = "query_id")]
    query_id: Option<String>,
    query: String,
    #[serde(default, deserialize_with = "doc_id")]
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
    let text = files::text(path)?;
    let mut found = Judgments { origin: origin.clone(), ..Judgments::default() };
    let own = scale(profile);
    let mut seen = Seen::default();
    let mut places: HashMap<String, usize> = HashMap::new();
    for (number, text) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
        let refused = |problem: String| Error::invalid(&origin, format!("line {number}: {problem}"));
        let line = parse(text).map_err(refused)?;
        let grade = grade(&line, profile, &own).map_err(refused)?;
        let text = document(&line, profile).map_err(refused)?;
        seen.check(&line, number).map_err(refused)?;
        if !folds.is_empty() && !line.fold.is_some_and(|fold| folds.contains(&fold)) {
            continue;
        }
        let Some((target, scale)) = grade else {
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
            target,
            scale,
            text,
            instruction: line.instruction,
            place: format!("{origin}: line {number}"),
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

fn query_id<'de, D: Deserializer<'de>>(given: D) -> Result<Option<String>, D::Error> {
    id(given, "query_id")
}

fn doc_id<'de, D: Deserializer<'de>>(given: D) -> Result<Option<String>, D::Error> {
    id(given, "doc_id")
}

/// A text, or a whole number as its digits, as training reads them.
fn id<'de, D: Deserializer<'de>>(given: D, field: &str) -> Result<Option<String>, D::Error> {
    match Value::deserialize(given)? {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text)),
        Value::Number(number) if !number.is_f64() => Ok(Some(number.to_string())),
        other => {
            let other = shown(&other.to_string());
            Err(D::Error::custom(format!("{field}: {other} is neither a text nor a whole number")))
        }
    }
}

fn parse(line: &str) -> Result<Line, String> {
    let object = line.trim_start().starts_with('{');
    let line: Line = serde_json::from_str(line).map_err(|cause| cause.to_string())?;
    if !object {
        return Err("is an array, not an object".to_owned());
    }
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

/// The grade as a part of the best one, and the scale: the line's own or, for names and where it has none,
/// the model's. `None` where a teacher's distribution stands for it.
fn grade(line: &Line, profile: &Profile, own: &Scale) -> Result<Option<(f64, Scale)>, String> {
    let (low, high) = ends(profile);
    let of_model = |value: f64| ((value - low) / (high - low), own.clone());
    let given = match &line.grade {
        None if line.distribution.is_some() => return Ok(None),
        None => return Err("grade: is missing".to_owned()),
        Some(Value::String(name)) => return Ok(Some(of_model(named(name, profile)?))),
        Some(given) => given.as_f64().ok_or("grade: is neither a name nor a number")?,
    };
    match line.max_grade {
        Some(max_grade) => whole(given, max_grade).map(Some),
        None if (low..=high).contains(&given) => Ok(Some(of_model(given))),
        None => Err(format!(
            "grade {given} is not in the model's {low} to {high}; say max_grade if the scale is another"
        )),
    }
}

/// A grade on a scale of whole numbers.
fn whole(grade: f64, max_grade: f64) -> Result<(f64, Scale), String> {
    if max_grade > MOST_GRADES {
        // With all of its digits a large number is no message.
        return Err(format!("max_grade: {max_grade:?}, over the limit of {MOST_GRADES}"));
    }
    if !(max_grade > 0.0 && (0.0..=max_grade).contains(&grade)) {
        return Err(format!("grade {grade} is not in 0 to max_grade {max_grade}"));
    }
    // A shorter scale has no whole numbers but its ends.
    Ok((grade / max_grade, Scale::Whole(max_grade.max(1.0))))
}

/// The model's grades, as parts of the best one.
fn scale(profile: &Profile) -> Scale {
    let (low, high) = ends(profile);
    let mut parts = match profile.read {
        ScoreRead::Softmax { .. } => vec![0.0, 1.0],
        ScoreRead::Expected => {
            profile.grades.iter().map(|grade| (grade.value - low) / (high - low)).collect()
        }
    };
    parts.sort_by(f64::total_cmp);
    parts.dedup();
    Scale::Model(parts.into())
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
mod tests;
