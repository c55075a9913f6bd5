//! What algorithms are tried with at start: operands of which every sum tells its order, and a norm between products.

use cudarc::driver::{result as driver, sys as cuda};

use super::{
    fault,
    gemm::{CLASSES, Matrix, Output},
    launch::{HELD_ROWS, TILE_THREADS, int, parameters},
    memory::{Address, Region, upload},
    start::Gpu,
    stream::Launch,
};
use crate::error::Result;

/// Rows of the product that the reference is chosen with.
pub(super) const TRIAL_ROWS: usize = 512;
/// Between products of up to so many rows a norm is timed with them.
const MOST_BETWEEN: usize = 256;
/// Its columns.
const WIDTH: usize = 1024;

/// Operands to try an algorithm with.
pub(super) struct Trial {
    pub(super) into: Output,
    pub(super) w: Region,
    pub(super) x: Region,
    pub(super) y: Region,
    between: Option<Between>,
}

impl Trial {
    /// For products of up to `rows` rows.
    pub(super) fn of(gpu: &Gpu, w: &Matrix, into: Output, rows: usize) -> Result<Self> {
        let (context, depth) = (&gpu.context, w.depth);
        let between = gpu.is_hopper().then(|| Between::of(gpu)).transpose()?;
        // Timed are more rows than are compared: the numbers in those do not matter.
        let most = CLASSES
            .into_iter()
            .find(|&most| most >= rows.max(TRIAL_ROWS))
            .unwrap_or(CLASSES[CLASSES.len() - 1]);
        let x = Region::allocate(context, most * w.depth * 2, "a trial of cublasLt")?;
        let y = Region::allocate(context, most * w.outputs * into.bytes(), "a trial of cublasLt")?;
        // Powers of two, others for each of seven outputs: which weight meets which number shows, and nothing is
        // rounded. The halves of a row are alike.
        let power = |output: usize, at: usize| (((output * 5 + at % (depth / 2) * 3) % 7 + 124) << 7) as u16;
        let row = |output| (0..depth).map(|at| power(output, at)).collect::<Vec<_>>();
        let seven: Vec<_> = (0..7).map(row).collect();
        let weights = (0..w.outputs).map(|output| &*seven[output % 7]).collect::<Vec<_>>().concat();
        let w = Region::allocate(context, weights.len() * 2, "a trial of cublasLt")?;
        upload(w.base(), &weights)?;
        // Sums of numbers from 1 to 2^25 in size, each with its negative half a row away: what is
        // left of them is what the order of summation made of it.
        let mut state = 1u32;
        let mut numbers: Vec<u16> = vec![0; TRIAL_ROWS * depth];
        for row in numbers.chunks_exact_mut(depth) {
            for i in 0..depth / 2 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let size = ((127 + (state >> 16) % 25) << 7) | ((state >> 24) & 0x7f);
                row[i] = size as u16;
                row[i + depth / 2] = size as u16 | 0x8000;
            }
        }
        upload(x.base(), &numbers)?;
        Ok(Self { into, w, x, y, between })
    }

    /// What follows a product of so many rows.
    pub(super) fn follow(&self, rows: usize, stream: cuda::CUstream) -> Result<()> {
        match &self.between {
            Some(between) if rows <= MOST_BETWEEN => between.put(rows, stream),
            _ => Ok(()),
        }
    }
}

/// A norm, as one is behind a product in a pass: it is short, and what comes next may begin while it runs, if that is a
/// kernel that can. Without it our own products of few rows, which leave no room for the next of them beside
/// themselves, would seem slower than they are.
struct Between {
    kernel: Launch,
    plan: Region,
    residual: Region,
    weight: Region,
    normed: Region,
}

impl Between {
    fn of(gpu: &Gpu) -> Result<Self> {
        let region = |bytes| Region::allocate(&gpu.context, bytes, "a trial of cublasLt");
        let (plan, weight) = (region(4)?, region(WIDTH * 4)?);
        let (residual, normed) = (region(MOST_BETWEEN * WIDTH * 4)?, region(MOST_BETWEEN * WIDTH * 2)?);
        upload(plan.base(), &[MOST_BETWEEN as i32])?;
        upload(weight.base(), &vec![1.0f32; WIDTH])?;
        upload(residual.base(), &vec![1.0f32; MOST_BETWEEN * WIDTH])?;
        let kernel = Launch {
            kernel: gpu.function("add_norm_held", 0)?,
            grid: (1, 1),
            threads: TILE_THREADS,
            shared: 0,
            cluster: 1,
            early: true,
        };
        Ok(Self { kernel, plan, residual, weight, normed })
    }

    fn put(&self, rows: usize, stream: cuda::CUstream) -> Result<()> {
        let launch = Launch { grid: (rows.div_ceil(HELD_ROWS), 1), ..self.kernel };
        let (none, count_at, epsilon): (Address, i32, f32) = (0, 0, 1e-6);
        let (plan, residual, weight) = (self.plan.base(), self.residual.base(), self.weight.base());
        let normed = self.normed.base();
        launch.put(
            stream,
            parameters![plan, count_at, residual, none, weight, normed, none, int(WIDTH), epsilon],
        )
    }
}

/// What lies at an address once `stream` is done.
#[expect(unsafe_code, reason = "calls of the driver")]
pub(super) fn download(from: Address, len: usize, stream: cuda::CUstream) -> Result<Vec<u16>> {
    let mut to = vec![0; len];
    // SAFETY: the region holds `len` numbers, and the copy ends before `to` is used.
    unsafe { driver::memcpy_dtoh_async(&mut to, from, stream) }.map_err(fault("a copy from it"))?;
    wait(stream)?;
    Ok(to)
}

#[expect(unsafe_code, reason = "calls of the driver")]
pub(super) fn wait(stream: cuda::CUstream) -> Result<()> {
    // SAFETY: a live stream.
    unsafe { driver::stream::synchronize(stream) }.map_err(fault("a product"))
}
