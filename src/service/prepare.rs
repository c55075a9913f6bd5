//! Rendering, tokenizing and submitting a request's pairs.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use crate::{
    admission::{Grant, Permit},
    engine::job::{ScoreJob, Scored},
    error::{Code, Error, Result, listed},
    grounding::Facts,
    profile::Profile,
    prompt::{Instructed, Prompt, QueryPrompt, Truncation},
    request::{Body, Document, Items, ScoreOptions, ScoreRequest},
};

use super::{Inner, Ticket, turns::Step};

/// Jobs are submitted together, so that they share a batch; of a long request,
/// in portions of so many tokens, so that the engine starts while the rest is tokenized.
const PORTION_TOKENS: usize = 8192;
/// Texts are rendered in steps of about so many bytes, between which others have their turn: soon done where words
/// were met before, and later where nothing was.
const STEP_BYTES: usize = 128 << 10;

/// Which pairs' KV may be needed for explaining.
pub(super) enum Keep {
    Nothing,
    Everything,
    /// Sorted positions.
    Only(Vec<usize>),
}

impl Keep {
    fn contains(&self, index: usize) -> bool {
        match self {
            Keep::Nothing => false,
            Keep::Everything => true,
            Keep::Only(indices) => indices.binary_search(&index).is_ok(),
        }
    }
}

/// A request on its way to the engine.
pub(super) struct Work {
    pairs: Vec<WorkPair>,
    /// Its number, once it is admitted.
    request: u64,
    /// One, or one per pair.
    queries: Vec<String>,
    names: Names,
    instruction: Option<String>,
    truncation: Truncation,
    return_documents: bool,
    keep: Keep,
    deadline: Instant,
    bytes: usize,
    bound: usize,
}

struct WorkPair {
    id: Option<String>,
    text: String,
    bound: usize,
    permit: Option<Permit>,
    ticket: Ticket<Scored>,
}

/// A submitted request.
pub(super) struct Prepared {
    /// In input order.
    pub(super) pairs: Vec<PreparedPair>,
    /// When rendering began.
    pub(super) start: Instant,
    /// When the first pair entered the queue.
    pub(super) first: Instant,
    /// How long rendering and tokenizing took.
    pub(super) took: Duration,
}

pub(super) struct PreparedPair {
    pub(super) id: Option<String>,
    pub(super) document: Option<String>,
    pub(super) enqueued: Instant,
    /// `None` if it could not be rendered; its ticket says why.
    pub(super) prompt: Option<Arc<Prompt>>,
    /// What its reason may say, if it may be explained and reasons are kept true.
    pub(super) facts: Option<Facts>,
}

pub(super) type Answers = Vec<oneshot::Receiver<Result<Scored>>>;

impl Work {
    /// Takes a request apart; object documents become text.
    pub(super) fn new(
        request: ScoreRequest,
        keep: Keep,
        deadline: Instant,
        profile: &Profile,
    ) -> Result<(Self, Answers, ScoreOptions)> {
        let (items, mut options) = request.into_parts();
        let instruction = options.instruction.take();
        let names = Names::of(&items);
        let (queries, documents) = match items {
            Items::Documents { query, documents } => (vec![query], documents),
            Items::Pairs(pairs) => pairs.into_iter().map(|pair| (pair.query, pair.document)).unzip(),
        };
        let around = instruction.as_ref().map_or(profile.instruction.len(), String::len);
        let mut work = Self {
            pairs: Vec::with_capacity(documents.len()),
            request: 0,
            instruction,
            truncation: options.truncation,
            return_documents: options.return_documents,
            keep,
            deadline,
            bytes: around + queries.iter().map(String::len).sum::<usize>(),
            bound: 0,
            queries,
            names,
        };
        let mut answers = Vec::with_capacity(documents.len());
        for (index, document) in documents.into_iter().enumerate() {
            let field = || names.document(index);
            let (id, text) = document_text(document, options.blank, profile, field)?;
            // No token is less than a byte; the template around the texts is not counted.
            let bound = (text.len() + work.query(index).len() + around).min(profile.max_tokens);
            work.bytes += text.len();
            work.bound += bound;
            let (ticket, answer) = Ticket::new();
            work.pairs.push(WorkPair { id, text, bound, permit: None, ticket });
            answers.push(answer);
        }
        Ok((work, answers, options))
    }

