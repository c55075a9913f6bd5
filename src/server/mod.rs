//! HTTP and gRPC on one port, health and metrics on another, and the server's
//! life: bind, load, probe, serve, drain.

mod admin;
mod bodies;
mod call;
mod dialects;
mod embedded;
mod front;
pub mod grpc;
mod guard;
pub(crate) mod http;
mod listen;
mod openapi;
mod patience;
mod playground;
mod readers;
mod sending;
mod state;
mod tls;

use std::{
    future::Future,
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tokio_rustls::TlsAcceptor;

use crate::{
    backend::Backend,
    config::{Access, Config},
    engine::{Engine, EngineGuard},
    error::{Code, Error, Result},
    metrics::Metrics,
    model::Model,
    profile::Profile,
    request::ScoreRequest,
    service::Service,
    telemetry::Tracing,
};

use front::{Calls, Front};
use state::State;

pub use state::Phase;

/// After the last answer, how long connections may take to be closed.
const FAREWELL: Duration = Duration::from_secs(2);
/// Connections of the admin port at once: its callers are few.
pub(crate) const ADMIN_CONNECTIONS: usize = 256;
/// And how long one of them may say nothing: they are few, and a probe does not wait.
const ADMIN_PATIENCE: Duration = Duration::from_secs(5);
/// And how long sending the last spans may take.
const FLUSH: Duration = Duration::from_secs(2);

/// Why a server ended; each has its exit code.
#[derive(Debug)]
pub enum Failure {
    /// A file that the configuration names cannot be used.
    Settings(Error),
    /// An address could not be bound.
    Bind(Error),
    /// The model was refused, or its probes failed.
    Model(Error),
    /// Anything later.
    Runtime(Error),
}

impl Failure {
    /// What went wrong.
    pub fn error(&self) -> &Error {
        match self {
            Failure::Settings(error)
            | Failure::Bind(error)
            | Failure::Model(error)
            | Failure::Runtime(error) => error,
        }
    }
}

/// A server whose ports are bound.
pub struct Server {
    config: Config,
    metrics: Arc<Metrics>,
    main: TcpListener,
    admin: TcpListener,
    tls: Option<TlsAcceptor>,
    tracing: Option<Arc<Tracing>>,
    state: Arc<State>,
}

/// The ports' tasks, and how to end them.
struct Ports {
    main: JoinHandle<()>,
    admin: JoinHandle<()>,
    stop_main: watch::Sender<bool>,
    stop_admin: watch::Sender<bool>,
}

impl Server {
    /// Binds both ports. Must be called inside a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`Failure::Settings`], naming the file of TLS or the collector that cannot be used;
    /// [`Failure::Bind`], naming the address.
    pub async fn bind(config: Config) -> Result<Self, Failure> {
        let tls = config.access.tls.as_ref().map(tls::acceptor).transpose().map_err(Failure::Settings)?;
        let tracing = config.export.as_ref().map(Tracing::open).transpose().map_err(Failure::Settings)?;
        let tracing = tracing.map(Arc::new);
        let metrics = Arc::new(Metrics::default());
        let main = bind(config.address).await?;
        let admin = bind(config.admin).await?;
        let state = Arc::new(State::new(&config, Arc::clone(&metrics)));
        Ok(Self { config, metrics, main, admin, tls, tracing, state })
    }

    /// Where HTTP and gRPC are served.
    pub fn address(&self) -> SocketAddr {
        self.main.local_addr().unwrap_or(self.config.address)
    }

    /// Where health and metrics are served.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin.local_addr().unwrap_or(self.config.admin)
    }

    /// The metrics that it counts.
    pub fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.metrics)
    }

    /// Tells of every change of phase; starts with [`Phase::Starting`].
    pub fn phases(&self) -> watch::Receiver<Phase> {
        self.state.phases()
    }

    /// Serves until `stop` resolves, then drains. Until the model that `load`
    /// returns has answered its probes, requests are refused as `Unavailable`.
    ///
    /// # Errors
    ///
    /// [`Failure::Model`] if `load` or a probe fails, [`Failure::Runtime`] if the
    /// engine's thread ends by itself.
    pub async fn run<L>(self, load: L, stop: impl Future<Output = ()>) -> Result<(), Failure>
    where
        L: FnOnce() -> Result<(Arc<Model>, Box<dyn Backend>)> + Send + 'static,
    {
        let Self { config, metrics, main, admin, tls, tracing, state } = self;
        let ports = Ports::open(main, admin, tls, &tracing, &config.access, &state);
        let ports = ports.map_err(Failure::Runtime)?;
        tokio::pin!(stop);
        let started = tokio::select! {
            biased;
            () = &mut stop => None,
            started = start(&state, &config, &metrics, load) => Some(started),
        };
        let result = match started {
            None => Ok(()),
            Some(Err(error)) => Err(Failure::Model(error)),
            Some(Ok(guard)) => {
                let died = tokio::select! {
                    () = &mut stop => false,
                    () = guard.ended() => true,
                };
                state.drain();
                finish(&state, config.grace, guard, died).await
            }
        };
        state.drain();
        ports.close().await;
        if let Some(tracing) = tracing {
            // It says itself if that fails, and there is nothing else to do about it.
            let _ = tokio::task::spawn_blocking(move || tracing.close(FLUSH)).await;
        }
        result
    }
}

