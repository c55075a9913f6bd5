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
/// Those to a block of two warpgroups, of gates and ups too.
const TALL_WIDTHS: [usize; 4] = [32, 48, 64, 96];
/// Those to a block that turns queries and keys: half a head, or one. Of two halves the blocks are a cluster.
const TURNED_WIDTHS: [usize; 2] = [HEAD / 2, HEAD];
/// The width of heads that are turned as their product is computed.
pub(super) const HEAD: usize = 128;
/// Rows of x to a block for few rows: of a warpgroup, or of two.
const FEW_TILE: usize = 64;
const TALL_TILE: usize = 128;
/// Most that all stages of a block take, and most stages. Of those of a short ring two blocks have room on a multiprocessor,
/// or one and one of attention: the next kernel's.
const RING_BYTES: usize = 200 << 10;
const SHORT_RING_BYTES: usize = 110 << 10;
const MOST_STAGES: usize = 24;
/// One is brought while another is read.
const FEWEST_STAGES: usize = 2;
/// As many clusters as there is work for and room.
pub(super) const ALL_CLUSTERS: usize = usize::MAX;
/// Threads of a warp: beside those that multiply one copies.
const WARP: usize = 32;
/// Rows of x to a tile for many rows, and rows of w: for each there is a kernel, and one for gates and ups, of which there
/// is one more.
const MANY_TILE: usize = 128;
const MANY_WIDTHS: [usize; 3] = [64, 128, 256];
const MANY_GATED_WIDTHS: [usize; 4] = [64, 128, 192, 256];
/// Two warpgroups that multiply, and one of which a thread copies.
const MANY_THREADS: u32 = 3 * 128;
/// Blocks of a cluster, where there are clusters; columns of a stage, 128 bytes; what aligns it, and after how many rows its
/// swizzle repeats; bytes of a barrier.
const CLUSTER: usize = 2;
const STAGE_DEPTH: usize = 64;
const ALIGNMENT: usize = 1024;
const SWIZZLED_ROWS: usize = 8;
const BARRIER_BYTES: usize = 8;

/// Which of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Own {
    FewRows(By, Stages),
    /// By tiles of [`MANY_TILE`] rows by one of [`MANY_GATED_WIDTHS`].
    ManyRows(usize),
}

/// What multiplies a block's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    Warpgroup,
    /// The weights are read once for twice as many rows.
    TwoWarpgroups,
}

/// A block's ring of stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stages {
    Short,
    Long,
}

impl Own {
    pub(super) const ALL: [Self; 8] = [
        Self::FewRows(By::Warpgroup, Stages::Short),
        Self::FewRows(By::TwoWarpgroups, Stages::Short),
        Self::FewRows(By::Warpgroup, Stages::Long),
        Self::FewRows(By::TwoWarpgroups, Stages::Long),
        Self::ManyRows(MANY_GATED_WIDTHS[0]),
        Self::ManyRows(MANY_GATED_WIDTHS[1]),
        Self::ManyRows(MANY_GATED_WIDTHS[2]),
        Self::ManyRows(MANY_GATED_WIDTHS[3]),
    ];
}

/// What is done to a product's sums before they are written.
#[derive(Clone, Copy)]
pub(super) enum Finish {
    Nothing,
    /// The outputs are gates and then as many ups, which are put together.
    Gates,
    /// They are heads of queries, keys and values.
    Turn(Turned),
}

/// What turns them, as the kernels have it; a bias or norm that the model lacks is 0.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Turned {
    pub(super) plan: Address,
    /// f32, one for each output.
    pub(super) bias: Address,
    pub(super) query_norm: Address,
    pub(super) key_norm: Address,
    pub(super) angles: Address,
    pub(super) cache: Address,
    /// The first of the outputs; keys' heads follow, and as many values'.
    pub(super) query_heads: i32,
    pub(super) kv_heads: i32,
    pub(super) layer: i32,
    pub(super) layers: i32,
    pub(super) epsilon: f32,
}

/// The kernels.
pub(super) struct Hopper {
    few: Finishes<Few>,
    many: Finishes<Many>,
    /// Whether they are chosen wherever they have the right bits, faster or not.
    pub(super) always: bool,
}

/// Kernels by what they do to sums, of each width.
struct Finishes<T> {
    plain: Vec<T>,
    gated: Vec<T>,
    turned: Vec<T>,
}

