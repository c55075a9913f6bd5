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

use std::{arch::asm, ops::Range};

use rayon::prelude::*;

use super::{
    gemm::{Place, Product, keep},
    isa::{Isa, kernel, prefetch},
    shared::SharedRows,
    tile::{Lanes, PANEL},
};

/// Rows of one tile of activations.
pub(super) const TILE_ROWS: usize = 16;
/// Depth of one tile.
pub(super) const BLOCK: usize = 32;
/// Parts that an activation is cut into.
const PARTS: usize = 3;
/// Weight panels of one task and the depth blocks that it takes at a time: 1 MiB of weights, which stays
/// in the second-level cache while the rows pass by.
const TASK_PANELS: usize = 32;
const TASK_BLOCKS: usize = 32;
/// Tasks for each thread, if there are rows enough: so that none waits long for the last.
const TASKS_PER_THREAD: usize = 4;
/// Cache lines fetched ahead from each row group at a depth block: all that the next pair of groups has,
/// by the time that this pair has met [`TASK_PANELS`].
const LINES_AHEAD: usize = BLOCK * PARTS * 2 * TILE_ROWS / 64 / (TASK_PANELS / 2);

/// One tile register's worth: sixteen rows of 64 bytes.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Tile(pub(super) [[u16; BLOCK]; TILE_ROWS]);

impl Tile {
    pub(super) const ZERO: Self = Self([[0; BLOCK]; TILE_ROWS]);
}

/// Sums of a pair of row groups by a pair of panels: `[group][panel][row][output]`.
#[repr(C)]
struct Sums([[[[Lanes; 1]; TILE_ROWS]; 2]; 2]);

impl Sums {
    const ZERO: Self = Self([[[[Lanes::ZERO]; TILE_ROWS]; 2]; 2]);
}

/// Whether the processor has the unit and the system lets this process use it.
pub(super) fn available() -> bool {
    const BF16_AND_TILE: u32 = 1 << 22 | 1 << 24;
    /// arch_prctl(2): ask for a feature whose state is large.
    const REQUEST_PERMISSION: libc::c_long = 0x1023;
    const TILE_DATA: libc::c_long = 18;
    let leaf = std::arch::x86_64::__cpuid_count(7, 0);
    if leaf.edx & BF16_AND_TILE != BF16_AND_TILE {
        return false;
    }
    #[expect(unsafe_code, reason = "a system call that libc has no function for")]
    // SAFETY: the call takes two numbers and touches no memory of ours.
    let answer = unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) };
    answer == 0
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

kernel! {
    /// Cuts one row into row `i` of the tiles: the upper 16 bits of a value, of what is left, and of
    /// what is left then. Each cut is exact, since an f32 has 24 significant bits.
    fn cut_row(row: &[f32], i: usize, tiles: &mut [Tile]) {
        let upper = |value: f32| f32::from_bits(value.to_bits() & 0xffff_0000);
        for (values, tiles) in row.chunks(BLOCK).zip(tiles.as_chunks_mut::<PARTS>().0) {
            let mut rest = [0.0f32; BLOCK];
            rest[..values.len()].copy_from_slice(values);
            for tile in tiles {
                for (to, rest) in tile.0[i].iter_mut().zip(&mut rest) {
                    *to = (rest.to_bits() >> 16) as u16;
                    *rest -= upper(*rest);
                }
            }
        }
    }
}

/// Every output of `product`, by tasks of row groups and panels.
pub(super) fn run(product: &Product<'_>, x: &[Tile], w: &[Tile], panels: Range<usize>) {
    let groups = product.x.rows.div_ceil(TILE_ROWS);
    let column_tasks = panels.len().div_ceil(TASK_PANELS);
    let row_tasks = (TASKS_PER_THREAD * rayon::current_num_threads()).div_ceil(column_tasks);
    let task_groups = groups.div_ceil(row_tasks).next_multiple_of(2);
    let row_tasks = groups.div_ceil(task_groups);
    (0..row_tasks * column_tasks).into_par_iter().for_each(|task| {
        // Tasks that run at the same time read the same weights.
        let (i, j) = (task % row_tasks, task / row_tasks);
        let first = panels.start + j * TASK_PANELS;
        let strip = Strip {
            product,
            x,
            w,
            blocks: product.w.depth().div_ceil(BLOCK),
            groups: i * task_groups..((i + 1) * task_groups).min(groups),
            panels: first..(first + TASK_PANELS).min(panels.end),
        };
        strip.run();
    });
}

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
    fn run(&self) {
        let unit = TileUnit::claim();
        let mut sums = Sums::ZERO;
        for from in (0..self.blocks).step_by(TASK_BLOCKS) {
            let blocks = from..(from + TASK_BLOCKS).min(self.blocks);
            for group in self.groups.clone().step_by(2) {
                for panel in self.panels.clone().step_by(2) {
                    self.square(&unit, group, panel, blocks.clone(), &mut sums);
                }
            }
        }
    }

    /// Two row groups by two panels; at an edge the second is the first again, and is not kept.
    fn square(&self, unit: &TileUnit, group: usize, panel: usize, blocks: Range<usize>, sums: &mut Sums) {
        let other = |at: usize, range: &Range<usize>| if at + 1 < range.end { at + 1 } else { at };
        let groups = [group, other(group, &self.groups)];
        let panels = [panel, other(panel, &self.panels)];
        let start = |group: usize| (group * self.blocks + blocks.start) * PARTS;
        let x = groups.map(|g| &self.x[start(g)..start(g) + blocks.len() * PARTS]);
        let w = panels.map(|p| &self.w[p * self.blocks..][blocks.clone()]);
        let done = (panel - self.panels.start) / 2 * blocks.len() * LINES_AHEAD * 64;
        let ahead = groups.map(|g| self.x.as_ptr().wrapping_add(start(g + 2)).wrapping_byte_add(done));
        let places =
            groups.map(|g| panels.map(|p| self.product.place(g * TILE_ROWS, p, 1, blocks.start > 0)));
        let Product { isa, x: packed, out, .. } = *self.product;
        for place in places.as_flattened() {
            (0..TILE_ROWS).for_each(|row| prefetch(out.at(place.at + row * place.stride)));
        }
        unit.multiply(x, w, ahead, sums);
        for (i, g) in (group..=groups[1]).enumerate() {
            let live = TILE_ROWS.min(packed.rows - g * TILE_ROWS);
            for (j, p) in (panel..=panels[1]).enumerate() {
                let place = places[i][j];
                let bias = if blocks.end == self.blocks { self.product.bias(p, place.width) } else { None };
                keep_sums(isa, &sums.0[i][j][..live], out, place, bias);
            }
        }
    }
}