    /// Bytes to tokenize.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// At most so many tokens.
    pub(super) fn bound(&self) -> usize {
        self.bound
    }

    /// Hands each pair its share of what was admitted.
    pub(super) fn admit(&mut self, mut grant: Grant) {
        self.request = grant.request();
        for pair in &mut self.pairs {
            pair.permit = Some(grant.split(pair.bound));
        }
    }

    fn query(&self, index: usize) -> &str {
        &self.queries[if self.names.paired { index } else { 0 }]
    }
}

/// What a request calls the texts of its pairs.
#[derive(Clone, Copy)]
pub(crate) struct Names {
    paired: bool,
}

impl Names {
    pub(crate) fn of(items: &Items) -> Self {
        Self { paired: matches!(items, Items::Pairs(_)) }
    }

    pub(crate) fn document(self, index: usize) -> String {
        if self.paired { format!("pairs[{index}].document") } else { format!("documents[{index}]") }
    }

    /// An error about one pair's `document` or `query` as one about the request's.
    pub(crate) fn place(self, index: usize, error: Error) -> Error {
        let error = error.rename_field("document", &self.document(index));
        if self.paired { error.rename_field("query", &format!("pairs[{index}].query")) } else { error }
    }
}

/// A document's id and the text that stands for it in prompts; `field` names it in errors. What an object's
/// fields are rendered to may be `blank` where the template names one of them.
pub(crate) fn document_text(
    document: Document,
    blank: bool,
    profile: &Profile,
    field: impl Fn() -> String,
) -> Result<(Option<String>, String)> {
    let (id, body) = document.into_parts();
    let text = match body {
        Body::Text(text) => text,
        Body::Fields(fields) => {
            let text = profile.render_document(&fields);
            if text.trim().is_empty() && !(blank && profile.names_field_of(&fields)) {
                let names = listed(fields.keys().map(String::as_str));
                let message = format!("no text in its fields {names}; see the profile's document template");
                return Err(Error::invalid(&field(), message));
            }
            text
        }
    };
    Ok((id, text))
}

/// A request whose pairs are rendered and submitted, a step after the other. What fails answers through its ticket.
pub(super) struct Preparing {
    inner: Arc<Inner>,
    work: Work,
    /// What is left of its pairs.
    pairs: std::iter::Enumerate<std::vec::IntoIter<WorkPair>>,
    prepared: Vec<PreparedPair>,
    started: Instant,
    /// When the first portion was submitted, and the last.
    submitted: Option<(Instant, Instant)>,
}

impl Preparing {
    pub(super) fn new(inner: Arc<Inner>, mut work: Work) -> Self {
        let pairs = std::mem::take(&mut work.pairs);
        let prepared = Vec::with_capacity(pairs.len());
        let pairs = pairs.into_iter().enumerate();
        Self { inner, work, pairs, prepared, started: Instant::now(), submitted: None }
    }

    /// Everything at once.
    pub(super) fn all(&mut self) {
        self.portion(usize::MAX);
    }

    /// As many pairs as others are to wait for.
    pub(super) fn step(&mut self) -> Step {
        self.portion(STEP_BYTES);
        if self.pairs.len() == 0 { Step::Last } else { Step::More }
    }

    /// Pairs of up to about so many bytes, and at least one.
    fn portion(&mut self, most: usize) {
        if self.prepared.is_empty() {
            // Waiting for a turn is not rendering.
            self.started = Instant::now();
        }
        let Self { inner, work, pairs, prepared, started, submitted } = self;
        inner.engine.expect();
        let profile = &inner.model.profile;
        let instruction = work.instruction.as_deref().unwrap_or(&profile.instruction);
        let tokenizer = &inner.model.tokenizer;
        let filled = profile.template.for_instruction(tokenizer, instruction, profile.max_tokens);
        let mut queries = Queries { filled, last: None };
        let mut portion: Vec<ScoreJob> = Vec::with_capacity(pairs.len().min(64));
        let (mut portion_tokens, mut bytes) = (0, 0_usize);
        while bytes < most
            && let Some((index, pair)) = pairs.next()
        {
            bytes = bytes.saturating_add(pair.text.len());
            let (pair, job) = render(inner, work, &mut queries, index, pair, *started);
            prepared.push(pair);
            if let Some(job) = job {
                portion_tokens += job.prompt.tokens.len();
                portion.push(job);
            }
            if portion_tokens >= PORTION_TOKENS {
                submit(inner, &mut portion, prepared, *started, submitted);
                portion_tokens = 0;
            }
        }
        submit(inner, &mut portion, prepared, *started, submitted);
    }