impl<T> Finishes<T> {
    fn of(&self, finish: &Finish) -> &[T] {
        match finish {
            Finish::Nothing => &self.plain,
            Finish::Gates => &self.gated,
            Finish::Turn(_) => &self.turned,
        }
    }
}

struct Few {
    by: By,
    /// Rows of x, and outputs, to a block.
    tile: usize,
    width: usize,
    long: Ring,
    short: Ring,
    /// Blocks that the device holds at once, one to a multiprocessor.
    blocks: usize,
}

struct Ring {
    stages: usize,
    launch: Launch,
}

struct Many {
    width: usize,
    launch: Launch,
    /// Clusters that the device holds at once.
    clusters: usize,
}

/// A product's launch, and how its operands lie; of few rows the stages of a ring, and how many rows of x a block brings.
struct Laid {
    launch: Launch,
    stages: usize,
    x_rows: usize,
    of_x: sys::CUtensorMap,
    of_w: sys::CUtensorMap,
}

/// What the kernels compute.
#[derive(Clone, Copy)]
#[repr(C)]
struct Product {
    into: i32,
    rows: i32,
    outputs: i32,
    depth: i32,
    /// Of few rows, and how many rows of x a block brings.
    stages: i32,
    x_rows: i32,
}

impl Few {
    /// `cluster`: blocks of it.
    fn load(gpu: &Gpu, by: By, kind: &str, (width, cluster): (usize, usize)) -> Result<Self> {
        let (name, tile, multiply) = match by {
            By::Warpgroup => ("few", FEW_TILE, 4),
            By::TwoWarpgroups => ("tall", TALL_TILE, 8),
        };
        let (name, threads) = (format!("{name}_rows_{kind}{width}"), (multiply + 1) * WARP);
        let stage = panels_at_once(width) * (tile + width) * STAGE_DEPTH * 2;
        let ring = |bytes: usize| -> Result<Ring> {
            let stages = (bytes / stage).clamp(FEWEST_STAGES, MOST_STAGES);
            // Behind them what blocks tell each other of each row.
            let shared = ALIGNMENT + stages * (stage + 2 * BARRIER_BYTES) + tile * 4;
            Ok(Ring { stages, launch: launch(gpu, &name, threads as u32, (shared, cluster))? })
        };
        // A kernel is allowed as much as was asked for last.
        let (short, long) = (ring(SHORT_RING_BYTES)?, ring(RING_BYTES)?);
        let blocks = match cluster {
            1 => gpu.multiprocessors,
            _ => cluster * long.launch.clusters_at_once()?,
        };
        Ok(Self { by, tile, width, long, short, blocks })
    }
}

impl Many {
    fn load(gpu: &Gpu, kind: &str, width: usize) -> Result<Self> {
        let stage = (MANY_TILE + width) * STAGE_DEPTH * 2;
        // One more barrier for the turns of each warpgroup; and what queries' and keys' heads are normed by.
        let behind = 2 * BARRIER_BYTES + 2 * HEAD * 4;
        let shared = ALIGNMENT + RING_BYTES / stage * (stage + 2 * BARRIER_BYTES) + behind;
        let launch = launch(gpu, &format!("many_rows_{kind}{width}"), MANY_THREADS, (shared, CLUSTER))?;
        Ok(Self { width, launch, clusters: launch.clusters_at_once()? })
    }
}

impl Hopper {
    /// `None` if this GPU has no such kernels, or they are not wanted.
    pub(super) fn load(gpu: &Gpu) -> Result<Option<Self>> {
        if !gpu.is_hopper() || gpu.products == Products::Library {
            return Ok(None);
        }
        let few = |kind, all: &[(By, &[usize])]| -> Result<Vec<Few>> {
            let each = all.iter().flat_map(|(by, widths)| widths.iter().map(|&width| (*by, width)));
            each.map(|(by, width)| Few::load(gpu, by, kind, (width, 1))).collect()
        };
        let many = |kind, widths: &[usize]| -> Result<Vec<Many>> {
            widths.iter().map(|&width| Many::load(gpu, kind, width)).collect()
        };
        Ok(Some(Self {
            few: Finishes {
                plain: few("", &[(By::Warpgroup, &WIDTHS), (By::TwoWarpgroups, &TALL_WIDTHS)])?,
                gated: few("gated_", &[(By::Warpgroup, &WIDTHS[1..]), (By::TwoWarpgroups, &TALL_WIDTHS)])?,
                turned: TURNED_WIDTHS
                    .into_iter()
                    .map(|width| Few::load(gpu, By::Warpgroup, "turned_", (width, HEAD / width)))
                    .collect::<Result<_>>()?,
            },
            many: Finishes {
                plain: many("", &MANY_WIDTHS)?,
                gated: many("gated_", &MANY_GATED_WIDTHS)?,
                turned: many("turned_", &[HEAD, 2 * HEAD])?,
            },
            always: gpu.products == Products::Own,
        }))
    }

