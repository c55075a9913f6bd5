//! What a device must offer, and the devices.

pub mod cpu;
pub mod cuda;
pub mod reference;
pub mod stub;

use std::time::Duration;

use crate::{
    engine::{EngineConfig, tree::TokenTree},
    error::{Error, Result},
    model::{Model, config::ModelConfig},
};

/// What a backend says of itself.
#[derive(Clone, Debug)]
pub struct Description {
    /// Device and instruction set, for logs and `/info`.
    pub device: String,
    /// Bytes of weights held in memory (mapped files included).
    pub weight_bytes: usize,
    /// Bytes of one KV block over all layers.
    pub kv_block_bytes: usize,
    /// Longest sequence it can run, in tokens.
    pub max_positions: usize,
    /// Whether passes run while the engine goes on: see [`Backend::submit`].
    pub overlaps: bool,
}

/// What was read at one answer of a batch.
#[derive(Clone, Debug, PartialEq)]
pub enum Reading {
    /// The logits of the profile's grades in their order, and the log-sum-exp of the whole vocabulary.
    Grades {
        /// One logit per grade.
        logits: Vec<f32>,
        /// ln Σ exp of every logit, if the profile asks for it.
        log_sum_exp: Option<f32>,
    },
    /// Nothing was asked.
    Nothing,
    /// The most probable next token (lowest id on ties).
    Next(u32),
    /// A number that is not finite: an error for this sequence alone.
    NotFinite,
}

/// Runs batches on one device. Owned by the engine's thread.
pub trait Backend: Send {
    /// What it is.
    fn describe(&self) -> Description;

    /// Makes room for `blocks` KV blocks; called once, before the first batch.
    fn reserve_kv(&mut self, blocks: usize) -> Result<()>;

    /// One forward pass over a batch; one reading per `batch.answers`.
    fn run(&mut self, batch: &TokenTree) -> Result<Vec<Reading>>;

    /// Begins a pass. Where [`Description::overlaps`] says so it runs while the caller goes on:
    /// [`IN_FLIGHT`] passes at most are under way on each lane, those that
    /// [`TokenTree::is_explain`] beside the others, and each lane's end in the order in which they were
    /// submitted. What a
    /// pass reads in KV blocks is what those submitted before it write there. Elsewhere the pass is
    /// done when this returns.
    ///
    /// # Errors
    ///
    /// `TooLarge` if there are more ways through the tree than was prepared for: nothing was begun, and a batch of fewer
    /// sequences has less; one of one sequence never has too many. Any other is the batch's.
    fn submit(&mut self, batch: &TokenTree) -> Result<Pass> {
        self.run(batch).map(Pass::Done)
    }

    /// Whether [`Self::collect`] would not wait.
    fn is_done(&mut self, _pass: &Pass) -> bool {
        true
    }

    /// The readings of a pass, one per answer of its batch; waits for them. The oldest of a lane
    /// first. An error is that pass's alone, and of those that read what it was to write.
    fn collect(&mut self, pass: Pass) -> Result<Vec<Reading>> {
        match pass {
            Pass::Done(readings) => Ok(readings),
            Pass::Running(number) => Err(Error::internal(format!("pass {number} is not of this backend"))),
        }
    }

    /// Why no pass will ever succeed again, if that is so: a device's fault outlives the pass that it
    /// failed, and only another process has the device anew. Asked after a pass has failed.
    fn lost(&mut self) -> Option<Error> {
        None
    }
}

/// Passes under way on one lane of a device that computes by itself: one that runs, and one behind it.
pub const IN_FLIGHT: usize = 2;

/// A pass that was submitted, to be collected once.
#[derive(Debug)]
#[must_use = "a pass holds buffers until it is collected"]
pub enum Pass {
    /// It is over.
    Done(Vec<Reading>),
    /// The device has it, under a number of its own.
    Running(usize),
}

/// That a batch stays within what was prepared; the engine and the tokenizer see to it before.
fn check(batch: &TokenTree, positions: usize, vocabulary: usize) -> Result<()> {
    if let Some(position) = batch.positions.iter().find(|p| **p as usize >= positions) {
        return Err(Error::internal(format!("position {position} is past the {positions} prepared")));
    }
    if let Some(token) = batch.tokens.iter().find(|t| **t as usize >= vocabulary) {
        return Err(Error::internal(format!("token {token} is not in the vocabulary")));
    }
    Ok(())
}

/// Which device to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The fastest there is.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// An NVIDIA GPU; an error where there is none.
    Cuda,
}

/// How long a device may be silent, unless told otherwise, before it is taken for stuck.
pub const STALL: Duration = Duration::from_secs(120);

/// Options of [`open`].
#[derive(Clone, Debug)]
pub struct Options {
    /// Device.
    pub device: Device,
    /// Compute threads of the CPU backend; 0 takes one per core.
    pub threads: usize,
    /// How the engine will batch: a GPU's memory is taken for it at once.
    pub engine: EngineConfig,
    /// How long one product may take that a GPU tries at start.
    pub stall: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { device: Device::default(), threads: 0, engine: EngineConfig::default(), stall: STALL }
    }
}

/// Opens a backend for `model`, loading its weights.
///
/// `Auto` takes the GPU if there is one that can be used and has the memory, and otherwise says why
/// not and takes the CPU.
pub fn open(model: &Model, options: &Options) -> Result<Box<dyn Backend>> {
    let cpu = || -> Result<Box<dyn Backend>> { Ok(Box::new(cpu::CpuBackend::open(model, options.threads)?)) };
    match options.device {
        Device::Cpu => cpu(),
        Device::Cuda => Ok(Box::new(cuda::CudaBackend::open(model, options)?)),
        Device::Auto => match cuda::CudaBackend::open(model, options) {
            Ok(backend) => Ok(Box::new(backend)),
            Err(error) => {
                tracing::info!(reason = error.message(), "no GPU is used; computing on the CPU");
                cpu()
            }
        },
    }
}

/// The fused operations of one forward pass, on a device's own buffers.
///
/// A device holds one residual stream with a row per token; after
/// [`Ops::select_answers`] it holds a row per answer instead. See
/// [`crate::model::forward::forward`] for the order of calls.
pub trait Ops {
    /// What the head gives: the readings, or nothing where they are collected later.
    type Answers;
    /// The shape of the model.
    fn config(&self) -> &ModelConfig;
    /// residual\[row\] = embedding of the row's token.
    fn embed(&mut self) -> Result<()>;
    /// normed = RMS norm of the residual (Zhang and Sennrich, 2019).
    fn norm(&mut self, which: Norm) -> Result<()>;
    /// Keys and values of every row from normed; the key norm and rotary embedding applied to the
    /// keys; written to the KV cache where a segment is kept.
    fn keys_values(&mut self, layer: usize) -> Result<()>;
    /// From here on the residual and normed hold the answers' rows alone.
    fn select_answers(&mut self) -> Result<()>;
    /// Queries of the current rows from normed; the query norm and rotary embedding applied.
    fn queries(&mut self, layer: usize) -> Result<()>;
    /// Causal attention of the queries over their segment's path; then residual += o_proj.
    fn attention(&mut self, layer: usize) -> Result<()>;
    /// residual += down(silu(gate) · up) of normed.
    fn mlp(&mut self, layer: usize) -> Result<()>;
    /// Reads the answers from normed.
    fn head(&mut self) -> Result<Self::Answers>;
}

/// Which RMS norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norm {
    /// Before a layer's attention.
    Attention(usize),
    /// Before a layer's MLP.
    Mlp(usize),
    /// Before the head.
    Final,
}
