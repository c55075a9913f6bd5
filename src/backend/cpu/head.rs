//! The head: logits at answer rows, read from the checkpoint's own row-major
//! matrix, so that a tied or mapped embedding is held once.

use std::ops::Range;

use half::{f16, slice::HalfFloatSliceExt};
use rayon::prelude::*;

use super::amx::{self, Answers};
use super::isa::{Isa, kernel};
use crate::model::weights::{Dtype, Tensor};

/// Enough independent chains to hide the latency of a multiply-add.
const LANES: usize = 32;
/// Vocabulary rows per task; partial sums are combined in this order.
const CHUNK: usize = 512;

/// A row-major `[vocabulary, width]` matrix in the checkpoint's bytes.
pub(super) struct RowMatrix {
    tensor: Tensor,
    width: usize,
}

/// What a pass over the whole vocabulary found for one row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Vocabulary {
    /// ln Σ exp of the logits; not finite if any logit was not.
    pub(super) log_sum_exp: f32,
    /// Most probable token, lowest id on ties.
    pub(super) best: u32,
}

#[derive(Clone, Copy)]
struct Partial {
    max: f32,
    sum: f32,
    best: u32,
}

impl RowMatrix {
    pub(super) fn new(tensor: Tensor) -> Self {
        let width = tensor.shape[1];
        Self { tensor, width }
    }

    pub(super) fn bytes(&self) -> usize {
        self.tensor.bytes().len()
    }

    fn rows(&self) -> usize {
        self.tensor.shape[0]
    }

    /// Row `id` in f32.
    pub(super) fn read(&self, isa: Isa, id: usize, to: &mut [f32]) {
        let size = self.tensor.dtype.size();
        let bytes = &self.tensor.bytes()[id * self.width * size..(id + 1) * self.width * size];
        match self.tensor.dtype {
            Dtype::F32 => bytes.as_chunks().0.iter().zip(to).for_each(|(b, to)| *to = f32::from_le_bytes(*b)),
            Dtype::BF16 => expand_bf16(isa, bytes.as_chunks().0, to),
            Dtype::F16 => {
                let row: Vec<f16> = bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b)).collect();
                row.convert_to_f32_slice(to);
            }
        }
    }

    /// The logit of token `id` for activation row `x`.
    pub(super) fn logit(&self, isa: Isa, id: u32, x: &[f32]) -> f32 {
        let mut row = vec![0.0; self.width];
        self.read(isa, id as usize, &mut row);
        dot(isa, &row, x)
    }

    /// One pass over the whole vocabulary for every activation row.
    pub(super) fn vocabulary(&self, isa: Isa, x: &[f32]) -> Vec<Vocabulary> {
        let rows = x.len() / self.width;
        if rows == 0 {
            return Vec::new();
        }
        let tiled =
            isa == Isa::Amx && self.tensor.dtype == Dtype::BF16 && self.width.is_multiple_of(amx::BLOCK);
        let answers = tiled.then(|| Answers::new(x, self.width));
        let chunks: Vec<Vec<Partial>> = (0..self.rows().div_ceil(CHUNK))
            .into_par_iter()
            .map(|chunk| chunk * CHUNK..((chunk + 1) * CHUNK).min(self.rows()))
            .map(|ids| self.chunk(isa, ids, x, answers.as_ref()))
            .collect();
        (0..rows).map(|row| combine(chunks.iter().map(|chunk| chunk[row]))).collect()
    }

    /// As many of the first ids' logits as the tile unit takes; returns their number.
    fn tile_logits(&self, ids: &Range<usize>, answers: Option<&Answers>, logits: &mut [f32]) -> usize {
        let Some(answers) = answers else { return 0 };
        const AT_A_TIME: usize = 32;
        let done = ids.len() / AT_A_TIME * AT_A_TIME;
        let bytes = self.width * self.tensor.dtype.size();
        amx::logits(&self.tensor.bytes()[ids.start * bytes..][..done * bytes], answers, logits, ids.len());
        done
    }

    fn chunk(&self, isa: Isa, ids: Range<usize>, x: &[f32], answers: Option<&Answers>) -> Vec<Partial> {
        let rows = x.len() / self.width;
        let mut weights = vec![0.0; self.width];
        let mut logits = vec![0.0; ids.len() * rows];
        let done = self.tile_logits(&ids, answers, &mut logits);
        for (i, id) in ids.clone().enumerate().skip(done) {
            self.read(isa, id, &mut weights);
            for (row, x) in x.chunks_exact(self.width).enumerate() {
                logits[row * ids.len() + i] = dot(isa, &weights, x);
            }
        }
        logits.chunks_exact_mut(ids.len()).map(|logits| reduce(isa, logits, ids.start)).collect()
    }
}

fn reduce(isa: Isa, logits: &mut [f32], first: usize) -> Partial {
    let mut best = 0;
    for (i, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = i;
        }
    }
    let max = logits[best];
    let valid = logits.len();
    let sum = super::rows::exponentials(isa, logits, valid);
    Partial { max, sum, best: (first + best) as u32 }
}

fn combine(partials: impl Iterator<Item = Partial> + Clone) -> Vocabulary {
    let mut best = Partial { max: f32::NEG_INFINITY, sum: 0.0, best: 0 };
    for partial in partials.clone() {
        if partial.max > best.max {
            best = partial;
        }
    }
    let sum: f64 = partials.map(|p| f64::from(p.sum) * f64::from(p.max - best.max).exp()).sum();
    Vocabulary { log_sum_exp: (f64::from(best.max) + sum.ln()) as f32, best: best.best }
}

kernel! {
    fn expand_bf16(from: &[[u8; 2]], to: &mut [f32]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = f32::from_bits(u32::from(u16::from_le_bytes(*from)) << 16);
        }
    }
}

kernel! {
    /// Dot product in [`LANES`] lanes, in the order of the row.
    fn dot(a: &[f32], b: &[f32]) -> f32 {
        let mut lanes = [0.0f32; LANES];
        let (a_chunks, a_tail) = a.as_chunks::<LANES>();
        let (b_chunks, b_tail) = b.as_chunks::<LANES>();
        for (a, b) in a_chunks.iter().zip(b_chunks) {
            for i in 0..LANES {
                lanes[i] = a[i].mul_add(b[i], lanes[i]);
            }
        }
        for (lane, (a, b)) in lanes.iter_mut().zip(a_tail.iter().zip(b_tail)) {
            *lane = a.mul_add(*b, *lane);
        }
        super::rows::add_lanes(lanes)
    }
}
