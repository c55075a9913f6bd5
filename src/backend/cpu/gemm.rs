//! Matrix products against packed weights.
//!
//! A weight of `n` outputs over depth `k` is stored once, at load, as panels of
//! `PANEL` outputs, depth-major: `panel[k][16]`. A product packs its input
//! rows the same way, `ROWS` at a time, and one register-blocked kernel runs
//! over both (the scheme of Goto and van de Geijn, 2008, with the weight side
//! packed ahead).
//!
//! **Invariance.** Each output element is the fused multiply-add of its row and
//! its column in the order of depth, in blocks of [`DEPTH`], whatever the number
//! of rows, the tile it falls in or the thread that runs it. So a row's result
//! never depends on its batch mates.

use std::ops::Range;

use half::{bf16, f16, slice::HalfFloatSliceExt};
use rayon::prelude::*;

use super::isa::{Isa, kernel, prefetch};
use super::shared::SharedRows;
use super::tile::{Lanes, PAIR, PANEL, ROWS, Sixteen, align, tiles, widen};
use crate::model::weights::Dtype;

/// Depth of one block; partial sums are added in this order.
pub const DEPTH: usize = 512;

/// Row groups per task: enough to read each weight panel from memory seldom.
const TASK_ROW_PANELS: usize = 64;
/// Weight panels per task: small enough to share work evenly.
const TASK_COLUMN_PANELS: usize = 16;

/// A weight matrix as panels, in the precision of the checkpoint.
pub struct PackedMatrix {
    outputs: usize,
    depth: usize,
    panels: Panels,
    bias: Option<Vec<f32>>,
}

enum Panels {
    F32(Vec<Lanes>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

impl PackedMatrix {
    /// Packs row-major weights `[rows, depth]` given as parts that follow each other by rows
    /// (q, k, v, say), all of one `dtype`, as little-endian bytes.
    pub fn pack(dtype: Dtype, depth: usize, parts: &[&[u8]], bias: Option<Vec<f32>>) -> Self {
        let rows: Vec<&[u8]> =
            parts.iter().flat_map(|part| part.chunks_exact(depth * dtype.size())).collect();
        let panels = match dtype {
            Dtype::F32 => Panels::F32(align(&interleave(&rows, depth, f32::from_le_bytes))),
            Dtype::F16 => Panels::F16(interleave(&rows, depth, f16::from_le_bytes)),
            Dtype::BF16 => Panels::Bf16(interleave(&rows, depth, bf16::from_le_bytes)),
        };
        Self { outputs: rows.len(), depth, panels, bias }
    }

    /// Number of outputs.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Number of inputs.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        match &self.panels {
            Panels::F32(p) => size_of_val(p.as_slice()),
            Panels::F16(p) => p.len() * 2,
            Panels::Bf16(p) => p.len() * 2,
        }
    }

    /// Depth block `from..from + len` of panel `panel` in f32, expanded into `scratch` if stored in 16 bits.
    fn block<'a>(
        &'a self,
        isa: Isa,
        panel: usize,
        from: usize,
        len: usize,
        scratch: &'a mut [Lanes],
    ) -> &'a [Lanes] {
        let lanes = panel * self.depth + from..panel * self.depth + from + len;
        let values = lanes.start * PANEL..lanes.end * PANEL;
        let scratch = &mut scratch[..len];
        match &self.panels {
            Panels::F32(all) => return &all[lanes],
            Panels::F16(all) => {
                let from = all[values].as_chunks::<PANEL>().0;
                scratch.iter_mut().zip(from).for_each(|(to, from)| from.convert_to_f32_slice(&mut to.0));
            }
            Panels::Bf16(all) => expand_bf16(isa, &all[values], scratch),
        }
        scratch
    }
}

fn interleave<T: Copy + Default + Send + Sync, const N: usize>(
    rows: &[&[u8]],
    depth: usize,
    read: impl Fn([u8; N]) -> T + Sync,
) -> Vec<T> {
    let mut panels = vec![T::default(); rows.len().div_ceil(PANEL) * PANEL * depth];
    panels.par_chunks_mut(PANEL * depth).zip(rows.par_chunks(PANEL)).for_each(|(panel, rows)| {
        for (column, row) in rows.iter().enumerate() {
            let (values, _) = row.as_chunks::<N>();
            for (k, value) in values.iter().enumerate() {
                panel[k * PANEL + column] = read(*value);
            }
        }
    });
    panels
}

kernel! {
    fn expand_bf16(from: &[bf16], to: &mut [Lanes]) {
        for (to, from) in to.iter_mut().zip(from.as_chunks::<PANEL>().0) {
            for (to, from) in to.0.iter_mut().zip(from) {
                *to = widen(*from);
            }
        }
    }
}

/// Input rows packed for the kernel: groups of `ROWS` rows, depth-major; the
/// last group may be narrower.
#[derive(Default)]
pub struct PackedRows {
    values: Vec<f32>,
    rows: usize,
    depth: usize,
}

