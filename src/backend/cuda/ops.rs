//! The operations of one pass, put on the device's stream one after another; nothing waits.

use super::{
    attention::{Shape, Turn},
    buffers::Buffers,
    gemm::{Gemm, Matrix, Output},
    hopper::{self, Finish, Turned},
    launch::{Halves, Queue, Rotation, int},
    load::{Layer, Placed},
    memory::Address,
    plan::{Extent, Word},
};
use crate::{
    backend::{Norm, Ops},
    error::Result,
    model::config::ModelConfig,
};

/// A batch on its way through the model. Its numbers are in the plan on the device; here is only
/// how much of it there is at most.
pub(super) struct Pass<'a> {
    pub(super) config: &'a ModelConfig,
    pub(super) weights: &'a Placed,
    pub(super) buffers: &'a Buffers,
    pub(super) cache: Address,
    pub(super) gemm: &'a Gemm,
    pub(super) queue: Queue<'a>,
    pub(super) extent: Extent,
    pub(super) grades: usize,
    pub(super) selected: bool,
    pub(super) pending: Pending,
    /// Whether the layer's queries are turned already.
    pub(super) turned: bool,
}

/// What is yet to be added to the residual: a product, and a bias or 0.
#[derive(Clone, Copy, Default)]
pub(super) struct Pending {
    product: Halves,
    bias: Address,
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

    /// The input of a product of so many columns, which is `other` before the answers are selected; and where what it lost in
    /// rounding goes, or 0: the answers' rows alone, in the last layer, are multiplied with it, so that they are as good as
    /// f32.
    fn input(&self, width: usize, other: Address) -> (Address, Address) {
        if !self.selected {
            return (other, 0);
        }
        let input = self.buffers.answer_input;
        (input, input + (self.extent.answers * width * 2) as Address)
    }

    fn normed(&self) -> (Address, Address) {
        self.input(self.config.hidden_size, self.buffers.normed)
    }

    fn multiply(&self, w: &Matrix, x: Address, y: (Address, Output)) -> Result<()> {
        self.gemm.multiply(w, x, y, self.rows().0, self.queue.on)
    }

    /// residual += x · wᵀ, in f32; `bias`, and what of the product is in halves, are added with the norm that follows.
    fn add(&mut self, w: &Matrix, x: Address, bias: Address) -> Result<()> {
        self.pending.bias = bias;
        if self.selected {
            self.pending.product = self.multiply_halves(w, x)?;
            return Ok(());
        }
        self.multiply(w, x, (self.residual(), Output::Sum))
    }

    /// The answers' x · wᵀ, and that of what x lost in rounding, in f32.
    fn multiply_halves(&self, w: &Matrix, x: Address) -> Result<Halves> {
        let (y, answers) = (self.buffers.gate_up, self.extent.answers);
        self.gemm.multiply(w, x, (y, Output::Wide), 2 * answers, self.queue.on)?;
        Ok(Halves { of: y, apart: int(answers) })
    }

    /// Gates and ups; whether they are put together already.
    fn multiply_gates(&self, layer: usize) -> Result<bool> {
        let (weights, buffers) = (self.layer(layer), self.buffers);
        let (w, (x, _)) = (&weights.gate_up, self.normed());
        if self.selected {
            return self.multiply_halves(w, x).map(|_| false);
        }
        if weights.gate_up_bias != 0 {
            return self.multiply(w, x, (buffers.gate_up, Output::Rows)).map(|()| false);
        }
        let (to, rows) = ((buffers.gate_up, buffers.activated), self.rows().0);
        self.gemm.multiply_and_finish(w, x, to, (rows, &Finish::Gates), self.queue.on)
    }

    /// Bias, norm and rotation of keys, bias of values; both go to the cache. They begin at `buffer`, in rows of
    /// `stride` numbers.
    fn rotate(&self, layer: usize, buffer: Address, stride: usize) -> Result<()> {
        let (config, weights) = (self.config, self.layer(layer));
        let shape = Rotation {
            stride: stride as i32,
            kv_heads: config.kv_heads as i32,
            layer: layer as i32,
            layers: config.layers as i32,
            epsilon: config.rms_norm_eps,
        };
        // The queries' bias comes first.
        let behind = (config.query_width() * 4) as Address;
        let bias = if weights.qkv_bias == 0 { 0 } else { weights.qkv_bias + behind };
        let angles = self.weights.angles;
        self.queue.rotate(self.extent.rows, shape, buffer, (bias, weights.key_norm), angles, self.cache)
    }

    /// So many columns of queries, of keys and of values; whether they are turned already.
    fn multiply_heads(&self, layer: usize, w: &Matrix, queries: usize) -> Result<bool> {
        let (config, weights) = (self.config, self.layer(layer));
        let (x, to) = (self.normed().0, self.buffers.qkv);
        if config.head_dim != hopper::HEAD {
            return self.multiply(w, x, (to, Output::Rows)).map(|()| false);
        }
        let before = ((config.query_width() - queries) * 4) as Address;
        let turn = Finish::Turn(Turned {
            plan: self.queue.plan,
            bias: if weights.qkv_bias == 0 { 0 } else { weights.qkv_bias + before },
            query_norm: weights.query_norm,
            key_norm: weights.key_norm,
            angles: self.weights.angles,
            cache: self.cache,
            query_heads: int(queries / config.head_dim),
            kv_heads: int(config.kv_heads),
            layer: int(layer),
            layers: int(config.layers),
            epsilon: config.rms_norm_eps,
        });
        self.gemm.multiply_and_finish(w, x, (to, to), (self.rows().0, &turn), self.queue.on)
    }

