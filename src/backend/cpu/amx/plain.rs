//! What the tile unit does, in plain Rust, bit for bit (but for numbers under 1e-38, which the unit takes for
//! zero): for tests, and for the rare machine that is told to give another's scores.

use super::{BLOCK, PARTS, TILE_ROWS, Tile};

type Square = [[super::unit::Row; TILE_ROWS]; 2];

fn widen(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// One TDPBF16PS: even and odd depths apart, then the two together, then onto the sum.
fn dot(sum: &mut f32, pairs: impl Iterator<Item = ([u16; 2], [u16; 2])>) {
    let mut parts = [0.0f32; 2];
    for (a, b) in pairs {
        for i in 0..2 {
            parts[i] = widen(a[i]).mul_add(widen(b[i]), parts[i]);
        }
    }
    *sum += parts[0] + parts[1];
}

fn pair(row: &[u16], i: usize) -> [u16; 2] {
    [row[2 * i], row[2 * i + 1]]
}

/// See [`super::unit::TileUnit::multiply`].
pub(super) fn multiply(x: [&[Tile]; 2], w: [&[Tile]; 2], sums: &mut [Square; 2]) {
    for (x, sums) in x.iter().zip(sums) {
        for (w, sums) in w.iter().zip(sums) {
            for (row, sums) in sums.iter_mut().enumerate() {
                sums[0].0.fill(0.0);
                for (x, w) in x.chunks_exact(PARTS).zip(*w) {
                    for x in x {
                        for (column, sum) in sums[0].0.iter_mut().enumerate() {
                            let pairs = (0..BLOCK / 2).map(|k| (pair(&x.0[row], k), pair(&w.0[k], column)));
                            dot(sum, pairs);
                        }
                    }
                }
            }
        }
    }
}

/// See [`super::unit::TileUnit::multiply_rows`].
pub(super) fn multiply_rows(rows: &[u8], row_bytes: usize, x: [&[Tile]; 2], sums: &mut [Square; 2]) {
    for (rows, sums) in rows.chunks_exact(TILE_ROWS * row_bytes).zip(sums) {
        for (x, sums) in x.iter().zip(sums) {
            for (row, sums) in rows.chunks_exact(row_bytes).zip(sums.iter_mut()) {
                sums[0].0.fill(0.0);
                for (block, x) in row.chunks_exact(2 * BLOCK).zip(x.chunks_exact(PARTS)) {
                    let values: [u16; BLOCK] =
                        std::array::from_fn(|k| u16::from_le_bytes([block[2 * k], block[2 * k + 1]]));
                    for x in x {
                        for (column, sum) in sums[0].0.iter_mut().enumerate() {
                            dot(sum, (0..BLOCK / 2).map(|k| (pair(&values, k), pair(&x.0[k], column))));
                        }
                    }
                }
            }
        }
    }
}
