//! The CUDA backend: bf16 weights and activations, sums in f32, on one NVIDIA GPU.
//!
//! The program needs no CUDA to start: the driver and cublasLt are opened when a GPU is asked for
//! (`start`). A batch becomes a plan of 32-bit words (`plan`), copied in once; the pass over it is
//! put on one stream (`ops`, `launch`, `gemm`) or replayed as a graph (`graph`); the readings are
//! copied out once.

mod buffers;
mod gemm;
mod graph;
mod launch;
mod load;
mod memory;
mod ops;
mod plan;
mod start;

use cudarc::driver::{DriverError, result, sys};

use super::{Backend, Description, Options, Reading};
use crate::{
    engine::{
        kv::BLOCK_TOKENS,
        tree::{Read, TokenTree},
    },
    error::{Error, Result},
    model::{Model, config::ModelConfig, forward::forward},
};
use buffers::{Buffers, Capacity};
use gemm::Gemm;
use graph::{Graphs, bucket};
use launch::{Kernels, Lane};
use load::Weights;
use memory::{Pinned, Region};
use ops::{Extent, Pass, part};
use plan::{Plan, TILE_ROWS};
use start::Gpu;

/// Tokens of a batch beside the score jobs' budget: what the explain lane adds.
const EXPLAIN_ROWS: usize = 1024;
/// Answers beside the score jobs.
const EXPLAIN_ANSWERS: usize = 64;
/// Longer reasons than this end with `length`.
const REASON_ROOM: usize = 4096;

/// A model on a GPU. Fields are dropped in order: what uses the device before the device.
pub struct CudaBackend {
    graphs: Graphs,
    kernels: Kernels,
    gemm: Gemm,
    stream: Stream,
    weights: Weights,
    buffers: Buffers,
    cache: Option<Region>,
    words: Pinned<i32>,
    readings: Pinned<f32>,
    config: ModelConfig,
    capacity: Capacity,
    grades: usize,
    positions: usize,
    gpu: Gpu,
}

// SAFETY: the driver's and cublasLt's handles may be used from any thread, one at a time; the
// backend has one owner, and binds the device to the thread that runs a batch.
#[expect(unsafe_code, reason = "handles are pointers")]
unsafe impl Send for CudaBackend {}

/// What the driver said about `what`.
fn fault(what: &str) -> impl FnOnce(DriverError) -> Error {
    let what = what.to_owned();
    move |error| Error::internal(format!("device: cuda: {what}: {}", start::describe(error)))
}

/// The stream of all work, of the highest priority.
struct Stream(sys::CUstream);

impl Stream {
    fn open() -> Result<Self> {
        let (_, highest) = result::stream::get_priority_range().map_err(fault("its streams"))?;
        let kind = result::stream::StreamKind::NonBlocking;
        Ok(Self(result::stream::create_with_priority(kind, highest).map_err(fault("a stream"))?))
    }
}

impl Drop for Stream {
    #[expect(unsafe_code, reason = "calls of the driver")]
    fn drop(&mut self) {
        // SAFETY: made by `open`, destroyed once. A refusal leaves nothing to do.
        let _ = unsafe { result::stream::destroy(self.0) };
    }
}

impl CudaBackend {
    /// Opens the first GPU and copies `model`'s weights to it.
    ///
    /// `Invalid` in one line that says why there is no GPU to use, or why not for this model.
    pub fn open(model: &Model, options: Options) -> Result<Self> {
        let config = model.config.clone();
        check_shape(&config)?;
        let gpu = Gpu::open()?;
        let kernels = Kernels::load(&gpu, config.head_dim)?;
        let stream = Stream::open()?;
        let positions = config.max_positions.min(model.profile.max_tokens + REASON_ROOM);
        let weights = Weights::load(&gpu.context, model, positions)?;
        let gemm = choose_products(&gpu, &weights, &config, &stream)?;
        let capacity = Capacity {
            rows: options.batch_tokens.max(model.profile.max_tokens.min(positions)) + EXPLAIN_ROWS,
            answers: options.batch_sequences + EXPLAIN_ANSWERS,
        };
        let grades = model.profile.grades.len();
        let buffers = Buffers::allocate(&gpu.context, &config, grades, capacity)?;
        Ok(Self {
            graphs: Graphs::default(),
            kernels,
            gemm,
            stream,
            weights,
            buffers,
            cache: None,
            words: Pinned::allocate(&gpu.context, capacity.words())?,
            readings: Pinned::allocate(&gpu.context, capacity.answers * (2 + grades))?,
            config,
            capacity,
            grades,
            positions,
            gpu,
        })
    }

    fn block_bytes(config: &ModelConfig) -> usize {
        config.layers * 2 * config.kv_heads * BLOCK_TOKENS * config.head_dim * 2
    }

    fn check(&self, batch: &TokenTree) -> Result<()> {
        super::check(batch, self.positions, self.config.vocab_size)?;
        let Capacity { rows, answers } = self.capacity;
        if batch.tokens.len() > rows || batch.answers.len() > answers {
            return Err(Error::internal(format!(
                "a batch of {} tokens and {} answers is over the {rows} and {answers} prepared",
                batch.tokens.len(),
                batch.answers.len()
            )));
        }
        Ok(())
    }

