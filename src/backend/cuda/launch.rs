//! The kernels, and how each is launched: grids, shared memory, parameters as they are declared in
//! `kernels/`.

use std::ffi::c_void;

use cudarc::driver::sys;

use super::{
    attention, buffers::VOCABULARY_TOKENS, gemm::On, memory::Address, plan::Word, start::Gpu, stream::Launch,
};
use crate::error::{Error, Result};

/// Threads of a block that works on a row.
const ROW_THREADS: u32 = 256;
/// Threads of a block on tensor cores, or of a part of a row.
pub(super) const TILE_THREADS: u32 = 128;
/// Widest row that a warp of `add_norm_held` holds; rows to a block.
const HELD: usize = 8 * 4 * 32;
const HELD_ROWS: usize = 4;
/// Numbers of heads to a block of `rotate`: eight a thread.
const ROTATED: usize = 8 * ROW_THREADS as usize;
/// What a thread that compares rows reads at once.
const QUAD_BYTES: usize = 16;
/// Answers to a block of `vocabulary`; its stages, each of 64 columns of a chunk's tokens and of both parts of
/// activations, in rows of 72 numbers.
const VOCABULARY_ANSWERS: usize = 32;
const VOCABULARY_STAGES: usize = 3;
/// Its shared memory: stages, and what each of four warps found for each answer.
const VOCABULARY_SHARED: usize =
    VOCABULARY_STAGES * (VOCABULARY_TOKENS + 2 * VOCABULARY_ANSWERS) * 72 * 2 + 4 * VOCABULARY_ANSWERS * 12;

/// Widths of a head that there are kernels for.
pub(super) const HEAD_DIMS: [usize; 3] = [32, 64, 128];

/// What `rotate` needs beside its buffers.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Rotation {
    pub(super) stride: i32,
    pub(super) kv_heads: i32,
    pub(super) layer: i32,
    pub(super) layers: i32,
    pub(super) epsilon: f32,
}

/// A product of what its input was rounded to, and, `apart` rows further, of what that lost; 0 if there is none.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct Halves {
    pub(super) of: Address,
    pub(super) apart: i32,
}

/// The kernels of one model's head width.
pub(super) struct Kernels {
    embed: sys::CUfunction,
    add_norm: sys::CUfunction,
    add_norm_held: sys::CUfunction,
    select_answers: sys::CUfunction,
    rotate: sys::CUfunction,
    pub(super) attention: attention::Kernels,
    silu_mul: sys::CUfunction,
    grade_logits: sys::CUfunction,
    vocabulary: sys::CUfunction,
    combine: sys::CUfunction,
    repeat_rows: sys::CUfunction,
    count_differences: sys::CUfunction,
    rotated_heads: usize,
    /// Blocks of `vocabulary` that the device holds at once: each takes several chunks of tokens.
    vocabulary_blocks: usize,
    /// Whether kernels begin before the one before is done.
    early: bool,
}

/// Where kernels are put, and the plan that they read.
#[derive(Clone, Copy)]
pub(super) struct Queue<'a> {
    pub(super) kernels: &'a Kernels,
    pub(super) on: On<'a>,
    pub(super) plan: Address,
}

impl Kernels {
    pub(super) fn load(gpu: &Gpu, head_dim: usize) -> Result<Self> {
        if !HEAD_DIMS.contains(&head_dim) {
            let message = format!("cuda: head_dim {head_dim} has no kernel; there are {HEAD_DIMS:?}");
            return Err(Error::invalid("device", message));
        }
        Ok(Self {
            embed: gpu.function("embed", 0)?,
            add_norm: gpu.function("add_norm", 0)?,
            add_norm_held: gpu.function("add_norm_held", 0)?,
            select_answers: gpu.function("select_answers", 0)?,
            rotate: gpu.function(&format!("rotate_{head_dim}"), 0)?,
            attention: attention::Kernels::load(gpu, head_dim)?,
            silu_mul: gpu.function("silu_mul", 0)?,
            grade_logits: gpu.function("grade_logits", 0)?,
            vocabulary: gpu.function("vocabulary", VOCABULARY_SHARED)?,
            combine: gpu.function("combine", 0)?,
            repeat_rows: gpu.function("repeat_rows", 0)?,
            count_differences: gpu.function("count_differences", 0)?,
            rotated_heads: ROTATED / head_dim,
            vocabulary_blocks: gpu.blocks_at_once(VOCABULARY_SHARED),
            early: gpu.is_hopper(),
        })
    }
}

/// Pointers to parameters, for as long as the statement lasts: never bound with `let`, which would keep the
/// pointers and drop what they point to.
macro_rules! parameters {
    ($($value:expr),* $(,)?) => { &mut [$(std::ptr::from_ref(&$value).cast_mut().cast::<std::ffi::c_void>()),*] };
}
pub(super) use parameters;

/// The sizes that kernels take as 32-bit numbers; a model's are far below.
pub(super) fn int(size: usize) -> i32 {
    i32::try_from(size).unwrap_or(i32::MAX)
}

