//! `verdict serve`.

use std::{sync::Arc, time::Duration};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{
    backend::{self, Device, Options},
    config::{ApiKeys, Config, DeviceName, ServeArgs},
    error::{Error, Result},
    server::{self, Server},
};

use super::{Exit, Failure, log, open_model};

/// How long threads that still compute may hold the process back after it is done.
const LINGER: Duration = Duration::from_millis(500);
/// What the log gets to write why the process ends at once.
const LAST_LINE: Duration = Duration::from_millis(50);
/// Files that are open beside connections: the model, pipes, what libraries hold; and some to spare.
const OTHER_FILES: u64 = 128;

/// Serves until told to stop.
///
/// # Errors
///
/// A failure with its exit code: see `verdict serve --help`.
pub fn run(args: ServeArgs) -> Result<(), Failure> {
    let mut config = Config::load(args).map_err(|error| Failure::new(Exit::Usage, error))?;
    let _log = log::start(&config)?;
    fit_connections(&mut config);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|cause| Error::internal("the async runtime could not be started").with_cause(cause))?;
    let result = runtime.block_on(serve(config));
    runtime.shutdown_timeout(LINGER);
    result.map_err(|failure| {
        let exit = match &failure {
            server::Failure::Settings(_) => Exit::Usage,
            server::Failure::Bind(_) => Exit::Bind,
            server::Failure::Model(_) => Exit::Model,
            server::Failure::Runtime(_) => Exit::Runtime,
        };
        Failure::new(exit, failure.error().clone())
    })
}

/// Takes as many file descriptors as the system lets this process have, and no more connections than they are enough
/// for: at the limit nobody could be told anything any more, the probes of the orchestrator first.
fn fit_connections(config: &mut Config) {
    let wanted = config.connections as u64 + server::ADMIN_CONNECTIONS as u64 + OTHER_FILES;
    let limits = getrlimit(Resource::Nofile);
    // None is no limit.
    let most = limits.maximum.unwrap_or(u64::MAX);
    let mut have = limits.current.unwrap_or(u64::MAX);
    if have < wanted
        && setrlimit(Resource::Nofile, Rlimit { current: Some(wanted.min(most)), ..limits }).is_ok()
    {
        have = wanted.min(most);
    }
    if have < wanted {
        let left = (config.connections as u64).saturating_sub(wanted - have).max(1);
        tracing::warn!(
            max_connections = config.connections,
            file_descriptors = have,
            connections = left,
            "fewer connections than max_connections: there are too few file descriptors (ulimit -n)"
        );
        config.connections = left as usize;
    }
}

async fn serve(config: Config) -> Result<(), server::Failure> {
    let stop = stop_signal().map_err(server::Failure::Runtime)?;
    let (model, options) = (config.model.clone(), options(&config));
    let (tls, keys) = (config.access.tls.is_some(), config.access.keys.as_ref().map_or(0, ApiKeys::len));
    let server = Server::bind(config).await?;
    let (address, admin) = (server.address(), server.admin_address());
    tracing::info!(%address, %admin, tls, api_keys = keys, version = crate::VERSION, "listening");
    let load = move || {
        let model = Arc::new(open_model(model.as_deref())?);
        let backend = backend::open(&model, &options)?;
        Ok((model, backend))
    };
    server.run(load, stop).await
}

fn options(config: &Config) -> Options {
    let device = match config.device {
        DeviceName::Auto => Device::Auto,
        DeviceName::Cpu => Device::Cpu,
        DeviceName::Cuda => Device::Cuda,
    };
    Options { device, threads: config.threads, engine: config.engine.clone(), stall: config.stall }
}

/// Resolves at the first SIGTERM or SIGINT; a second one ends the process at once.
fn stop_signal() -> Result<impl Future<Output = ()>> {
    let listen =
        |kind| signal(kind).map_err(|cause| Error::internal("signals cannot be had").with_cause(cause));
    let mut terminate = listen(SignalKind::terminate())?;
    let mut interrupt = listen(SignalKind::interrupt())?;
    Ok(async move {
        either(&mut terminate, &mut interrupt).await;
        tokio::spawn(async move {
            either(&mut terminate, &mut interrupt).await;
            tracing::warn!("told to stop twice; stopping at once");
            tokio::time::sleep(LAST_LINE).await;
            std::process::exit(Exit::Runtime as i32);
        });
    })
}

async fn either(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