impl PackedRows {
    /// Packs row-major `x` of `rows` rows and width `depth`, reusing this buffer.
    pub fn pack(&mut self, isa: Isa, x: &[f32], rows: usize, depth: usize) {
        self.rows = rows;
        self.depth = depth;
        if self.values.len() < rows * depth {
            self.values.resize(rows * depth, 0.0);
        }
        let groups = self.values[..rows * depth].par_chunks_mut(ROWS * depth);
        groups.zip(x[..rows * depth].par_chunks(ROWS * depth)).for_each(|(to, from)| {
            pack_group(isa, from, from.len() / depth, depth, to);
        });
    }

    fn groups(&self) -> usize {
        self.rows.div_ceil(ROWS)
    }
}

/// Packs up to `ROWS` rows depth-major: `to[k][row]`.
pub(super) fn pack_group(isa: Isa, from: &[f32], rows: usize, depth: usize, to: &mut [f32]) {
    match rows {
        1 => to[..depth].copy_from_slice(&from[..depth]),
        2 => transpose::<2>(isa, from, depth, to),
        3 => transpose::<3>(isa, from, depth, to),
        4 => transpose::<4>(isa, from, depth, to),
        5 => transpose::<5>(isa, from, depth, to),
        _ => transpose::<6>(isa, from, depth, to),
    }
}

kernel! {
    fn transpose<const R: usize>(from: &[f32], depth: usize, to: &mut [f32]) {
        let rows: [&[f32]; R] = std::array::from_fn(|i| &from[i * depth..(i + 1) * depth]);
        for (k, to) in to.as_chunks_mut::<R>().0.iter_mut().enumerate().take(depth) {
            for i in 0..R {
                to[i] = rows[i][k];
            }
        }
    }
}

/// Where a product goes: a row-major buffer of `stride` columns, from column `column` on.
pub struct Target<'a> {
    /// The whole buffer.
    pub buffer: &'a mut [f32],
    /// Its row length.
    pub stride: usize,
    /// First column to write.
    pub column: usize,
    /// Add to what is there instead of replacing it.
    pub add: bool,
}

/// `target[:, ..] = x · w[columns]ᵀ + bias`. `columns` starts at a multiple of `PANEL`.
pub fn product(isa: Isa, x: &PackedRows, w: &PackedMatrix, columns: Range<usize>, target: Target<'_>) {
    debug_assert_eq!(x.depth, w.depth);
    debug_assert_eq!(columns.start % PANEL, 0);
    let panels = columns.start / PANEL..columns.end.div_ceil(PANEL);
    let Target { buffer, stride, column, add } = target;
    let out = SharedRows::new(buffer);
    let strip = Strip { isa, x, w, columns: &columns, out: &out, stride, column, add };
    let row_tasks = x.groups().div_ceil(TASK_ROW_PANELS);
    let column_tasks = panels.len().div_ceil(TASK_COLUMN_PANELS);
    (0..row_tasks * column_tasks).into_par_iter().for_each(|task| {
        let (i, j) = (task / column_tasks, task % column_tasks);
        let groups = i * TASK_ROW_PANELS..((i + 1) * TASK_ROW_PANELS).min(x.groups());
        let first = panels.start + j * TASK_COLUMN_PANELS;
        strip.run(groups, first..(first + TASK_COLUMN_PANELS).min(panels.end));
    });
}

/// What every task of one product shares.
struct Strip<'a> {
    isa: Isa,
    x: &'a PackedRows,
    w: &'a PackedMatrix,
    columns: &'a Range<usize>,
    out: &'a SharedRows<'a>,
    stride: usize,
    column: usize,
    add: bool,
}

/// Panels that are run side by side when there are so few rows that a panel alone would wait for
/// each multiply-add.
const WIDE: usize = 4;
/// Rows up to which that pays.
const WIDE_ROWS: usize = 2;
/// Rows up to which bf16 weights are widened as they are read, every time, and not once for all rows.
const DIRECT_ROWS: usize = 2 * ROWS - 1;

thread_local! {
    /// Where panels stored in 16 bits are expanded.
    static EXPANDED: std::cell::RefCell<Vec<Lanes>> =
        std::cell::RefCell::new(vec![Lanes::ZERO; WIDE * DEPTH]);
}

