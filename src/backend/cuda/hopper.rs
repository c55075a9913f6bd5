//! Matrix products by kernels of our own, on Hopper: `kernels/few_rows.cuh` and `many_rows.cuh` say how.

use cudarc::driver::sys;

use super::{
    fault,
    gemm::{Matrix, Output},
    launch::{int, parameters},
    memory::Address,
    start::{Gpu, Products},
    stream::Launch,
};
use crate::error::{Error, Result};

/// Products of more rows have more than one wave of blocks, or blocks that compute more than they bring.
const MOST_FEW_ROWS: usize = 256;
/// Outputs to a block for few rows: for each there is a kernel, and for all but the first one for gates and ups.
const WIDTHS: [usize; 8] = [8, 16, 32, 48, 64, 96, 128, 192];
/// Rows of x to a block for few rows.
const FEW_TILE: usize = 64;
/// Most that all stages of such a block take, and most stages.
const RING_BYTES: usize = 200 << 10;
const MOST_STAGES: usize = 16;
/// A warpgroup that multiplies and a warp that copies.
const FEW_THREADS: u32 = 128 + 32;
/// Rows of x to a tile for many rows, and rows of w: for each there is a kernel, and one for gates and ups.
const MANY_TILE: usize = 128;
const MANY_WIDTHS: [usize; 3] = [64, 128, 256];
/// What a tile of each costs beside one of 128: of 64, x is brought as often (assumed); of 256, less is brought for each
/// product (12.3 microseconds for 6.8, of gates of depth 1,024 on an H100).
const TILE_COSTS: [f64; 3] = [0.6, 1.0, 1.75];
/// Two warpgroups and a warp.
const MANY_THREADS: u32 = 2 * 128 + 32;
/// Blocks of a cluster; columns of a stage, 128 bytes; what aligns it; bytes of a barrier.
const CLUSTER: usize = 2;
const STAGE_DEPTH: usize = 64;
const ALIGNMENT: usize = 1024;
const BARRIER_BYTES: usize = 8;

/// Which of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Own {
    FewRows,
    ManyRows,
}

/// The kernels.
pub(super) struct Hopper {
    /// One of each of [`WIDTHS`].
    few: Vec<Few>,
    /// One of each of [`MANY_WIDTHS`].
    many: Vec<Many>,
    /// Whether they are chosen wherever they have the right bits, faster or not.
    pub(super) always: bool,
}

#[derive(Clone, Copy)]
struct Few {
    width: usize,
    plain: Launch,
    gated: Option<Launch>,
    /// Blocks that the device holds at once.
    blocks: usize,
}

#[derive(Clone, Copy)]
struct Many {
    width: usize,
    tile_cost: f64,
    plain: Launch,
    gated: Launch,
    /// Clusters that the device holds at once.
    clusters: usize,
}

/// What the kernels compute.
#[derive(Clone, Copy)]
#[repr(C)]
struct Product {
    into: i32,
    rows: i32,
    outputs: i32,
    depth: i32,
}

impl Hopper {
    /// `None` if this GPU has no such kernels, or they are not wanted.
    pub(super) fn load(gpu: &Gpu) -> Result<Option<Self>> {
        if !gpu.is_hopper() || gpu.products == Products::Library {
            return Ok(None);
        }
        let few = |width: usize| -> Result<Few> {
            let stage = (FEW_TILE + width) * STAGE_DEPTH * 2;
            let stages = (RING_BYTES / stage).min(MOST_STAGES);
            let shared = ALIGNMENT + stages * (stage + 2 * BARRIER_BYTES);
            let named = |name: String| launch(gpu, &name, FEW_THREADS, shared);
            let plain = named(format!("few_rows_{width}"))?;
            let gated = (width != WIDTHS[0]).then(|| named(format!("few_rows_gated_{width}"))).transpose()?;
            Ok(Few { width, plain, gated, blocks: CLUSTER * plain.clusters_at_once()? })
        };
        let many = |(width, tile_cost): (usize, f64)| -> Result<Many> {
            let stage = (MANY_TILE + width) * STAGE_DEPTH * 2;
            // One more barrier for the turns of each warpgroup.
            let shared = ALIGNMENT + RING_BYTES / stage * (stage + 2 * BARRIER_BYTES) + 2 * BARRIER_BYTES;
            let named = |name: String| launch(gpu, &name, MANY_THREADS, shared);
            let (plain, gated) =
                (named(format!("many_rows_{width}"))?, named(format!("many_rows_gated_{width}"))?);
            Ok(Many { width, tile_cost, plain, gated, clusters: plain.clusters_at_once()? })
        };
        Ok(Some(Self {
            few: WIDTHS.into_iter().map(few).collect::<Result<_>>()?,
            many: MANY_WIDTHS.into_iter().zip(TILE_COSTS).map(many).collect::<Result<_>>()?,
            always: gpu.products == Products::Own,
        }))
    }

