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
        self.allocate_leaving(0, tokens)
    }

    /// The same, but `None` too if fewer than `spare` blocks would stay free.
    pub fn allocate_leaving(self: &Arc<Self>, spare: usize, tokens: usize) -> Option<Arc<Span>> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let left = free.len().checked_sub(tokens.div_ceil(BLOCK_TOKENS)).filter(|left| *left >= spare)?;
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

/// A set of blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockSet(Vec<u64>);

impl BlockSet {
    /// Adds the blocks that hold `part`.
    pub fn add(&mut self, part: &KvRef) {
        if part.len == 0 {
            return;
        }
        let (first, end) = (part.start / BLOCK_TOKENS, (part.start + part.len).div_ceil(BLOCK_TOKENS));
        for &block in &part.span.blocks[first..end] {
            let (word, bit) = (block as usize / 64, block % 64);
            if self.0.len() <= word {
                self.0.resize(word + 1, 0);
            }
            self.0[word] |= 1 << bit;
        }
    }

    /// Adds another's blocks.
    pub fn join(&mut self, other: &Self) {
        self.0.resize(self.0.len().max(other.0.len()), 0);
        self.0.iter_mut().zip(&other.0).for_each(|(word, more)| *word |= more);
    }

    /// Whether they have a block in common.
    pub fn meets(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).any(|(a, b)| a & b != 0)
    }
}

/// The blocks that a batch reads and writes.
#[derive(Clone, Debug, Default)]
pub struct Blocks {
    /// Of the KV before its segments.
    pub reads: BlockSet,
    /// Of what its segments keep.
    pub writes: BlockSet,
}

impl Blocks {
    /// Whether a batch that touches these must not run before one that touches `earlier` ended.
    pub fn must_follow(&self, earlier: &Self) -> bool {
        self.reads.meets(&earlier.writes)
            || self.writes.meets(&earlier.writes)
            || self.writes.meets(&earlier.reads)
    }
}

/// A scored sequence's KV, from its first token to its answer position, held until dropped.
#[derive(Clone, Debug)]
pub struct KeptSequence {
    pub(crate) past: Vec<KvRef>,
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
        assert!(pool.allocate_leaving(1, 16).is_none(), "the last one is to stay free");
        let b = a.clone();
        drop(a);
        assert_eq!(pool.used(), 3, "a clone still holds them");
        drop(b);
        assert_eq!(pool.used(), 0);
    }

    #[test]
    fn batches_that_share_what_one_writes_follow_each_other() {
        let pool = KvPool::new(60, 10);
        let span = pool.allocate(160).expect("ten blocks");
        let touching = |read: &[(usize, usize)], write: &[(usize, usize)]| {
            let part = |&(start, len): &(usize, usize)| KvRef { span: span.clone(), start, len };
            let mut blocks = Blocks::default();
            read.iter().map(part).for_each(|part| blocks.reads.add(&part));
            write.iter().map(part).for_each(|part| blocks.writes.add(&part));
            blocks
        };
        let writer = touching(&[], &[(30, 4)]);
        assert!(touching(&[(0, 17)], &[]).must_follow(&writer), "tokens 16 to 31 are one block");
        assert!(!touching(&[(0, 16)], &[]).must_follow(&writer));
        assert!(touching(&[], &[(33, 1)]).must_follow(&writer));
        assert!(
            writer.must_follow(&touching(&[(31, 1)], &[])),
            "nothing is overwritten that is yet to be read"
        );
        let (a, b) = (touching(&[(0, 160)], &[]), touching(&[(0, 160)], &[]));
        assert!(!a.must_follow(&b), "readers do not wait for each other");
        assert!(!touching(&[(40, 0)], &[(48, 0)]).must_follow(&touching(&[], &[(0, 160)])));
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
