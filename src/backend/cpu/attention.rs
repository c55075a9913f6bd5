//! Causal attention over the token tree.
//!
//! One task is one segment's queries against one key-value head. The keys and
//! values of the segment's path (cached blocks, ancestors' rows, its own rows)
//! are gathered in order of absolute position into the panels of
//! [`super::gemm`], and the same register block computes scores and sums.
//!
//! **Invariance.** A query's scores, its softmax lanes and its weighted sum run
//! over absolute positions from 0 to its own, whichever segments hold them;
//! what lies behind it has weight exactly zero.

use std::{cell::RefCell, ops::Range};

use rayon::prelude::*;

use super::{
    isa::{Isa, kernel, prefetch},
    rows::exponentials,
    shared::SharedRows,
    tile::{PAIR, PANEL, ROWS, tiles},
    vector::{DEPTH, pack_group},
};
use crate::engine::{kv::KvRef, tree::TokenTree};

/// Queries of a long segment are shared out in pieces of this many rows.
const TASK_ROWS: usize = 128;
/// Rows of keys and values that are fetched ahead of the one that is gathered.
const GATHER_AHEAD: usize = 4;

/// The shape of one layer's attention.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
}

impl Shape {
    fn group(self) -> usize {
        self.heads / self.kv_heads
    }

    fn padded_dim(self) -> usize {
        self.head_dim.next_multiple_of(PANEL)
    }
}

/// Reads one layer's cached keys and values.
pub(super) trait Past: Sync {
    /// The key (`value` false) or value of head `head` of the `i`-th token of `part`.
    fn vector(&self, part: &KvRef, i: usize, value: bool, head: usize) -> &[f32];
}

/// One layer's inputs.
pub(super) struct Inputs<'a, P: Past> {
    pub(super) isa: Isa,
    pub(super) shape: Shape,
    pub(super) batch: &'a TokenTree,
    /// Batch row of each query row.
    pub(super) query_rows: &'a [usize],
    /// Query rows of each segment.
    pub(super) segment_queries: &'a [Range<usize>],
    /// `[query rows, heads · head_dim]`, already scaled by 1/√head_dim.
    pub(super) q: &'a [f32],
    /// `[batch rows, 2 · kv_heads · head_dim]`: keys, then values.
    pub(super) kv: &'a [f32],
    pub(super) past: &'a P,
}

struct Task {
    segment: usize,
    queries: Range<usize>,
    head: usize,
}

#[derive(Default)]
struct Scratch {
    keys: Vec<f32>,
    values: Vec<f32>,
    queries: Vec<f32>,
    packed: Vec<f32>,
    scores: Vec<f32>,
    weights: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl<P: Past> Inputs<'_, P> {
    /// Writes `out[query row, heads · head_dim]`.
    pub(super) fn run(&self, out: &mut [f32]) {
        let out = SharedRows::new(out);
        let mut tasks = Vec::new();
        for (segment, queries) in self.segment_queries.iter().enumerate() {
            for from in queries.clone().step_by(TASK_ROWS) {
                let queries = from..(from + TASK_ROWS).min(queries.end);
                tasks.extend((0..self.shape.kv_heads).map(|head| Task {
                    segment,
                    queries: queries.clone(),
                    head,
                }));
            }
        }
        tasks.par_iter().for_each(|task| SCRATCH.with_borrow_mut(|scratch| self.attend(task, scratch, &out)));
    }

    fn attend(&self, task: &Task, scratch: &mut Scratch, out: &SharedRows<'_>) {
        let group = self.shape.group();
        let keys = self.keys_seen(task.queries.end - 1);
        self.gather(task, keys, scratch);
        let pairs = task.queries.len() * group;
        for from in (0..pairs).step_by(ROWS) {
            let rows = ROWS.min(pairs - from);
            match rows {
                1 => self.block::<1>(task, from, keys, scratch, out),
                2 => self.block::<2>(task, from, keys, scratch, out),
                3 => self.block::<3>(task, from, keys, scratch, out),
                4 => self.block::<4>(task, from, keys, scratch, out),
                5 => self.block::<5>(task, from, keys, scratch, out),
                _ => self.block::<6>(task, from, keys, scratch, out),
            }
        }
    }

