//! What products are tried with at start: operands of which every sum tells its order, and what is to come of them.

use std::sync::Arc;

use cudarc::driver::{CudaContext, result as driver, sys as cuda};

use super::{
    fault,
    gemm::{CLASSES, Matrix, On, Output},
    hopper::{Finish, HEAD, Turned},
    launch::{Kernels, Queue, int},
    memory::{Address, Region, upload},
    plan::{Plan, Word},
};
use crate::error::Result;

/// Rows of the product that the reference is chosen with; of more rows each is one of them.
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

/// Operands to try a product with, and what [`TRIAL_ROWS`] rows of it are.
pub(super) struct Trial<'a> {
    pub(super) into: Output,
    /// What is done to it; heads are turned by nothing.
    pub(super) finish: Finish,
    pub(super) w: Region,
    pub(super) x: Region,
    pub(super) y: Region,
    /// Most rows.
    pub(super) rows: usize,
    outputs: usize,
    /// What heads are turned by in a pass.
    tables: Option<Tables>,
    plan: Region,
    /// What `y` holds before a product: nothing, or what it is added to.
    before: Region,
    expected: Region,
    /// What comes of it when it is finished, if that is something else.
    gated: Option<Region>,
    kept: Region,
    differences: Region,
    kernels: &'a Kernels,
    on: On<'a>,
}

/// What rows are compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Of {
    /// The product as it is.
    Product,
    /// What is done to it.
    Finished,
    /// What was kept last.
    Kept,
}

impl<'a> Trial<'a> {
    /// For products of up to `rows` rows with a matrix of the shape of `w`.
    pub(super) fn of(
        context: &Arc<CudaContext>,
        w: &Matrix,
        (into, after): (Output, After),
        rows: usize,
        (kernels, on): (&'a Kernels, On<'a>),
    ) -> Result<Self> {
        let Matrix { outputs, depth, .. } = *w;
        let rows = rows.max(TRIAL_ROWS);
        let rows = CLASSES.into_iter().find(|&most| most >= rows).unwrap_or(CLASSES[CLASSES.len() - 1]);
        let region = |bytes| Region::allocate(context, bytes, "a trial of products");
        let bytes = outputs * into.bytes();
        let (plan, before) = (Plan::of_lone_rows(rows, TRIAL_POSITIONS), before(into, TRIAL_ROWS * outputs));
        let (finish, tables) = match after {
            After::Nothing => (Finish::Nothing, None),
            After::Gates => (Finish::Gates, None),
            After::Heads { .. } => (Finish::Nothing, Some(Tables::of(context)?)),
        };
        let mut trial = Self {
            into,
            finish,
            w: region(outputs * depth * 2)?,
            x: region(rows * depth * 2)?,
            y: region(rows * bytes)?,
            rows,
            outputs,
            tables,
            plan: region(plan.len() * 4)?,
            before: region(TRIAL_ROWS * bytes)?,
            expected: region(TRIAL_ROWS * bytes)?,
            gated: matches!(after, After::Gates).then(|| region(TRIAL_ROWS * bytes / 2)).transpose()?,
            kept: region(TRIAL_ROWS * bytes)?,
            differences: region(rows * 4)?,
            kernels,
            on,
        };
        upload(trial.plan.base(), &plan)?;
        upload(trial.before.base(), &before)?;
        upload(trial.w.base(), &weights(outputs, depth))?;
        let numbers = numbers(depth);
        for (part, first) in (0..rows).step_by(TRIAL_ROWS).enumerate() {
            let here = (rows - first).min(TRIAL_ROWS) * depth;
            upload(trial.x.base() + (part * numbers.len() * 2) as Address, &numbers[..here])?;
        }
        if let (After::Heads { queries, keys }, Some(tables)) = (after, &trial.tables) {
            trial.finish = Finish::Turn(tables.turned(trial.plan.base(), queries, keys));
        }
        Ok(trial)
    }

