//! Logits over the vocabulary, from the checkpoint's own row-major matrix.

use super::{
    BLOCK, PARTS, TILE_ROWS, Tile, cut_part,
    unit::{Sums, TileUnit},
};

/// Activation rows laid out to be multiplied by rows of a matrix: by group of sixteen, depth block and part,
/// `tile[depth / 2][16][2]`.
pub(in crate::backend::cpu) struct Answers {
    tiles: Vec<Tile>,
    rows: usize,
    depth: usize,
}

impl Answers {
    /// Lays out row-major `x` of width `depth`, a multiple of [`BLOCK`].
    pub(in crate::backend::cpu) fn new(x: &[f32], depth: usize) -> Self {
        let (rows, blocks) = (x.len() / depth, depth / BLOCK);
        let mut tiles = vec![Tile::ZERO; rows.div_ceil(TILE_ROWS) * blocks * PARTS];
        for (row, values) in x.chunks_exact(depth).enumerate() {
            for (k, value) in values.iter().enumerate() {
                let mut rest = [*value];
                for part in 0..PARTS {
                    let tile = &mut tiles[(row / TILE_ROWS * blocks + k / BLOCK) * PARTS + part];
                    let at = row % TILE_ROWS * 2 + k % 2;
                    cut_part(&mut rest, &mut tile.0[k % BLOCK / 2][at..=at]);
                }
            }
        }
        Self { tiles, rows, depth }
    }

    /// The tiles of row group `group`; of the last group, where there is no such group.
    fn group(&self, group: usize) -> &[Tile] {
        let len = self.depth / BLOCK * PARTS;
        let group = group.min(self.rows.div_ceil(TILE_ROWS) - 1);
        &self.tiles[group * len..(group + 1) * len]
    }
}

/// `to[row · stride + i]` = answer row · matrix row `i`, for the rows of `matrix` (little-endian bf16 of the
/// answers' depth), whose number is a multiple of 32.
pub(in crate::backend::cpu) fn logits(matrix: &[u8], answers: &Answers, to: &mut [f32], stride: usize) {
    let unit = TileUnit::claim();
    let mut sums = Sums::ZERO;
    let row_bytes = answers.depth * 2;
    for (pair, rows) in matrix.chunks_exact(2 * TILE_ROWS * row_bytes).enumerate() {
        for group in (0..answers.rows.div_ceil(TILE_ROWS)).step_by(2) {
            unit.multiply_rows(rows, row_bytes, [answers.group(group), answers.group(group + 1)], &mut sums);
            for (half, sums) in sums.0.iter().enumerate() {
                for (i, row) in (group * TILE_ROWS..answers.rows).take(2 * TILE_ROWS).enumerate() {
                    for (id, sums) in sums[i / TILE_ROWS].iter().enumerate() {
                        let at = (pair * 2 + half) * TILE_ROWS + id;
                        to[row * stride + at] = sums[0].0[i % TILE_ROWS];
                    }
                }
            }
        }
    }
}