    /// What queries become as attention reads them.
    fn turn(&self, layer: usize) -> Turn {
        let weights = self.layer(layer);
        Turn {
            bias: weights.qkv_bias,
            norm: weights.query_norm,
            angles: if self.turned { 0 } else { self.weights.angles },
            epsilon: self.config.rms_norm_eps,
        }
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
        self.queue.embed(self.extent.rows, self.weights.embedding, self.buffers.residual, hidden)
    }

    fn norm(&mut self, which: Norm) -> Result<()> {
        let weight = match which {
            Norm::Attention(layer) => self.layer(layer).attention_norm,
            Norm::Mlp(layer) => self.layer(layer).mlp_norm,
            Norm::Final => self.weights.final_norm,
        };
        let Pending { product, bias } = std::mem::take(&mut self.pending);
        let shape = (self.config.hidden_size, self.config.rms_norm_eps);
        let add = (product, bias, weight);
        self.queue.add_norm(self.rows(), self.residual(), add, self.normed(), shape)
    }

    /// In all layers but the last, the queries too: one product gives all three.
    fn keys_values(&mut self, layer: usize) -> Result<()> {
        let (q, kv) = (self.config.query_width(), self.config.kv_width());
        let to = self.buffers.qkv;
        let queries = if self.is_last(layer) { 0 } else { q };
        let w = part(&self.layer(layer).qkv, q - queries, queries + 2 * kv);
        self.turned = self.multiply_heads(layer, &w, queries)?;
        if !self.turned {
            self.rotate(layer, to + (queries * 2) as Address, queries + 2 * kv)?;
        }
        // Those of the last layer have a product of their own.
        self.turned &= queries > 0;
        Ok(())
    }

    fn select_answers(&mut self) -> Result<()> {
        let from = (self.residual(), self.normed().0);
        self.selected = true;
        let to = (self.residual(), self.normed().0);
        self.queue.select_answers(self.extent.answers, from, to, self.config.hidden_size)
    }

    fn queries(&mut self, layer: usize) -> Result<()> {
        if !self.is_last(layer) {
            return Ok(());
        }
        let w = part(&self.layer(layer).qkv, 0, self.config.query_width());
        self.multiply(&w, self.normed().0, (self.buffers.answer_q, Output::Rows))
    }

    fn attention(&mut self, layer: usize) -> Result<()> {
        let config = self.config;
        let (q, kv) = (config.query_width(), config.kv_width());
        let last = self.is_last(layer);
        // A row that is alone: answer i is row i where all are decoded.
        let alone = last || self.extent.decoded;
        let stride = if last { 2 * kv } else { q + 2 * kv };
        let shape = Shape {
            count_at: if alone { Word::Answers } else { Word::Tiles } as i32,
            tiles_at: if alone { Word::AnswerTiles } else { Word::AllTiles } as i32,
            q_stride: if last { q } else { stride } as i32,
            kv_stride: stride as i32,
            values: kv as i32,
            heads: config.heads as i32,
            kv_heads: config.kv_heads as i32,
            layer: layer as i32,
            layers: config.layers as i32,
            scale: std::f32::consts::LOG2_E / (config.head_dim as f32).sqrt(),
        };
        let (buffers, how) = (self.buffers, (shape, self.turn(layer)));
        let from = match last {
            true => (buffers.answer_q, buffers.qkv),
            false => (buffers.qkv, buffers.qkv + (q * 2) as Address),
        };
        let attended = self.input(q, buffers.attended);
        match alone {
            true => self.queue.attention_row(self.extent.answers, how, from, self.cache, attended),
            false => self.queue.attention(self.extent.tiles, how, from, self.cache, attended.0),
        }?;
        let (w, bias) = (self.layer(layer).output, self.layer(layer).output_bias);
        self.add(&w, attended.0, bias)
    }

    fn mlp(&mut self, layer: usize) -> Result<()> {
        let inner = self.config.intermediate_size;
        let activated = self.input(inner, self.buffers.activated);
        if !self.multiply_gates(layer)? {
            let apart = if self.selected { self.extent.answers } else { 0 };
            let gates = (self.buffers.gate_up, apart);
            self.queue.silu_mul(self.rows(), gates, self.layer(layer).gate_up_bias, activated, inner)?;
        }
        let (w, bias) = (self.layer(layer).down, self.layer(layer).down_bias);
        self.add(&w, activated.0, bias)
    }

    fn head(&mut self) -> Result<()> {
        let Extent { answers, wide, graded, .. } = self.extent;
        let (hidden, tokens) = (self.config.hidden_size, self.config.vocab_size);
        let (buffers, weights) = (self.buffers, self.weights);
        let (normed, rest) = self.normed();
        let operands = (normed, rest, weights.head);
        if graded {
            let grades = (weights.grades, self.grades);
            self.queue.grade_logits(answers, operands, grades, buffers.readings, hidden)?;
        }
        let readings = (buffers.readings, self.grades);
        self.queue.vocabulary(wide, operands, (tokens, hidden), buffers.partials, readings)
    }
}