    fn queue(&self) -> Queue<'_> {
        Queue { kernels: self.kernels, on: self.on, plan: self.plan.base() }
    }

    /// So many rows, as they are or finished, and the bytes of each.
    fn shape(&self, rows: usize, of: Of) -> (usize, usize) {
        let halved = of == Of::Finished && self.gated.is_some();
        (rows, self.outputs * self.into.bytes() / if halved { 2 } else { 1 })
    }

    /// Has `y` hold what it does before each product of so many rows: what an earlier one wrote must not pass for the
    /// next one's.
    pub(super) fn reset(&self, rows: usize) -> Result<()> {
        let shape = self.shape(rows, Of::Product);
        self.queue().repeat_rows(shape, self.y.base(), (self.before.base(), TRIAL_ROWS))
    }

    /// Has what `y` holds, of [`TRIAL_ROWS`] rows, be what products are compared with; finished, by the kernels that do
    /// that alone.
    pub(super) fn expect(&self) -> Result<()> {
        let shape = self.shape(TRIAL_ROWS, Of::Product);
        self.queue().repeat_rows(shape, self.expected.base(), (self.y.base(), TRIAL_ROWS))?;
        let Some(gated) = &self.gated else { return Ok(()) };
        let (rows, to) = ((TRIAL_ROWS, Word::Rows), (gated.base(), 0));
        self.queue().silu_mul(rows, (self.expected.base(), 0), 0, to, self.outputs / 2)
    }

    /// Keeps so many rows of what `y` holds, finished.
    pub(super) fn keep(&self, rows: usize) -> Result<()> {
        let shape = self.shape(rows, Of::Finished);
        self.queue().repeat_rows(shape, self.kept.base(), (self.y.base(), rows))
    }

    /// Whether so many rows of what `y` holds are the first `period` rows of what they are to be, in turn, bit by bit.
    pub(super) fn repeats(&self, rows: usize, of: Of, period: usize) -> Result<bool> {
        let from = match (of, &self.gated) {
            (Of::Kept, _) => &self.kept,
            (Of::Finished, Some(gated)) => gated,
            _ => &self.expected,
        };
        let shape = self.shape(rows, if of == Of::Product { of } else { Of::Finished });
        let (from, found) = ((from.base(), period), self.differences.base());
        self.queue().count_differences(shape, self.y.base(), from, found)?;
        Ok(download(found, rows, self.on.stream)?.iter().all(|&count| count == 0.0))
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

/// Powers of two, others for each of seven outputs: which weight meets which number shows, and nothing is rounded. The
/// halves of a row are alike.
fn weights(outputs: usize, depth: usize) -> Vec<u16> {
    let power = |output: usize, at: usize| (((output * 5 + at % (depth / 2) * 3) % 7 + 124) << 7) as u16;
    let row = |output| (0..depth).map(|at| power(output, at)).collect::<Vec<_>>();
    let seven: Vec<_> = (0..7).map(row).collect();
    (0..outputs).map(|output| &*seven[output % 7]).collect::<Vec<_>>().concat()
}

/// Sums of numbers from 1 to 2^25 in size, each with its negative half a row away: what is left of them is what the order
/// of summation made of it.
fn numbers(depth: usize) -> Vec<u16> {
    let mut state = 1u32;
    let mut numbers = vec![0; TRIAL_ROWS * depth];
    for row in numbers.chunks_exact_mut(depth) {
        for i in 0..depth / 2 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let size = ((127 + (state >> 16) % 25) << 7) | ((state >> 24) & 0x7f);
            row[i] = size as u16;
            row[i + depth / 2] = size as u16 | 0x8000;
        }
    }
    numbers
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
    /// Of queries, then of keys.
    norms: Region,
    angles: Region,
    /// By which nothing turns.
    still: Region,
}

impl Tables {
    fn of(context: &Arc<CudaContext>) -> Result<Self> {
        let norms: Vec<_> = (0..2 * HEAD).map(|at| 1.0 + at as f32 / 64.0).collect();
        let still = [1.0f32, 1.0, 0.0, 0.0].repeat(TRIAL_POSITIONS * HEAD / 4);
        // Of two neighbours cosines, then sines.
        let two = |at: usize| {
            let [(sin, cos), (next_sin, next_cos)] =
                [2 * at, 2 * at + 1].map(|of| (of as f32 * 0.1).sin_cos());
            [cos, next_cos, sin, next_sin]
        };
        let angles: Vec<_> = (0..TRIAL_POSITIONS * HEAD / 4).flat_map(two).collect();
        let region = |bytes| Region::allocate(context, bytes, "a trial of products");
        let tables = Self {
            norms: region(norms.len() * 4)?,
            angles: region(angles.len() * 4)?,
            still: region(still.len() * 4)?,
        };
        upload(tables.norms.base(), &norms)?;
        upload(tables.angles.base(), &angles)?;
        upload(tables.still.base(), &still)?;
        Ok(tables)
    }

    fn turned(&self, plan: Address, queries: usize, keys: usize) -> Turned {
        Turned {
            plan,
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
fn download(from: Address, len: usize, stream: cuda::CUstream) -> Result<Vec<f32>> {
    let mut to = vec![0.0; len];
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