    /// The request once every pair is submitted.
    pub(super) fn end(self) -> Prepared {
        let start = self.started;
        // Not the time until now: from submitting on, the engine competes for this thread's core.
        let (first, last) = self.submitted.unwrap_or((start, start));
        Prepared { pairs: self.prepared, start, first, took: last - start }
    }
}

/// Renders one pair: what is kept of it, and its job if that went well.
fn render<'a>(
    inner: &Inner,
    work: &'a Work,
    queries: &mut Queries<'a>,
    index: usize,
    mut pair: WorkPair,
    enqueued: Instant,
) -> (PreparedPair, Option<ScoreJob>) {
    let explain = inner.model.profile.explain.as_ref();
    let grounding = explain.and_then(|explain| explain.grounding.as_ref());
    let query = work.query(index);
    let outcome =
        wanted(&pair.ticket, work.deadline).and_then(|()| queries.render(query, &pair.text, work.truncation));
    let grounded = grounding.filter(|_| outcome.is_ok() && work.keep.contains(index));
    let facts = grounded.map(|rule| rule.facts(query, &pair.text)).transpose();
    let outcome = outcome.and_then(|prompt| Ok((prompt, facts?)));
    let document = work.return_documents.then_some(pair.text);
    let (prompt, facts, job) = match outcome {
        Ok((prompt, facts)) => {
            let prompt = Arc::new(prompt);
            if let Some(permit) = &mut pair.permit {
                permit.correct(prompt.tokens.len());
            }
            let job = ScoreJob {
                prompt: Arc::clone(&prompt),
                request: work.request,
                keep_kv: work.keep.contains(index),
                deadline: Some(work.deadline),
                enqueued,
                permit: pair.permit,
                ticket: pair.ticket,
            };
            (Some(prompt), facts, Some(job))
        }
        Err(error) => {
            pair.ticket.fail(work.names.place(index, error));
            (None, None, None)
        }
    };
    (PreparedPair { id: pair.id, document, enqueued, prompt, facts }, job)
}

/// Whether there is still any point in rendering a pair.
fn wanted(ticket: &Ticket<Scored>, deadline: Instant) -> Result<()> {
    if ticket.is_abandoned() || Instant::now() >= deadline {
        return Err(Error::new(
            Code::DeadlineExceeded,
            "the deadline passed while the request was tokenized",
        ));
    }
    Ok(())
}

/// Submits a portion, and writes down when.
fn submit(
    inner: &Inner,
    portion: &mut Vec<ScoreJob>,
    prepared: &mut [PreparedPair],
    unset: Instant,
    submitted: &mut Option<(Instant, Instant)>,
) {
    let now = Instant::now();
    let mut jobs = std::mem::take(portion);
    for job in &mut jobs {
        job.enqueued = now;
    }
    if !jobs.is_empty() {
        inner.engine.score_all(jobs);
    }
    stamp(prepared, now, unset);
    *submitted = Some((submitted.map_or(now, |(first, _)| first), now));
}

/// Tells the pairs of the last portion when they were submitted.
fn stamp(prepared: &mut [PreparedPair], enqueued: Instant, unset: Instant) {
    for pair in prepared.iter_mut().rev().take_while(|pair| pair.enqueued == unset) {
        pair.enqueued = enqueued;
    }
}

/// Fills the template with each query once, as long as equal queries follow each other.
struct Queries<'a> {
    filled: Result<Instructed<'a>>,
    last: Option<(&'a str, Result<QueryPrompt>)>,
}

impl<'a> Queries<'a> {
    fn render(&mut self, query: &'a str, document: &str, truncation: Truncation) -> Result<Prompt> {
        let filled = self.filled.as_ref().map_err(Error::clone)?;
        let (_, prompt) = match self.last.take().filter(|(last, _)| *last == query) {
            Some(last) => self.last.insert(last),
            None => self.last.insert((query, filled.for_query(query))),
        };
        // White space is no text: all blank documents are one, whatever it is made of.
        let document = if document.trim().is_empty() { "" } else { document };
        prompt.as_ref().map_err(Error::clone)?.render(document, truncation)
    }
}