impl Strip<'_> {
    fn run(&self, groups: Range<usize>, panels: Range<usize>) {
        EXPANDED.with_borrow_mut(|scratch| {
            for from in (0..self.w.depth).step_by(DEPTH) {
                let mut at = panels.start;
                if self.x.rows <= WIDE_ROWS {
                    at = self.side_by_side::<WIDE>(&groups, at..panels.end, from, scratch);
                } else if self.isa == Isa::Avx512 {
                    at = self.side_by_side::<PAIR>(&groups, at..panels.end, from, scratch);
                }
                self.side_by_side::<1>(&groups, at..panels.end, from, scratch);
            }
        });
    }

    /// Runs panels `P` at a time while there are as many; returns the first that is left.
    fn side_by_side<const P: usize>(
        &self,
        groups: &Range<usize>,
        panels: Range<usize>,
        from: usize,
        scratch: &mut [Lanes],
    ) -> usize {
        let len = DEPTH.min(self.w.depth - from);
        let mut panel = panels.start;
        while panel + P <= panels.end {
            if let (Panels::Bf16(all), true) = (&self.w.panels, self.x.rows <= DIRECT_ROWS) {
                let start = |i| ((panel + i) * self.w.depth + from) * PANEL;
                let blocks: [&[[bf16; PANEL]]; P] =
                    std::array::from_fn(|i| all[start(i)..start(i) + len * PANEL].as_chunks().0);
                self.tiles(groups.clone(), panel, from, len, blocks);
                panel += P;
                continue;
            }
            let mut pieces = scratch.chunks_exact_mut(DEPTH).enumerate();
            let blocks: [&[Lanes]; P] = std::array::from_fn(|_| {
                let (i, piece) = pieces.next().expect("the scratch holds WIDE pieces");
                self.w.block(self.isa, panel + i, from, len, piece)
            });
            self.tiles(groups.clone(), panel, from, len, blocks);
            panel += P;
        }
        panel
    }

    /// `P` weight blocks side by side against every row group of the task.
    fn tiles<const P: usize>(
        &self,
        mut groups: Range<usize>,
        panel: usize,
        from: usize,
        len: usize,
        b: [&[impl Sixteen]; P],
    ) {
        let depth = self.w.depth;
        let first = panel * PANEL;
        let width = (P * PANEL).min(self.columns.end - first);
        let bias = (from + len == depth)
            .then_some(self.w.bias.as_deref())
            .flatten()
            .map(|b| &b[first..first + width]);
        let part =
            |group: usize, rows: usize| &self.x.values[group * ROWS * depth + from * rows..][..len * rows];
        let place = |group: usize| Place {
            at: group * ROWS * self.stride + self.column + first - self.columns.start,
            stride: self.stride,
            width,
            add: self.add || from > 0,
        };
        // Two groups at once where there are registers for them: half the reads of the weights.
        let full = self.x.rows / ROWS;
        while P <= PAIR && self.isa == Isa::Avx512 && groups.start + 2 <= groups.end.min(full) {
            let a = [part(groups.start, ROWS), part(groups.start + 1, ROWS)];
            write::<ROWS, 2, P>(self.isa, a, b, self.out, place(groups.start), bias);
            groups.start += 2;
        }
        for group in groups {
            let rows = ROWS.min(self.x.rows - group * ROWS);
            let (a, place) = ([part(group, rows)], place(group));
            match rows {
                1 => write::<1, 1, P>(self.isa, a, b, self.out, place, bias),
                2 => write::<2, 1, P>(self.isa, a, b, self.out, place, bias),
                3 => write::<3, 1, P>(self.isa, a, b, self.out, place, bias),
                4 => write::<4, 1, P>(self.isa, a, b, self.out, place, bias),
                5 => write::<5, 1, P>(self.isa, a, b, self.out, place, bias),
                _ => write::<6, 1, P>(self.isa, a, b, self.out, place, bias),
            }
        }
    }
}

/// Where one tile goes in the output.
#[derive(Clone, Copy)]
struct Place {
    at: usize,
    stride: usize,
    width: usize,
    /// Add to what an earlier depth block left there.
    add: bool,
}

kernel! {
    /// Writes the tiles of `G` row groups by `P` panels.
    fn write<const R: usize, const G: usize, const P: usize>(
        a: [&[f32]; G], b: [&[impl Sixteen]; P], out: &SharedRows<'_>, place: Place, bias: Option<&[f32]>,
    ) {
        if P == PAIR {
            for row in 0..R * G {
                prefetch(out.at(place.at + row * place.stride));
                prefetch(out.at(place.at + row * place.stride + PANEL));
            }
        }
        let tiles = tiles::<R, G, P>(a, b);
        for (row, sums) in tiles.as_flattened().iter().enumerate() {
            // SAFETY: a tile's columns of a row belong to one task, which writes them one at a time.
            let to = unsafe { out.slice(place.at + row * place.stride, place.width) };
            for (to, sums) in to.chunks_mut(PANEL).zip(sums) {
                match (place.add, <&mut [f32; PANEL]>::try_from(&mut *to)) {
                    (true, Ok(to)) => (0..PANEL).for_each(|j| to[j] += sums.0[j]),
                    (false, Ok(to)) => *to = sums.0,
                    (true, Err(_)) => to.iter_mut().zip(&sums.0).for_each(|(to, sum)| *to += sum),
                    (false, Err(_)) => to.iter_mut().zip(&sums.0).for_each(|(to, sum)| *to = *sum),
                }
            }
            if let Some(bias) = bias {
                to.iter_mut().zip(bias).for_each(|(to, bias)| *to += bias);
            }
        }
    }
}
