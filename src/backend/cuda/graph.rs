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
/// Graphs that are kept; so are further buckets.
const MOST_GRAPHS: usize = 256;

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
    recorded: HashMap<Extent, Bucket>,
}

enum Bucket {
    /// So often.
    Seen(u32),
    Recorded(Graph),
}

/// Recorded work.
pub(super) struct Graph {
    graph: sys::CUgraph,
    ready: sys::CUgraphExec,
}

impl Graphs {
    /// Puts the pass of `bucket` on `stream`, recorded with `pass` when it was seen often enough; false if there is no
    /// graph.
    pub(super) fn launch(
        &mut self,
        bucket: Extent,
        stream: sys::CUstream,
        pass: impl FnOnce() -> Result<()>,
    ) -> Result<bool> {
        if self.recorded.len() >= MOST_GRAPHS && !self.recorded.contains_key(&bucket) {
            return Ok(false);
        }
        let enough = if bucket.rows <= SMALL_ROWS { SEEN_SMALL } else { SEEN_LARGE };
        let kept = self.recorded.entry(bucket).or_insert(Bucket::Seen(0));
        if let Bucket::Seen(times) = kept {
            if *times < enough {
                *times += 1;
                return Ok(false);
            }
            *kept = Bucket::Recorded(Graph::record(stream, pass)?);
        }
        if let Bucket::Recorded(graph) = kept {
            graph.launch(stream)?;
        }
        Ok(true)
    }

    /// Forgets all of them: what they were recorded with has moved.
    pub(super) fn clear(&mut self) {
        self.recorded.clear();
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
        // SAFETY: a whole graph.
        let ready = unsafe { result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)) };
        match ready {
            Ok(ready) => Ok(Self { graph, ready }),
            Err(error) => {
                // SAFETY: made above, destroyed once.
                let _ = unsafe { result::graph::destroy(graph) };
                Err(fault("a graph")(error))
            }
        }
    }

    /// Puts it on `stream`. What it was recorded with must still be there.
    #[expect(unsafe_code, reason = "calls of the driver")]
    pub(super) fn launch(&self, stream: sys::CUstream) -> Result<()> {
        // SAFETY: recorded with buffers that live as long as who launches it.
        unsafe { result::graph::launch(self.ready, stream) }.map_err(fault("a graph's launch"))
    }
}

impl Drop for Graph {
    #[expect(unsafe_code, reason = "calls of the driver")]
    fn drop(&mut self) {
        // SAFETY: made by `record`, destroyed once, after the last pass ended.
        let _ = unsafe { result::graph::exec_destroy(self.ready).and(result::graph::destroy(self.graph)) };
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
