//! KV memory: fixed-size blocks, spans of blocks that free themselves, and the
//! sequences that explanations continue from.
//!
//! This is bookkeeping only. The keys and values themselves live on the
//! backend's device, at the block numbers given out here.

use std::sync::{Arc, Mutex, PoisonError};

/// Tokens in one block.
pub const BLOCK_TOKENS: usize = 16;

/// The free list of a fixed number of blocks.
#[derive(Debug)]
pub struct KvPool {
    free: Mutex<Vec<u32>>,
    total: usize,
}

impl KvPool {
    /// A pool of the `total` blocks from number `first` on, all free.
    pub fn new(first: usize, total: usize) -> Arc<Self> {
        let free = (first..first + total).rev().filter_map(|block| u32::try_from(block).ok()).collect();
        Arc::new(Self { free: Mutex::new(free), total })
    }

    /// Blocks for `tokens` tokens, or `None` if too few are free.
    pub fn allocate(self: &Arc<Self>, tokens: usize) -> Option<Arc<Span>> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let left = free.len().checked_sub(tokens.div_ceil(BLOCK_TOKENS))?;
        let blocks = free.split_off(left).into_boxed_slice();
        Some(Arc::new(Span { blocks, pool: self.clone() }))
    }

    /// Blocks in use.
    pub fn used(&self) -> usize {
        self.total - self.free.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Blocks in all.
    pub fn total(&self) -> usize {
        self.total
    }
}

/// Blocks that hold consecutive tokens; they go back to the pool with the last reference.
#[derive(Debug)]
pub struct Span {
    blocks: Box<[u32]>,
    pool: Arc<KvPool>,
}

impl Span {
    /// The block numbers, in order of tokens.
    pub fn blocks(&self) -> &[u32] {
        &self.blocks
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        let mut free = self.pool.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.extend_from_slice(&self.blocks);
    }
}

/// `len` tokens of a span, from its token `start` on.
#[derive(Clone, Debug)]
pub struct KvRef {
    /// The blocks.
    pub span: Arc<Span>,
    /// First token inside the span.
    pub start: usize,
    /// Number of tokens.
    pub len: usize,
}

impl KvRef {
    /// Block and offset inside it of token `i` of this reference.
    pub fn place(&self, i: usize) -> (usize, usize) {
        let token = self.start + i;
        (self.span.blocks[token / BLOCK_TOKENS] as usize, token % BLOCK_TOKENS)
    }
}

/// A scored sequence's KV, from its first token to its answer position, held until dropped.
#[derive(Clone, Debug)]
pub struct KeptSequence {
    pub(crate) past: Vec<KvRef>,
}

impl KeptSequence {
    /// Number of tokens held.
    pub fn tokens(&self) -> usize {
        self.past.iter().map(|part| part.len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_give_their_blocks_back() {
        let pool = KvPool::new(0, 4);
        let a = pool.allocate(33).expect("three blocks");
        assert_eq!((pool.used(), a.blocks().len()), (3, 3));
        assert!(pool.allocate(17).is_none(), "two blocks are not free");
        let b = a.clone();
        drop(a);
        assert_eq!(pool.used(), 3, "a clone still holds them");
        drop(b);
        assert_eq!(pool.used(), 0);
    }

    #[test]
    fn a_reference_finds_its_token() {
        let pool = KvPool::new(5, 2);
        let span = pool.allocate(32).expect("two blocks");
        let part = KvRef { span: span.clone(), start: 10, len: 10 };
        assert_eq!(part.place(5), (span.blocks()[0] as usize, 15));
        assert_eq!(part.place(6), (span.blocks()[1] as usize, 0));
    }
}
