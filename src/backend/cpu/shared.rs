//! One output matrix written by many threads, each in its own tile.

#![expect(unsafe_code, reason = "threads write disjoint tiles of one buffer")]

use std::marker::PhantomData;

/// A mutable buffer that tasks of one parallel loop write in disjoint pieces.
pub(super) struct SharedRows<'a> {
    start: *mut f32,
    len: usize,
    owner: PhantomData<&'a mut [f32]>,
}

// SAFETY: access goes through `slice`, whose callers promise disjoint pieces.
unsafe impl Sync for SharedRows<'_> {}
// SAFETY: as above; f32 is Send.
unsafe impl Send for SharedRows<'_> {}

impl<'a> SharedRows<'a> {
    pub(super) fn new(buffer: &'a mut [f32]) -> Self {
        Self { start: buffer.as_mut_ptr(), len: buffer.len(), owner: PhantomData }
    }

    /// The piece `from..from + len`.
    ///
    /// # Safety
    /// No other piece that overlaps it may be alive.
    #[expect(clippy::mut_from_ref, reason = "disjointness is the caller's promise")]
    #[inline(always)]
    pub(super) unsafe fn slice(&self, from: usize, len: usize) -> &mut [f32] {
        assert!(from <= self.len && len <= self.len - from, "tile outside its buffer");
        // SAFETY: in bounds by the assertion; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(from), len) }
    }

    /// Where value `i` lies, to be fetched ahead; never read through.
    #[inline(always)]
    pub(super) fn at(&self, i: usize) -> *const f32 {
        self.start.wrapping_add(i)
    }
}