    /// The narrowest blocks that all run at once; else the widest.
    fn few(&self, by: By, outputs: usize, rows: usize, finish: &Finish) -> Option<&Few> {
        let usable = |kernel: &&Few| {
            // Half of its rows, or more, would be nobody's.
            let too_tall = kernel.by == By::TwoWarpgroups && rows <= FEW_TILE;
            let whole = outputs.is_multiple_of(kernel.long.launch.cluster as usize * kernel.width);
            kernel.by == by && whole && !too_tall
        };
        let blocks = |kernel: &Few| outputs / kernel.width * rows.div_ceil(kernel.tile);
        let mut usable = self.few.of(finish).iter().filter(usable);
        usable
            .clone()
            .find(|kernel| blocks(kernel) <= kernel.blocks)
            .or_else(|| usable.next_back())
            .filter(|_| rows <= MOST_FEW_ROWS)
    }

    fn many(&self, width: usize, outputs: usize, finish: &Finish) -> Option<&Many> {
        let usable = |kernel: &&Many| kernel.width == width && outputs.is_multiple_of(width);
        self.many.of(finish).iter().find(usable)
    }

    /// Whether there is a kernel for products with `w` of so many rows.
    pub(super) fn takes(&self, own: Own, w: &Matrix, rows: usize, finish: &Finish) -> bool {
        match own {
            Own::FewRows(by, _) => {
                w.depth.is_multiple_of(STAGE_DEPTH) && self.few(by, w.outputs, rows, finish).is_some()
            }
            Own::ManyRows(width) => self.many(width, w.outputs, finish).is_some(),
        }
    }

    /// y\[rows, outputs\] = x\[rows, depth\] · wᵀ, or added to it; turned, or gates and ups put together, which are
    /// half as many. Of many rows by at most so many clusters.
    pub(super) fn multiply(
        &self,
        (own, finish, clusters): (Own, &Finish, usize),
        w: &Matrix,
        x: Address,
        (y, into): (Address, Output),
        rows: usize,
        stream: sys::CUstream,
    ) -> Result<()> {
        let outputs = if let Finish::Gates = finish { w.outputs / 2 } else { w.outputs };
        let x = Matrix { at: x, outputs: rows, depth: w.depth };
        let Laid { launch, stages, x_rows, of_x, of_w } = match own {
            Own::FewRows(by, stages) => self.few_rows((by, stages), w, &x, finish)?,
            Own::ManyRows(width) => self.many_rows((width, clusters), w, &x, finish)?,
        };
        let into = match into {
            Output::Rows => 0,
            Output::Wide => 1,
            Output::Sum => 2,
        };
        let (rows, depth, stages, x_rows) = (int(rows), int(w.depth), int(stages), int(x_rows));
        let product = Product { into, rows, outputs: int(outputs), depth, stages, x_rows };
        match finish {
            Finish::Turn(turned) => launch.put(stream, parameters![of_x, of_w, y, product, *turned]),
            _ => launch.put(stream, parameters![of_x, of_w, y, product]),
        }
    }

