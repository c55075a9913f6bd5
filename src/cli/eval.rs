//! `verdict eval`: how well a model ranks and grades judged documents.

mod compare;
mod judgments;
mod metrics;
mod pictures;
mod trec;

use std::{
    collections::HashSet,
    fmt::Write as _,
    io::{IsTerminal as _, Write as _},
    path::{Path, PathBuf},
};

use futures::{StreamExt as _, stream};
use serde_json::json;

use crate::{
    error::{Error, Result},
    profile::Profile,
    request::{Document, Items, ScoreOptions, ScoreRequest},
    service::Service,
};

use super::{
    Exit, Failure, files, load_model,
    local::{Local, ModelArgs},
    output::Output,
    progress::Progress,
};

pub(super) use judgments::{Judged, Judgments, Query};
use metrics::PerQuery;
pub(super) use metrics::{Figures, Scored, expected_error};

/// What is read of judgments, here and by `verdict calibrate`.
#[derive(Clone, Debug, clap::Args)]
pub struct JudgmentArgs {
    /// Judged documents, one JSON object a line: query_id, query, doc_id, title, text or document, grade,
    /// max_grade, instruction, fold
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub judgments: Vec<PathBuf>,
    /// Only these folds
    #[arg(long, value_name = "N", value_delimiter = ',')]
    pub fold: Vec<i64>,
    /// Replaces the profile's instruction; a line's own goes before it
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
    /// Judgments of TREC's kind, to evaluate runs instead of a model: query, iteration, document, grade
    #[arg(long, value_name = "FILE", conflicts_with = "judgments", requires = "run")]
    qrels: Option<PathBuf>,
    /// A run of TREC's kind; a second one is compared with the first by a paired bootstrap
    #[arg(long, value_name = "FILE", requires = "qrels")]
    run: Vec<PathBuf>,
    /// Ranks that count for nDCG
    #[arg(long, value_name = "K", default_value_t = 10)]
    depth: usize,
    /// Write each query's figures, separated by tabs
    #[arg(long, value_name = "FILE")]
    per_query: Option<PathBuf>,
    /// Write the model's scores as a run of TREC's kind
    #[arg(long, value_name = "FILE", conflicts_with = "qrels")]
    save_run: Option<PathBuf>,
    /// Draw scores against judged relevance, as SVG
    #[arg(long, value_name = "FILE", conflicts_with = "qrels")]
    reliability: Option<PathBuf>,
    /// Draw judged against predicted grades, as SVG
    #[arg(long, value_name = "FILE", conflicts_with = "qrels")]
    confusion: Option<PathBuf>,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

/// Queries that are being scored at once.
const CONCURRENT: usize = 32;

/// What the mean over files is called.
const MEAN: &str = "macro";

/// Prints the figures of each file, and their mean over files.
///
/// # Errors
///
/// [`Exit::Usage`] if a file cannot be read, naming path and line; [`Exit::Model`] if the model is
/// refused; [`Exit::Runtime`] if scoring fails.
pub fn run(args: EvalArgs) -> Result<(), Failure> {
    if args.depth == 0 {
        return Err(usage("--depth", "0 is below 1"));
    }
    if let Some(qrels) = &args.qrels {
        return runs(&args, qrels);
    }
    let names = names(&args.judgments.judgments)?;
    let model = load_model(args.model.model.as_deref())?;
    let sets = load(&args.judgments, &model.profile)?;
    if args.save_run.is_some() {
        trec::check_names(&sets).map_err(|problem| usage("--save-run", problem))?;
    }
    let local = Local::of(model, &args.model)?;
    let mut rows: Vec<(String, Figures)> = Vec::new();
    let (mut tables, mut run_lines, mut pairs) = (Vec::new(), String::new(), Vec::new());
    for (name, set) in names.iter().zip(&sets) {
        let queries = &set.queries;
        let scored = local.runtime.block_on(score(&local.service, set, &args.judgments, false))?;
        rows.push((name.clone(), Figures::new(&scored, args.depth)));
        let judged = queries.iter().zip(&scored);
        tables.push((
            name.clone(),
            judged.map(|(query, scored)| PerQuery::new(&query.id, scored, args.depth)).collect(),
        ));
        if args.save_run.is_some() {
            trec::add_run(&mut run_lines, queries, &scored);
        }
        pairs.extend(scored.into_iter().flatten());
    }
    let model = local.service.model().name.clone();
    local.stop()?;
    let pairs: Vec<&Scored> = pairs.iter().collect();
    save(args.per_query.as_deref(), || per_query(&tables, args.depth))?;
    save(args.save_run.as_deref(), || run_lines)?;
    save(args.reliability.as_deref(), || pictures::reliability(&model, &pairs))?;
    save(args.confusion.as_deref(), || pictures::confusion(&model, &metrics::confusion(&pairs)))?;
    if rows.len() > 1 {
        let figures: Vec<Figures> = rows.iter().map(|(_, figures)| *figures).collect();
        rows.push((MEAN.to_owned(), Figures::mean(&figures)));
    }
    if args.json {
        let sets: serde_json::Map<_, _> = rows.iter().map(|(name, row)| (name.clone(), row.json())).collect();
        print(json!({"model": model, "sets": sets}))
    } else {
        print(table(&rows))
    }
}

/// Evaluates runs on TREC's judgments; two of them are compared.
fn runs(args: &EvalArgs, qrels: &Path) -> Result<(), Failure> {
    let unusable = |error| Failure::new(Exit::Usage, error);
    if args.run.len() > 2 {
        return Err(usage("--run", format!("{} runs, over the limit of 2", args.run.len())));
    }
    let judged = trec::Qrels::read(qrels).map_err(unusable)?;
    let mut tables: Vec<(String, Vec<PerQuery>)> = Vec::new();
    for path in &args.run {
        let found = judged.evaluate(&trec::Run::read(path).map_err(unusable)?, args.depth);
        if found.is_empty() {
            return Err(usage("--run", format!("{} has no query of {}", path.display(), qrels.display())));
        }
        tables.push((path.display().to_string(), found));
    }
    save(args.per_query.as_deref(), || per_query(&tables, args.depth))?;
    let mean = |queries: &[PerQuery], of: fn(&PerQuery) -> Option<f64>| {
        queries.iter().filter_map(of).sum::<f64>() / queries.len() as f64
    };
    let rows: Vec<_> = tables
        .iter()
        .map(|(name, queries)| (name, queries.len(), mean(queries, |q| q.ndcg), mean(queries, |q| q.mrr)))
        .collect();
    let difference = tables.get(1).and_then(|second| compare::ndcg(&tables[0].1, &second.1));
    let ndcg_name = format!("ndcg_{}", args.depth);
    if args.json {
        let runs: Vec<_> = rows
            .iter()
            .map(|(name, queries, ndcg, mrr)| json!({"run": name, "queries": queries, &ndcg_name: ndcg, "mrr": mrr}))
            .collect();
        let difference =
            difference.map(|d| json!({"queries": d.queries, "mean": d.mean, "low": d.low, "high": d.high}));
        return print(json!({"runs": runs, "difference": difference}));
    }
    let line = |(name, queries, ndcg, mrr)| {
        format!("{name}: {queries} queries, nDCG@{} {ndcg:.4}, MRR {mrr:.4}", args.depth)
    };
    let mut lines: Vec<String> = rows.into_iter().map(line).collect();
    lines.extend(difference.map(|d| {
        format!(
            "first less second: {:+.4} [{:+.4}, {:+.4}] over {} queries (paired bootstrap, 95 %)",
            d.mean, d.low, d.high, d.queries
        )
    }));
    print(lines.join("\n"))
}

fn print(text: impl std::fmt::Display) -> Result<(), Failure> {
    let mut output = Output::standard();
    output.line(text)?;
    Ok(output.flush()?)
}

fn usage(field: &str, problem: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::Usage, Error::invalid(field, problem))
}

