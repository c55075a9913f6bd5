//! Products of a batch's rows with a weight: tasks, caches, and where the sums go.

use std::ops::Range;

use rayon::prelude::*;

use super::{
    BLOCK, PARTS, TILE_ROWS, Tile,
    unit::{LINES_AHEAD, Sums, TileUnit},
};
use crate::backend::cpu::{
    gemm::{Place, Product, keep},
    isa::{kernel, prefetch},
    rows::silu,
    shared::SharedRows,
    tile::{Lanes, PANEL},
};

/// Weight tiles of one task at a depth: 1 MiB, which stays in the second-level cache while the rows pass by.
const TASK_TILES: usize = 1024;
/// Depth blocks that are summed in registers before the sums are put down. A gated product sums them all.
const TASK_BLOCKS: usize = 32;
/// Tasks for each thread, if there are rows enough: so that none waits long for the last.
const TASKS_PER_THREAD: usize = 4;

/// Every output of `product`, by tasks of row groups and panels.
pub(in crate::backend::cpu) fn run(product: &Product<'_>, x: &[Tile], w: &[Tile], panels: usize) {
    let groups = product.x.rows().div_ceil(TILE_ROWS);
    let blocks = product.w.depth().div_ceil(BLOCK);
    if groups == 0 || blocks == 0 {
        return;
    }
    let at_a_time = if product.gated() { blocks } else { TASK_BLOCKS.min(blocks) };
    let task_panels = (TASK_TILES / at_a_time).max(2).next_multiple_of(2);
    let column_tasks = panels.div_ceil(task_panels);
    let row_tasks = (TASKS_PER_THREAD * rayon::current_num_threads()).div_ceil(column_tasks);
    let task_groups = groups.div_ceil(row_tasks).next_multiple_of(2);
    let row_tasks = groups.div_ceil(task_groups);
    (0..row_tasks * column_tasks).into_par_iter().for_each(|task| {
        // Tasks that run at the same time read the same weights.
        let (i, j) = (task % row_tasks, task / row_tasks);
        let first = j * task_panels;
        let strip = Strip {
            product,
            x,
            w,
            blocks,
            groups: i * task_groups..((i + 1) * task_groups).min(groups),
            panels: first..(first + task_panels).min(panels),
        };
        strip.run(at_a_time);
    });
}

/// One task.
struct Strip<'a> {
    product: &'a Product<'a>,
    x: &'a [Tile],
    w: &'a [Tile],
    /// Depth blocks of a row.
    blocks: usize,
    groups: Range<usize>,
    panels: Range<usize>,
}

impl Strip<'_> {
    fn run(&self, at_a_time: usize) {
        let unit = TileUnit::claim();
        let mut sums = Sums::ZERO;
        for from in (0..self.blocks).step_by(at_a_time) {
            let blocks = from..(from + at_a_time).min(self.blocks);
            for group in self.groups.clone().step_by(2) {
                for panel in self.panels.clone().step_by(2) {
                    self.square(&unit, group, panel, blocks.clone(), &mut sums);
                }
            }
        }
    }

    /// Two row groups by two panels; at an edge the second is the first again, and is not kept.
    fn square(&self, unit: &TileUnit, group: usize, panel: usize, blocks: Range<usize>, sums: &mut Sums) {
        let pair = |at: usize, range: &Range<usize>| [at, if at + 1 < range.end { at + 1 } else { at }];
        let (groups, panels) = (pair(group, &self.groups), pair(panel, &self.panels));
        let start = |group: usize| (group * self.blocks + blocks.start) * PARTS;
        let x = groups.map(|g| &self.x[start(g)..start(g) + blocks.len() * PARTS]);
        let w = panels.map(|p| &self.w[p * self.blocks..][blocks.clone()]);
        // By the last panel, all that the next pair of groups has at this depth was asked for.
        let done = (panel - self.panels.start) / 2 * blocks.len() * LINES_AHEAD * 64;
        let ahead = groups.map(|g| self.x.as_ptr().wrapping_add(start(g + 2)).wrapping_byte_add(done));
        let partial = blocks.start > 0;
        let places = groups.map(|g| panels.map(|p| self.product.place(g * TILE_ROWS, p, 1, partial)));
        let out = self.product.out;
        for place in places.as_flattened() {
            (0..TILE_ROWS).for_each(|row| prefetch(out.at(place.at + row * place.stride)));
        }
        unit.multiply(x, w, ahead, sums);
        for ((sums, places), g) in sums.0.iter().zip(&places).zip(group..=groups[1]) {
            let live = TILE_ROWS.min(self.product.x.rows() - g * TILE_ROWS);
            if self.product.gated() {
                let bias = panels.map(|p| self.product.bias(p, PANEL));
                let [gate, up] = sums;
                keep_gated(self.product.isa, &gate[..live], &up[..live], out, places[0], bias);
                continue;
            }
            for ((sums, place), p) in sums.iter().zip(places).zip(panel..=panels[1]) {
                let last = blocks.end == self.blocks;
                let bias = if last { self.product.bias(p, place.width) } else { None };
                keep_sums(self.product.isa, &sums[..live], out, *place, bias);
            }
        }
    }
}

kernel! {
    fn keep_sums(sums: &[[Lanes; 1]], out: &SharedRows<'_>, place: Place, bias: Option<&[f32]>) {
        keep(sums, out, place, bias);
    }
}

kernel! {
    /// silu(gate) · up.
    fn keep_gated(gate: &[[Lanes; 1]], up: &[[Lanes; 1]], out: &SharedRows<'_>, place: Place, bias: [Option<&[f32]>; 2]) {
        let add = |sums: &mut Lanes, bias: Option<&[f32]>| {
            if let Some(bias) = bias {
                sums.0.iter_mut().zip(bias).for_each(|(sum, bias)| *sum += bias);
            }
        };
        for (row, ([gate], [up])) in gate.iter().zip(up).enumerate() {
            let (mut gate, mut up) = (*gate, *up);
            add(&mut gate, bias[0]);
            add(&mut up, bias[1]);
            // A loop, not a closure: closures are not compiled for the kernel's instructions.
            for (gate, up) in gate.0.iter_mut().zip(&up.0) {
                *gate = silu(*gate) * up;
            }
            keep(&[[gate]], out, Place { at: place.at + row * place.stride, ..place }, None);
        }
    }
}