    fn few_rows(&self, (by, stages): (By, Stages), w: &Matrix, x: &Matrix, finish: &Finish) -> Result<Laid> {
        let rows = x.outputs;
        let found = self.few(by, w.outputs, rows, finish);
        let kernel = found.ok_or_else(|| Error::internal("a product that is not of few rows"))?;
        let ring = if stages == Stages::Short { &kernel.short } else { &kernel.long };
        let grid = (w.outputs / kernel.width, rows.div_ceil(kernel.tile));
        // Of rows that are not there none is brought, but for those of the swizzle.
        let x_rows = kernel.tile.min(rows.next_multiple_of(SWIZZLED_ROWS));
        let at_once = panels_at_once(kernel.width);
        let of_w = match finish {
            Finish::Nothing => panels(w, (at_once, kernel.width), None)?,
            // With each its up, or what it turns with.
            Finish::Gates => panels(w, (at_once, kernel.width / 2), Some(w.outputs / 2))?,
            Finish::Turn(_) => panels(w, (at_once, kernel.width / 2), Some(HEAD / 2))?,
        };
        let of_x = panels(x, (at_once, x_rows), None)?;
        Ok(Laid { launch: Launch { grid, ..ring.launch }, stages: ring.stages, x_rows, of_x, of_w })
    }

    fn many_rows(
        &self,
        (width, most): (usize, usize),
        w: &Matrix,
        x: &Matrix,
        finish: &Finish,
    ) -> Result<Laid> {
        let found = self.many(width, w.outputs, finish);
        let kernel = found.ok_or_else(|| Error::internal("a product whose outputs are not whole tiles"))?;
        let work = x.outputs.div_ceil(CLUSTER * MANY_TILE) * (w.outputs / width);
        let grid = (CLUSTER * work.min(kernel.clusters).min(most).max(1), 1);
        let (of_x, of_w) = (tiles(x, MANY_TILE)?, tiles(w, width / CLUSTER)?);
        Ok(Laid { launch: Launch { grid, ..kernel.launch }, stages: 0, x_rows: MANY_TILE, of_x, of_w })
    }
}

/// All but the grid of a kernel's launch.
fn launch(gpu: &Gpu, name: &str, threads: u32, (shared, cluster): (usize, usize)) -> Result<Launch> {
    let kernel = gpu.function(name, shared)?;
    Ok(Launch { kernel, grid: (cluster, 1), threads, shared, cluster: cluster as u32, early: true })
}

/// How the device finds tiles of [`STAGE_DEPTH`] columns and so many rows in a matrix of bf16, whose rows are
/// `outputs`; behind its edges are zeros.
fn tiles(of: &Matrix, tile_rows: usize) -> Result<sys::CUtensorMap> {
    let tile = [STAGE_DEPTH as u32, tile_rows as u32];
    map(of, [of.depth as u64, of.outputs as u64], [(of.depth * 2) as u64], tile)
}

/// Panels of [`STAGE_DEPTH`] columns to a stage of few rows, by outputs to a block.
const fn panels_at_once(width: usize) -> usize {
    if width <= 32 { 2 } else { 1 }
}

/// The same of so many panels of as many columns each, one after the other: of each so many rows, and, if they are to have
/// others with them, as many that lie so far `apart`.
fn panels(of: &Matrix, tile: (usize, usize), apart: Option<usize>) -> Result<sys::CUtensorMap> {
    let (at_once, tile_rows) = tile;
    let (parts, between) = apart.map_or((1, 0), |apart| (2, apart));
    let row = of.depth * 2;
    let sizes = [STAGE_DEPTH, of.outputs - between, parts, of.depth / STAGE_DEPTH].map(|size| size as u64);
    let strides = [row, between.max(1) * row, STAGE_DEPTH * 2].map(|stride| stride as u64);
    map(of, sizes, strides, [STAGE_DEPTH, tile_rows, parts, at_once].map(|size| size as u32))
}

/// A map of the driver's, with tiles of rows of 128 bytes; the strides are in bytes.
#[expect(unsafe_code, reason = "calls of the driver")]
fn map<const RANK: usize, const STRIDES: usize>(
    of: &Matrix,
    sizes: [u64; RANK],
    strides: [u64; STRIDES],
    tile: [u32; RANK],
) -> Result<sys::CUtensorMap> {
    const { assert!(STRIDES + 1 == RANK, "the first dimension has none") };
    let mut map = sys::CUtensorMap { opaque: [0; 16] };
    let steps = [1u32; RANK];
    // SAFETY: `map` is written, the lists have the lengths that so many dimensions ask for; the address is not read.
    let encoded = unsafe {
        sys::cuTensorMapEncodeTiled(
            &raw mut map,
            sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            RANK as u32,
            of.at as *mut std::ffi::c_void,
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
