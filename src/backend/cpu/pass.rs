//! One batch's pass over the CPU's buffers.

use std::ops::Range;

use rayon::prelude::*;

use super::{
    Head, Layer, Rotary,
    attention::{Inputs, Past, Shape},
    gemm::{PackedMatrix, PackedRows, product},
    head::RowMatrix,
    isa::Isa,
    rows,
};
use crate::{
    backend::{Norm, Ops, Reading},
    engine::{
        kv::{BLOCK_TOKENS, KvRef},
        tree::{Read, TokenTree},
    },
    error::Result,
    model::config::ModelConfig,
};

/// Rows per task of the operations that work row by row.
const TASK_ROWS: usize = 8;

/// Buffers that are kept from batch to batch; they grow to the largest batch seen.
#[derive(Default)]
pub(super) struct Workspace {
    residual: Vec<f32>,
    normed: Vec<f32>,
    packed: PackedRows,
    q: Vec<f32>,
    kv: Vec<f32>,
    attended: Vec<f32>,
    gate_up: Vec<f32>,
    activated: Vec<f32>,
}

/// A batch on its way through the model.
pub(super) struct Pass<'a> {
    isa: Isa,
    config: &'a ModelConfig,
    embedding: &'a RowMatrix,
    layers: &'a [Layer],
    final_norm: &'a [f32],
    head: &'a Head,
    rotary: &'a Rotary,
    cache: &'a mut [f32],
    work: &'a mut Workspace,
    batch: &'a TokenTree,
    /// Batch row of each row that is still computed.
    rows: Vec<usize>,
    /// Those rows by segment.
    segment_rows: Vec<Range<usize>>,
    /// Whether `work.packed` holds `work.normed` already.
    packed_is_normed: bool,
}

impl<'a> Pass<'a> {
    #[expect(clippy::too_many_arguments, reason = "the fields of the backend, borrowed apart")]
    pub(super) fn new(
        isa: Isa,
        config: &'a ModelConfig,
        embedding: &'a RowMatrix,
        layers: &'a [Layer],
        final_norm: &'a [f32],
        head: &'a Head,
        rotary: &'a Rotary,
        cache: &'a mut [f32],
        work: &'a mut Workspace,
        batch: &'a TokenTree,
    ) -> Self {
        Self {
            isa,
            config,
            embedding,
            layers,
            final_norm,
            head,
            rotary,
            cache,
            work,
            batch,
            rows: (0..batch.tokens.len()).collect(),
            segment_rows: batch.segments.iter().map(|segment| segment.rows.clone()).collect(),
            packed_is_normed: false,
        }
    }

    fn kv_width(&self) -> usize {
        2 * self.config.kv_width()
    }

    /// Packs `normed` once for all the products that read it.
    fn pack_normed(&mut self, w: &PackedMatrix) {
        if !self.packed_is_normed || !self.work.packed.fits(w) {
            self.work.packed.pack(self.isa, &self.work.normed, self.rows.len(), w);
            self.packed_is_normed = true;
        }
    }

    /// residual += input · wᵀ
    fn add_to_residual(&mut self, w: &PackedMatrix, input: fn(&Workspace) -> &Vec<f32>) {
        let mut packed = std::mem::take(&mut self.work.packed);
        packed.pack(self.isa, input(self.work), self.rows.len(), w);
        self.packed_is_normed = false;
        product(self.isa, &packed, w, &mut self.work.residual, true);
        self.work.packed = packed;
    }

    /// Head norm (where the model has one), rotary embedding and a factor, on the first
    /// `width` columns of each row.
    fn rotate(&self, buffer: &mut [f32], stride: usize, width: usize, norm: Option<&[f32]>, factor: f32) {
        let half = self.config.head_dim / 2;
        let positions = &self.batch.positions;
        let rows = buffer.par_chunks_exact_mut(stride).with_min_len(TASK_ROWS).zip(&self.rows);
        rows.for_each(|(row, &at)| {
            let at = positions[at] as usize * half;
            let (cos, sin) = (&self.rotary.cos[at..at + half], &self.rotary.sin[at..at + half]);
            for head in row[..width].chunks_exact_mut(self.config.head_dim) {
                rows::norm_rope(self.isa, head, norm, self.config.rms_norm_eps, cos, sin, factor);
            }
        });
    }

