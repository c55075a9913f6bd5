//! Device memory, allocated once; and pinned memory of the host for the copies.

use std::{ffi::c_void, sync::Arc};

use cudarc::driver::{CudaContext, result, sys};

use super::fault;
use crate::error::Result;

/// An address on the device.
pub(super) type Address = sys::CUdeviceptr;

/// What the kernels' widest accesses and cublasLt's best algorithms ask for.
const ALIGNMENT: usize = 256;

/// One allocation on the device, given back when dropped.
pub(super) struct Region {
    context: Arc<CudaContext>,
    base: Address,
    bytes: usize,
}

impl Region {
    /// Allocates; `what` it is for is named where there is too little.
    #[expect(unsafe_code, reason = "calls of the driver")]
    pub(super) fn allocate(context: &Arc<CudaContext>, bytes: usize, what: &str) -> Result<Self> {
        context.bind_to_thread().map_err(fault("the device"))?;
        let free = context.mem_get_info().map_or(0, |(free, _)| free);
        // SAFETY: uninitialised memory that is written before it is read.
        let base = unsafe { result::malloc_sync(bytes.max(ALIGNMENT)) };
        let base =
            base.map_err(fault(&format!("{} MiB for {what} ({} MiB are free)", bytes >> 20, free >> 20)))?;
        Ok(Self { context: Arc::clone(context), base, bytes: bytes.max(ALIGNMENT) })
    }

    pub(super) fn base(&self) -> Address {
        self.base
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Region {
    #[expect(unsafe_code, reason = "calls of the driver")]
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: allocated by `allocate`, freed once; nothing is on its way after a pass.
            let _ = unsafe { result::free_sync(self.base) };
        }
    }
}

/// Shares out a region that is yet to be allocated.
#[derive(Default)]
pub(super) struct Layout {
    bytes: usize,
}

impl Layout {
    /// The offset of the next `bytes`.
    pub(super) fn take(&mut self, bytes: usize) -> usize {
        let at = self.bytes;
        self.bytes += bytes.next_multiple_of(ALIGNMENT);
        at
    }

    /// Bytes of all that was taken.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Page-locked words of the host, which the device copies by itself.
pub(super) struct Pinned<T> {
    context: Arc<CudaContext>,
    base: *mut T,
    len: usize,
}

impl<T: Copy + Default> Pinned<T> {
    #[expect(unsafe_code, reason = "calls of the driver")]
    pub(super) fn allocate(context: &Arc<CudaContext>, len: usize) -> Result<Self> {
        context.bind_to_thread().map_err(fault("the device"))?;
        // SAFETY: written below, before anything reads it.
        let base = unsafe { result::malloc_host(len * size_of::<T>(), 0) };
        let base: *mut T = base.map_err(fault("pinned memory"))?.cast();
        for i in 0..len {
            // SAFETY: inside the allocation, which is aligned to a page.
            unsafe { base.add(i).write(T::default()) };
        }
        Ok(Self { context: Arc::clone(context), base, len })
    }

    #[expect(unsafe_code, reason = "memory that the driver allocated")]
    pub(super) fn slice(&mut self) -> &mut [T] {
        // SAFETY: `len` initialised values, borrowed as this is; the device reads or writes them
        // only within a pass.
        unsafe { std::slice::from_raw_parts_mut(self.base, self.len) }
    }
}

impl<T> Drop for Pinned<T> {
    #[expect(unsafe_code, reason = "calls of the driver")]
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: allocated by `allocate`, freed once.
            let _ = unsafe { result::free_host(self.base.cast::<c_void>()) };
        }
    }
}

/// Copies to the device and waits until it is there; for weights.
#[expect(unsafe_code, reason = "calls of the driver")]
pub(super) fn upload<T: Copy>(to: Address, from: &[T]) -> Result<()> {
    // SAFETY: the caller's layout has room for `from` at `to`; plain numbers.
    let copied = unsafe { result::memcpy_htod_sync(to, from) };
    // Of memory that is not pinned the call returns when it is read, not when it was written.
    copied.and_then(|()| result::ctx::synchronize()).map_err(fault("a copy to it"))
}
