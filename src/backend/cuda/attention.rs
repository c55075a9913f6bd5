//! Attention's kernels: what they are told, and how many tiles of keys a block has under way.

use cudarc::driver::sys;

use super::{
    launch::{Queue, TILE_THREADS, parameters},
    memory::Address,
    start::{Gpu, RESERVED_SHARED},
};
use crate::error::Result;

/// Query heads to a block of `attention_row`.
const ROW_HEADS: u32 = 16;
/// Keys of one tile; bytes of where those of eight tiles lie.
const TILE_KEYS: usize = 64;
const SOURCES_BYTES: usize = 8 * TILE_KEYS * 16;
/// What tiles begin at a multiple of where products of warpgroups read them.
const ALIGNMENT: usize = 1 << 10;
/// The width of a head that Hopper has a kernel of its own for. (ptxas 13.0 takes one for 64 apart wrongly: it puts the
/// weights into the queries' registers.)
const HOPPER_DIM: usize = 128;
/// Most tiles under way, and fewest.
const MOST_STAGES: usize = 3;
const FEWEST_STAGES: usize = 2;

/// What attention needs beside its buffers.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Shape {
    pub(super) count_at: i32,
    pub(super) tiles_at: i32,
    pub(super) q_stride: i32,
    pub(super) kv_stride: i32,
    pub(super) values: i32,
    pub(super) heads: i32,
    pub(super) kv_heads: i32,
    pub(super) layer: i32,
    pub(super) layers: i32,
    pub(super) scale: f32,
}

/// `Attention` as the kernels declare it.
#[derive(Clone, Copy)]
#[repr(C)]
struct Attention {
    shape: Shape,
    stages: i32,
}

/// What attention does to queries as it reads them; a bias or norm that the model lacks is 0, and so are the angles of
/// queries that their product turned.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Turn {
    pub(super) bias: Address,
    pub(super) norm: Address,
    pub(super) angles: Address,
    pub(super) epsilon: f32,
}

/// The two kernels for one width of a head.
pub(super) struct Kernels {
    tiles: Kernel,
    row: Kernel,
}

struct Kernel {
    function: sys::CUfunction,
    /// Bytes of shared memory beside stages, and of one.
    base: usize,
    stage: usize,
    /// Stages of each of up to so many blocks, and of each of more.
    few: (usize, usize),
    stages: usize,
}

impl Kernels {
    pub(super) fn load(gpu: &Gpu, head_dim: usize) -> Result<Self> {
        // Rows are padded by 16 bytes against bank conflicts.
        let padded =
            |name: &str| Kernel::load(gpu, &format!("{name}_{head_dim}"), (0, head_dim + 8), MOST_STAGES);
        let tiles = if gpu.is_hopper() && head_dim == HOPPER_DIM {
            // With two stages a multiprocessor has room for a block more, which hides more than a third stage.
            Kernel::load(gpu, &format!("attention_hopper_{head_dim}"), (ALIGNMENT, head_dim), FEWEST_STAGES)?
        } else {
            padded("attention")?
        };
        Ok(Self { tiles, row: padded("attention_row")? })
    }
}

impl Kernel {
    /// With `base` bytes beside stages and rows of `width` numbers; `most` stages where blocks are many.
    fn load(gpu: &Gpu, name: &str, (base, width): (usize, usize), most: usize) -> Result<Self> {
        let (base, stage) = (base + SOURCES_BYTES, 2 * TILE_KEYS * width * 2);
        // All of them, if two blocks still fit a multiprocessor.
        let fits = 2 * (base + MOST_STAGES * stage + RESERVED_SHARED) <= gpu.shared_memory;
        let alone = if fits { MOST_STAGES } else { FEWEST_STAGES };
        let function = gpu.function(name, base + alone * stage)?;
        Ok(Self { function, base, stage, few: (2 * gpu.multiprocessors, alone), stages: most.min(alone) })
    }

    /// Stages of each of so many blocks, and the shared memory that they take.
    fn room(&self, (x, y): (usize, usize)) -> (i32, usize) {
        let stages = if x * y <= self.few.0 { self.few.1 } else { self.stages };
        (stages as i32, self.base + stages * self.stage)
    }
}

impl Queue<'_> {
    /// Tiles of queries against a key head each.
    pub(super) fn attention(
        &self,
        tiles: usize,
        (shape, turn): (Shape, Turn),
        (q, k): (Address, Address),
        cache: Address,
        out: Address,
    ) -> Result<()> {
        let kernel = &self.kernels.attention.tiles;
        let grid = (tiles, shape.kv_heads as usize);
        let (stages, shared) = kernel.room(grid);
        let attention = Attention { shape, stages };
        self.launch(
            kernel.function,
            grid,
            TILE_THREADS,
            shared,
            parameters![self.plan, attention, turn, q, k, cache, out],
        )
    }

    /// One query to a block and 16 of a key head's query heads. `rest` may be 0.
    pub(super) fn attention_row(
        &self,
        answers: usize,
        (shape, turn): (Shape, Turn),
        (q, k): (Address, Address),
        cache: Address,
        (out, rest): (Address, Address),
    ) -> Result<()> {
        let kernel = &self.kernels.attention.row;
        let parts = (shape.heads / shape.kv_heads).unsigned_abs().div_ceil(ROW_HEADS);
        let grid = (answers, shape.kv_heads as usize * parts as usize);
        let (stages, shared) = kernel.room(grid);
        let attention = Attention { shape, stages };
        self.launch(
            kernel.function,
            grid,
            TILE_THREADS,
            shared,
            parameters![self.plan, attention, turn, q, k, cache, out, rest],
        )
    }
}
