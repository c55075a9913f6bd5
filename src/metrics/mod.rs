//! Every metric: name, unit, buckets and help, in one typed struct. The one
//! place that counts: the other modules say what happened, not what to add.
//!
//! Units are base units (seconds, tokens, ratios); names start with `verdict_`.

mod register;

use std::time::Duration;

use prometheus::{
    Encoder, Gauge, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry,
    TextEncoder,
};

use crate::error::{Code, Error, Result};

/// The two kinds of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Scores: one prefill per pair. Has priority.
    Score,
    /// Reasons: decode steps. Fills what is left, and is shed first.
    Explain,
}

impl Lane {
    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Lane::Score => "score",
            Lane::Explain => "explain",
        }
    }
}

/// Why a job left the queue without any compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DropReason {
    /// Nobody waits for the answer any more.
    Abandoned,
    /// Its deadline passed.
    Expired,
}

impl DropReason {
    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            DropReason::Abandoned => "abandoned",
            DropReason::Expired => "expired",
        }
    }
}

/// Why a whole request, or its explanation, was refused before any work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rejection {
    /// No room for its pairs.
    Pairs,
    /// No room for its tokens.
    Tokens,
    /// The predicted wait behind others was past its deadline.
    Deadline,
    /// Its client left too little of its deadline for the request alone.
    Late,
    /// Its deadline was shorter than the request alone would take.
    Hopeless,
    /// The explain lane was full.
    Explain,
    /// A queued explanation found no KV memory.
    ExplainMemory,
    /// No memory for its body.
    Bodies,
    /// The server was starting or draining.
    Unavailable,
}

impl Rejection {
    const ALL: [Self; 9] = [
        Self::Pairs,
        Self::Tokens,
        Self::Deadline,
        Self::Late,
        Self::Hopeless,
        Self::Explain,
        Self::ExplainMemory,
        Self::Bodies,
        Self::Unavailable,
    ];

    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Rejection::Pairs => "pairs",
            Rejection::Tokens => "tokens",
            Rejection::Deadline => "deadline",
            Rejection::Late => "late",
            Rejection::Hopeless => "hopeless",
            Rejection::Explain => "explain",
            Rejection::ExplainMemory => "explain_memory",
            Rejection::Bodies => "bodies",
            Rejection::Unavailable => "unavailable",
        }
    }
}

/// One forward pass.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct BatchStats {
    /// Distinct tokens computed.
    pub tokens: usize,
    /// Sequences in it, explained ones included.
    pub sequences: usize,
    /// The most tokens it could have held.
    pub budget_tokens: usize,
    /// Pairs scored.
    pub score_jobs: usize,
    /// Sequences that decoded a token.
    pub explain_steps: usize,
    /// How long it took.
    pub seconds: f64,
}

/// All metrics, in a registry of their own.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: RequestMetrics,
    engine: EngineMetrics,
    server: ServerMetrics,
}

/// What happens to requests.
#[derive(Debug)]
struct RequestMetrics {
    ended: IntCounterVec,
    seconds: HistogramVec,
    tokenize_seconds: Histogram,
    time_to_score_seconds: Histogram,
    first_reason_token_seconds: Histogram,
    failed_pairs: IntCounterVec,
    rejections: IntCounterVec,
    admitted_pairs: IntGauge,
    admitted_tokens: IntGauge,
    admitted_explanations: IntGauge,
    relevance_score: Histogram,
    label_mass: Histogram,
}

/// What happens on the engine's thread.
#[derive(Debug)]
struct EngineMetrics {
    queue_seconds: Histogram,
    compute_seconds: Histogram,
    queue_length: IntGaugeVec,
    jobs: IntCounterVec,
    dropped: IntCounterVec,
    batch_seconds: Histogram,
    batch_tokens: Histogram,
    batch_sequences: Histogram,
    batch_fill: Histogram,
    batch_pairs: IntCounter,
    batch_steps: IntCounter,
    tokens: IntCounterVec,
    wasted_tokens: IntCounter,
    kv_blocks_used: IntGauge,
    kv_blocks_total: IntGauge,
    prefix_cache_hit_tokens: IntCounter,
    prefix_cache_evicted_tokens: IntCounter,
    explain_tokens: IntCounter,
}

/// The process.
#[derive(Debug)]
struct ServerMetrics {
    connections: IntGauge,
    body_bytes: IntGauge,
    ready: IntGauge,
    started: IntGauge,
    load_seconds: Gauge,
    model_info: IntGaugeVec,
}

impl Metrics {
    /// One request ended. `code` is `ok`, `cancelled`, or the name of an error's code.
    pub fn request(&self, route: &str, lane: Lane, code: &str, took: Duration) {
        self.requests.ended.with_label_values(&[route, lane.as_str(), code]).inc();
        self.requests.seconds.with_label_values(&[lane.as_str()]).observe(took.as_secs_f64());
    }