    fn write_cache(&mut self, layer: usize) {
        let dim = self.config.head_dim;
        let stride = self.kv_width();
        for segment in &self.batch.segments {
            let Some(keep) = &segment.keep else { continue };
            for (i, row) in segment.rows.clone().enumerate().take(keep.len) {
                for (head, vector) in
                    self.work.kv[row * stride..(row + 1) * stride].chunks_exact(dim).enumerate()
                {
                    let at = cache_at(self.config, layer, keep, i, head);
                    self.cache[at..at + dim].copy_from_slice(vector);
                }
            }
        }
    }
}

/// Where the cache holds a vector; `head` counts the key heads, then the value heads.
fn cache_at(config: &ModelConfig, layer: usize, part: &KvRef, i: usize, head: usize) -> usize {
    let (block, offset) = part.place(i);
    let heads = (block * config.layers + layer) * 2 * config.kv_heads + head;
    (heads * BLOCK_TOKENS + offset) * config.head_dim
}

/// One layer of the KV cache.
struct CachedLayer<'a> {
    config: &'a ModelConfig,
    cache: &'a [f32],
    layer: usize,
}

impl Past for CachedLayer<'_> {
    fn vector(&self, part: &KvRef, i: usize, value: bool, head: usize) -> &[f32] {
        let head = head + if value { self.config.kv_heads } else { 0 };
        let at = cache_at(self.config, self.layer, part, i, head);
        &self.cache[at..at + self.config.head_dim]
    }
}

fn sized(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}

