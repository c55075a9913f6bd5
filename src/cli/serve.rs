//! `verdict serve`.

use std::{io::IsTerminal as _, sync::Arc, time::Duration};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::{
    backend::{self, Device, Options},
    config::{ApiKeys, Config, DeviceName, LogFormat, ServeArgs},
    error::{Error, Result},
    server::{self, Server},
};

use super::{Exit, Failure, open_model};

/// How long threads that still compute may hold the process back after it is done.
const LINGER: Duration = Duration::from_millis(500);

/// Serves until told to stop.
///
/// # Errors
///
/// A failure with its exit code: see `verdict serve --help`.
pub fn run(args: ServeArgs) -> Result<(), Failure> {
    let config = Config::load(args).map_err(|error| Failure::new(Exit::Usage, error))?;
    start_log(&config)?;
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

fn start_log(config: &Config) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(&config.log).map_err(|cause| {
        let message = format!("{:?}: {cause}", config.log);
        Failure::new(Exit::Usage, Error::invalid("log", message).with_cause(cause))
    })?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // A log that cannot be written would be told of on the same full disk, and end the process.
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal());
    let started = match config.log_format {
        LogFormat::Text => log.with_target(false).try_init(),
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    };
    started.map_err(|cause| Failure::from(anyhow::anyhow!("the log could not be started: {cause}")))
}
