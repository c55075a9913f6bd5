//! CUDA graphs: a small batch is one launch of a recorded pass, in place of some hundred.
//!
//! A graph is recorded for a bucket: grids and products for at least as many rows, answers and
//! tiles as the batch has. How many there really are stands in the plan on the device; rows behind
//! them compute what nobody reads.

use std::collections::HashMap;

use cudarc::driver::{result, sys};

use super::{buffers::Capacity, fault, plan::Extent};
use crate::error::Result;

/// Larger batches are launched kernel by kernel.
const MOST_ROWS: usize = 8192;
/// Up to so many rows, launching kernel by kernel takes longer than they do: a bucket is recorded when it is seen for the
/// second time. (The first time loads what the driver loads when it is first used, which a recording must not.) Of more
/// rows a graph saves some percent, and a recording is waited for: those are recorded that come again and again.
const SMALL_ROWS: usize = 2048;
const SEEN_SMALL: u32 = 1;
const SEEN_LARGE: u32 = 31;
/// For so many tiles of queries, times key heads, a GPU has room at once, or nearly.
const FEW_TILES: usize = 32;
/// Graphs that are kept. One that was not used for so many passes makes room for another.
const MOST_GRAPHS: usize = 256;
const STALE: u64 = 1024;
/// Buckets of which it is known how often they were seen; then all are forgotten.
const MOST_SEEN: usize = 4096;
/// Of a bucket that could not be recorded.
const NEVER: u32 = u32::MAX;

/// The bucket of a batch, if it is small enough for one. None exceeds `most`.
pub(super) fn bucket(extent: Extent, most: Capacity) -> Option<Extent> {
    let rows = match extent.rows {
        0 => return None,
        rows @ ..=64 => rows.next_multiple_of(16),
        rows @ ..=1024 => rows.next_multiple_of(64),
        rows => rows.next_multiple_of(128),
    };
    let step = |count| [0, 1, 4, 16, 32, 64].into_iter().find(|&step| step >= count);
    let (answers, wide) = (step(extent.answers)?, step(extent.wide)?);
    let bucket = Extent { rows, answers, wide, tiles: tiles(extent.tiles), ..extent };
    let fits = rows <= MOST_ROWS.min(most.rows) && answers <= most.answers && extent.answers > 0;
    fits.then_some(bucket)
}

/// A block of attention that has no tile ends at once, but takes its turn: of many there are a quarter of a power of two more at most.
fn tiles(count: usize) -> usize {
    let power = count.next_power_of_two();
    if count <= FEW_TILES { power } else { count.next_multiple_of(power / 8) }
}

/// Recorded passes by bucket.
#[derive(Default)]
pub(super) struct Graphs {
    recorded: HashMap<Extent, Recorded>,
    /// How often others were seen.
    seen: HashMap<Extent, u32>,
    passes: u64,
    /// A refusal was told.
    refused: bool,
}

struct Recorded {
    graph: Graph,
    /// The last pass of it.
    used: u64,
}

/// Recorded work.
pub(super) struct Graph(sys::CUgraphExec);

impl Graphs {
    /// Puts the pass of `bucket` on `stream`, recorded with `pass` when it was seen often enough; false if there is no
    /// graph, be it that none could be made: a device without memory for one has that for the pass itself.
    pub(super) fn launch(
        &mut self,
        bucket: Extent,
        stream: sys::CUstream,
        pass: impl FnOnce() -> Result<()>,
    ) -> Result<bool> {
        self.passes += 1;
        if let Some(recorded) = self.recorded.get_mut(&bucket) {
            recorded.used = self.passes;
            return recorded.graph.launch(stream).map(|()| true);
        }
        if !self.is_due(bucket) || !self.has_room() {
            return Ok(false);
        }
        // The first launch takes memory, too.
        let made = Graph::record(stream, pass).and_then(|graph| graph.launch(stream).map(|()| graph));
        match made {
            Ok(graph) => {
                self.seen.remove(&bucket);
                self.recorded.insert(bucket, Recorded { graph, used: self.passes });
                Ok(true)
            }
            Err(error) => {
                if !std::mem::replace(&mut self.refused, true) {
                    tracing::warn!(%error, rows = bucket.rows, "a pass cannot be recorded, and is launched kernel by kernel");
                }
                self.seen.insert(bucket, NEVER);
                Ok(false)
            }
        }
    }

