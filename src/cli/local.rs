//! A service inside this process, for the commands that need no server.

use std::{path::PathBuf, sync::Arc};

use tokio::runtime::Runtime;

use crate::{
    admission::Capacity,
    backend::{self, Device, Options},
    config::{self, DeviceName},
    engine::{Engine, EngineConfig, EngineGuard},
    error::{Error, Result},
    metrics::Metrics,
    model::Model,
    request::Limits,
    service::{NO_HURRY, Service},
};

use super::{Failure, load_model};

/// Which model to run, and where.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ModelArgs {
    /// Directory of a Hugging Face checkpoint [default: the embedded model]
    #[arg(long, value_name = "DIR", env = "VERDICT_MODEL")]
    pub model: Option<PathBuf>,
    /// Where to compute
    #[arg(long, value_name = "DEVICE", env = "VERDICT_DEVICE", default_value = "auto")]
    pub device: DeviceName,
    /// Compute threads of the CPU backend, at most 64, or 4 per core where that is more; 0 takes one per core
    #[arg(long, value_name = "N", env = "VERDICT_THREADS", default_value_t = 0, value_parser = threads)]
    pub threads: usize,
}

impl ModelArgs {
    /// As the backend wants them.
    pub(super) fn options(&self) -> Options {
        let device = match self.device {
            DeviceName::Auto => Device::Auto,
            DeviceName::Cpu => Device::Cpu,
            DeviceName::Cuda => Device::Cuda,
        };
        Options { device, threads: self.threads, ..Options::default() }
    }
}

fn threads(text: &str) -> Result<usize, String> {
    let value = text.parse().map_err(|cause| format!("{cause}"))?;
    config::threads(value)
}

/// Model, engine and service, and the runtime they are called on.
pub(super) struct Local {
    pub(super) service: Service,
    pub(super) runtime: Runtime,
    guard: EngineGuard,
}

impl Local {
    /// Loads the model and starts its engine.
    pub(super) fn start(args: &ModelArgs) -> Result<Self, Failure> {
        Self::of(load_model(args.model.as_deref())?, args)
    }

    /// Starts the engine of a model.
    pub(super) fn of(model: Model, args: &ModelArgs) -> Result<Self, Failure> {
        let model = Arc::new(model);
        let backend = backend::open(&model, &args.options())
            .map_err(|error| Failure::new(super::Exit::Model, error))?;
        let metrics = Arc::new(Metrics::default());
        let (engine, guard) = Engine::start(backend, EngineConfig::default(), Arc::clone(&metrics))?;
        let limits = Limits { documents: 1 << 20, deadline: NO_HURRY, ..Limits::default() };
        let capacity =
            Capacity { pairs: usize::MAX >> 1, tokens: usize::MAX >> 1, explanations: usize::MAX >> 1 };
        let service = Service::new(model, engine, limits, capacity, metrics);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .map_err(|cause| Error::internal("the async runtime could not be started").with_cause(cause))?;
        Ok(Self { service, runtime, guard })
    }

    /// Ends the engine.
    pub(super) fn stop(self) -> Result<()> {
        let Self { service, runtime, guard } = self;
        drop(service);
        drop(runtime);
        guard.stop()
    }
}