impl Queue<'_> {
    pub(super) fn launch(
        &self,
        kernel: sys::CUfunction,
        grid: (usize, usize),
        threads: u32,
        shared: usize,
        parameters: &mut [*mut c_void],
    ) -> Result<()> {
        // The first kernel follows a copy.
        let early = self.kernels.early && kernel != self.kernels.embed;
        Launch { kernel, grid, threads, shared, cluster: 1, early }.put(self.on.stream, parameters)
    }

    pub(super) fn embed(&self, rows: usize, table: Address, residual: Address, hidden: usize) -> Result<()> {
        self.launch(
            self.kernels.embed,
            (rows, 1),
            ROW_THREADS,
            0,
            parameters![self.plan, table, residual, int(hidden)],
        )
    }

    /// `bias` and `rest` may be 0.
    pub(super) fn add_norm(
        &self,
        (rows, count_at): (usize, Word),
        residual: Address,
        (added, bias, weight): (Halves, Address, Address),
        (normed, rest): (Address, Address),
        (hidden, epsilon): (usize, f32),
    ) -> Result<()> {
        let (count_at, hidden_int) = (count_at as i32, int(hidden));
        if hidden <= HELD && added.of == 0 && rest == 0 {
            return self.launch(
                self.kernels.add_norm_held,
                (rows.div_ceil(HELD_ROWS), 1),
                TILE_THREADS,
                0,
                parameters![self.plan, count_at, residual, bias, weight, normed, hidden_int, epsilon],
            );
        }
        self.launch(
            self.kernels.add_norm,
            (rows, 1),
            ROW_THREADS,
            8 * 4,
            parameters![
                self.plan, count_at, residual, added, bias, weight, normed, rest, hidden_int, epsilon
            ],
        )
    }

    pub(super) fn select_answers(
        &self,
        answers: usize,
        (residual, normed): (Address, Address),
        (residual_out, normed_out): (Address, Address),
        hidden: usize,
    ) -> Result<()> {
        self.launch(
            self.kernels.select_answers,
            (answers, 1),
            ROW_THREADS,
            0,
            parameters![self.plan, residual, normed, residual_out, normed_out, int(hidden)],
        )
    }

    /// Keys and values, which begin at `buffer`; `bias` and `norm` may be 0.
    pub(super) fn rotate(
        &self,
        rows: usize,
        shape: Rotation,
        buffer: Address,
        (bias, norm): (Address, Address),
        angles: Address,
        cache: Address,
    ) -> Result<()> {
        let heads = 2 * shape.kv_heads.unsigned_abs() as usize;
        self.launch(
            self.kernels.rotate,
            (rows, heads.div_ceil(self.kernels.rotated_heads)),
            ROW_THREADS,
            0,
            parameters![self.plan, shape, buffer, bias, norm, angles, cache],
        )
    }

    /// `gate_up` is f32, in two halves, if they are so many rows `apart`; `bias` and `rest` may be 0.
    pub(super) fn silu_mul(
        &self,
        (rows, count_at): (usize, Word),
        (gate_up, apart): (Address, usize),
        bias: Address,
        (activated, rest): (Address, Address),
        inner: usize,
    ) -> Result<()> {
        let count_at = count_at as i32;
        let grid = (rows, (inner / 4).div_ceil(TILE_THREADS as usize));
        self.launch(
            self.kernels.silu_mul,
            grid,
            TILE_THREADS,
            0,
            parameters![self.plan, count_at, gate_up, int(apart), bias, activated, rest, int(inner)],
        )
    }

    pub(super) fn grade_logits(
        &self,
        answers: usize,
        (normed, rest, matrix): (Address, Address, Address),
        (grades, count): (Address, usize),
        readings: Address,
        hidden: usize,
    ) -> Result<()> {
        self.launch(
            self.kernels.grade_logits,
            (answers, 1),
            ROW_THREADS,
            0,
            parameters![self.plan, normed, rest, matrix, grades, int(count), readings, int(hidden)],
        )
    }

    /// The log-sum-exp and the most probable token over the whole vocabulary, of each answer for which
    /// it is read.
    pub(super) fn vocabulary(
        &self,
        answers: usize,
        (normed, rest, matrix): (Address, Address, Address),
        (tokens, hidden): (usize, usize),
        partials: Address,
        (readings, grades): (Address, usize),
    ) -> Result<()> {
        if answers == 0 {
            return Ok(());
        }
        let chunks = tokens.div_ceil(VOCABULARY_TOKENS);
        // Those of more answers beside them read the same weights: all at once have as many chunks each.
        let beside = answers.div_ceil(VOCABULARY_ANSWERS);
        let grid = (beside, chunks.min(self.kernels.vocabulary_blocks / beside).max(1));
        self.launch(
            self.kernels.vocabulary,
            grid,
            TILE_THREADS,
            VOCABULARY_SHARED,
            parameters![self.plan, normed, rest, matrix, int(tokens), partials, int(hidden)],
        )?;
        self.launch(
            self.kernels.combine,
            (answers, 1),
            ROW_THREADS,
            ROW_THREADS as usize * 12,
            parameters![self.plan, partials, int(chunks), readings, int(grades)],
        )
    }

    /// Has so many rows at `to`, of so many `bytes` each, be the first `of` at `from`, in turn.
    pub(super) fn repeat_rows(
        &self,
        (rows, bytes): (usize, usize),
        to: Address,
        (from, of): (Address, usize),
    ) -> Result<()> {
        self.launch(
            self.kernels.repeat_rows,
            (rows, 1),
            ROW_THREADS,
            0,
            parameters![to, from, int(bytes / QUAD_BYTES), int(of)],
        )
    }

    /// How much of each of these rows is otherwise, to `differences`: f32, a number for each row.
    pub(super) fn count_differences(
        &self,
        (rows, bytes): (usize, usize),
        found: Address,
        (from, of): (Address, usize),
        differences: Address,
    ) -> Result<()> {
        self.launch(
            self.kernels.count_differences,
            (rows, 1),
            ROW_THREADS,
            8 * 4,
            parameters![found, from, int(bytes / QUAD_BYTES), int(of), differences],
        )
    }
}