fn save(path: Option<&Path>, text: impl FnOnce() -> String) -> Result<(), Failure> {
    let Some(path) = path else { return Ok(()) };
    std::fs::write(path, text()).map_err(|cause| {
        Failure::new(Exit::Usage, anyhow::anyhow!("{} cannot be written: {cause}", path.display()))
    })
}

/// A header and a line a query; empty where nothing relevant is judged.
fn per_query(tables: &[(String, Vec<PerQuery>)], depth: usize) -> String {
    let mut text = format!("set\tquery\tdocuments\tndcg_{depth}\tmrr\n");
    let number = |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:.6}"));
    for (set, queries) in tables {
        for PerQuery { id, documents, ndcg, mrr } in queries {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{set}\t{id}\t{documents}\t{}\t{}", number(*ndcg), number(*mrr));
        }
    }
    text
}

/// The judgments of each file, for a model of this profile.
pub(super) fn load(args: &JudgmentArgs, profile: &Profile) -> Result<Vec<Judgments>, Failure> {
    if args.judgments.is_empty() {
        return Err(usage("--judgments", "is missing"));
    }
    let folds: HashSet<i64> = args.fold.iter().copied().collect();
    let read = |path: &PathBuf| {
        judgments::read(path, &folds, profile).map_err(|error| Failure::new(Exit::Usage, error))
    };
    args.judgments.iter().map(read).collect()
}

