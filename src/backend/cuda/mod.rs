//! The CUDA backend: bf16 weights and activations, sums in f32, on one NVIDIA GPU.
//!
//! The program needs no CUDA to start: the driver and cublasLt are opened when a GPU is asked for
//! (`start`). A batch becomes a plan of 32-bit words (`plan`), copied in once; the pass over it is
//! put on a stream (`ops`, `launch`, `gemm` with the algorithms of `choose`, `hopper`) or replayed as a graph
//! (`graph`); the readings are copied out once. Nothing waits until they are collected. Scores have a lane (`lane`) of the highest
//! priority, steps of reasons one of the lowest; where a pass of one touches KV blocks that a pass of the
//! other writes, its stream waits for that.

mod attention;
mod buffers;
mod choose;
mod gemm;
mod graph;
mod hopper;
mod lane;
mod launch;
mod load;
mod memory;
mod ops;
mod plan;
mod start;
mod stream;
mod trial;
mod watch;

use cudarc::driver::{DriverError, result};

use super::{Backend, Description, Options, Pass, Reading};
use crate::{
    engine::{decode::PORTION, kv::BLOCK_TOKENS, tree::TokenTree},
    error::{Error, Result},
    model::{Model, config::ModelConfig},
};
use buffers::Capacity;
use choose::choose;
use gemm::{Gemm, Matrix, Output};
use hopper::Hopper;
use lane::{Lane, Shared};
use launch::Kernels;
use load::{Layer, Placed};
use memory::Region;
use ops::part;
use plan::{Plan, TILE_ROWS};
use start::Gpu;
use stream::Priority;
use trial::After;
use watch::{Watch, within};

/// Longer reasons than this end with `length`.
const REASON_ROOM: usize = 4096;

/// A model on a GPU. Fields are dropped in order: what uses the device before the device.
pub struct CudaBackend {
    score: Lane,
    explain: Lane,
    shared: Shared,
    weights: Region,
    cache: Option<(usize, Region)>,
    positions: usize,
    submitted: usize,
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

impl CudaBackend {
    /// Opens the first GPU, copies `model`'s weights to it and takes the memory that batches and
    /// `options.engine` need.
    ///
    /// `Invalid` in one line that says why there is no GPU to use, or why not for this model;
    /// `Internal` if the device has too little memory.
    pub fn open(model: &Model, options: &Options) -> Result<Self> {
        let config = model.config.clone();
        check_shape(&config)?;
        let gpu = Gpu::open()?;
        let kernels = Kernels::load(&gpu, config.head_dim)?;
        let positions = config.max_positions.min(model.profile.max_tokens + REASON_ROOM);
        let (weights, placed) = Placed::load(&gpu.context, model, positions)?;
        let grades = model.profile.grades.len();
        let engine = &options.engine;
        let scores = Capacity {
            rows: engine.batch_tokens.max(model.profile.max_tokens.min(positions)),
            answers: engine.batch_sequences,
        };
        let steps = Capacity { rows: engine.explain_sequences * PORTION, answers: engine.explain_sequences };
        let score = Lane::open(&gpu.context, &config, grades, scores, Priority::Highest)?;
        let explain = Lane::open(&gpu.context, &config, grades, steps, Priority::Lowest)?;
        let most = Capacity { rows: scores.rows.max(steps.rows), answers: scores.answers.max(steps.answers) };
        let gemm = Gemm::open(Hopper::load(&gpu)?)?;
        let shared = Shared { kernels, gemm, placed, config, grades };
        let backend = Self { score, explain, shared, weights, cache: None, positions, submitted: 0, gpu };
        let mut backend =
            within(options.stall, backend, move |backend, watch| backend.choose_products(most, watch))?;
        let (prefix, explain) = engine.kv_blocks(backend.block_bytes());
        backend.reserve_kv(prefix + explain)?;
        Ok(backend)
    }

    /// Algorithms for every product of a pass of at most so many rows and answers.
    fn choose_products(&mut self, Capacity { rows, answers }: Capacity, watch: &Watch) -> Result<()> {
        let Shared { kernels, gemm, placed, config, .. } = &mut self.shared;
        let on = self.score.on();
        let (q, kv) = (config.query_width(), config.kv_width());
        let each = |of: &dyn Fn(&Layer) -> Matrix| placed.layers.iter().map(of).collect::<Vec<_>>();
        // Gates and ups may be put together as they are computed, if nothing is added to them.
        let gates = if config.mlp_bias { After::Nothing } else { After::Gates };
        let heads = |queries| match config.head_dim {
            hopper::HEAD => After::Heads { queries, keys: config.kv_heads },
            _ => After::Nothing,
        };
        let products = [
            (each(&|layer| layer.qkv), (Output::Rows, heads(config.heads)), rows),
            // The last layer's queries are the answers' alone.
            (each(&|layer| part(&layer.qkv, 0, q)), (Output::Rows, After::Nothing), answers),
            (each(&|layer| part(&layer.qkv, q, 2 * kv)), (Output::Rows, heads(0)), rows),
            (each(&|layer| layer.output), (Output::Sum, After::Nothing), rows),
            (each(&|layer| layer.gate_up), (Output::Rows, gates), rows),
            (each(&|layer| layer.down), (Output::Sum, After::Nothing), rows),
            // The last layer's are of both parts of the answers' rows.
            (each(&|layer| layer.output), (Output::Wide, After::Nothing), 2 * answers),
            (each(&|layer| layer.gate_up), (Output::Wide, After::Nothing), 2 * answers),
            (each(&|layer| layer.down), (Output::Wide, After::Nothing), 2 * answers),
        ];
        for (weights, into, rows) in &products {
            choose((&mut *gemm, kernels), &self.gpu.context, weights, *into, (*rows, on), watch)?;
        }
        Ok(())
    }

