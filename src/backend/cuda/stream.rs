//! Streams, kernels that are put on them, and the events that say how far they are.

use std::ffi::c_void;

use cudarc::driver::{result, sys};

use super::fault;
use crate::error::Result;

/// How urgent a stream's work is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Priority {
    /// Its blocks are the next to be put on the device.
    Highest,
    /// They take what is left.
    Lowest,
}

/// Work in order, beside that of other streams.
pub(super) struct Stream(pub(super) sys::CUstream);

impl Stream {
    pub(super) fn open(priority: Priority) -> Result<Self> {
        let (lowest, highest) = result::stream::get_priority_range().map_err(fault("its streams"))?;
        let number = if priority == Priority::Highest { highest } else { lowest };
        let kind = result::stream::StreamKind::NonBlocking;
        Ok(Self(result::stream::create_with_priority(kind, number).map_err(fault("a stream"))?))
    }

    /// What is put on this stream from now on waits until `event` has happened.
    #[expect(unsafe_code, reason = "calls of the driver")]
    pub(super) fn wait_for(&self, event: &Event) -> Result<()> {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: both are live, and the event was recorded.
        unsafe { result::stream::wait_event(self.0, event.0, flags) }.map_err(fault("a wait"))
    }

    /// Waits for all that is on the stream.
    #[expect(unsafe_code, reason = "calls of the driver")]
    pub(super) fn settle(&self) {
        // SAFETY: a live stream. Where the device is lost, the next pass says so again.
        let _ = unsafe { result::stream::synchronize(self.0) };
    }
}

impl Drop for Stream {
    #[expect(unsafe_code, reason = "calls of the driver")]
    fn drop(&mut self) {
        // SAFETY: made by `open`, destroyed once. A refusal leaves nothing to do.
        let _ = unsafe { result::stream::destroy(self.0) };
    }
}

/// How a kernel is put on a stream.
#[derive(Clone, Copy)]
pub(super) struct Launch {
    pub(super) kernel: sys::CUfunction,
    /// Blocks, in two directions.
    pub(super) grid: (usize, usize),
    pub(super) threads: u32,
    /// Bytes of shared memory of a block.
    pub(super) shared: usize,
    /// Blocks that run side by side and reach each other's shared memory.
    pub(super) cluster: u32,
    /// It may begin before the kernel before it is done, for which it waits itself.
    pub(super) early: bool,
}

impl Launch {
    /// Puts it on `stream`; nothing to do if the grid is empty. `parameters` are what the kernel declares.
    #[expect(unsafe_code, reason = "launches a kernel")]
    pub(super) fn put(&self, stream: sys::CUstream, parameters: &mut [*mut c_void]) -> Result<()> {
        if self.grid.0 == 0 || self.grid.1 == 0 {
            return Ok(());
        }
        let mut attributes = self.attributes();
        let config = self.config(stream, &mut attributes);
        let (parameters, none) = (parameters.as_mut_ptr(), std::ptr::null_mut());
        // SAFETY: the callers pass what the kernel declares, addresses of buffers with room for every row of the
        // plan; attributes and parameters are read before the call returns.
        let launched = unsafe { sys::cuLaunchKernelEx(&raw const config, self.kernel, parameters, none) };
        launched.result().map_err(fault("a launch"))
    }

    /// How many of its clusters the device has room for at once.
    #[expect(unsafe_code, reason = "calls of the driver")]
    pub(super) fn clusters_at_once(&self) -> Result<usize> {
        let mut attributes = self.attributes();
        let config = self.config(std::ptr::null_mut(), &mut attributes);
        let mut count = 0;
        // SAFETY: a kernel that was found; the configuration is read before the call returns.
        let asked =
            unsafe { sys::cuOccupancyMaxActiveClusters(&raw mut count, self.kernel, &raw const config) };
        asked.result().map_err(fault("how many clusters it holds"))?;
        Ok(count.max(0) as usize)
    }

    fn attributes(&self) -> Vec<sys::CUlaunchAttribute> {
        use sys::{CUlaunchAttributeID as Id, CUlaunchAttributeValue as Value};
        let cluster = sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: self.cluster, y: 1, z: 1 };
        let early = Value { programmaticStreamSerializationAllowed: 1 };
        let both = [
            (self.cluster > 1, Id::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, Value { clusterDim: cluster }),
            (self.early, Id::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, early),
        ];
        let asked = both.into_iter().filter(|(asked, ..)| *asked);
        asked.map(|(_, id, value)| sys::CUlaunchAttribute { id, pad: [0; 4], value }).collect()
    }

    fn config(
        &self,
        stream: sys::CUstream,
        attributes: &mut [sys::CUlaunchAttribute],
    ) -> sys::CUlaunchConfig {
        sys::CUlaunchConfig {
            gridDimX: self.grid.0 as u32,
            gridDimY: self.grid.1 as u32,
            gridDimZ: 1,
            blockDimX: self.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: self.shared as u32,
            hStream: stream,
            attrs: attributes.as_mut_ptr(),
            numAttrs: attributes.len() as u32,
        }
    }
}

/// A place on a stream.
pub(super) struct Event(sys::CUevent);

impl Event {
    pub(super) fn new() -> Result<Self> {
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
        Ok(Self(result::event::create(flags).map_err(fault("an event"))?))
    }

    /// Happens when all that is on `stream` now is done.
    #[expect(unsafe_code, reason = "calls of the driver")]
    pub(super) fn record(&self, stream: &Stream) -> Result<()> {
        // SAFETY: both are live.
        unsafe { result::event::record(self.0, stream.0) }.map_err(fault("an event"))
    }

    /// Whether it has happened; a fault of the device has, too, and waiting for it tells which.
    #[expect(unsafe_code, reason = "calls of the driver")]
    pub(super) fn has_happened(&self) -> bool {
        // SAFETY: a live event that was recorded.
        match unsafe { result::event::query(self.0) } {
            Ok(()) => true,
            Err(error) => error.0 != sys::CUresult::CUDA_ERROR_NOT_READY,
        }
    }

    /// Waits for it.
    #[expect(unsafe_code, reason = "calls of the driver")]
    pub(super) fn wait(&self) -> Result<()> {
        // SAFETY: a live event that was recorded.
        unsafe { sys::cuEventSynchronize(self.0).result() }.map_err(fault("a pass"))
    }
}

impl Drop for Event {
    #[expect(unsafe_code, reason = "calls of the driver")]
    fn drop(&mut self) {
        // SAFETY: made by `new`, destroyed once. A refusal leaves nothing to do.
        let _ = unsafe { result::event::destroy(self.0) };
    }
}