    /// Rendering and tokenizing one request took `took`.
    pub fn tokenized(&self, took: Duration) {
        self.requests.tokenize_seconds.observe(took.as_secs_f64());
    }

    /// All scores of a request were there `took` after its arrival.
    pub fn time_to_score(&self, took: Duration) {
        self.requests.time_to_score_seconds.observe(took.as_secs_f64());
    }

    /// The first token of a request's first reason came `took` after its arrival.
    pub fn first_reason_token(&self, took: Duration) {
        self.requests.first_reason_token_seconds.observe(took.as_secs_f64());
    }

    /// A request, or its explanation, was refused.
    pub fn rejected(&self, reason: Rejection) {
        self.requests.rejections.with_label_values(&[reason.as_str()]).inc();
    }

    /// What admission holds now.
    pub fn admitted(&self, pairs: usize, tokens: usize, explanations: usize) {
        self.requests.admitted_pairs.set(signed(pairs));
        self.requests.admitted_tokens.set(signed(tokens));
        self.requests.admitted_explanations.set(signed(explanations));
    }

    /// A pair was scored; `label_mass` if the whole vocabulary was read.
    pub fn scored(&self, score: f64, label_mass: Option<f64>) {
        self.requests.relevance_score.observe(score);
        if let Some(mass) = label_mass {
            self.requests.label_mass.observe(mass);
        }
    }

    /// A pair was answered with an error.
    pub fn pair_failed(&self, code: Code) {
        self.requests.failed_pairs.with_label_values(&[code.row().name]).inc();
    }

    /// New jobs entered a lane's queue.
    pub fn jobs_queued(&self, lane: Lane, count: usize) {
        self.engine.jobs.with_label_values(&[lane.as_str()]).inc_by(count as u64);
        self.jobs_waiting(lane, count);
    }

    /// Jobs wait in a lane's queue, for the first time or again.
    pub fn jobs_waiting(&self, lane: Lane, count: usize) {
        self.engine.queue_length.with_label_values(&[lane.as_str()]).add(signed(count));
    }

    /// Jobs left a lane's queue.
    pub fn jobs_taken(&self, lane: Lane, count: usize) {
        self.engine.queue_length.with_label_values(&[lane.as_str()]).sub(signed(count));
    }

    /// Tokens were computed for a request that nobody waited for in the end.
    pub fn wasted(&self, tokens: usize) {
        self.engine.wasted_tokens.inc_by(tokens as u64);
    }

    /// A pair waited so long from entering the queue to the start of its batch.
    pub fn queue_seconds(&self, waited: Duration) {
        self.engine.queue_seconds.observe(waited.as_secs_f64());
    }

    /// A pair's batch took so long.
    pub fn compute_seconds(&self, took: Duration) {
        self.engine.compute_seconds.observe(took.as_secs_f64());
    }

    /// A job left the queue without compute.
    pub fn dropped(&self, reason: DropReason) {
        self.engine.dropped.with_label_values(&[reason.as_str()]).inc();
    }

    /// A forward pass ended.
    pub fn batch(&self, batch: &BatchStats) {
        self.engine.batch_seconds.observe(batch.seconds);
        self.engine.batch_tokens.observe(batch.tokens as f64);
        self.engine.batch_sequences.observe(batch.sequences as f64);
        if batch.budget_tokens > 0 {
            self.engine.batch_fill.observe(batch.tokens as f64 / batch.budget_tokens as f64);
        }
        self.engine.batch_pairs.inc_by(batch.score_jobs as u64);
        self.engine.batch_steps.inc_by(batch.explain_steps as u64);
    }

    /// Prompt tokens of scored pairs by how they were had.
    pub fn tokens_by_fate(&self, computed: usize, shared: usize, cached: usize) {
        for (fate, tokens) in [("computed", computed), ("shared", shared), ("cached", cached)] {
            self.engine.tokens.with_label_values(&[fate]).inc_by(tokens as u64);
        }
    }

    /// KV blocks held, of how many there are.
    pub fn kv_blocks(&self, used: usize, total: usize) {
        self.engine.kv_blocks_used.set(signed(used));
        self.engine.kv_blocks_total.set(signed(total));
    }

    /// Tokens found in the prefix cache, and tokens evicted from it.
    pub fn prefix_cache(&self, hit_tokens: usize, evicted_tokens: usize) {
        self.engine.prefix_cache_hit_tokens.inc_by(hit_tokens as u64);
        self.engine.prefix_cache_evicted_tokens.inc_by(evicted_tokens as u64);
    }

    /// A token of a reason was decoded.
    pub fn explain_token(&self) {
        self.engine.explain_tokens.inc();
    }

    /// So many bytes of request bodies are held.
    pub fn body_bytes(&self, held: usize) {
        self.server.body_bytes.set(signed(held));
    }

