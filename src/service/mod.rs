//! Validate, admit, tokenize, submit, collect: the one call every transport makes.

mod collect;
mod explain;
mod prepare;
mod response;
mod sections;
mod stages;
mod turns;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use crate::{
    admission::{Admission, Capacity, Load, Patience},
    engine::{
        Engine,
        job::{Scored, Ticket},
        kv::KeptSequence,
    },
    error::{Code, Error, Result, shown},
    grade::Score,
    grounding::Facts,
    metrics::Metrics,
    model::Model,
    profile::{Probe, Profile},
    prompt::Prompt,
    request::{Document, ExplainRequest, Items, Limits, ScoreOptions, ScoreRequest},
    telemetry::Trace,
};

pub use explain::{ExplainItem, ExplainStream, ReasonDone};
pub use response::{Explanation, PairScore, ScoreResponse, ScoreResult, Timing, Usage};

use collect::{Collected, PairOutcome};
use prepare::{Keep, Preparing, Work};
pub(crate) use prepare::{Names, document_text};
use turns::Turns;

/// Texts up to so many bytes are tokenized where the request is. To wake a thread that takes over what else this one has
/// to do took 20 to 25 microseconds (two cores of an AMD EPYC, November 2026), and half as many bytes took about a hundred.
const INLINE_BYTES: usize = 8 << 10;
/// Texts up to so many bytes are tokenized on this thread too, but what else it has to do goes to another first: waking
/// that one is not waited for.
const IN_PLACE_BYTES: usize = 64 << 10;
/// The deadline where none is meant: of commands, whose user ends them, and of probes, whose asker looks at whether the
/// engine makes progress.
pub(crate) const NO_HURRY: Duration = Duration::from_secs(24 * 60 * 60);

/// Scores and explains. Cheap to clone.
#[derive(Clone)]
pub struct Service {
    inner: Arc<Inner>,
}

struct Inner {
    model: Arc<Model>,
    engine: Engine,
    admission: Admission,
    limits: Limits,
    metrics: Arc<Metrics>,
    capacity: Capacity,
    /// Of the threads that tokenize long texts.
    turns: Arc<Turns>,
}

/// All pairs of a request, scored or failed.
struct Scores {
    pairs: Vec<PairOutcome>,
    options: ScoreOptions,
    arrived: Instant,
    deadline: Instant,
    usage: Usage,
    timing: Timing,
}

/// What explaining a scored pair starts from.
#[derive(Default)]
struct Sequence {
    prompt: Option<Arc<Prompt>>,
    facts: Option<Facts>,
    kept: Option<KeptSequence>,
}

impl Service {
    /// A service of `model` over the engine that runs it.
    pub fn new(
        model: Arc<Model>,
        engine: Engine,
        limits: Limits,
        capacity: Capacity,
        metrics: Arc<Metrics>,
    ) -> Self {
        let threads = std::thread::available_parallelism().map_or(2, usize::from);
        let admission = Admission::new(capacity, Arc::clone(&metrics));
        let turns = Turns::new(threads);
        let inner = Inner { model, engine, admission, limits, metrics, capacity, turns };
        Self { inner: Arc::new(inner) }
    }

    /// Scores every pair of a request.
    ///
    /// # Errors
    ///
    /// `NotFound` for another model, `TooLarge` past a limit, `Overloaded` if
    /// the queue does not take it whole, `DeadlineExceeded`; and when every pair
    /// failed, the first pair's error. Otherwise a pair's error stands in its place.
    pub async fn score(&self, request: ScoreRequest) -> Result<ScoreResponse> {
        self.score_in(request, None).await
    }

    /// As [`Service::score`], its stages told to a trace.
    ///
    /// # Errors
    ///
    /// The same.
    pub async fn score_in(&self, request: ScoreRequest, trace: Option<&Trace>) -> Result<ScoreResponse> {
        let scores = self.run(request, Keep::Nothing, trace).await?;
        Ok(self.respond(scores).0)
    }

    /// Scores every pair of a request, then explains some of the scores. The
    /// scores are there when this returns; reasons follow as they are decoded.
    ///
    /// # Errors
    ///
    /// Those of [`Service::score`], and `Unimplemented` if the model does not explain.
    pub async fn explain(&self, request: ExplainRequest) -> Result<ExplainStream> {
        self.explain_in(request, None).await
    }

    /// As [`Service::explain`], its stages told to a trace.
    ///
    /// # Errors
    ///
    /// The same.
    pub async fn explain_in(&self, request: ExplainRequest, trace: Option<&Trace>) -> Result<ExplainStream> {
        explain::explain(self, request, trace).await
    }

    /// Scores the profile's known pairs. The limits on requests are not theirs; how long they may take is for the
    /// caller to say.
    ///
    /// # Errors
    ///
    /// The first probe's that cannot be scored, or whose score is out of its bounds.
    pub async fn run_probes(&self) -> Result<()> {
        for probe in &self.profile().probes {
            let score = self.score_probe(probe).await.map_err(|error| probe.not_scored(error))?;
            probe.check(score)?;
        }
        Ok(())
    }

    async fn score_probe(&self, probe: &Probe) -> Result<Score> {
        let options = ScoreOptions { instruction: probe.instruction.clone(), ..ScoreOptions::default() };
        let documents = vec![Document::text(probe.document.clone())];
        let request = ScoreRequest::new(Items::Documents { query: probe.query.clone(), documents }, options)?;
        let scores = self.run_within(NO_HURRY, request, Keep::Nothing, None).await?;
        let result = self.respond(scores).0.results.into_iter().next();
        Ok(result.ok_or_else(|| Error::internal("a probe has no result"))?.score?.distribution.score)
    }

    /// The served model.
    pub fn model(&self) -> &Arc<Model> {
        &self.inner.model
    }

