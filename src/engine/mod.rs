//! The engine: one thread that owns the backend and loops: receive, schedule,
//! build the token tree, run one forward pass, answer.

mod awake;
mod batch;
pub mod decode;
pub mod job;
pub mod kv;
pub mod pace;
pub mod prefix;
pub mod scheduler;
pub mod tree;
mod worker;

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tokio::sync::watch;

use crate::{
    backend::Backend,
    error::{Code, Error, Result},
    metrics::{Lane, Metrics},
};
use awake::Awake;
use job::{ExplainEvent, ExplainJob, ScoreJob};
use kv::KvPool;
use pace::{Pace, Paces};
use worker::Worker;

/// How the engine batches, and how much KV memory it may use.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Most distinct tokens in one forward pass.
    pub batch_tokens: usize,
    /// What a pass of score jobs should take: batches are cut to it, as far as passes so far tell. Zero
    /// for no cut.
    pub batch_time: Duration,
    /// Most sequences in one forward pass.
    pub batch_sequences: usize,
    /// Most sequences decoded at once on the explain lane.
    pub explain_sequences: usize,
    /// The explain lane gets a step after at most this many score batches in a row.
    pub explain_every: usize,
    /// KV memory of the prefix cache, in bytes; 0 turns it off.
    pub prefix_cache_bytes: usize,
    /// KV memory held for explanations, in bytes.
    pub explain_kv_bytes: usize,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            batch_tokens: 4096,
            batch_time: Duration::from_millis(40),
            batch_sequences: 256,
            explain_sequences: 8,
            explain_every: 4,
            prefix_cache_bytes: 256 << 20,
            explain_kv_bytes: 1 << 30,
        }
    }
}

impl EngineConfig {
    /// KV blocks of the prefix cache and of the explain lane, where one takes so many bytes.
    pub fn kv_blocks(&self, block_bytes: usize) -> (usize, usize) {
        let block = block_bytes.max(1);
        (self.prefix_cache_bytes / block, self.explain_kv_bytes / block)
    }
}

/// What the handle sends to the thread.
enum Message {
    Score(Vec<ScoreJob>),
    Explain(Box<ExplainJob>),
    /// Something will come.
    Soon,
    Stop,
}

/// What the thread tells the handles.
struct Shared {
    device: String,
    started: Instant,
    stopping: AtomicBool,
    /// What the score lane's passes took.
    passes: Mutex<Paces>,
    batch_tokens: usize,
    batch_time: Duration,
    prefix_pool: Arc<KvPool>,
    explain_pool: Arc<KvPool>,
    metrics: Arc<Metrics>,
    /// Milliseconds after `started` of the last sign of progress.
    progress_ms: AtomicU64,
    idle: AtomicBool,
    dead: AtomicBool,
    /// The device computes by itself.
    overlaps: bool,
    /// If so, and there are cores for it.
    awake: Option<Awake>,
}