impl Ops for Pass<'_> {
    type Answers = Vec<Reading>;

    fn config(&self) -> &ModelConfig {
        self.config
    }

    fn embed(&mut self) -> Result<()> {
        let hidden = self.config.hidden_size;
        let residual = sized(&mut self.work.residual, self.batch.tokens.len() * hidden);
        let rows = residual.par_chunks_exact_mut(hidden).with_min_len(TASK_ROWS).zip(&self.batch.tokens);
        rows.for_each(|(row, &token)| self.embedding.read(self.isa, token as usize, row));
        Ok(())
    }

    fn norm(&mut self, which: Norm) -> Result<()> {
        let weight = match which {
            Norm::Attention(layer) => &self.layers[layer].attention_norm,
            Norm::Mlp(layer) => &self.layers[layer].mlp_norm,
            Norm::Final => self.final_norm,
        };
        let (hidden, count) = (self.config.hidden_size, self.rows.len());
        let normed = sized(&mut self.work.normed, count * hidden);
        let rows = normed.par_chunks_exact_mut(hidden).with_min_len(TASK_ROWS);
        rows.zip(self.work.residual.par_chunks_exact(hidden)).for_each(|(to, x)| {
            rows::rms_norm(self.isa, x, weight, self.config.rms_norm_eps, to);
        });
        self.packed_is_normed = false;
        Ok(())
    }

    fn keys_values(&mut self, layer: usize) -> Result<()> {
        let weights = &self.layers[layer];
        self.pack_normed(&weights.keys_values);
        let width = self.kv_width();
        let mut kv = std::mem::take(&mut self.work.kv);
        let rows = sized(&mut kv, self.rows.len() * width);
        product(self.isa, &self.work.packed, &weights.keys_values, rows, false);
        self.rotate(rows, width, width / 2, weights.key_norm.as_deref(), 1.0);
        self.work.kv = kv;
        self.write_cache(layer);
        Ok(())
    }

    fn select_answers(&mut self) -> Result<()> {
        let hidden = self.config.hidden_size;
        self.rows = self.batch.answers.iter().map(|answer| answer.row).collect();
        for (to, &from) in self.rows.iter().enumerate() {
            // Answers are in order of row, so a row is read before it is overwritten.
            for buffer in [&mut self.work.residual, &mut self.work.normed] {
                buffer.copy_within(from * hidden..(from + 1) * hidden, to * hidden);
            }
        }
        let mut from = 0;
        for (segment, rows) in self.segment_rows.iter_mut().enumerate() {
            let count = self.batch.answers.iter().filter(|answer| answer.segment == segment).count();
            *rows = from..from + count;
            from += count;
        }
        self.packed_is_normed = false;
        Ok(())
    }

    fn queries(&mut self, layer: usize) -> Result<()> {
        let weights = &self.layers[layer];
        self.pack_normed(&weights.queries);
        let width = self.config.query_width();
        let mut q = std::mem::take(&mut self.work.q);
        let rows = sized(&mut q, self.rows.len() * width);
        product(self.isa, &self.work.packed, &weights.queries, rows, false);
        let scale = 1.0 / (self.config.head_dim as f32).sqrt();
        self.rotate(rows, width, width, weights.query_norm.as_deref(), scale);
        self.work.q = q;
        Ok(())
    }

    fn attention(&mut self, layer: usize) -> Result<()> {
        let past = CachedLayer { config: self.config, cache: self.cache, layer };
        let inputs = Inputs {
            isa: self.isa,
            shape: Shape {
                heads: self.config.heads,
                kv_heads: self.config.kv_heads,
                head_dim: self.config.head_dim,
            },
            batch: self.batch,
            query_rows: &self.rows,
            segment_queries: &self.segment_rows,
            q: &self.work.q,
            kv: &self.work.kv,
            past: &past,
        };
        let width = self.config.query_width();
        inputs.run(sized(&mut self.work.attended, self.rows.len() * width));
        self.add_to_residual(&self.layers[layer].output, |work| &work.attended);
        Ok(())
    }

    fn mlp(&mut self, layer: usize) -> Result<()> {
        let weights = &self.layers[layer];
        self.pack_normed(&weights.gate_up);
        let inner = self.config.intermediate_size;
        let count = self.rows.len();
        let activated = sized(&mut self.work.activated, count * inner);
        if weights.gate_up.is_gated() {
            product(self.isa, &self.work.packed, &weights.gate_up, activated, false);
        } else {
            let both = sized(&mut self.work.gate_up, count * 2 * inner);
            product(self.isa, &self.work.packed, &weights.gate_up, both, false);
            let rows = activated.par_chunks_exact_mut(inner).with_min_len(TASK_ROWS);
            rows.zip(self.work.gate_up.par_chunks_exact(2 * inner)).for_each(|(to, both)| {
                rows::silu_mul(self.isa, &both[..inner], &both[inner..], to);
            });
        }
        self.add_to_residual(&weights.down, |work| &work.activated);
        Ok(())
    }

    fn head(&mut self) -> Result<Vec<Reading>> {
        let hidden = self.config.hidden_size;
        let matrix = self.head.matrix.as_ref().unwrap_or(self.embedding);
        let x = &self.work.normed[..self.rows.len() * hidden];
        // The whole vocabulary where it is asked for, whoever shares the batch.
        let label_mass = self.head.label_mass;
        let wide = |read: Read| read == Read::Next || (label_mass && read == Read::Grades);
        let rows = || self.batch.answers.iter().zip(x.chunks_exact(hidden));
        let chosen: Vec<f32> =
            rows().filter(|(answer, _)| wide(answer.read)).flat_map(|(_, x)| x).copied().collect();
        let mut vocabulary = matrix.vocabulary(self.isa, &chosen).into_iter();
        let readings = rows().map(|(answer, x)| {
            let over_all = if wide(answer.read) { vocabulary.next() } else { None };
            match (answer.read, over_all) {
                (Read::Nothing, _) => Reading::Nothing,
                (_, Some(all)) if !all.log_sum_exp.is_finite() => Reading::NotFinite,
                (Read::Next, Some(all)) => Reading::Next(all.best),
                _ => self.grades(matrix, x, over_all.map(|all| all.log_sum_exp)),
            }
        });
        Ok(readings.collect())
    }
}

impl Pass<'_> {
    fn grades(&self, matrix: &RowMatrix, x: &[f32], log_sum_exp: Option<f32>) -> Reading {
        let logits: Vec<f32> = self.head.grades.iter().map(|&id| matrix.logit(self.isa, id, x)).collect();
        match logits.iter().all(|logit| logit.is_finite()) {
            true => Reading::Grades { logits, log_sum_exp },
            false => Reading::NotFinite,
        }
    }
}