    /// Whether it was seen often enough before.
    fn is_due(&mut self, bucket: Extent) -> bool {
        if self.seen.len() >= MOST_SEEN {
            self.seen.clear();
        }
        let times = self.seen.entry(bucket).or_insert(0);
        let due = *times >= if bucket.rows <= SMALL_ROWS { SEEN_SMALL } else { SEEN_LARGE };
        *times = times.saturating_add(1);
        due && *times != NEVER
    }

    /// Whether there is room for one more; makes it if one has not been used for long, which then is not under way.
    fn has_room(&mut self) -> bool {
        if self.recorded.len() < MOST_GRAPHS {
            return true;
        }
        let oldest = self.recorded.iter().min_by_key(|(_, recorded)| recorded.used);
        let stale =
            oldest.filter(|(_, recorded)| recorded.used + STALE < self.passes).map(|(bucket, _)| *bucket);
        stale.is_some_and(|bucket| self.recorded.remove(&bucket).is_some())
    }

    /// Forgets all of them: what they were recorded with has moved.
    pub(super) fn clear(&mut self) {
        self.recorded.clear();
        self.seen.clear();
    }
}

impl Graph {
    /// What `work` puts on `stream`, in place of doing it.
    #[expect(unsafe_code, reason = "calls of the driver")]
    pub(super) fn record(stream: sys::CUstream, work: impl FnOnce() -> Result<()>) -> Result<Self> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: a live stream that nothing else uses.
        unsafe { result::stream::begin_capture(stream, mode) }.map_err(fault("a graph's recording"))?;
        let worked = work();
        // SAFETY: begun above; ended even if the work failed, so that the stream is of use again.
        let ended = unsafe { result::stream::end_capture(stream) };
        let graph = ended.map_err(fault("a graph's recording"));
        if let (Err(_), Ok(graph)) = (&worked, &graph) {
            // SAFETY: ended above, destroyed once.
            let _ = unsafe { result::graph::destroy(*graph) };
        }
        let graph = worked.and(graph)?;
        // SAFETY: a whole graph, which is of no more use, and destroyed once.
        let (ready, _) = unsafe {
            (
                result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)),
                result::graph::destroy(graph),
            )
        };
        ready.map(Self).map_err(fault("a graph"))
    }

    /// Puts it on `stream`. What it was recorded with must still be there.
    #[expect(unsafe_code, reason = "calls of the driver")]
    pub(super) fn launch(&self, stream: sys::CUstream) -> Result<()> {
        // SAFETY: recorded with buffers that live as long as who launches it.
        unsafe { result::graph::launch(self.0, stream) }.map_err(fault("a graph's launch"))
    }
}

impl Drop for Graph {
    #[expect(unsafe_code, reason = "calls of the driver")]
    fn drop(&mut self) {
        // SAFETY: made by `record`, destroyed once, after the last pass ended.
        let _ = unsafe { result::graph::exec_destroy(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_hold_their_batches_and_stay_few() {
        let most = Capacity { rows: 10_000, answers: 256 };
        let extent =
            |rows, answers, tiles| Extent { rows, answers, tiles, wide: answers, ..Extent::default() };
        let of = |rows, answers, tiles| bucket(extent(rows, answers, tiles), most);
        assert_eq!(of(200, 1, 7), Some(extent(256, 1, 8)));
        assert_eq!(of(1, 1, 1), Some(extent(16, 1, 1)));
        assert_eq!(of(512, 17, 32), Some(extent(512, 32, 32)));
        assert_eq!(of(512, 33, 32), Some(extent(512, 64, 32)));
        assert_eq!(of(987, 16, 33), Some(extent(1024, 16, 40)));
        assert_eq!(of(1706, 10, 60), Some(extent(1792, 16, 64)));
        assert_eq!(of(4392, 16, 148), Some(extent(4480, 16, 160)));
        assert_eq!(of(8193, 1, 9), None, "larger batches are launched");
        assert_eq!(of(100, 65, 70), None);
        let small = Capacity { rows: 100, answers: 2 };
        assert_eq!(bucket(extent(90, 1, 2), small), None, "a bucket fits the buffers");
        assert_eq!(bucket(extent(9, 3, 2), small), None);
        let narrow = Extent { wide: 0, graded: true, ..extent(200, 3, 4) };
        assert_eq!(bucket(narrow, most), Some(Extent { wide: 0, graded: true, ..extent(256, 4, 4) }));
        assert_ne!(of(4, 4, 4), bucket(Extent { decoded: true, ..extent(4, 4, 4) }, most));
    }
}