impl Shared {
    fn progress(&self) {
        self.progress_ms.store(self.started.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// Since the last sign of progress.
    fn quiet(&self) -> Duration {
        let progress = Duration::from_millis(self.progress_ms.load(Ordering::Relaxed));
        self.started.elapsed().saturating_sub(progress)
    }

    fn passes(&self) -> std::sync::MutexGuard<'_, Paces> {
        // Sums are as good after a panic as before.
        self.passes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Clonable handle of the engine's thread.
#[derive(Clone)]
pub struct Engine {
    sender: mpsc::Sender<Message>,
    shared: Arc<Shared>,
}

/// Ends the engine when told, and tells whether it died.
pub struct EngineGuard {
    engine: Engine,
    thread: JoinHandle<Result<()>>,
    ended: watch::Receiver<()>,
}

impl Engine {
    /// Starts the engine's thread over `backend`. Fails if the KV memory cannot be had.
    pub fn start(
        mut backend: Box<dyn Backend>,
        config: EngineConfig,
        metrics: Arc<Metrics>,
    ) -> Result<(Self, EngineGuard)> {
        let description = backend.describe();
        let (prefix_blocks, explain_blocks) = config.kv_blocks(description.kv_block_bytes);
        backend.reserve_kv(prefix_blocks + explain_blocks)?;
        let (sender, receiver) = mpsc::channel();
        let started = Instant::now();
        let shared = Arc::new(Shared {
            device: description.device,
            started,
            stopping: AtomicBool::new(false),
            passes: Mutex::default(),
            batch_tokens: config.batch_tokens,
            batch_time: config.batch_time,
            prefix_pool: KvPool::new(0, prefix_blocks),
            explain_pool: KvPool::new(prefix_blocks, explain_blocks),
            metrics,
            progress_ms: AtomicU64::new(0),
            idle: AtomicBool::new(true),
            dead: AtomicBool::new(false),
            overlaps: description.overlaps,
            awake: (description.overlaps && awake::has_cores()).then(|| Awake::new(started)),
        });
        let (alive, ended) = watch::channel(());
        let worker = Worker::new(backend, config, shared.clone());
        let last_words = LastWords { shared: shared.clone(), _alive: alive };
        let thread = std::thread::Builder::new()
            .name("engine".into())
            .spawn(move || {
                let _last_words = last_words;
                worker.run(&receiver)
            })
            .map_err(|error| Error::internal("the engine's thread could not be started").with_cause(error))?;
        let engine = Self { sender, shared };
        Ok((engine.clone(), EngineGuard { engine, thread, ended }))
    }

    /// Pairs will be queued soon: where the engine sleeps and a device waits for it, it wakes meanwhile.
    pub fn expect(&self) {
        if self.shared.overlaps && self.shared.idle.load(Ordering::Relaxed) {
            // If it has stopped, those who queue will be told.
            let _ = self.sender.send(Message::Soon);
        }
    }

    /// Queues pairs that belong together; a stopped engine answers their tickets with `Unavailable`.
    pub fn score_all(&self, jobs: Vec<ScoreJob>) {
        let count = jobs.len();
        self.shared.metrics.jobs_queued(Lane::Score, count);
        let refused = if self.shared.stopping.load(Ordering::Acquire) {
            Some(Message::Score(jobs))
        } else {
            self.sender.send(Message::Score(jobs)).err().map(|error| error.0)
        };
        if let Some(Message::Score(jobs)) = refused {
            self.shared.metrics.jobs_taken(Lane::Score, count);
            jobs.into_iter().for_each(|job| job.ticket.fail(stopped()));
        }
    }

    /// Queues an explanation. Explanations of requests that were admitted run even while stopping.
    pub fn explain(&self, job: ExplainJob) {
        self.shared.metrics.jobs_queued(Lane::Explain, 1);
        if let Err(error) = self.sender.send(Message::Explain(Box::new(job)))
            && let Message::Explain(job) = error.0
        {
            self.shared.metrics.jobs_taken(Lane::Explain, 1);
            // The client may have left: then there is nobody to tell.
            let _ = job.sink.send(ExplainEvent::Failed(stopped()));
        }
    }

    /// What it computes on.
    pub fn device(&self) -> &str {
        &self.shared.device
    }

    /// Keeps a thread of the runtime awake when answers are about to be told, until the engine ends; ends at once where
    /// the processor computes, or has few cores: they have better to do. For a task of its own.
    pub async fn stay_awake(self) {
        let shared = Arc::clone(&self.shared);
        // Those who hold a sender are waited for.
        drop(self);
        if let Some(awake) = &shared.awake {
            awake.stay().await;
        }
    }

    /// What the score lane's passes take; `None` before the first.
    pub fn pace(&self) -> Option<Pace> {
        self.shared.passes().pace(self.shared.batch_tokens, self.shared.batch_time)
    }

    /// How long the running pass has taken so far; zero when idle.
    pub fn stalled(&self) -> Duration {
        if self.shared.idle.load(Ordering::Relaxed) { Duration::ZERO } else { self.shared.quiet() }
    }

    /// KV blocks held, of how many there are.
    pub fn kv_blocks(&self) -> (usize, usize) {
        let Shared { prefix_pool, explain_pool, .. } = &*self.shared;
        (prefix_pool.used() + explain_pool.used(), prefix_pool.total() + explain_pool.total())
    }

    /// The thread runs, and it is idle or made progress within `window`.
    pub fn is_alive(&self, window: Duration) -> bool {
        !self.shared.dead.load(Ordering::Acquire) && self.stalled() <= window
    }
}

impl EngineGuard {
    /// Refuses new jobs, finishes what is queued, joins the thread; an error if it panicked or the
    /// device was lost. Blocks: call it off the async threads.
    pub fn stop(self) -> Result<()> {
        self.engine.shared.stopping.store(true, Ordering::Release);
        // The thread may be gone already: joining tells.
        let _ = self.engine.sender.send(Message::Stop);
        self.thread.join().map_err(|_| Error::internal("the engine's thread panicked"))?
    }

    /// Resolves when the thread ends for any reason.
    pub async fn ended(&self) {
        let mut ended = self.ended.clone();
        while ended.changed().await.is_ok() {}
    }
}

/// Dropped when the thread ends, by return or by panic.
struct LastWords {
    shared: Arc<Shared>,
    _alive: watch::Sender<()>,
}

impl Drop for LastWords {
    fn drop(&mut self) {
        self.shared.dead.store(true, Ordering::Release);
        self.shared.awake.iter().for_each(Awake::end);
    }
}

/// What is told to those who wait for an engine that ends.
pub(crate) fn stopped() -> Error {
    Error::new(Code::Unavailable, "the server is stopping").with_retry_after(Duration::from_secs(1))
}
