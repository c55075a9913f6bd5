//! Matrix products of a batch's rows against packed weights.
//!
//! A weight of `n` outputs over depth `k` is stored once, at load, as panels of `PANEL` outputs
//! (`panels`). A product packs its input rows to match, and one register-blocked kernel runs
//! over both (the scheme of Goto and van de Geijn, 2008, with the weight side packed ahead): on
//! vectors (`vector`) or, for bf16 weights where there is one, on the tile unit
//! (`amx`). Which of the two is settled when the model is loaded.
//!
//! **Invariance.** Each output element is summed in an order of depth that is fixed by the depth
//! alone, whatever the number of rows, the tile it falls in or the thread that runs it. So a row's
//! result never depends on its batch mates.

use rayon::prelude::*;

use super::amx;
use super::isa::Isa;
pub use super::panels::PackedMatrix;
use super::panels::Panels;
use super::shared::SharedRows;
use super::tile::{Lanes, PANEL, ROWS};
use super::vector::{self, pack_group};

/// Input rows packed for the kernel that will run over them.
#[derive(Default)]
pub struct PackedRows {
    /// For vectors: groups of `ROWS` rows, depth-major; the last group may be narrower.
    pub(super) values: Vec<f32>,
    /// For the tile unit: see [`amx::cut`].
    tiles: Vec<amx::Tile>,
    rows: usize,
    depth: usize,
    /// Whether the rows lie in `tiles`.
    tiled: bool,
}

impl PackedRows {
    /// Packs row-major `x` of `rows` rows for products with `w` and weights like it, reusing this buffer.
    pub fn pack(&mut self, isa: Isa, x: &[f32], rows: usize, w: &PackedMatrix) {
        let depth = w.depth();
        (self.rows, self.depth, self.tiled) = (rows, depth, w.is_tiled());
        if self.tiled {
            let len = amx::parts_len(rows, depth);
            if self.tiles.len() < len {
                self.tiles.resize(len, amx::Tile::ZERO);
            }
            return amx::cut(isa, &x[..rows * depth], depth, &mut self.tiles[..len]);
        }
        if self.values.len() < rows * depth {
            self.values.resize(rows * depth, 0.0);
        }
        let groups = self.values[..rows * depth].par_chunks_mut(ROWS * depth);
        groups.zip(x[..rows * depth].par_chunks(ROWS * depth)).for_each(|(to, from)| {
            pack_group(isa, from, from.len() / depth, depth, to);
        });
    }

    /// Number of rows.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Whether these rows are packed as products with `w` need them.
    pub(super) fn fits(&self, w: &PackedMatrix) -> bool {
        self.depth == w.depth() && self.tiled == w.is_tiled()
    }
}

/// `to[rows, ..] = x · wᵀ + bias`, or added to what is there. For a gated `w`
/// `to[.., i] = silu(x · gate[i] + bias) · (x · up[i] + bias)`, half as many.
pub fn product(isa: Isa, x: &PackedRows, w: &PackedMatrix, to: &mut [f32], add: bool) {
    assert!(x.fits(w), "rows that are packed for another weight");
    let stride = if w.is_gated() { w.outputs() / 2 } else { w.outputs() };
    let panels = w.outputs().div_ceil(PANEL);
    let out = SharedRows::new(&mut to[..x.rows() * stride]);
    let product = Product { isa, x, w, out: &out, stride, add };
    match &w.panels {
        Panels::Bf16Tiles(tiles) => amx::run(&product, &x.tiles, tiles, panels),
        _ => vector::run(&product, panels),
    }
}

/// What every task of one product shares.
pub(super) struct Product<'a> {
    pub(super) isa: Isa,
    pub(super) x: &'a PackedRows,
    pub(super) w: &'a PackedMatrix,
    pub(super) out: &'a SharedRows<'a>,
    /// Values of an output row.
    stride: usize,
    add: bool,
}

impl Product<'_> {
    /// Whether gate and up alternate by panels, and only the activated product is wanted.
    pub(super) fn gated(&self) -> bool {
        self.w.is_gated()
    }

    /// Where the outputs of `panels` panels from `panel` on go, for rows from `row` on. `partial`: an
    /// earlier depth block is there already.
    pub(super) fn place(&self, row: usize, panel: usize, panels: usize, partial: bool) -> Place {
        let first = panel * PANEL;
        let column = if self.gated() { first / 2 } else { first };
        Place {
            at: row * self.stride + column,
            stride: self.stride,
            width: (panels * PANEL).min(self.w.outputs() - first),
            add: self.add || partial,
        }
    }

    /// What is added to those outputs with the last depth block.
    pub(super) fn bias(&self, panel: usize, width: usize) -> Option<&[f32]> {
        self.w.bias.as_deref().map(|bias| &bias[panel * PANEL..][..width])
    }
}

/// Where one block of outputs goes.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) at: usize,
    pub(super) stride: usize,
    pub(super) width: usize,
    /// Add to what an earlier depth block left there.
    pub(super) add: bool,
}

/// Writes the sums of rows by `P` panels to their place.
#[inline(always)]
pub(super) fn keep<const P: usize>(
    sums: &[[Lanes; P]],
    out: &SharedRows<'_>,
    place: Place,
    bias: Option<&[f32]>,
) {
    for (row, sums) in sums.iter().enumerate() {
        #[expect(unsafe_code, reason = "tasks write disjoint tiles of one buffer")]
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
