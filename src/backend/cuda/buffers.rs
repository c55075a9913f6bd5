//! The buffers of a pass: one region, shared out once for the largest batch there may be.

use std::sync::Arc;

use cudarc::driver::CudaContext;

use super::{
    memory::{Address, Layout, Region},
    plan::Plan,
};
use crate::{error::Result, model::config::ModelConfig};

/// Tokens of the vocabulary to a partial result of the head.
pub(super) const VOCABULARY_TOKENS: usize = 64;
/// Bytes of a partial result.
const PARTIAL_BYTES: usize = 12;
/// Words for runs and block tables, beside what rows and answers need. One sequence never has so many: its keys lie in no
/// more runs than it has tokens. A batch may, of sequences each of which goes on where the one before it ends.
const PATH_WORDS: usize = 1 << 20;

/// The largest batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Capacity {
    /// Tokens.
    pub(super) rows: usize,
    /// Rows that are read.
    pub(super) answers: usize,
}

impl Capacity {
    /// Words of the largest plan.
    pub(super) fn words(self) -> usize {
        Plan::most_words(self.rows, self.answers) + PATH_WORDS
    }
}

/// Where each buffer lies; rows are tokens, or answers where it says so.
pub(super) struct Buffers {
    region: Region,
    pub(super) plan: Address,
    /// f32, `[rows, hidden]`.
    pub(super) residual: Address,
    /// bf16, `[rows, hidden]`.
    pub(super) normed: Address,
    /// f32, `[answers, hidden]`.
    pub(super) answer_residual: Address,
    /// bf16, `[2 answers, width]`: a product's input, and what it lost in rounding.
    pub(super) answer_input: Address,
    /// bf16, `[rows, q + 2 kv]`; in the last layer `[rows, 2 kv]`.
    pub(super) qkv: Address,
    /// bf16, `[answers, q]`.
    pub(super) answer_q: Address,
    /// bf16, `[rows, q]`.
    pub(super) attended: Address,
    /// bf16, `[rows, 2 inner]`; in the last layer f32, `[2 answers, outputs]`: both parts of a product.
    pub(super) gate_up: Address,
    /// bf16, `[rows, inner]`.
    pub(super) activated: Address,
    /// `[answers, chunks of the vocabulary]`.
    pub(super) partials: Address,
    /// f32, `[answers, 2 + grades]`.
    pub(super) readings: Address,
}

impl Buffers {
    pub(super) fn allocate(
        context: &Arc<CudaContext>,
        config: &ModelConfig,
        grades: usize,
        capacity: Capacity,
    ) -> Result<Self> {
        let mut layout = Layout::default();
        let Capacity { rows, answers } = capacity;
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let (q, kv) = (config.query_width(), config.kv_width());
        let chunks = config.vocab_size.div_ceil(VOCABULARY_TOKENS);
        let mut take = |count: usize, bytes: usize| layout.take(count * bytes) as Address;
        let mut buffers = [
            take(capacity.words(), 4),
            take(rows * hidden, 4),
            take(rows * hidden, 2),
            take(answers * hidden, 4),
            take(2 * answers * hidden.max(q).max(inner), 2),
            take(rows * (q + 2 * kv), 2),
            take(answers * q, 2),
            take(rows * q, 2),
            take((rows * 2 * inner).max(2 * answers * hidden.max(2 * inner) * 2), 2),
            take(rows * inner, 2),
            take(answers * chunks, PARTIAL_BYTES),
            take(answers * (2 + grades), 4),
        ];
        let region = Region::allocate(context, layout.bytes(), "a batch's buffers")?;
        buffers.iter_mut().for_each(|at| *at += region.base());
        let [plan, residual, normed, answer_residual, answer_input, qkv, answer_q, others @ ..] = buffers;
        let [attended, gate_up, activated, partials, readings] = others;
        Ok(Self {
            region,
            plan,
            residual,
            normed,
            answer_residual,
            answer_input,
            qkv,
            answer_q,
            attended,
            gate_up,
            activated,
            partials,
            readings,
        })
    }

    /// Bytes on the device.
    pub(super) fn bytes(&self) -> usize {
        self.region.bytes()
    }
}