/// A name for each file of judgments: its stem or, where another file has that too, its path.
fn names(paths: &[PathBuf]) -> Result<Vec<String>, Failure> {
    let stems: Vec<String> = paths.iter().map(|path| files::stem(path)).collect();
    // The mean of several files has a name as well.
    let mean = (paths.len() > 1).then_some(MEAN);
    let is_taken =
        |name: &String| mean == Some(name) || stems.iter().filter(|other| *other == name).count() > 1;
    let mut seen: HashSet<String> = mean.map(str::to_owned).into_iter().collect();
    let name = |(path, stem): (&PathBuf, &String)| {
        let name = if is_taken(stem) { path.display().to_string() } else { stem.clone() };
        if seen.insert(name.clone()) {
            return Ok(name);
        }
        let message = format!("{}: another set of figures is called {name:?} as well", path.display());
        Err(usage("--judgments", message))
    };
    paths.iter().zip(&stems).map(name).collect()
}

/// Scores every judged document; one list per query.
pub(super) async fn score(
    service: &Service,
    set: &Judgments,
    args: &JudgmentArgs,
    raw: bool,
) -> Result<Vec<Vec<Scored>>> {
    let pairs = set.queries.iter().map(|query| query.judged.len() as u64).sum();
    let mut progress = Progress::new("pairs", Some(pairs));
    let mut results = stream::iter(&set.queries)
        .map(|query| score_query(service, query, args.instruction.as_deref(), raw))
        .buffered(CONCURRENT);
    let mut scored = Vec::with_capacity(set.queries.len());
    while let Some(query) = results.next().await {
        let query = query?;
        query.iter().for_each(|_| progress.step(true));
        scored.push(query);
    }
    if std::io::stderr().is_terminal() {
        progress.finish();
    }
    if let Some(note) = set.note() {
        // Where standard error cannot be written, the work goes on.
        let _ = writeln!(std::io::stderr(), "{note}");
    }
    Ok(scored)
}

/// A document without text is not sent: it has the lowest score and no logits. Documents of one
/// instruction are asked about together.
async fn score_query(
    service: &Service,
    query: &Query,
    instruction: Option<&str>,
    raw: bool,
) -> Result<Vec<Scored>> {
    let mut asked: Vec<(Option<&str>, Vec<usize>)> = Vec::new();
    for (index, judged) in query.judged.iter().enumerate().filter(|(_, judged)| !judged.is_blank()) {
        let wanted = judged.instruction.as_deref().or(instruction);
        match asked.iter_mut().find(|(known, _)| *known == wanted) {
            Some((_, places)) => places.push(index),
            None => asked.push((wanted, vec![index])),
        }
    }
    let mut scored: Vec<Scored> = query.judged.iter().map(unscored).collect();
    for (instruction, places) in asked {
        let options =
            ScoreOptions { instruction: instruction.map(str::to_owned), raw, ..ScoreOptions::default() };
        score_documents(service, query, &places, options, &mut scored).await?;
    }
    Ok(scored)
}