kernel! {
    fn keep_sums(sums: &[[Lanes; 1]], out: &SharedRows<'_>, place: Place, bias: Option<&[f32]>) {
        keep(sums, out, place, bias);
    }
}

/// The tile registers of this thread, set up as long as this lives.
struct TileUnit(());

/// The palette that LDTILECFG reads: all eight registers with sixteen rows of 64 bytes.
#[repr(C, align(64))]
struct Palette {
    id: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

static PALETTE: Palette = Palette {
    id: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

#[expect(unsafe_code, reason = "tile instructions have no safe form")]
impl TileUnit {
    /// Only called where [`available`] said yes: else no weight is laid out as tiles.
    fn claim() -> Self {
        // SAFETY: the processor has the unit and the process may use it (see above).
        unsafe { asm!("ldtilecfg [{0}]", in(reg) &raw const PALETTE, options(nostack, readonly)) };
        Self(())
    }

    /// Activation tiles `[blocks][PARTS]` of two row groups by weight tiles `[blocks]` of two panels.
    /// Asks for the cache lines from `ahead` on meanwhile, which need not be valid places.
    fn multiply(&self, x: [&[Tile]; 2], w: [&[Tile]; 2], ahead: [*const Tile; 2], sums: &mut Sums) {
        let blocks = w[0].len();
        assert!(w[1].len() == blocks && x.iter().all(|x| x.len() == blocks * PARTS), "tiles of unlike depth");
        const { assert!(LINES_AHEAD == 3, "as many as are asked for below") };
        // SAFETY: the registers are set up (`self`); `blocks` tiles are read from each panel and three
        // times as many from each row group, which the assertion saw; the four sums are written whole.
        unsafe {
            asm!(
                "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                "test {n}, {n}", "jz 3f",
                "2:",
                "tileloadd tmm6, [{w0} + {row}]",
                "tileloadd tmm4, [{x0} + {row}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{w1} + {row}]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{x1} + {row}]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "tileloadd tmm4, [{x0} + {row} + 1024]",
                "tileloadd tmm5, [{x1} + {row} + 1024]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "tileloadd tmm4, [{x0} + {row} + 2048]",
                "tileloadd tmm5, [{x1} + {row} + 2048]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {x0}, 3072", "add {x1}, 3072",
                "add {w0}, 1024", "add {w1}, 1024",
                "prefetcht1 [{a0}]", "prefetcht1 [{a0} + 64]", "prefetcht1 [{a0} + 128]",
                "prefetcht1 [{a1}]", "prefetcht1 [{a1} + 64]", "prefetcht1 [{a1} + 128]",
                "add {a0}, 192", "add {a1}, 192",
                "dec {n}",
                "jnz 2b",
                "3:",
                "tilestored [{sums} + {row}], tmm0",
                "tilestored [{sums} + {row} + 1024], tmm1",
                "tilestored [{sums} + {row} + 2048], tmm2",
                "tilestored [{sums} + {row} + 3072], tmm3",
                row = in(reg) 64usize,
                n = inout(reg) blocks => _,
                x0 = inout(reg) x[0].as_ptr() => _,
                x1 = inout(reg) x[1].as_ptr() => _,
                w0 = inout(reg) w[0].as_ptr() => _,
                w1 = inout(reg) w[1].as_ptr() => _,
                a0 = inout(reg) ahead[0] => _,
                a1 = inout(reg) ahead[1] => _,
                sums = in(reg) &raw mut *sums,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}

impl Drop for TileUnit {
    fn drop(&mut self) {
        #[expect(unsafe_code, reason = "tile instructions have no safe form")]
        // SAFETY: gives back what `claim` set up.
        unsafe {
            asm!("tilerelease", options(nostack, nomem));
        }
    }
}