    fn block_bytes(&self) -> usize {
        let config = &self.shared.config;
        config.layers * 2 * config.kv_heads * BLOCK_TOKENS * config.head_dim * 2
    }

    fn check(&self, batch: &TokenTree, lane: &Lane) -> Result<()> {
        super::check(batch, self.positions, self.shared.config.vocab_size)?;
        let Capacity { rows, answers } = lane.capacity();
        if batch.tokens.len() > rows || batch.answers.len() > answers {
            return Err(Error::internal(format!(
                "a batch of {} tokens and {} answers is over the {rows} and {answers} prepared",
                batch.tokens.len(),
                batch.answers.len()
            )));
        }
        Ok(())
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

impl Backend for CudaBackend {
    fn describe(&self) -> Description {
        let (major, minor) = self.gpu.capability;
        Description {
            device: format!("cuda ({}, compute capability {major}.{minor})", self.gpu.name),
            weight_bytes: self.weights.bytes() + self.score.bytes() + self.explain.bytes(),
            kv_block_bytes: self.block_bytes(),
            max_positions: self.positions,
            overlaps: true,
        }
    }

    /// Nothing if so many are reserved already: [`Self::open`] takes what the engine will ask for.
    fn reserve_kv(&mut self, blocks: usize) -> Result<()> {
        if self.cache.as_ref().is_some_and(|(reserved, _)| *reserved == blocks) {
            return Ok(());
        }
        // Graphs hold the address of what was there before.
        self.score.forget_graphs();
        self.explain.forget_graphs();
        self.cache = None;
        let bytes = blocks.saturating_mul(self.block_bytes());
        let region = Region::allocate(&self.gpu.context, bytes, "the KV blocks")?;
        self.cache = Some((blocks, region));
        Ok(())
    }

    fn run(&mut self, batch: &TokenTree) -> Result<Vec<Reading>> {
        let pass = self.submit(batch)?;
        self.collect(pass)
    }

    fn submit(&mut self, batch: &TokenTree) -> Result<Pass> {
        self.check(batch, if batch.is_explain() { &self.explain } else { &self.score })?;
        self.gpu.context.bind_to_thread().map_err(fault("the device"))?;
        let Self { score, explain, shared, cache, submitted, .. } = self;
        let (lane, other) = if batch.is_explain() { (explain, score) } else { (score, explain) };
        let group = shared.config.heads / shared.config.kv_heads;
        let plan = Plan::of(batch, group, shared.placed.label_mass);
        let asked = batch.answers.iter().map(|answer| answer.read).collect();
        let blocks = batch.blocks();
        lane.follow(other, &blocks)?;
        *submitted += 1;
        let cache = cache.as_ref().map_or(0, |(_, region)| region.base());
        lane.submit(*submitted, &plan, (asked, blocks), shared, cache)?;
        Ok(Pass::Running(*submitted))
    }

    fn lost(&mut self) -> Option<Error> {
        // A fault of a kernel is told by every call from then on.
        self.gpu
            .context
            .bind_to_thread()
            .and_then(|()| result::ctx::synchronize())
            .map_err(fault("it is lost"))
            .err()
    }

    fn is_done(&mut self, pass: &Pass) -> bool {
        match pass {
            Pass::Done(_) => true,
            Pass::Running(number) => {
                self.score.is_done(*number).or_else(|| self.explain.is_done(*number)).unwrap_or(true)
            }
        }
    }

    fn collect(&mut self, pass: Pass) -> Result<Vec<Reading>> {
        let number = match pass {
            Pass::Done(readings) => return Ok(readings),
            Pass::Running(number) => number,
        };
        self.gpu.context.bind_to_thread().map_err(fault("the device"))?;
        let Self { score, explain, shared, .. } = self;
        let collected = score.collect(number, shared).or_else(|| explain.collect(number, shared));
        collected.unwrap_or_else(|| Err(Error::internal(format!("pass {number} is not under way"))))
    }
}
