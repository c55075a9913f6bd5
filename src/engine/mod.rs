//! The engine: one thread that owns the backend and loops: receive, schedule,
//! build the token tree, run one forward pass, answer.

pub mod job;
pub mod kv;

use std::{sync::Arc, time::Duration};

use crate::{backend::Backend, error::Result, metrics::Metrics};
use job::{ExplainJob, ScoreJob};

/// How the engine batches.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Most distinct tokens in one forward pass.
    pub batch_tokens: usize,
    /// Most sequences in one forward pass.
    pub batch_sequences: usize,
    /// Most sequences decoded at once on the explain lane.
    pub explain_sequences: usize,
    /// The explain lane gets a step after at most this many score batches.
    pub explain_every: usize,
    /// Bound of the prefix cache, in tokens.
    pub prefix_cache_tokens: usize,
    /// Bound of the KV memory held for explanations, in tokens.
    pub explain_kv_tokens: usize,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            batch_tokens: 4096,
            batch_sequences: 256,
            explain_sequences: 8,
            explain_every: 4,
            prefix_cache_tokens: 8192,
            explain_kv_tokens: 16384,
        }
    }
}

/// Clonable handle of the engine's thread.
#[derive(Clone)]
pub struct Engine {}

/// Ends the engine when told, and tells whether it died.
pub struct EngineGuard {}

impl Engine {
    /// Starts the engine's thread over `backend`.
    pub fn start(_backend: Box<dyn Backend>, _config: EngineConfig, _metrics: Arc<Metrics>) -> (Self, EngineGuard) {
        todo!()
    }

    /// Queues a pair; a stopped engine answers the ticket with `Unavailable`.
    pub fn score(&self, _job: ScoreJob) {
        todo!()
    }

    /// Queues an explanation.
    pub fn explain(&self, _job: ExplainJob) {
        todo!()
    }

    /// Prompt tokens queued and not yet computed.
    pub fn queued_tokens(&self) -> usize {
        todo!()
    }

    /// Smoothed rate of the score lane in distinct tokens a second; `None` before the first batch.
    pub fn tokens_per_second(&self) -> Option<f64> {
        todo!()
    }

    /// The thread runs, and it is idle or finished a forward pass within `window`.
    pub fn is_alive(&self, _window: Duration) -> bool {
        todo!()
    }
}

impl EngineGuard {
    /// Refuses new jobs, finishes what is queued, joins the thread; an error if it panicked.
    pub fn stop(self) -> Result<()> {
        todo!()
    }

    /// Resolves when the thread ends for any reason.
    pub async fn ended(&self) {
        todo!()
    }
}
