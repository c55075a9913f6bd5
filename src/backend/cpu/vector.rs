//! Matrix products on vector registers: fused multiply-adds in f32 over weights of any precision.

use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::gemm::{Place, Product, keep};
use super::isa::{Isa, kernel, prefetch};
use super::panels::Panels;
use super::shared::SharedRows;
use super::tile::{Lanes, PAIR, PANEL, ROWS, Sixteen, tiles};

/// Depth of one block; partial sums are added in this order.
pub(super) const DEPTH: usize = 512;

/// Row groups per task: enough to read each weight panel from memory seldom.
const TASK_ROW_PANELS: usize = 64;
/// Weight panels per task: small enough to share work evenly.
const TASK_COLUMN_PANELS: usize = 16;

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

/// Every output of `product`, by tasks of row groups and panels.
pub(super) fn run(product: &Product<'_>, panels: usize) {
    let groups = product.x.rows().div_ceil(ROWS);
    let row_tasks = groups.div_ceil(TASK_ROW_PANELS);
    let column_tasks = panels.div_ceil(TASK_COLUMN_PANELS);
    (0..row_tasks * column_tasks).into_par_iter().for_each(|task| {
        let (i, j) = (task / column_tasks, task % column_tasks);
        let groups = i * TASK_ROW_PANELS..((i + 1) * TASK_ROW_PANELS).min(groups);
        let first = j * TASK_COLUMN_PANELS;
        Strip { product }.run(groups, first..(first + TASK_COLUMN_PANELS).min(panels));
    });
}

/// One task.
struct Strip<'a> {
    product: &'a Product<'a>,
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
            for from in (0..self.product.w.depth()).step_by(DEPTH) {
                let mut at = panels.start;
                if self.product.x.rows() <= WIDE_ROWS {
                    at = self.side_by_side::<WIDE>(&groups, at..panels.end, from, scratch);
                } else if self.product.isa.is_avx512() {
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
        let len = DEPTH.min(self.product.w.depth() - from);
        let mut panel = panels.start;
        while panel + P <= panels.end {
            if let (Panels::Bf16(all), true) = (&self.product.w.panels, self.product.x.rows() <= DIRECT_ROWS)
            {
                let start = |i| ((panel + i) * self.product.w.depth() + from) * PANEL;
                let blocks: [&[[bf16; PANEL]]; P] =
                    std::array::from_fn(|i| all[start(i)..start(i) + len * PANEL].as_chunks().0);
                self.tiles(groups.clone(), panel, from, len, blocks);
                panel += P;
                continue;
            }
            let mut pieces = scratch.chunks_exact_mut(DEPTH).enumerate();
            let blocks: [&[Lanes]; P] = std::array::from_fn(|_| {
                let (i, piece) = pieces.next().expect("the scratch holds WIDE pieces");
                self.product.w.block(self.product.isa, panel + i, from, len, piece)
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
        let Product { isa, x, w, out, .. } = *self.product;
        let depth = w.depth();
        let part = |group: usize, rows: usize| &x.values[group * ROWS * depth + from * rows..][..len * rows];
        let place = |group: usize| self.product.place(group * ROWS, panel, P, from > 0);
        let width = place(groups.start).width;
        let bias = if from + len == depth { self.product.bias(panel, width) } else { None };
        // Two groups at once where there are registers for them: half the reads of the weights.
        let full = x.rows() / ROWS;
        while P <= PAIR && isa.is_avx512() && groups.start + 2 <= groups.end.min(full) {
            let a = [part(groups.start, ROWS), part(groups.start + 1, ROWS)];
            write::<ROWS, 2, P>(isa, a, b, out, place(groups.start), bias);
            groups.start += 2;
        }
        for group in groups {
            let rows = ROWS.min(x.rows() - group * ROWS);
            let (a, place) = ([part(group, rows)], place(group));
            match rows {
                1 => write::<1, 1, P>(isa, a, b, out, place, bias),
                2 => write::<2, 1, P>(isa, a, b, out, place, bias),
                3 => write::<3, 1, P>(isa, a, b, out, place, bias),
                4 => write::<4, 1, P>(isa, a, b, out, place, bias),
                5 => write::<5, 1, P>(isa, a, b, out, place, bias),
                _ => write::<6, 1, P>(isa, a, b, out, place, bias),
            }
        }
    }
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
        keep(tiles::<R, G, P>(a, b).as_flattened(), out, place, bias);
    }
}
