//! TREC's files: judgments (`qrels`) and runs, evaluated as trec_eval does.

use std::{
    collections::{HashMap, HashSet},
    fmt::Write as _,
    path::Path,
};

use crate::{
    cli::files,
    error::{Error, Result},
};

use super::{
    judgments::{Judgments, Query},
    metrics::{self, PerQuery, Scored, discounted},
};

/// Grades by query and document; queries in the file's order.
#[derive(Debug, Default)]
pub(in crate::cli) struct Qrels {
    order: Vec<String>,
    grades: HashMap<String, HashMap<String, f64>>,
}

/// Scores by query and document.
#[derive(Debug, Default)]
pub(in crate::cli) struct Run {
    scores: HashMap<String, Vec<(String, f32)>>,
}

impl Qrels {
    /// Reads lines `query iteration document grade`; `Invalid`, naming path and line.
    pub(in crate::cli) fn read(path: &Path) -> Result<Self> {
        let mut qrels = Self::default();
        each_line(path, 4, |fields| {
            let grade = number(fields[3], "grade")?;
            if !qrels.grades.contains_key(fields[0]) {
                qrels.order.push(fields[0].to_owned());
            }
            let grades = qrels.grades.entry(fields[0].to_owned()).or_default();
            grades.insert(fields[2].to_owned(), grade).map_or(Ok(()), |_| Err(twice(fields)))
        })?;
        Ok(qrels)
    }

    /// nDCG at `depth` (linear gains) and the reciprocal rank of the first document with a grade
    /// of 1 or more, of every query that the run has. An unjudged document counts as grade 0.
    pub(in crate::cli) fn evaluate(&self, run: &Run, depth: usize) -> Vec<PerQuery> {
        let judged = self.order.iter().filter_map(|query| Some((query, run.scores.get(query)?)));
        judged
            .map(|(query, scores)| {
                let mut ranked: Vec<&(String, f32)> = scores.iter().collect();
                // Equal scores: the later name first, as trec_eval has it.
                ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| b.0.cmp(&a.0)));
                let grades = &self.grades[query];
                let gains = || ranked.iter().map(|(id, _)| grades.get(id).copied().unwrap_or(0.0).max(0.0));
                let mut ideal: Vec<f64> = grades.values().map(|grade| grade.max(0.0)).collect();
                ideal.sort_by(|a, b| b.total_cmp(a));
                let best = discounted(ideal.into_iter(), depth);
                let ndcg = if best > 0.0 { discounted(gains(), depth) / best } else { 0.0 };
                let first = gains().position(|gain| gain >= 1.0);
                let mrr = first.map_or(0.0, |rank| 1.0 / (rank + 1) as f64);
                PerQuery { id: query.clone(), documents: ranked.len(), ndcg: Some(ndcg), mrr: Some(mrr) }
            })
            .collect()
    }
}

impl Run {
    /// Reads lines `query Q0 document rank score tag`; `Invalid`, naming path and line. The order
    /// is that of the scores, whatever the ranks say.
    pub(in crate::cli) fn read(path: &Path) -> Result<Self> {
        let mut run = Self::default();
        let mut seen: HashSet<(String, String)> = HashSet::new();
        each_line(path, 6, |fields| {
            // Counted twice, a document would make the figures larger than the best.
            if !seen.insert((fields[0].to_owned(), fields[2].to_owned())) {
                return Err(twice(fields));
            }
            // Of 32 bits, as trec_eval reads it: what is equal there is equal here.
            let score = number(fields[4], "score")? as f32;
            run.scores.entry(fields[0].to_owned()).or_default().push((fields[2].to_owned(), score));
            Ok(())
        })?;
        Ok(run)
    }
}

/// A run has no place for two documents of one name, and none for white space in it.
pub(in crate::cli) fn check_names(sets: &[Judgments]) -> Result<(), String> {
    let mut seen = HashSet::new();
    for query in sets.iter().flat_map(|set| &set.queries) {
        for judged in &query.judged {
            let name = (field(&query.id), field(&judged.id));
            if seen.contains(&name) {
                let (query, document) = name;
                let place = &judged.place;
                return Err(format!(
                    "{place}: document {document:?} of query {query:?} would be there twice"
                ));
            }
            seen.insert(name);
        }
    }
    Ok(())
}

/// Adds a model's scores as lines of a run, best first.
pub(in crate::cli) fn add_run(text: &mut String, queries: &[Query], scored: &[Vec<Scored>]) {
    for (query, scored) in queries.iter().zip(scored) {
        for (rank, pair) in metrics::rank(scored).into_iter().enumerate() {
            let (query, id) = (field(&query.id), field(&pair.id));
            // Writing to a string does not fail.
            let _ = writeln!(text, "{query} Q0 {id} {} {:.9} verdict", rank + 1, pair.score);
        }
    }
}

/// A name that white space does not end.
fn field(name: &str) -> String {
    name.split_whitespace().collect::<Vec<_>>().join("_")
}

fn each_line(path: &Path, count: usize, mut take: impl FnMut(&[&str]) -> Result<(), String>) -> Result<()> {
    let origin = path.display().to_string();
    let text = files::text(path)?;
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let taken = if fields.len() == count {
            take(&fields)
        } else {
            Err(format!("{} fields, not {count}", fields.len()))
        };
        taken.map_err(|problem| Error::invalid(&origin, format!("line {}: {problem}", index + 1)))?;
    }
    Ok(())
}

/// Of a document that a query has already.
fn twice(fields: &[&str]) -> String {
    format!("document {:?} is there twice for query {:?}", fields[2], fields[0])
}

fn number(text: &str, name: &str) -> Result<f64, String> {
    let number: Option<f64> = text.parse().ok().filter(|number: &f64| number.is_finite());
    number.ok_or_else(|| format!("{name} {text:?} is not a number"))
}
