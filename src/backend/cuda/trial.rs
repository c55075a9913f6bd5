//! What algorithms are tried with at start: operands of which every sum tells its order.

use std::sync::Arc;

use cudarc::driver::{CudaContext, result as driver, sys as cuda};

use super::{
    fault,
    gemm::{CLASSES, Matrix, Output},
    hopper::{Finish, HEAD, Turned},
    launch::int,
    memory::{Address, Region, upload},
    plan::Plan,
};
use crate::error::Result;

/// Rows of the product that the reference is chosen with.
pub(super) const TRIAL_ROWS: usize = 512;
/// Positions that rows have in turn: as many as a prompt's, so that angles come from as far as they do in a pass.
const TRIAL_POSITIONS: usize = 256;

/// What becomes of a product's outputs.
#[derive(Clone, Copy)]
pub(super) enum After {
    /// They are as they are.
    Nothing,
    /// They are gates and then ups.
    Gates,
    /// They are so many heads of queries, and of keys and as many values, of [`HEAD`] each.
    Heads { queries: usize, keys: usize },
}

/// Operands to try an algorithm with.
pub(super) struct Trial {
    pub(super) into: Output,
    /// What is done to them; heads are turned by nothing.
    pub(super) finish: Finish,
    /// What that is done by: a plan of rows with no place in a cache.
    tables: Option<Tables>,
    pub(super) w: Region,
    pub(super) x: Region,
    pub(super) y: Region,
    /// What `y` holds before a product of up to [`TRIAL_ROWS`] rows: nothing, or what it is added to.
    before: Vec<u16>,
}

impl Trial {
    /// For products of up to `rows` rows.
    pub(super) fn of(
        context: &Arc<CudaContext>,
        w: &Matrix,
        (into, after): (Output, After),
        rows: usize,
    ) -> Result<Self> {
        let (outputs, depth) = (w.outputs, w.depth);
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
        let (finish, tables) = match after {
            After::Nothing => (Finish::Nothing, None),
            After::Gates => (Finish::Gates, None),
            After::Heads { queries, keys } => {
                let tables = Tables::of(context, most)?;
                (Finish::Turn(tables.turned(queries, keys)), Some(tables))
            }
        };
        let before = before(into, TRIAL_ROWS * outputs);
        Ok(Self { into, finish, tables, w, x, y, before })
    }

    /// Has `y` hold what it does before each product of so many rows: what an earlier one wrote must not pass for the
    /// next one's.
    pub(super) fn reset(&self, halves: usize) -> Result<()> {
        upload(self.y.base(), &self.before[..halves])
    }

    /// What is done to outputs in a pass: norms too, and angles.
    pub(super) fn as_in_a_pass(&self) -> Finish {
        match (self.finish, &self.tables) {
            (Finish::Turn(turned), Some(tables)) => {
                let (query_norm, angles) = (tables.norms.base(), tables.angles.base());
                let key_norm = query_norm + (HEAD * 4) as Address;
                Finish::Turn(Turned { query_norm, key_norm, angles, ..turned })
            }
            (finish, _) => finish,
        }
    }
}

/// Zeros; of sums, other numbers from 1 to 2 in each place, with which what a product adds to is told from its neighbours,
/// and that it is added last from that it is added first.
fn before(into: Output, numbers: usize) -> Vec<u16> {
    if into != Output::Sum {
        return vec![0; numbers * into.bytes() / 2];
    }
    let bits = |number: usize| 0x3f80_0000 | ((number as u32).wrapping_mul(2_654_435_761) >> 9);
    (0..numbers).map(bits).flat_map(|bits| [bits as u16, (bits >> 16) as u16]).collect()
}

struct Tables {
    plan: Region,
    /// Of queries, then of keys.
    norms: Region,
    angles: Region,
    /// By which nothing turns.
    still: Region,
}

impl Tables {
    fn of(context: &Arc<CudaContext>, rows: usize) -> Result<Self> {
        let plan = Plan::of_lone_rows(rows, TRIAL_POSITIONS).words;
        let norms: Vec<_> = (0..2 * HEAD).map(|at| 1.0 + at as f32 / 64.0).collect();
        let still = [1.0f32, 1.0, 0.0, 0.0].repeat(TRIAL_POSITIONS * HEAD / 4);
        // Of two neighbours cosines, then sines.
        let two = |at: usize| {
            let [(sin, cos), (next_sin, next_cos)] =
                [2 * at, 2 * at + 1].map(|of| (of as f32 * 0.1).sin_cos());
            [cos, next_cos, sin, next_sin]
        };
        let angles: Vec<_> = (0..TRIAL_POSITIONS * HEAD / 4).flat_map(two).collect();
        let region = |bytes| Region::allocate(context, bytes, "a trial of cublasLt");
        let tables = Self {
            plan: region(plan.len() * 4)?,
            norms: region(norms.len() * 4)?,
            angles: region(angles.len() * 4)?,
            still: region(still.len() * 4)?,
        };
        upload(tables.plan.base(), &plan)?;
        upload(tables.norms.base(), &norms)?;
        upload(tables.angles.base(), &angles)?;
        upload(tables.still.base(), &still)?;
        Ok(tables)
    }

    fn turned(&self, queries: usize, keys: usize) -> Turned {
        Turned {
            plan: self.plan.base(),
            bias: 0,
            query_norm: 0,
            key_norm: 0,
            angles: self.still.base(),
            cache: 0,
            query_heads: int(queries),
            kv_heads: int(keys),
            layer: 0,
            layers: 1,
            epsilon: 0.0,
        }
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
