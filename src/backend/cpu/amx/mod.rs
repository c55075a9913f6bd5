//! Matrix products on the tile unit of recent Intel processors (AMX), to f32 accuracy.
//!
//! The unit multiplies bf16 and adds in f32. A bf16 weight is exact; an f32 activation is cut into
//! three bf16 parts of eight bits each that add up to it exactly. So three tile products give what
//! f32 arithmetic gives, at a third of the unit's rate, which is still several times that of
//! multiply-adds on vectors. (Weights in f32 or f16 would need up to nine: they stay on vectors.)
//!
//! **Invariance.** An output element is summed over depth in blocks of [`BLOCK`], the high, middle and
//! low part of each block in turn, whatever the number of rows or the tile it falls in.
//!
//! Source: Intel Architecture Instruction Set Extensions Programming Reference, chapter 3 (TDPBF16PS).

mod head;
mod plain;
mod product;
#[cfg(test)]
mod tests;
mod unit;

use std::sync::LazyLock;

use rayon::prelude::*;

pub(super) use head::{Answers, logits};
pub(super) use product::run;

use super::{
    isa::{Isa, kernel},
    tile::PANEL,
};

/// Rows of one tile of activations.
const TILE_ROWS: usize = 16;
/// Depth of one tile.
pub(super) const BLOCK: usize = 32;
/// Parts that an activation is cut into.
const PARTS: usize = 3;

/// One tile register's worth: sixteen rows of 64 bytes.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Tile(pub(super) [[u16; BLOCK]; TILE_ROWS]);

impl Tile {
    pub(super) const ZERO: Self = Self([[0; BLOCK]; TILE_ROWS]);
}

/// Whether the processor has the unit and the system lets this process use it.
pub(super) fn available() -> bool {
    static AVAILABLE: LazyLock<bool> = LazyLock::new(ask);
    *AVAILABLE
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn ask() -> bool {
    const BF16_AND_TILE: u32 = 1 << 22 | 1 << 24;
    /// arch_prctl(2): ask for a feature whose state is large.
    const REQUEST_PERMISSION: libc::c_long = 0x1023;
    const TILE_DATA: libc::c_long = 18;
    if std::arch::x86_64::__cpuid_count(7, 0).edx & BF16_AND_TILE != BF16_AND_TILE {
        return false;
    }
    #[expect(unsafe_code, reason = "a system call that libc has no function for")]
    // SAFETY: the call takes two numbers and touches no memory of ours.
    let answer = unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) };
    answer == 0
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn ask() -> bool {
    false
}

/// Weight rows `[outputs][depth]` of little-endian bf16 as tiles `[depth / 2][16][2]`, by panel and block.
pub(super) fn weight_tiles(rows: &[&[u8]], depth: usize) -> Vec<Tile> {
    let blocks = depth.div_ceil(BLOCK);
    let mut tiles = vec![Tile::ZERO; rows.len().div_ceil(PANEL) * blocks];
    tiles.par_chunks_mut(blocks).zip(rows.par_chunks(PANEL)).for_each(|(tiles, rows)| {
        for (output, row) in rows.iter().enumerate() {
            for (k, value) in row.as_chunks::<2>().0.iter().enumerate() {
                tiles[k / BLOCK].0[k % BLOCK / 2][2 * output + k % 2] = u16::from_le_bytes(*value);
            }
        }
    });
    tiles
}

/// Activation tiles that `rows` rows of `depth` need.
pub(super) fn parts_len(rows: usize, depth: usize) -> usize {
    rows.div_ceil(TILE_ROWS) * depth.div_ceil(BLOCK) * PARTS
}

/// Cuts row-major `x` into tiles: by row group, depth block and part.
pub(super) fn cut(isa: Isa, x: &[f32], depth: usize, to: &mut [Tile]) {
    let group_tiles = depth.div_ceil(BLOCK) * PARTS;
    to.par_chunks_mut(group_tiles).zip(x.par_chunks(TILE_ROWS * depth)).for_each(|(tiles, rows)| {
        if rows.len() < TILE_ROWS * depth || !depth.is_multiple_of(BLOCK) {
            tiles.fill(Tile::ZERO);
        }
        for (i, row) in rows.chunks_exact(depth).enumerate() {
            cut_row(isa, row, i, tiles);
        }
    });
}

/// Takes the upper 16 bits off each value. Of three cuts each is exact, since an f32 has 24 significant bits.
#[inline(always)]
fn cut_part(rest: &mut [f32], to: &mut [u16]) {
    for (to, rest) in to.iter_mut().zip(rest) {
        *to = (rest.to_bits() >> 16) as u16;
        *rest -= f32::from_bits(rest.to_bits() & 0xffff_0000);
    }
}

kernel! {
    /// Cuts one row into row `i` of the tiles.
    fn cut_row(row: &[f32], i: usize, tiles: &mut [Tile]) {
        let (blocks, tail) = row.as_chunks::<BLOCK>();
        let mut last = [0.0f32; BLOCK];
        last[..tail.len()].copy_from_slice(tail);
        for (values, tiles) in blocks.iter().chain([&last]).zip(tiles.as_chunks_mut::<PARTS>().0) {
            let mut rest = *values;
            for tile in tiles {
                cut_part(&mut rest, &mut tile.0[i]);
            }
        }
    }
}
