//! The tile registers, and the two loops that run on them.

use super::{BLOCK, PARTS, TILE_ROWS, Tile, plain};
use crate::backend::cpu::tile::Lanes;

/// Sixteen sums.
pub(super) type Row = [Lanes; 1];

/// Sums of two tiles of rows by two of columns: `[tile][tile][row][column]`.
#[repr(C)]
pub(super) struct Sums(pub(super) [[[Row; TILE_ROWS]; 2]; 2]);

impl Sums {
    pub(super) const ZERO: Self = Self([[[[Lanes::ZERO]; TILE_ROWS]; 2]; 2]);
}

/// Cache lines that [`TileUnit::multiply`] asks for ahead of each row group at a depth block.
pub(super) const LINES_AHEAD: usize = 3;

/// The tile registers of this thread, set up as long as this lives; or plain Rust where there are none.
pub(super) struct TileUnit {
    real: bool,
}

/// The palette that LDTILECFG reads: all eight registers with sixteen rows of 64 bytes.
#[cfg(target_arch = "x86_64")]
#[repr(C, align(64))]
struct Palette {
    id: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

#[cfg(target_arch = "x86_64")]
static PALETTE: Palette = Palette {
    id: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

impl TileUnit {
    pub(super) fn claim() -> Self {
        let real = super::available();
        #[cfg(target_arch = "x86_64")]
        if real {
            tiles::set_up();
        }
        Self { real }
    }

    /// Activation tiles `[blocks][PARTS]` of two row groups by weight tiles `[blocks]` of two panels.
    /// Asks for the cache lines from `ahead` on meanwhile, which need not be valid places.
    pub(super) fn multiply(
        &self,
        x: [&[Tile]; 2],
        w: [&[Tile]; 2],
        ahead: [*const Tile; 2],
        sums: &mut Sums,
    ) {
        let blocks = w[0].len();
        assert!(w[1].len() == blocks && x.iter().all(|x| x.len() == blocks * PARTS), "tiles of unlike depth");
        #[cfg(target_arch = "x86_64")]
        if self.real {
            return tiles::multiply(blocks, x, w, ahead, sums);
        }
        let _ = ahead;
        plain::multiply(x, w, &mut sums.0);
    }

    /// Two times sixteen rows of bf16, `row_bytes` each, by activation tiles `[blocks][PARTS]` of two groups.
    pub(super) fn multiply_rows(&self, rows: &[u8], row_bytes: usize, x: [&[Tile]; 2], sums: &mut Sums) {
        let blocks = row_bytes / 2 / BLOCK;
        assert!(
            rows.len() == 2 * TILE_ROWS * row_bytes && x.iter().all(|x| x.len() == blocks * PARTS),
            "tiles of unlike depth"
        );
        #[cfg(target_arch = "x86_64")]
        if self.real {
            return tiles::multiply_rows(blocks, rows, row_bytes, x, sums);
        }
        plain::multiply_rows(rows, row_bytes, x, &mut sums.0);
    }
}

impl Drop for TileUnit {
    fn drop(&mut self) {
        #[cfg(target_arch = "x86_64")]
        if self.real {
            tiles::release();
        }
    }
}

/// The instructions. Only called between `set_up` and `release`, by threads of a process that may use them.
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "tile instructions have no safe form")]
mod tiles {
    use std::arch::asm;

    use super::{PALETTE, Sums, TILE_ROWS, Tile};

    pub(super) fn set_up() {
        // SAFETY: `super::super::available` saw the unit, and the system's leave to use it.
        unsafe { asm!("ldtilecfg [{0}]", in(reg) &raw const PALETTE, options(nostack, readonly)) };
    }

    pub(super) fn release() {
        // SAFETY: gives back what `set_up` took.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }

    /// `blocks` weight tiles of each panel, three times as many of each row group.
    pub(super) fn multiply(
        blocks: usize,
        x: [&[Tile]; 2],
        w: [&[Tile]; 2],
        ahead: [*const Tile; 2],
        sums: &mut Sums,
    ) {
        // SAFETY: the registers are set up; `blocks` tiles are read from each panel and three
        // times as many from each row group, which the caller saw to; the four sums are written whole.
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

    /// `blocks` times 64 bytes of each of 32 rows, three times as many tiles of each group.
    pub(super) fn multiply_rows(
        blocks: usize,
        rows: &[u8],
        row_bytes: usize,
        x: [&[Tile]; 2],
        sums: &mut Sums,
    ) {
        // SAFETY: the registers are set up; 64 bytes a block are read from each of the 32 rows, and
        // three tiles from each group, which the caller saw to; the four sums are written whole.
        unsafe {
            asm!(
                "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                "test {n}, {n}", "jz 3f",
                "2:",
                // The next 32 rows lie right behind: as many lines of theirs as are read of these.
                ".rept 32",
                "prefetcht1 [{ahead}]",
                "add {ahead}, 64",
                ".endr",
                "tileloadd tmm4, [{w0} + {stride}]",
                "tileloadd tmm5, [{w1} + {stride}]",
                "tileloadd tmm6, [{x0} + {row}]",
                "tileloadd tmm7, [{x1} + {row}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "tileloadd tmm6, [{x0} + {row} + 1024]",
                "tileloadd tmm7, [{x1} + {row} + 1024]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "tileloadd tmm6, [{x0} + {row} + 2048]",
                "tileloadd tmm7, [{x1} + {row} + 2048]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {w0}, 64", "add {w1}, 64",
                "add {x0}, 3072", "add {x1}, 3072",
                "dec {n}",
                "jnz 2b",
                "3:",
                "tilestored [{sums} + {row}], tmm0",
                "tilestored [{sums} + {row} + 1024], tmm1",
                "tilestored [{sums} + {row} + 2048], tmm2",
                "tilestored [{sums} + {row} + 3072], tmm3",
                stride = in(reg) row_bytes,
                row = in(reg) 64usize,
                n = inout(reg) blocks => _,
                w0 = inout(reg) rows.as_ptr() => _,
                w1 = inout(reg) rows[TILE_ROWS * row_bytes..].as_ptr() => _,
                ahead = inout(reg) rows.as_ptr().wrapping_add(rows.len()) => _,
                x0 = inout(reg) x[0].as_ptr() => _,
                x1 = inout(reg) x[1].as_ptr() => _,
                sums = in(reg) &raw mut *sums,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}