    /// A connection was opened.
    pub fn connection_opened(&self) {
        self.server.connections.inc();
    }

    /// A connection was closed.
    pub fn connection_closed(&self) {
        self.server.connections.dec();
    }

    /// Whether the server is ready.
    pub fn ready(&self, ready: bool) {
        self.server.ready.set(i64::from(ready));
    }

    /// The model that is served, and how long it took to load.
    pub fn model(&self, name: &str, profile_hash: &str, took: Duration) {
        self.server.model_info.reset();
        self.server.model_info.with_label_values(&[name, profile_hash]).set(1);
        self.server.load_seconds.set(took.as_secs_f64());
    }

    /// Requests that ended with `code` on `route` so far (for tests).
    pub fn requests_ended(&self, route: &str, lane: Lane, code: &str) -> u64 {
        self.requests.ended.with_label_values(&[route, lane.as_str(), code]).get()
    }

    /// Jobs dropped for `reason` so far (for tests).
    pub fn jobs_dropped(&self, reason: DropReason) -> u64 {
        self.engine.dropped.with_label_values(&[reason.as_str()]).get()
    }

    /// Pairs that went through a forward pass so far (for tests).
    pub fn pairs_computed(&self) -> u64 {
        self.engine.batch_pairs.get()
    }

    /// Pairs, tokens and explanations that admission holds now (for tests).
    pub fn admitted_now(&self) -> (usize, usize, usize) {
        let count = |gauge: &IntGauge| usize::try_from(gauge.get()).unwrap_or(0);
        (
            count(&self.requests.admitted_pairs),
            count(&self.requests.admitted_tokens),
            count(&self.requests.admitted_explanations),
        )
    }

    /// Jobs waiting in a lane now (for tests).
    pub fn jobs_waiting_now(&self, lane: Lane) -> i64 {
        self.engine.queue_length.with_label_values(&[lane.as_str()]).get()
    }

    /// All of it in the Prometheus text format.
    ///
    /// # Errors
    ///
    /// `Internal` if encoding fails.
    pub fn text(&self) -> Result<Vec<u8>> {
        let mut text = Vec::with_capacity(16 * 1024);
        TextEncoder::new()
            .encode(&self.registry.gather(), &mut text)
            .map_err(|cause| Error::internal("metrics could not be encoded").with_cause(cause))?;
        Ok(text)
    }
}

fn signed(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_prefixed_and_have_a_sentence() {
        let metrics = Metrics::default();
        metrics.request("/score", Lane::Score, "ok", Duration::from_millis(3));
        metrics.jobs_queued(Lane::Score, 2);
        metrics.tokens_by_fate(1, 2, 3);
        metrics.rejected(Rejection::Pairs);
        metrics.pair_failed(Code::Internal);
        metrics.dropped(DropReason::Expired);
        metrics.model("m", "h", Duration::ZERO);
        let families = metrics.registry.gather();
        assert!(families.len() >= 30, "{} families", families.len());
        for family in &families {
            assert!(family.name().starts_with("verdict_"), "{}", family.name());
            assert!(family.help().ends_with('.'), "{} needs a help sentence", family.name());
        }
    }

    #[test]
    fn what_has_not_happened_yet_is_there_and_zero() {
        let text = String::from_utf8(Metrics::default().text().expect("encodes")).expect("text");
        for series in [
            "verdict_rejections_total{reason=\"hopeless\"} 0",
            "verdict_rejections_total{reason=\"unavailable\"} 0",
            "verdict_failed_pairs_total{code=\"internal\"} 0",
            "verdict_dropped_jobs_total{reason=\"expired\"} 0",
            "verdict_jobs_total{lane=\"explain\"} 0",
        ] {
            assert!(text.lines().any(|line| line == series), "{series}");
        }
        let started = text.lines().find_map(|line| line.strip_prefix("verdict_start_time_seconds "));
        assert!(
            started.and_then(|seconds| seconds.parse::<f64>().ok()).is_some_and(|seconds| seconds > 1.7e9)
        );
    }

    #[test]
    fn what_is_counted_is_served() {
        let metrics = Metrics::default();
        metrics.request("/score", Lane::Score, "ok", Duration::from_millis(3));
        metrics.batch(&BatchStats { tokens: 10, budget_tokens: 40, score_jobs: 2, ..BatchStats::default() });
        let text = String::from_utf8(metrics.text().expect("encodes")).expect("text");
        assert!(
            text.contains("verdict_requests_total{code=\"ok\",lane=\"score\",route=\"/score\"} 1"),
            "{text}"
        );
        assert!(text.contains("verdict_batch_fill_ratio_bucket{le=\"0.25\"} 1"), "{text}");
        assert_eq!(metrics.pairs_computed(), 2);
    }
}