    /// The narrowest blocks that all run at once; else the widest. `gated` if the outputs are gates and ups.
    fn few(&self, outputs: usize, rows: usize, gated: bool) -> Option<&Few> {
        let whole = |kernel: &&Few| {
            outputs.is_multiple_of(CLUSTER * kernel.width) && (kernel.gated.is_some() || !gated)
        };
        let blocks = |kernel: &Few| outputs / kernel.width * rows.div_ceil(FEW_TILE);
        let mut usable = self.few.iter().filter(whole);
        usable
            .clone()
            .find(|kernel| blocks(kernel) <= kernel.blocks)
            .or_else(|| usable.next_back())
            .filter(|_| rows <= MOST_FEW_ROWS)
    }

    /// The tiles of which the device has done all soonest.
    fn many(&self, outputs: usize, rows: usize) -> Option<(&Many, usize)> {
        let usable = self.many.iter().filter(|kernel| outputs.is_multiple_of(kernel.width));
        let cost = |&(kernel, work): &(&Many, usize)| {
            work.div_ceil(kernel.clusters.max(1)) as f64 * kernel.tile_cost
        };
        usable
            .map(|kernel| (kernel, rows.div_ceil(CLUSTER * MANY_TILE) * (outputs / kernel.width)))
            .min_by(|a, b| cost(a).total_cmp(&cost(b)))
    }

    /// Whether there is a kernel for products with `w` of so many rows; `gated` if its outputs are gates and ups.
    pub(super) fn takes(&self, own: Own, w: &Matrix, rows: usize, gated: bool) -> bool {
        match own {
            Own::FewRows => self.few(w.outputs, rows, gated).is_some(),
            Own::ManyRows => self.many(w.outputs, rows).is_some(),
        }
    }

    /// y\[rows, outputs\] = x\[rows, depth\] · wᵀ, or added to it; or, `gated`, y\[rows, outputs / 2\] =
    /// silu(gates) · ups, of gates and then ups.
    pub(super) fn multiply(
        &self,
        (own, gated): (Own, bool),
        w: &Matrix,
        x: Address,
        (y, into): (Address, Output),
        rows: usize,
        stream: sys::CUstream,
    ) -> Result<()> {
        let outputs = if gated { w.outputs / 2 } else { w.outputs };
        let (launch, x_tile, w_tile) = match own {
            Own::FewRows => self.few_rows(w, rows, gated)?,
            Own::ManyRows => self.many_rows(w, rows, gated)?,
        };
        let of_x = tiles(x, rows, w.depth, x_tile)?;
        let of_w = tiles(w.at, w.outputs, w.depth, w_tile)?;
        let into = match into {
            Output::Rows => 0,
            Output::Wide => 1,
            Output::Sum => 2,
        };
        let product = Product { into, rows: int(rows), outputs: int(outputs), depth: int(w.depth) };
        launch.put(stream, parameters![of_x, of_w, y, product])
    }

    /// The launch, and how many rows of x and of w are brought at once.
    fn few_rows(&self, w: &Matrix, rows: usize, gated: bool) -> Result<(Launch, usize, usize)> {
        let none = || Error::internal("a product that is not of few rows");
        let kernel = self.few(w.outputs, rows, gated).ok_or_else(none)?;
        let (launch, w_tile) = match gated {
            true => (kernel.gated.ok_or_else(none)?, kernel.width / 2),
            false => (kernel.plain, kernel.width),
        };
        let grid = (w.outputs / kernel.width, rows.div_ceil(FEW_TILE));
        Ok((Launch { grid, ..launch }, FEW_TILE / CLUSTER, w_tile))
    }

    /// The same for many.
    fn many_rows(&self, w: &Matrix, rows: usize, gated: bool) -> Result<(Launch, usize, usize)> {
        let found = self.many(w.outputs, rows);
        let (kernel, work) =
            found.ok_or_else(|| Error::internal("a product whose outputs are not whole tiles"))?;
        let launch = if gated { kernel.gated } else { kernel.plain };
        let grid = (CLUSTER * work.min(kernel.clusters).max(1), 1);
        Ok((Launch { grid, ..launch }, MANY_TILE, kernel.width / CLUSTER))
    }
}

/// All but the grid of a kernel's launch.
fn launch(gpu: &Gpu, name: &str, threads: u32, shared: usize) -> Result<Launch> {
    let kernel = gpu.function(name, shared)?;
    Ok(Launch { kernel, grid: (CLUSTER, 1), threads, shared, cluster: CLUSTER as u32, early: true })
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
