//! The CPU backend: f32 arithmetic over weights in the checkpoint's own precision.

mod amx;
mod attention;
pub mod gemm;
mod head;
pub mod isa;
mod load;
mod panels;
mod pass;
pub mod peak;
mod rows;
mod shared;
mod tile;
mod vector;

use crate::{
    engine::{kv::BLOCK_TOKENS, tree::TokenTree},
    error::{Code, Error, Result},
    model::{Model, config::ModelConfig, forward::forward},
};
use gemm::PackedMatrix;
use head::RowMatrix;
use isa::Isa;
use pass::{Pass, Workspace};

use super::{Backend, Description, Reading};

/// One decoder layer's weights.
struct Layer {
    attention_norm: Vec<f32>,
    mlp_norm: Vec<f32>,
    query_norm: Option<Vec<f32>>,
    key_norm: Option<Vec<f32>>,
    queries: PackedMatrix,
    /// Keys, then values.
    keys_values: PackedMatrix,
    output: PackedMatrix,
    gate_up: PackedMatrix,
    down: PackedMatrix,
}

/// What is read at an answer, beside the hidden state.
struct Head {
    grades: Vec<u32>,
    /// Whether a score needs the whole vocabulary.
    label_mass: bool,
    /// `None`: the embedding is the head.
    matrix: Option<RowMatrix>,
}

/// cos and sin by position, `[positions, head_dim / 2]` each.
struct Rotary {
    cos: Vec<f32>,
    sin: Vec<f32>,
}

/// A model on the CPU.
pub struct CpuBackend {
    isa: Isa,
    threads: rayon::ThreadPool,
    config: ModelConfig,
    embedding: RowMatrix,
    layers: Vec<Layer>,
    final_norm: Vec<f32>,
    head: Head,
    rotary: Rotary,
    kv: Vec<f32>,
    workspace: Workspace,
}

impl CpuBackend {
    /// Packs `model`'s weights. `threads` 0 takes one per core.
    pub fn open(model: &Model, threads: usize) -> Result<Self> {
        load::open(model, threads)
    }

    /// Positions that the rotary embedding was prepared for.
    fn positions(&self) -> usize {
        self.rotary.cos.len() * 2 / self.config.head_dim
    }

    fn block_floats(config: &ModelConfig) -> usize {
        config.layers * 2 * config.kv_heads * BLOCK_TOKENS * config.head_dim
    }
}

impl Backend for CpuBackend {
    fn describe(&self) -> Description {
        let packed = self.layers.iter().flat_map(|layer| {
            [&layer.queries, &layer.keys_values, &layer.output, &layer.gate_up, &layer.down]
        });
        let head = self.head.matrix.as_ref().map_or(0, RowMatrix::bytes);
        Description {
            device: format!("cpu ({}, {} threads)", self.isa.name(), self.threads.current_num_threads()),
            weight_bytes: packed.map(PackedMatrix::bytes).sum::<usize>() + self.embedding.bytes() + head,
            kv_block_bytes: Self::block_floats(&self.config) * size_of::<f32>(),
            max_positions: self.positions(),
            overlaps: false,
        }
    }

    fn reserve_kv(&mut self, blocks: usize) -> Result<()> {
        let floats = blocks.saturating_mul(Self::block_floats(&self.config));
        // Asked for first: a vector that cannot be had ends the process.
        Vec::<f32>::new().try_reserve_exact(floats).map_err(|cause| {
            let message =
                format!("{} MiB of KV memory cannot be had", (floats / (1 << 20)).saturating_mul(4));
            Error::new(Code::Invalid, message).with_cause(cause)
        })?;
        // Zeroed memory is mapped only when it is first written.
        self.kv = vec![0.0; floats];
        Ok(())
    }

    fn run(&mut self, batch: &TokenTree) -> Result<Vec<Reading>> {
        super::check(batch, self.positions(), self.config.vocab_size)?;
        let Self { isa, threads, config, embedding, layers, final_norm, head, rotary, kv, workspace } = self;
        let mut pass =
            Pass::new(*isa, config, embedding, layers, final_norm, head, rotary, kv, workspace, batch);
        threads.install(|| forward(&mut pass))
    }
}
