//! Products of few rows by a kernel of our own, on Hopper: `kernels/products.cuh` says how.

use cudarc::driver::sys;

use super::{
    fault,
    gemm::{Matrix, Output},
    launch::{int, parameters},
    memory::Address,
    start::{Gpu, Unmeasured},
    stream::Launch,
};
use crate::error::{Error, Result};

/// Products of more rows are cublasLt's.
pub(super) const MOST_ROWS: usize = 256;
/// Outputs to a block: for each there is a kernel.
const WIDTHS: [usize; 8] = [8, 16, 32, 48, 64, 96, 128, 192];
/// Rows of x to a block, blocks of a cluster, depth of a stage: 128 bytes.
const TILE_ROWS: usize = 64;
const CLUSTER: usize = 2;
const STAGE_DEPTH: usize = 64;
/// Most that all stages take, most stages; and what aligns them.
const RING_BYTES: usize = 200 << 10;
const MOST_STAGES: usize = 16;
const ALIGNMENT: usize = 1024;
/// A warpgroup that multiplies and a warp that copies.
const THREADS: u32 = 160;

/// The kernels, one of each of [`WIDTHS`].
pub(super) struct FewRows {
    kernels: Vec<Kernel>,
    multiprocessors: usize,
    /// Whether it is chosen wherever it has the right bits, faster or not.
    pub(super) always: bool,
}

#[derive(Clone, Copy)]
struct Kernel {
    width: usize,
    function: sys::CUfunction,
    shared: usize,
}

impl FewRows {
    /// `None` if this GPU has no such kernels, or they are not asked for.
    pub(super) fn load(gpu: &Gpu) -> Result<Option<Self>> {
        if gpu.unmeasured == Unmeasured::Off {
            return Ok(None);
        }
        let kernel = |width: usize| -> Result<Kernel> {
            let stage = (TILE_ROWS + width) * STAGE_DEPTH * 2;
            let stages = (RING_BYTES / stage).min(MOST_STAGES);
            // Two barriers of eight bytes a stage.
            let shared = ALIGNMENT + stages * (stage + 16);
            Ok(Kernel { width, function: gpu.function(&format!("few_rows_{width}"), shared)?, shared })
        };
        Ok(Some(Self {
            kernels: WIDTHS.into_iter().map(kernel).collect::<Result<_>>()?,
            multiprocessors: gpu.multiprocessors,
            always: gpu.unmeasured == Unmeasured::Always,
        }))
    }

    /// The narrowest blocks of which each multiprocessor gets one at most; else the widest.
    fn kernel(&self, outputs: usize, rows: usize) -> Option<&Kernel> {
        let whole = |kernel: &&Kernel| outputs.is_multiple_of(CLUSTER * kernel.width);
        let blocks = |kernel: &Kernel| outputs / kernel.width * rows.div_ceil(TILE_ROWS);
        let mut usable = self.kernels.iter().filter(whole);
        usable
            .clone()
            .find(|kernel| blocks(kernel) <= self.multiprocessors)
            .or_else(|| usable.next_back())
            .filter(|_| rows <= MOST_ROWS)
    }

    /// Whether there is a kernel for products with `w` of so many rows.
    pub(super) fn takes(&self, w: &Matrix, rows: usize) -> bool {
        self.kernel(w.outputs, rows).is_some()
    }

    /// y\[rows, outputs\] = x\[rows, depth\] · wᵀ, or added to it.
    pub(super) fn multiply(
        &self,
        w: &Matrix,
        x: Address,
        (y, into): (Address, Output),
        rows: usize,
        stream: sys::CUstream,
    ) -> Result<()> {
        let kernel = self.kernel(w.outputs, rows);
        let kernel = kernel.ok_or_else(|| Error::internal("a product that is not of few rows"))?;
        let x = tiles(x, rows, w.depth, TILE_ROWS / CLUSTER)?;
        let tiles_of_w = tiles(w.at, w.outputs, w.depth, kernel.width)?;
        let into = match into {
            Output::Rows => 0i32,
            Output::Wide => 1,
            Output::Sum => 2,
        };
        let launch = Launch {
            kernel: kernel.function,
            grid: (w.outputs / kernel.width, rows.div_ceil(TILE_ROWS)),
            threads: THREADS,
            shared: kernel.shared,
            cluster: CLUSTER as u32,
            early: true,
        };
        launch.put(stream, parameters![x, tiles_of_w, y, into, int(rows), int(w.outputs), int(w.depth)])
    }
}

/// How the device finds tiles of [`STAGE_DEPTH`] columns and so many rows in a matrix of bf16; behind its edges
/// are zeros.
#[expect(unsafe_code, reason = "calls of the driver")]
fn tiles(at: Address, rows: usize, depth: usize, tile_rows: usize) -> Result<sys::CUtensorMap> {
    let mut map = sys::CUtensorMap { opaque: [0; 16] };
    let (sizes, strides) = ([depth as u64, rows as u64], [(depth * 2) as u64]);
    let (tile, steps) = ([STAGE_DEPTH as u32, tile_rows as u32], [1u32; 2]);
    // SAFETY: `map` is written, the lists have the lengths that two dimensions ask for; the address is not read.
    let encoded = unsafe {
        sys::cuTensorMapEncodeTiled(
            &raw mut map,
            sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            2,
            at as *mut std::ffi::c_void,
            sizes.as_ptr(),
            strides.as_ptr(),
            tile.as_ptr(),
            steps.as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    };
    encoded.result().map_err(fault("the tiles of a matrix"))?;
    Ok(map)
}
