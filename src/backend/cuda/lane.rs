//! A lane of passes: a stream with buffers, graphs and pinned memory of its own.
//!
//! Up to [`IN_FLIGHT`] passes are under way on it, one behind the other. They share the buffers on
//! the device; each has its own pinned memory and an event that says when it is done.

use std::{collections::VecDeque, sync::Arc};

use cudarc::driver::{CudaContext, result};

use super::{
    buffers::{Buffers, Capacity},
    fault,
    gemm::{Gemm, On, Workspace},
    graph::{Graphs, bucket},
    launch::{Kernels, Queue},
    load::Placed,
    memory::{Address, Pinned},
    ops::{Pass, Pending},
    plan::{Extent, Plan},
    stream::{Event, Priority, Stream},
};
use crate::{
    backend::{IN_FLIGHT, Reading},
    engine::{kv::Blocks, tree::Read},
    error::{Error, Result},
    model::{config::ModelConfig, forward::forward},
};

/// What the passes of both lanes read.
pub(super) struct Shared {
    pub(super) kernels: Kernels,
    pub(super) gemm: Gemm,
    pub(super) placed: Placed,
    pub(super) config: ModelConfig,
    pub(super) grades: usize,
}

/// Fields are dropped in order, after the stream is empty.
pub(super) struct Lane {
    graphs: Graphs,
    slots: Vec<Slot>,
    /// Slots of passes under way, oldest first.
    flying: VecDeque<usize>,
    buffers: Buffers,
    workspace: Workspace,
    capacity: Capacity,
    stream: Stream,
}

/// What one pass under way has for itself.
struct Slot {
    number: usize,
    words: Pinned<i32>,
    readings: Pinned<f32>,
    done: Event,
    asked: Vec<Read>,
    blocks: Blocks,
}

impl Lane {
    pub(super) fn open(
        context: &Arc<CudaContext>,
        config: &ModelConfig,
        grades: usize,
        capacity: Capacity,
        priority: Priority,
    ) -> Result<Self> {
        let slot = || -> Result<Slot> {
            Ok(Slot {
                number: 0,
                words: Pinned::allocate(context, capacity.words())?,
                readings: Pinned::allocate(context, capacity.answers * (2 + grades))?,
                done: Event::new()?,
                asked: Vec::new(),
                blocks: Blocks::default(),
            })
        };
        Ok(Self {
            graphs: Graphs::default(),
            slots: (0..IN_FLIGHT).map(|_| slot()).collect::<Result<_>>()?,
            flying: VecDeque::new(),
            buffers: Buffers::allocate(context, config, grades, capacity)?,
            workspace: Workspace::allocate(context)?,
            capacity,
            stream: Stream::open(priority)?,
        })
    }

    /// Bytes on the device.
    pub(super) fn bytes(&self) -> usize {
        self.buffers.bytes() + self.workspace.bytes()
    }

    pub(super) fn capacity(&self) -> Capacity {
        self.capacity
    }

