//! The operations of one pass, put on the device's stream one after another; nothing waits.

use super::{
    buffers::Buffers,
    gemm::{Gemm, Matrix},
    launch::{Attention, Lane, Rotation},
    load::{Layer, Placed},
    memory::Address,
    plan::Word,
};
use crate::{
    backend::{Norm, Ops},
    error::Result,
    model::config::ModelConfig,
};

/// Sizes that grids are made for: those of the batch, or of the graph that it fits into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Extent {
    pub(super) rows: usize,
    pub(super) answers: usize,
    pub(super) tiles: usize,
}

/// A batch on its way through the model. Its numbers are in the plan on the device; here is only
/// how much of it there is at most.
pub(super) struct Pass<'a> {
    pub(super) config: &'a ModelConfig,
    pub(super) weights: &'a Placed,
    pub(super) buffers: &'a Buffers,
    pub(super) cache: Address,
    pub(super) gemm: &'a Gemm,
    pub(super) lane: Lane<'a>,
    pub(super) extent: Extent,
    pub(super) grades: usize,
    pub(super) selected: bool,
    /// The bias of what waits in `delta`; `None` if nothing does.
    pub(super) pending: Option<Address>,
}

impl Pass<'_> {
    fn layer(&self, layer: usize) -> &Layer {
        &self.weights.layers[layer]
    }

    fn is_last(&self, layer: usize) -> bool {
        layer + 1 == self.config.layers
    }

    /// How many rows there are now, and where the plan counts them.
    fn rows(&self) -> (usize, Word) {
        if self.selected { (self.extent.answers, Word::Answers) } else { (self.extent.rows, Word::Rows) }
    }

    fn residual(&self) -> Address {
        if self.selected { self.buffers.answer_residual } else { self.buffers.residual }
    }

    fn normed(&self) -> Address {
        if self.selected { self.buffers.answer_normed } else { self.buffers.normed }
    }

    fn multiply(&self, w: &Matrix, x: Address, y: Address) -> Result<()> {
        self.gemm.multiply(w, x, y, self.rows().0, self.lane.stream)
    }

    /// Bias, norm and rotation of heads that lie in `buffer`; `first` is the first head's place
    /// among the layer's queries, keys and values.
    fn rotate(
        &self,
        layer: usize,
        buffer: Address,
        first: usize,
        q_heads: usize,
        kv_heads: usize,
    ) -> Result<()> {
        let (rows, count_at) = self.rows();
        let weights = self.layer(layer);
        let dim = self.config.head_dim;
        let shape = Rotation {
            count_at: count_at as i32,
            answers: i32::from(self.selected),
            stride: ((q_heads + 2 * kv_heads) * dim) as i32,
            q_heads: q_heads as i32,
            kv_heads: kv_heads as i32,
            layer: layer as i32,
            layers: self.config.layers as i32,
            epsilon: self.config.rms_norm_eps,
        };
        let bias = if weights.qkv_bias == 0 { 0 } else { weights.qkv_bias + (first * dim * 4) as Address };
        let vectors = (bias, weights.query_norm, weights.key_norm);
        let tables = (self.weights.cosines, self.weights.sines);
        self.lane.rotate(rows, shape, buffer, vectors, tables, self.cache)
    }
}

/// The rows of `w` that give so many `outputs` from `first` on.
pub(super) fn part(w: &Matrix, first: usize, outputs: usize) -> Matrix {
    Matrix { at: w.at + (first * w.depth * 2) as Address, outputs, depth: w.depth }
}

