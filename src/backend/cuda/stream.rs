//! Streams, and the events that say how far they are.

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