    /// Keys that query row `query` attends to: all up to its own position.
    fn keys_seen(&self, query: usize) -> usize {
        self.batch.positions[self.query_rows[query]] as usize + 1
    }

    /// Query row and head of the `pair`-th (row, head) of a task.
    fn pair(&self, task: &Task, pair: usize) -> (usize, usize) {
        let group = self.shape.group();
        (task.queries.start + pair / group, task.head * group + pair % group)
    }

    /// `R` (row, head) pairs from `from` on, against the gathered keys and values.
    fn block<const R: usize>(
        &self,
        task: &Task,
        from: usize,
        gathered: usize,
        scratch: &mut Scratch,
        out: &SharedRows<'_>,
    ) {
        let dim = self.shape.head_dim;
        let width = self.shape.heads * dim;
        scratch.queries.resize(ROWS * dim, 0.0);
        for i in 0..R {
            let (row, head) = self.pair(task, from + i);
            scratch.queries[i * dim..(i + 1) * dim]
                .copy_from_slice(&self.q[row * width + head * dim..][..dim]);
        }
        scratch.packed.resize(ROWS * dim, 0.0);
        pack_group(self.isa, &scratch.queries, R, dim, &mut scratch.packed);

        let seen = self.keys_seen(self.pair(task, from + R - 1).0).next_multiple_of(PANEL);
        scratch.scores.resize(R * seen, 0.0);
        let (queries, keys) = (&scratch.packed[..R * dim], &scratch.keys);
        if self.isa.is_avx512() {
            scores::<R, PAIR>(self.isa, queries, keys, dim, &mut scratch.scores, seen);
        } else {
            scores::<R, 1>(self.isa, queries, keys, dim, &mut scratch.scores, seen);
        }
        let mut sums = [0.0; R];
        for (i, sum) in sums.iter_mut().enumerate() {
            let valid = self.keys_seen(self.pair(task, from + i).0);
            *sum = exponentials(self.isa, &mut scratch.scores[i * seen..(i + 1) * seen], valid);
        }
        scratch.weights.resize(R * seen, 0.0);
        pack_group(self.isa, &scratch.scores, R, seen, &mut scratch.weights);

        let stride = gathered.next_multiple_of(PANEL) * PANEL;
        let values = |panel: usize| &scratch.values[panel * stride..][..seen * PANEL];
        let keep = |panel: usize, tile: &[[f32; PANEL]; R]| {
            let columns = PANEL.min(dim - panel * PANEL);
            for (i, means) in tile.iter().enumerate() {
                let (row, head) = self.pair(task, from + i);
                // SAFETY: a (row, head) belongs to one task.
                #[expect(unsafe_code, reason = "tasks write disjoint heads of disjoint rows")]
                let to = unsafe { out.slice(row * width + head * dim + panel * PANEL, columns) };
                to.copy_from_slice(&means[..columns]);
            }
        };
        let panels = self.shape.padded_dim() / PANEL;
        let mut panel = 0;
        while self.isa.is_avx512() && panel + PAIR <= panels {
            let pair = [values(panel), values(panel + 1)];
            let tiles = weighted::<R, PAIR>(self.isa, &scratch.weights, pair, sums);
            tiles.iter().enumerate().for_each(|(i, tile)| keep(panel + i, tile));
            panel += PAIR;
        }
        for panel in panel..panels {
            let [tile] = weighted::<R, 1>(self.isa, &scratch.weights, [values(panel)], sums);
            keep(panel, &tile);
        }
    }

