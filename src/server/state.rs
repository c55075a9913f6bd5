//! What the transports share: whether the server takes work, and the service once it is there.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::{Notify, Semaphore, watch};

use crate::{
    config::Config,
    engine::Engine,
    error::{Code, Error, Result},
    metrics::{Metrics, Rejection},
    service::Service,
};

use super::{bodies::Bodies, readers::Readers};

/// Where a server is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The model is being loaded or probed.
    Starting,
    /// Requests are taken.
    Ready,
    /// Admitted requests finish; new ones are refused.
    Draining,
}

/// Shared by every connection.
pub(crate) struct State {
    phase: watch::Sender<Phase>,
    in_flight: AtomicUsize,
    idle: Notify,
    running: OnceLock<Running>,
    stall: Duration,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) body_bytes: usize,
    pub(crate) bodies: Arc<Bodies>,
    /// Turns at reading bodies that are not small. Half the cores are left to everything else.
    pub(crate) reading: Arc<Semaphore>,
    /// As many as there are turns.
    pub(crate) readers: Readers,
    pub(crate) read_timeout: Duration,
    pub(crate) keep_alive: Duration,
    pub(crate) connections: usize,
    pub(crate) metrics_on_main: bool,
}

struct Running {
    service: Service,
    engine: Engine,
}

impl State {
    pub(crate) fn new(config: &Config, metrics: Arc<Metrics>) -> Self {
        metrics.ready(false);
        let threads = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            phase: watch::Sender::new(Phase::Starting),
            in_flight: AtomicUsize::new(0),
            idle: Notify::new(),
            running: OnceLock::new(),
            stall: config.stall,
            bodies: Bodies::new(config.bodies, Arc::clone(&metrics)),
            reading: Arc::new(Semaphore::new(threads.div_ceil(2))),
            readers: Readers::new(threads.div_ceil(2)),
            metrics,
            body_bytes: config.limits.body_bytes,
            read_timeout: config.read_timeout,
            keep_alive: config.keep_alive,
            connections: config.connections,
            metrics_on_main: config.metrics_on_main,
        }
    }

    /// The engine runs and the probes passed.
    pub(crate) fn start(&self, service: Service, engine: Engine) {
        if self.running.set(Running { service, engine }).is_ok() {
            self.set(Phase::Ready);
        }
    }

    pub(crate) fn drain(&self) {
        self.set(Phase::Draining);
    }

    fn set(&self, phase: Phase) {
        self.metrics.ready(phase == Phase::Ready);
        self.phase.send_replace(phase);
    }

    pub(crate) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Tells of every change of phase.
    pub(crate) fn phases(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// Resolves `patience` after the server was told to stop; then no unsent body is waited for any more.
    pub(crate) async fn draining_for(&self, patience: Duration) -> Error {
        let _ = self.phases().wait_for(|phase| *phase == Phase::Draining).await;
        tokio::time::sleep(patience).await;
        self.metrics.rejected(Rejection::Unavailable);
        unavailable("the server is shutting down")
    }

    /// Whether the engine's thread runs and is not stuck.
    pub(crate) fn is_alive(&self) -> bool {
        self.running.get().is_none_or(|running| running.engine.is_alive(self.stall))
    }

    /// Fails unless requests are taken and the engine is well.
    pub(crate) fn check_ready(&self) -> Result<()> {
        match self.phase() {
            Phase::Starting => Err(unavailable("the server is starting")),
            Phase::Draining => Err(unavailable("the server is shutting down")),
            Phase::Ready if self.is_alive() => Ok(()),
            Phase::Ready => Err(unavailable("the engine makes no progress")),
        }
    }

    /// Sets the gauges that are looked at rather than counted.
    pub(crate) fn gauge(&self) {
        self.metrics.body_bytes(self.bodies.held());
        self.metrics.ready(self.check_ready().is_ok());
        if let Some(running) = self.running.get() {
            let (used, total) = running.engine.kv_blocks();
            self.metrics.kv_blocks(used, total);
        }
    }

    /// The service, whatever the phase, once the model is loaded.
    pub(crate) fn service(&self) -> Result<&Service> {
        self.running
            .get()
            .map(|running| &running.service)
            .ok_or_else(|| unavailable("the server is starting"))
    }

    /// Lets one request in, and counts it until the guard is dropped.
    pub(crate) fn enter(self: &Arc<Self>) -> Result<InFlight> {
        // Counted before the phase is looked at, so that draining, which sets
        // the phase before it looks at the count, cannot miss it.
        self.in_flight.fetch_add(1, Ordering::SeqCst);
        let guard = InFlight { state: Arc::clone(self) };
        self.check_ready().inspect_err(|_| self.metrics.rejected(Rejection::Unavailable))?;
        Ok(guard)
    }

    /// Requests that were let in and have not ended.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::SeqCst)
    }

    /// Waits until no request is in flight.
    pub(crate) async fn drained(&self) {
        loop {
            let idle = self.idle.notified();
            tokio::pin!(idle);
            // Enabled before the count is read, so that the last guard's word is not missed.
            idle.as_mut().enable();
            if self.in_flight() == 0 {
                return;
            }
            idle.await;
        }
    }
}

fn unavailable(message: &str) -> Error {
    Error::new(Code::Unavailable, message).with_retry_after(Duration::from_secs(1))
}

/// One request that was let in.
pub(crate) struct InFlight {
    state: Arc<State>,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.state.in_flight.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.state.idle.notify_waiters();
        }
    }
}