    /// Copies the plan in, and puts the pass on the stream.
    #[expect(unsafe_code, reason = "calls of the driver")]
    fn submit(&mut self, plan: &Plan) -> Result<()> {
        let words = self.words.slice().get_mut(..plan.words.len());
        let words = words.ok_or_else(|| Error::internal("a batch's paths are over what was prepared"))?;
        words.copy_from_slice(&plan.words);
        // SAFETY: pinned memory that is not written again before the pass ended, to a buffer of the
        // same capacity.
        let copied = unsafe { result::memcpy_htod_async(self.buffers.plan, words, self.stream.0) };
        copied.map_err(fault("a copy to it"))?;
        let exact = Extent { rows: plan.rows, answers: plan.answers, tiles: plan.tiles };
        let most = Extent { rows: self.capacity.rows, answers: self.capacity.answers, tiles: 0 };
        let Self { graphs, kernels, gemm, stream, weights, buffers, config, grades, .. } = self;
        let cache = self.cache.as_ref().map_or(0, Region::base);
        let pass = |extent| Pass {
            config,
            weights: &weights.placed,
            buffers,
            cache,
            gemm,
            lane: Lane { kernels, stream: stream.0, plan: buffers.plan },
            extent,
            grades: *grades,
            selected: false,
            pending: None,
        };
        let bucket = bucket(exact, most);
        let replayed = match bucket {
            Some(bucket) => graphs.launch(bucket, stream.0, || forward(&mut pass(bucket)))?,
            None => false,
        };
        if replayed { Ok(()) } else { forward(&mut pass(exact)) }
    }

    /// Waits for what a failed pass left on the stream: the next one writes the same memory.
    #[expect(unsafe_code, reason = "calls of the driver")]
    fn settle(&self) {
        // SAFETY: a live stream. Where the device is lost, the next pass says so again.
        let _ = unsafe { result::stream::synchronize(self.stream.0) };
    }

    /// Waits for the pass, and reads its answers.
    #[expect(unsafe_code, reason = "calls of the driver")]
    fn collect(&mut self, batch: &TokenTree) -> Result<Vec<Reading>> {
        let width = 2 + self.grades;
        let readings = &mut self.readings.slice()[..batch.answers.len() * width];
        // SAFETY: pinned memory that is read only after the stream is done.
        let done = unsafe {
            result::memcpy_dtoh_async(readings, self.buffers.readings, self.stream.0)
                .and(result::stream::synchronize(self.stream.0))
        };
        done.map_err(fault("a pass"))?;
        let answers = batch.answers.iter().zip(readings.chunks_exact(width));
        Ok(answers.map(|(answer, row)| reading(answer.read, row)).collect())
    }
}

/// One answer's row: log-sum-exp, the bits of the best token, the grades' logits.
fn reading(read: Read, row: &[f32]) -> Reading {
    let (log_sum_exp, logits) = (row[0], &row[2..]);
    match read {
        _ if !log_sum_exp.is_finite() => Reading::NotFinite,
        Read::Next => Reading::Next(row[1].to_bits()),
        Read::Grades if logits.iter().any(|logit| !logit.is_finite()) => Reading::NotFinite,
        Read::Grades => Reading::Grades { logits: logits.to_vec(), log_sum_exp: Some(log_sum_exp) },
    }
}

/// What the kernels' widest accesses ask of a model.
fn check_shape(config: &ModelConfig) -> Result<()> {
    let widths = [
        ("hidden_size", config.hidden_size),
        ("intermediate_size", config.intermediate_size),
        ("head_dim", config.head_dim),
    ];
    if let Some((name, width)) = widths.iter().find(|(_, width)| !width.is_multiple_of(8)) {
        return Err(Error::invalid("device", format!("cuda: {name} {width} is not a multiple of 8")));
    }
    let group = config.heads / config.kv_heads;
    if group > TILE_ROWS {
        let message = format!("cuda: {group} query heads to a key head, over the limit of {TILE_ROWS}");
        return Err(Error::invalid("device", message));
    }
    Ok(())
}

/// An algorithm for every product of a pass.
fn choose_products(gpu: &Gpu, weights: &Weights, config: &ModelConfig, stream: &Stream) -> Result<Gemm> {
    let mut gemm = Gemm::open(&gpu.context)?;
    if let Some(layer) = weights.placed.layers.last() {
        let (q, kv) = (config.query_width(), config.kv_width());
        let last = [part(&layer.qkv, 0, q), part(&layer.qkv, q, 2 * kv)];
        let all = [layer.qkv, layer.output, layer.gate_up, layer.down];
        for w in last.iter().chain(&all) {
            gemm.choose(&gpu.context, w, stream.0)?;
        }
    }
    Ok(gemm)
}

impl Backend for CudaBackend {
    fn describe(&self) -> Description {
        let (major, minor) = self.gpu.capability;
        Description {
            device: format!("cuda ({}, compute capability {major}.{minor})", self.gpu.name),
            weight_bytes: self.weights.bytes() + self.buffers.bytes(),
            kv_block_bytes: Self::block_bytes(&self.config),
            max_positions: self.positions,
        }
    }

    fn reserve_kv(&mut self, blocks: usize) -> Result<()> {
        // Graphs hold the address of what was there before.
        self.graphs.clear();
        self.cache = None;
        let bytes = blocks * Self::block_bytes(&self.config);
        self.cache = Some(Region::allocate(&self.gpu.context, bytes, "the KV blocks")?);
        Ok(())
    }

    fn run(&mut self, batch: &TokenTree) -> Result<Vec<Reading>> {
        self.check(batch)?;
        self.gpu.context.bind_to_thread().map_err(fault("the device"))?;
        let plan = Plan::of(batch, self.config.heads / self.config.kv_heads);
        let readings = self.submit(&plan).and_then(|()| self.collect(batch));
        if readings.is_err() {
            self.settle();
        }
        readings
    }
}