impl Ops for Pass<'_> {
    /// The readings are on the device, in `buffers.readings`.
    type Answers = ();

    fn config(&self) -> &ModelConfig {
        self.config
    }

    fn embed(&mut self) -> Result<()> {
        let hidden = self.config.hidden_size;
        self.lane.embed(self.extent.rows, self.weights.embedding, self.buffers.residual, hidden)
    }

    fn norm(&mut self, which: Norm) -> Result<()> {
        let weight = match which {
            Norm::Attention(layer) => self.layer(layer).attention_norm,
            Norm::Mlp(layer) => self.layer(layer).mlp_norm,
            Norm::Final => self.weights.final_norm,
        };
        let delta = self.pending.take().map_or((0, 0), |bias| (self.buffers.delta, bias));
        let shape = (self.config.hidden_size, self.config.rms_norm_eps);
        self.lane.add_norm(self.rows(), self.residual(), delta, weight, self.normed(), shape)
    }

    /// In all layers but the last, the queries too: one product gives all three.
    fn keys_values(&mut self, layer: usize) -> Result<()> {
        let config = self.config;
        let w = self.layer(layer).qkv;
        if self.is_last(layer) {
            let w = part(&w, config.query_width(), 2 * config.kv_width());
            self.multiply(&w, self.normed(), self.buffers.qkv)?;
            self.rotate(layer, self.buffers.qkv, config.heads, 0, config.kv_heads)
        } else {
            self.multiply(&w, self.normed(), self.buffers.qkv)?;
            self.rotate(layer, self.buffers.qkv, 0, config.heads, config.kv_heads)
        }
    }

    fn select_answers(&mut self) -> Result<()> {
        let from = (self.residual(), self.normed());
        self.selected = true;
        let to = (self.residual(), self.normed());
        self.lane.select_answers(self.extent.answers, from, to, self.config.hidden_size)
    }

    fn queries(&mut self, layer: usize) -> Result<()> {
        if !self.is_last(layer) {
            return Ok(());
        }
        let w = part(&self.layer(layer).qkv, 0, self.config.query_width());
        self.multiply(&w, self.normed(), self.buffers.answer_q)?;
        self.rotate(layer, self.buffers.answer_q, 0, self.config.heads, 0)
    }

    fn attention(&mut self, layer: usize) -> Result<()> {
        let config = self.config;
        let (q, kv) = (config.query_width(), config.kv_width());
        let last = self.is_last(layer);
        let stride = if last { 2 * kv } else { q + 2 * kv };
        let shape = Attention {
            count_at: if last { Word::Answers } else { Word::Tiles } as i32,
            tiles_at: if last { Word::AnswerTiles } else { Word::AllTiles } as i32,
            q_stride: if last { q } else { stride } as i32,
            kv_stride: stride as i32,
            values: kv as i32,
            heads: config.heads as i32,
            kv_heads: config.kv_heads as i32,
            layer: layer as i32,
            layers: config.layers as i32,
            scale: std::f32::consts::LOG2_E / (config.head_dim as f32).sqrt(),
        };
        let buffers = self.buffers;
        let (tiles, queries, keys) = match last {
            true => (self.extent.answers, buffers.answer_q, buffers.qkv),
            false => (self.extent.tiles, buffers.qkv, buffers.qkv + (q * 2) as Address),
        };
        self.lane.attention(tiles, shape, (queries, keys), self.cache, buffers.attended)?;
        self.multiply(&self.layer(layer).output, buffers.attended, buffers.delta)?;
        self.pending = Some(self.layer(layer).output_bias);
        Ok(())
    }

    fn mlp(&mut self, layer: usize) -> Result<()> {
        let (buffers, weights) = (self.buffers, self.layer(layer));
        self.multiply(&weights.gate_up, self.normed(), buffers.gate_up)?;
        let inner = self.config.intermediate_size;
        self.lane.silu_mul(self.rows(), buffers.gate_up, weights.gate_up_bias, buffers.activated, inner)?;
        self.multiply(&weights.down, buffers.activated, buffers.delta)?;
        self.pending = Some(weights.down_bias);
        Ok(())
    }

    fn head(&mut self) -> Result<()> {
        let answers = self.extent.answers;
        let (hidden, tokens) = (self.config.hidden_size, self.config.vocab_size);
        let (buffers, weights) = (self.buffers, self.weights);
        let operands = (self.normed(), weights.head);
        self.lane.grade_logits(answers, operands, (weights.grades, self.grades), buffers.readings, hidden)?;
        let readings = (buffers.readings, self.grades);
        self.lane.vocabulary(answers, operands, (tokens, hidden), buffers.partials, readings)
    }
}