/// What the route at `path` makes of a request's body, as its handler does: for
/// whoever wants to know before a server runs, tests first of all. `None` if no
/// route takes a body there.
pub fn read_body(path: &str, body: &[u8], profile: &Profile) -> Option<Result<ScoreRequest>> {
    match path {
        "/score" => Some(http::wire::score(body)),
        "/score?explain=true" => Some(http::wire::explain(body).map(|request| request.into_parts().0)),
        _ => dialects::read_body(path, body, profile),
    }
}

async fn bind(address: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|cause| {
        let message = format!("{address} cannot be bound: {cause}");
        Failure::Bind(Error::new(Code::Unavailable, message).with_cause(cause))
    })
}

/// Loads the model, starts the engine, probes it, and opens for requests.
async fn start<L>(state: &State, config: &Config, metrics: &Arc<Metrics>, load: L) -> Result<EngineGuard>
where
    L: FnOnce() -> Result<(Arc<Model>, Box<dyn Backend>)> + Send + 'static,
{
    let began = Instant::now();
    let loaded = tokio::task::spawn_blocking(load).await;
    let (model, backend) =
        loaded.map_err(|cause| Error::internal("loading the model failed").with_cause(cause))??;
    let took = began.elapsed();
    let device = backend.describe().device;
    metrics.model(&model.name, &model.profile.hash, took);
    let (engine, guard) = Engine::start(backend, config.engine.clone(), Arc::clone(metrics))?;
    let service = Service::new(
        Arc::clone(&model),
        engine.clone(),
        config.limits.clone(),
        config.capacity,
        Arc::clone(metrics),
    );
    tokio::spawn(engine.clone().stay_awake());
    probe(&service, &engine, config.stall).await?;
    let (probes, ms) = (model.profile.probes.len(), took.as_millis());
    tracing::info!(model = model.name, device, probes, load_ms = ms, "ready");
    state.start(service, engine);
    Ok(guard)
}

/// Runs the probes, as long as the engine makes progress.
async fn probe(service: &Service, engine: &Engine, stall: Duration) -> Result<()> {
    let mut probes = pin!(service.run_probes());
    loop {
        match tokio::time::timeout(stall / 8, &mut probes).await {
            Ok(probed) => return probed,
            Err(_) if engine.is_alive(stall) => {}
            Err(_) => {
                let message =
                    format!("the probes were not scored: the engine made no progress for {stall:?}");
                return Err(Error::internal(message));
            }
        }
    }
}

/// Lets admitted requests end, then the engine.
async fn finish(state: &State, grace: Duration, guard: EngineGuard, died: bool) -> Result<(), Failure> {
    if died {
        // Its jobs were answered as they were dropped; there is nothing to wait for.
        let stopped = tokio::task::spawn_blocking(move || guard.stop()).await;
        let error = match stopped {
            Ok(Err(error)) => error,
            _ => Error::internal("the engine's thread ended by itself"),
        };
        return Err(Failure::Runtime(error));
    }
    tracing::info!(in_flight = state.in_flight(), grace_ms = grace.as_millis(), "draining");
    if tokio::time::timeout(grace, state.drained()).await.is_err() {
        let message =
            format!("the grace period of {grace:?} ended before {} requests did", state.in_flight());
        return Err(Failure::Runtime(Error::new(Code::Unavailable, message)));
    }
    match tokio::task::spawn_blocking(move || guard.stop()).await {
        Ok(Err(error)) => Err(Failure::Runtime(error)),
        _ => Ok(()),
    }
}

impl Ports {
    fn open(
        main: TcpListener,
        admin: TcpListener,
        tls: Option<TlsAcceptor>,
        tracing: &Option<Arc<Tracing>>,
        access: &Access,
        state: &Arc<State>,
    ) -> Result<Self> {
        let routes = guard::http_routes(http::router(Arc::clone(state)), access, state);
        let calls = Calls {
            routes: guard::grpc_routes(grpc::router(state)?, access, state),
            bodies: Arc::clone(&state.bodies),
            message_bytes: state.body_bytes,
        };
        let read_timeout = state.read_timeout;
        let main_port = listen::Port {
            front: Front::new(routes, Some(calls), read_timeout, tracing.clone()),
            tls,
            read_timeout,
            connections: state.connections,
            metrics: Some(Arc::clone(&state.metrics)),
        };
        // For the operator's own network: in clear, and no key is asked for.
        let admin_port = listen::Port {
            front: Front::new(admin::router(Arc::clone(state)), None, read_timeout, None),
            tls: None,
            read_timeout: read_timeout.min(ADMIN_PATIENCE),
            connections: ADMIN_CONNECTIONS,
            metrics: None,
        };
        let (stop_main, told_main) = watch::channel(false);
        let (stop_admin, told_admin) = watch::channel(false);
        Ok(Self {
            main: tokio::spawn(listen::serve(main, main_port, told_main)),
            admin: tokio::spawn(listen::serve(admin, admin_port, told_admin)),
            stop_main,
            stop_admin,
        })
    }

    /// Closes the main port, then the admin port, with little patience.
    async fn close(self) {
        for (stop, mut port) in [(self.stop_main, self.main), (self.stop_admin, self.admin)] {
            stop.send_replace(true);
            if tokio::time::timeout(FAREWELL, &mut port).await.is_err() {
                // Aborting the task drops its connections.
                port.abort();
            }
        }
    }
}