    /// Packs the first `keys` keys and values of the task's path, by absolute position.
    fn gather(&self, task: &Task, keys: usize, scratch: &mut Scratch) {
        let Shape { kv_heads, head_dim: dim, .. } = self.shape;
        let padded = keys.next_multiple_of(PANEL);
        // What lies behind `keys` in the last panel has weight zero: make it zero too, not a stale NaN.
        scratch.keys.resize(padded * dim, 0.0);
        scratch.keys[(padded - PANEL) * dim..].fill(0.0);
        scratch.values.resize(padded * self.shape.padded_dim(), 0.0);
        for panel in scratch.values.chunks_exact_mut(padded * PANEL) {
            panel[keys * PANEL..].fill(0.0);
        }
        let mut at = 0;
        let mut put = |key: &[f32], value: &[f32]| {
            if at < keys {
                let panel = &mut scratch.keys[at / PANEL * PANEL * dim..];
                for (to, x) in panel[at % PANEL..].iter_mut().step_by(PANEL).zip(key) {
                    *to = *x;
                }
                let (whole, tail) = value.as_chunks::<PANEL>();
                let panels = scratch.values.as_chunks_mut::<PANEL>().0;
                for (panel, value) in whole.iter().enumerate() {
                    panels[panel * padded + at] = *value;
                }
                if !tail.is_empty() {
                    panels[whole.len() * padded + at][..tail.len()].copy_from_slice(tail);
                }
            }
            at += 1;
        };
        let path = self.batch.path(task.segment);
        for part in &self.batch.segments[path[0]].past {
            for i in 0..part.len {
                put(self.past.vector(part, i, false, task.head), self.past.vector(part, i, true, task.head));
            }
        }
        let stride = 2 * kv_heads * dim;
        let (key_at, value_at) = (task.head * dim, (kv_heads + task.head) * dim);
        for row in path.iter().flat_map(|&segment| self.batch.segments[segment].rows.clone()) {
            // A head's vectors lie a row apart, which no prefetcher of the processor follows.
            for line in (0..dim).step_by(PANEL) {
                let ahead = self.kv.as_ptr().wrapping_add((row + GATHER_AHEAD) * stride + line);
                prefetch(ahead.wrapping_add(key_at));
                prefetch(ahead.wrapping_add(value_at));
            }
            let row = &self.kv[row * stride..(row + 1) * stride];
            put(&row[key_at..][..dim], &row[value_at..][..dim]);
        }
    }
}

kernel! {
    /// `out[r, j] = queries[r] · keys[j]` for the first `seen` keys, a multiple of [`PANEL`]; `P` panels
    /// of keys at a time.
    fn scores<const R: usize, const P: usize>(queries: &[f32], keys: &[f32], dim: usize, out: &mut [f32], seen: usize) {
        let panel = |i: usize| keys[i * dim * PANEL..(i + 1) * dim * PANEL].as_chunks::<PANEL>().0;
        let panels = seen / PANEL;
        let mut at = 0;
        while at + P <= panels {
            let [tile] = tiles::<R, 1, P>([queries], std::array::from_fn(|i| panel(at + i)));
            for (r, row) in tile.iter().enumerate() {
                out[r * seen + at * PANEL..][..P * PANEL]
                    .as_chunks_mut::<PANEL>().0.iter_mut().zip(row).for_each(|(to, sums)| *to = sums.0);
            }
            at += P;
        }
        for at in at..panels {
            let [tile] = tiles::<R, 1, 1>([queries], [panel(at)]);
            for (r, row) in tile.iter().enumerate() {
                out[r * seen + at * PANEL..][..PANEL].copy_from_slice(&row[0].0);
            }
        }
    }
}

kernel! {
    /// Means of `P` panels of values by weight, in blocks of [`DEPTH`] absolute positions; `totals` are the
    /// sums of the weights.
    fn weighted<const R: usize, const P: usize>(
        weights: &[f32], values: [&[f32]; P], totals: [f32; R],
    ) -> [[[f32; PANEL]; R]; P] {
        let mut sums = [[[0.0; PANEL]; R]; P];
        for (block, weights) in weights.chunks(DEPTH * R).enumerate() {
            let rows = block * DEPTH..block * DEPTH + weights.len() / R;
            let mut panels: [&[[f32; PANEL]]; P] = [&[]; P];
            for (panel, values) in panels.iter_mut().zip(&values) {
                *panel = &values.as_chunks::<PANEL>().0[rows.clone()];
            }
            let [tile] = tiles::<R, 1, P>([weights], panels);
            for (p, sums) in sums.iter_mut().enumerate() {
                for (sums, part) in sums.iter_mut().zip(&tile) {
                    sums.iter_mut().zip(&part[p].0).for_each(|(sum, part)| *sum += part);
                }
            }
        }
        for (means, total) in sums.iter_mut().flat_map(|sums| sums.iter_mut().zip(&totals)) {
            means.iter_mut().for_each(|mean| *mean /= total);
        }
        sums
    }
}
