//! `verdict eval`: how well a model ranks and grades judged documents.

mod judgments;
mod metrics;

use std::{collections::HashSet, io::IsTerminal as _, path::PathBuf};

use futures::{StreamExt as _, stream};
use serde_json::json;

use crate::{
    error::{Error, Result},
    request::{Document, Items, ScoreOptions, ScoreRequest},
    service::Service,
};

use super::{
    Exit, Failure,
    local::{Local, ModelArgs},
    progress::Progress,
};

pub(super) use judgments::{Judged, Query, read};
pub(super) use metrics::{Figures, Scored};

/// What is read of judgments, here and by `verdict calibrate`.
#[derive(Clone, Debug, clap::Args)]
pub struct JudgmentArgs {
    /// Judged documents, one JSON object a line: query_id, query, doc_id, title, text, grade, max_grade, fold
    #[arg(long, value_name = "FILE", required = true, num_args = 1..)]
    pub judgments: Vec<PathBuf>,
    /// Only these folds
    #[arg(long, value_name = "N", value_delimiter = ',')]
    pub fold: Vec<i64>,
    /// Replaces the profile's instruction
    #[arg(long, value_name = "TEXT")]
    pub instruction: Option<String>,
}

/// Arguments of `verdict eval`.
#[derive(Clone, Debug, clap::Args)]
pub struct EvalArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    judgments: JudgmentArgs,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

/// Queries that are being scored at once.
const CONCURRENT: usize = 32;

/// Prints the figures of each file, and their mean over files.
///
/// # Errors
///
/// [`Exit::Usage`] if a file cannot be read, naming path and line; [`Exit::Model`] if the model is
/// refused; [`Exit::Runtime`] if scoring fails.
pub fn run(args: EvalArgs) -> Result<(), Failure> {
    let sets = load(&args.judgments)?;
    let local = Local::start(&args.model)?;
    let mut rows: Vec<(String, Figures)> = Vec::new();
    for (name, queries) in &sets {
        let scored = local.runtime.block_on(score(&local.service, queries, &args.judgments, false))?;
        rows.push((name.clone(), Figures::new(&scored)));
    }
    let model = local.service.model().name.clone();
    local.stop()?;
    if rows.len() > 1 {
        let figures: Vec<Figures> = rows.iter().map(|(_, figures)| *figures).collect();
        rows.push(("macro".to_owned(), Figures::mean(&figures)));
    }
    if args.json {
        let sets: serde_json::Map<_, _> = rows.iter().map(|(name, row)| (name.clone(), row.json())).collect();
        println!("{}", json!({"model": model, "sets": sets}));
    } else {
        print_table(&rows);
    }
    Ok(())
}

/// The judged queries of each file, named by its stem.
pub(super) fn load(args: &JudgmentArgs) -> Result<Vec<(String, Vec<Query>)>, Failure> {
    let folds: HashSet<i64> = args.fold.iter().copied().collect();
    let read = |path: &PathBuf| {
        let name = path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
        let queries = read(path, &folds).map_err(|error| Failure::new(Exit::Usage, error))?;
        Ok((name, queries))
    };
    args.judgments.iter().map(read).collect()
}

/// Scores every judged document; one list per query.
pub(super) async fn score(
    service: &Service,
    queries: &[Query],
    args: &JudgmentArgs,
    raw: bool,
) -> Result<Vec<Vec<Scored>>> {
    let pairs = queries.iter().map(|query| query.judged.len() as u64).sum();
    let mut progress = Progress::new("pairs", Some(pairs));
    let mut results = stream::iter(queries)
        .map(|query| score_query(service, query, args.instruction.clone(), raw))
        .buffered(CONCURRENT);
    let mut scored = Vec::with_capacity(queries.len());
    while let Some(query) = results.next().await {
        let query = query?;
        query.iter().for_each(|_| progress.step(true));
        scored.push(query);
    }
    if std::io::stderr().is_terminal() {
        progress.finish();
    }
    Ok(scored)
}

/// A document without text is not sent: it has the lowest score and no logits.
async fn score_query(
    service: &Service,
    query: &Query,
    instruction: Option<String>,
    raw: bool,
) -> Result<Vec<Scored>> {
    let sent = || query.judged.iter().enumerate().filter(|(_, judged)| !judged.is_blank());
    let documents: Vec<_> = sent().map(|(_, judged)| Document::fields(judged.fields())).collect();
    let mut scored: Vec<Scored> = query.judged.iter().map(unscored).collect();
    if documents.is_empty() {
        return Ok(scored);
    }
    let items = Items::Documents { query: query.text.clone(), documents };
    let request = ScoreRequest::new(items, ScoreOptions { instruction, raw, ..ScoreOptions::default() })?;
    let response = service.score(request).await?;
    for ((index, judged), result) in sent().zip(response.results) {
        let score = result.score.map_err(|error| {
            let message = format!("query {}, document {}: {error}", query.id, judged.id);
            Error::new(error.code(), message).with_cause(error)
        })?;
        scored[index].score = score.distribution.score.get();
        scored[index].logits = score.logits;
    }
    Ok(scored)
}

fn unscored(judged: &Judged) -> Scored {
    let (target, max_grade) = (judged.target(), judged.max_grade);
    Scored { id: judged.id.clone(), score: 0.0, target, max_grade, logits: None }
}

fn print_table(rows: &[(String, Figures)]) {
    let width = rows.iter().map(|(name, _)| name.chars().count()).fold(3, usize::max);
    println!("{:width$}  queries   pairs  nDCG@10  accuracy    MRR  calibration error", "set");
    for (name, row) in rows {
        let Figures { queries, pairs, ndcg, accuracy, mrr, calibration_error } = row;
        println!(
            "{name:width$}  {queries:7}  {pairs:6}  {ndcg:7.4}  {accuracy:8.4} {mrr:6.4}  {calibration_error:17.4}"
        );
    }
}