/// Scores the documents in these places. Errors begin with the path and line of the document or, where
/// they are of none alone, of the first.
async fn score_documents(
    service: &Service,
    query: &Query,
    places: &[usize],
    options: ScoreOptions,
    scored: &mut [Scored],
) -> Result<()> {
    let judged = || places.iter().map(|&place| &query.judged[place]);
    let documents = judged().map(|judged| Document::text(judged.text.clone())).collect();
    let items = Items::Documents { query: query.text.clone(), documents };
    let told = |error: Error| {
        // A request's error names the document that it is about by its index.
        let named = error.message().strip_prefix("documents[").and_then(|rest| rest.split_once("]: "));
        let named = named.and_then(|(index, rest)| Some((judged().nth(index.parse().ok()?)?, rest)));
        let first = judged().next().map_or("", |first| &first.place);
        let message = match named {
            Some((Judged { id, place, .. }, rest)) => {
                format!("{place}: query {}, document {id}: {rest}", query.id)
            }
            None => format!("{first}: query {}: {}", query.id, error.message()),
        };
        Error::new(error.code(), message).with_cause(error)
    };
    let request = ScoreRequest::new(items, options).map_err(told)?;
    let response = service.score(request).await.map_err(told)?;
    for (&place, result) in places.iter().zip(response.results) {
        let Judged { id, place: line, .. } = &query.judged[place];
        let score = result.score.map_err(|error| {
            let message = format!("{line}: query {}, document {id}: {error}", query.id);
            Error::new(error.code(), message).with_cause(error)
        })?;
        scored[place].score = score.distribution.score.get();
        scored[place].logits = score.logits;
    }
    Ok(())
}

fn unscored(judged: &Judged) -> Scored {
    let Judged { id, target, scale, .. } = judged.clone();
    Scored { id, score: 0.0, target, scale, logits: None }
}

/// A header and a line a set.
fn table(rows: &[(String, Figures)]) -> String {
    let width = rows.iter().map(|(name, _)| name.chars().count()).fold(3, usize::max);
    let ndcg = format!("nDCG@{}", rows.first().map_or(0, |(_, row)| row.depth));
    let mut text = format!(
        "{:width$}  queries   pairs  {ndcg:>8}     MRR  accuracy  macro-F1  kappa (QWK)  calibration error",
        "set"
    );
    for (name, row) in rows {
        let Figures { queries, pairs, ndcg, accuracy, macro_f1, kappa, mrr, calibration_error, .. } = row;
        let known =
            |figure: &Option<f64>| figure.map_or_else(|| "-".to_owned(), |figure| format!("{figure:.4}"));
        let (ndcg, mrr) = (known(ndcg), known(mrr));
        // Writing to a string does not fail.
        let _ = write!(
            text,
            "\n{name:width$}  {queries:7}  {pairs:6}  {ndcg:>8}  {mrr:>6}  {accuracy:8.4}  {macro_f1:8.4}  {kappa:11.4}  {calibration_error:17.4}"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_has_a_name_of_its_own() {
        let names = |paths: &[&str]| {
            let paths: Vec<PathBuf> = paths.iter().map(PathBuf::from).collect();
            names(&paths).map_err(|failure| failure.to_string())
        };
        let named = |paths: &[&str]| names(paths).expect("distinct");
        assert_eq!(named(&["x/a.jsonl", "x/b.jsonl"]), ["a", "b"]);
        assert_eq!(named(&["x/a.jsonl.gz", "x/b.gz"]), ["a", "b"]);
        assert_eq!(named(&["x/a.jsonl", "y/a.jsonl", "b.jsonl"]), ["x/a.jsonl", "y/a.jsonl", "b"]);
        assert_eq!(named(&["macro.jsonl"]), ["macro"]);
        assert_eq!(named(&["macro.jsonl", "a.jsonl"]), ["macro.jsonl", "a"]);
        let refused = |paths: &[&str]| names(paths).expect_err("refused");
        for paths in [["x/a.jsonl", "x/a.jsonl"], ["a", "a"]] {
            let expected =
                format!("--judgments: {0}: another set of figures is called {0:?} as well", paths[0]);
            assert_eq!(refused(&paths), expected);
        }
        assert_eq!(
            refused(&["macro", "a"]),
            "--judgments: macro: another set of figures is called \"macro\" as well"
        );
    }
}