    /// Where products are tried.
    pub(super) fn on(&self) -> On<'_> {
        On { stream: self.stream.0, workspace: &self.workspace }
    }

    /// Forgets recorded passes: the KV blocks have moved.
    pub(super) fn forget_graphs(&mut self) {
        self.graphs.clear();
    }

    /// Has what is put on this lane next wait for those of the other's passes that it must follow.
    pub(super) fn follow(&self, other: &Lane, blocks: &Blocks) -> Result<()> {
        let earlier = other.flying.iter().map(|&at| &other.slots[at]);
        earlier
            .filter(|slot| blocks.must_follow(&slot.blocks))
            .try_for_each(|slot| self.stream.wait_for(&slot.done))
    }

    /// Puts a pass on the stream, as `number`. `TooLarge`, and nothing is put there, if its plan has no room.
    pub(super) fn submit(
        &mut self,
        number: usize,
        plan: &Plan,
        (asked, blocks): (Vec<Read>, Blocks),
        shared: &Shared,
        cache: Address,
    ) -> Result<()> {
        let (words, most) = (plan.words.len(), self.capacity.words());
        if words > most {
            return Err(Error::too_large("a batch", "words of its plan", most, words));
        }
        let free = (0..self.slots.len()).find(|at| !self.flying.contains(at));
        let at = free.ok_or_else(|| Error::internal("more passes than may be under way"))?;
        let slot = &mut self.slots[at];
        (slot.number, slot.asked, slot.blocks) = (number, asked, blocks);
        let begun = self
            .copy_in(at, plan)
            .and_then(|()| self.launch(plan.extent, shared, cache))
            .and_then(|()| self.copy_out(at, plan.extent.answers * (2 + shared.grades)));
        match begun {
            Ok(()) => self.flying.push_back(at),
            // What there is of it must be over before the next pass writes the same memory.
            Err(_) => self.stream.settle(),
        }
        begun
    }

    #[expect(unsafe_code, reason = "calls of the driver")]
    fn copy_in(&mut self, at: usize, plan: &Plan) -> Result<()> {
        let words = &mut self.slots[at].words.slice()[..plan.words.len()];
        words.copy_from_slice(&plan.words);
        // SAFETY: pinned memory that is not written again before this pass was collected, to a buffer
        // of the same capacity.
        let copied = unsafe { result::memcpy_htod_async(self.buffers.plan, words, self.stream.0) };
        copied.map_err(fault("a copy to it"))
    }

    fn launch(&mut self, exact: Extent, shared: &Shared, cache: Address) -> Result<()> {
        let Self { graphs, buffers, workspace, stream, capacity, .. } = self;
        let pass = |extent| Pass {
            config: &shared.config,
            weights: &shared.placed,
            buffers,
            cache,
            gemm: &shared.gemm,
            queue: Queue {
                kernels: &shared.kernels,
                on: On { stream: stream.0, workspace },
                plan: buffers.plan,
            },
            extent,
            grades: shared.grades,
            selected: false,
            pending: Pending::default(),
            turned: false,
        };
        let replayed = match bucket(exact, *capacity) {
            Some(bucket) => graphs.launch(bucket, stream.0, || forward(&mut pass(bucket)))?,
            None => false,
        };
        if replayed { Ok(()) } else { forward(&mut pass(exact)) }
    }

    #[expect(unsafe_code, reason = "calls of the driver")]
    fn copy_out(&mut self, at: usize, len: usize) -> Result<()> {
        let slot = &mut self.slots[at];
        let readings = &mut slot.readings.slice()[..len];
        // SAFETY: pinned memory that is read only after the event below.
        let copied = unsafe { result::memcpy_dtoh_async(readings, self.buffers.readings, self.stream.0) };
        copied.map_err(fault("a copy from it"))?;
        slot.done.record(&self.stream)
    }

    fn find(&self, number: usize) -> Option<usize> {
        self.flying.iter().copied().find(|&at| self.slots[at].number == number)
    }

    /// Whether pass `number` is over; `None` if it is not on this lane.
    pub(super) fn is_done(&self, number: usize) -> Option<bool> {
        self.find(number).map(|at| self.slots[at].done.has_happened())
    }

    /// Waits for pass `number` and reads its answers; `None` if it is not on this lane.
    pub(super) fn collect(&mut self, number: usize, shared: &Shared) -> Option<Result<Vec<Reading>>> {
        let at = self.find(number)?;
        let slot = &mut self.slots[at];
        let done = slot.done.wait();
        self.flying.retain(|&other| other != at);
        let label_mass = shared.placed.label_mass;
        let rows = slot.readings.slice().chunks_exact(2 + shared.grades);
        let readings = slot.asked.iter().zip(rows).map(|(&read, row)| reading(read, row, label_mass));
        Some(done.map(|()| readings.collect()))
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.stream.settle();
    }
}

/// One answer's row: log-sum-exp, the bits of the best token, the grades' logits; what was not asked
/// for was not written.
fn reading(read: Read, row: &[f32], label_mass: bool) -> Reading {
    let (whole, logits) = (row[0], &row[2..]);
    match read {
        Read::Nothing => Reading::Nothing,
        Read::Next if whole.is_finite() => Reading::Next(row[1].to_bits()),
        Read::Grades
            if logits.iter().all(|logit| logit.is_finite()) && (!label_mass || whole.is_finite()) =>
        {
            Reading::Grades { logits: logits.to_vec(), log_sum_exp: label_mass.then_some(whole) }
        }
        Read::Next | Read::Grades => Reading::NotFinite,
    }
}