    /// What it is computed on.
    pub fn device(&self) -> &str {
        self.inner.engine.device()
    }

    /// How the model is prompted and read.
    pub fn profile(&self) -> &Profile {
        &self.inner.model.profile
    }

    /// The largest request.
    pub fn limits(&self) -> &Limits {
        &self.inner.limits
    }

    /// The largest queue.
    pub fn capacity(&self) -> Capacity {
        self.inner.capacity
    }

    /// Most threads that tokenize long texts at once.
    pub fn tokenizing_threads(&self) -> usize {
        self.inner.turns.threads()
    }

    /// Most tokens of one reason; `None` if the model does not explain.
    pub fn max_reason_tokens(&self) -> Option<usize> {
        let explain = self.profile().explain.as_ref()?;
        Some(explain.max_tokens.min(self.inner.limits.reason_tokens))
    }

    /// Checks a client's request, and runs it.
    async fn run(&self, request: ScoreRequest, keep: Keep, trace: Option<&Trace>) -> Result<Scores> {
        self.check(&request)?;
        let most = self.inner.limits.deadline;
        let patience = request.options().deadline.unwrap_or(most).min(most);
        let scores = self.run_within(patience, request, keep, trace).await?;
        self.inner.metrics.time_to_score(scores.timing.total);
        Ok(scores)
    }

    /// A request with the texts that its documents are rendered to, as they would be later: where fields are many times
    /// what is left of them, they need not wait.
    ///
    /// # Errors
    ///
    /// Those of [`Service::score`] that are told of what is asked alone.
    pub(crate) fn rendered(&self, request: ScoreRequest) -> Result<ScoreRequest> {
        self.check(&request)?;
        let (names, blank) = (Names::of(request.items()), request.options().blank);
        request.with_documents(|index, document| {
            let field = || names.document(index);
            let (id, text) = document_text(document, blank, self.profile(), field)?;
            Ok(Document::text(text).with_id(id))
        })
    }

    /// Admits, tokenizes, submits, and waits for every score or the deadline.
    async fn run_within(
        &self,
        patience: Duration,
        request: ScoreRequest,
        keep: Keep,
        trace: Option<&Trace>,
    ) -> Result<Scores> {
        let arrived = Instant::now();
        let inner = &self.inner;
        let deadline = request.arrived().unwrap_or(arrived) + patience;
        if deadline <= arrived {
            return Err(inner.admission.gone_by(patience));
        }
        let patience = Patience { whole: patience, left: deadline - arrived };
        let (mut work, answers, options) = Work::new(request, keep, deadline, &inner.model.profile)?;
        let load = Load { pace: inner.engine.pace(), stalled: inner.engine.stalled() };
        let grant = inner.admission.admit(answers.len(), work.bound(), Some(patience), load);
        if let Some(trace) = trace {
            stages::admitted(trace, arrived, answers.len(), work.bound(), grant.as_ref().err());
        }
        work.admit(grant?);
        let all = self.compute(work, answers, options, arrived, deadline, trace);
        match tokio::time::timeout_at(deadline.into(), all).await {
            Ok(scores) => scores,
            Err(_) => Err(deadline_exceeded(patience.whole)),
        }
    }

    fn check(&self, request: &ScoreRequest) -> Result<()> {
        if let Some(name) = &request.options().model
            && !self.profile().answers_to(name)
        {
            let message =
                format!("model: {} is not served here; {:?} is", shown(name), self.inner.model.name);
            return Err(Error::new(Code::NotFound, message));
        }
        self.inner.limits.check(request)
    }

    async fn compute(
        &self,
        work: Work,
        answers: Vec<oneshot::Receiver<Result<Scored>>>,
        options: ScoreOptions,
        arrived: Instant,
        deadline: Instant,
        trace: Option<&Trace>,
    ) -> Result<Scores> {
        let inner = &self.inner;
        let bytes = work.bytes();
        let mut preparing = Preparing::new(Arc::clone(inner), work);
        if bytes <= INLINE_BYTES {
            preparing.all();
        } else {
            preparing = inner.turns.run(preparing, bytes <= IN_PLACE_BYTES, Preparing::step).await?;
        }
        let prepared = preparing.end();
        inner.metrics.tokenized(prepared.took);
        if let Some(trace) = trace {
            stages::tokenized(trace, &prepared);
        }
        let took = prepared.took;
        let collected = collect::collect(inner, prepared, answers, &options, trace).await?;
        let total = arrived.elapsed();
        let Collected { pairs, usage, queue, compute } = collected;
        let timing = Timing { total, tokenize: took, queue, compute, explain: Duration::ZERO };
        Ok(Scores { pairs, options, arrived, deadline, usage, timing })
    }

    /// Ranks and cuts as asked. Also returns what explaining needs, in input order.
    fn respond(&self, scores: Scores) -> (ScoreResponse, Vec<Sequence>) {
        let Scores { pairs, options, usage, timing, .. } = scores;
        let mut results = Vec::with_capacity(pairs.len());
        let mut sequences = Vec::with_capacity(pairs.len());
        for (index, PairOutcome { id, document, score, prompt, facts, kept }) in pairs.into_iter().enumerate()
        {
            results.push(ScoreResult { index, id, document, score });
            sequences.push(Sequence { prompt, facts, kept });
        }
        if options.sort || options.top_n.is_some() {
            response::rank(&mut results);
            results.truncate(options.top_n.unwrap_or(usize::MAX));
        }
        (ScoreResponse { model: Arc::clone(&self.inner.model), results, usage, timing }, sequences)
    }
}

fn deadline_exceeded(patience: Duration) -> Error {
    let message = format!("the deadline of {} ms passed before all scores were there", patience.as_millis());
    Error::new(Code::DeadlineExceeded, message)
}
