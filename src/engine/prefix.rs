//! The prefix cache: a radix tree of token prefixes whose KV is kept across
//! batches, bounded, least recently used first out. Pure bookkeeping.

use std::{collections::HashMap, sync::Arc};

use super::kv::{BLOCK_TOKENS, KvPool, KvRef, Span};

/// What the cache holds of a prompt.
#[derive(Clone, Debug, Default)]
pub struct Hit {
    /// KV of the matched tokens, in order.
    pub past: Vec<KvRef>,
    /// Number of matched tokens.
    pub len: usize,
    /// Equal for two prompts exactly if they matched the same tokens.
    pub key: (usize, usize),
}

#[derive(Debug)]
struct Node {
    parent: usize,
    tokens: Vec<u32>,
    kv: KvRef,
    children: HashMap<u32, usize>,
    used: u64,
}

/// Radix tree over tokens; node 0 is the empty prefix.
#[derive(Debug)]
pub struct PrefixCache {
    nodes: HashMap<usize, Node>,
    roots: HashMap<u32, usize>,
    next_id: usize,
    clock: u64,
    evicted: usize,
    pool: Arc<KvPool>,
}

const ROOT: usize = 0;

impl PrefixCache {
    /// An empty cache over `pool`.
    pub fn new(pool: Arc<KvPool>) -> Self {
        Self { nodes: HashMap::new(), roots: HashMap::new(), next_id: 1, clock: 0, evicted: 0, pool }
    }

    /// The longest held prefix of `tokens`, marked as used now.
    pub fn lookup(&mut self, tokens: &[u32]) -> Hit {
        self.clock += 1;
        let mut hit = Hit::default();
        let mut children = &self.roots;
        let mut path = Vec::new();
        while let Some(&id) = tokens.get(hit.len).and_then(|token| children.get(token)) {
            let node = &self.nodes[&id];
            let len = common_prefix(&node.tokens, &tokens[hit.len..]);
            hit.past.push(KvRef { len, ..node.kv.clone() });
            hit.len += len;
            hit.key = (id, len);
            path.push(id);
            if len < node.tokens.len() {
                break;
            }
            children = &node.children;
        }
        for id in path {
            if let Some(node) = self.nodes.get_mut(&id) {
                node.used = self.clock;
            }
        }
        hit
    }

    /// Adds `kv` for the last `kv.len` tokens of `tokens`; what stands before them must be held
    /// already (otherwise nothing is added). Tokens already held are not added twice.
    pub fn insert(&mut self, tokens: &[u32], kv: KvRef) {
        let hit = self.lookup(tokens);
        let start = tokens.len() - kv.len;
        if hit.len >= tokens.len() || hit.len < start {
            return;
        }
        let parent = self.split(hit.key);
        let skip = hit.len - start;
        let kv = KvRef { start: kv.start + skip, len: kv.len - skip, span: kv.span };
        let id = self.add(parent, tokens[hit.len..].to_vec(), kv);
        self.children_mut(parent).insert(tokens[hit.len], id);
    }

    /// The time by which it tells what was used before what: it goes on with each lookup.
    pub fn clock(&self) -> u64 {
        self.clock
    }

    /// A span for `tokens` tokens, evicting what was used least recently until it fits, but nothing
    /// that was used after `since`, and nothing at all if even that would not do. A batch takes the
    /// [`Self::clock`] before its first lookup: it holds what it found, so evicting that would free
    /// nothing, and what it adds goes behind it.
    pub fn allocate(&mut self, tokens: usize, since: u64) -> Option<Arc<Span>> {
        if let Some(span) = self.pool.allocate(tokens) {
            return Some(span);
        }
        let free = self.pool.total() - self.pool.used();
        if tokens.div_ceil(BLOCK_TOKENS) > free + self.evictable(since) {
            return None;
        }
        while self.evict_one(since) {
            if let Some(span) = self.pool.allocate(tokens) {
                return Some(span);
            }
        }
        None
    }

    /// Blocks that would be free if all went that was last used by `since`. A node is used whenever one below it is.
    fn evictable(&self, since: u64) -> usize {
        let mut held: HashMap<*const Span, usize> = HashMap::new();
        let old = || self.nodes.values().filter(|node| node.used <= since).map(|node| &node.kv.span);
        for span in old() {
            *held.entry(Arc::as_ptr(span)).or_default() += 1;
        }
        // Each span once, and only those that nobody else holds, be it a batch under way.
        let freed = |span: &&Arc<Span>| held.remove(&Arc::as_ptr(span)) == Some(Arc::strong_count(span));
        old().filter(freed).map(|span| span.blocks().len()).sum()
    }

    /// Tokens evicted since this was asked last.
    pub fn take_evicted(&mut self) -> usize {
        std::mem::take(&mut self.evicted)
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        self.nodes.clear();
        self.roots.clear();
    }

    fn children_mut(&mut self, id: usize) -> &mut HashMap<u32, usize> {
        match self.nodes.get_mut(&id) {
            Some(node) => &mut node.children,
            None => &mut self.roots,
        }
    }

    fn add(&mut self, parent: usize, tokens: Vec<u32>, kv: KvRef) -> usize {
        let id = self.next_id;
        self.next_id += 1;
        self.nodes.insert(id, Node { parent, tokens, kv, children: HashMap::new(), used: self.clock });
        id
    }

    /// Cuts node `id` after `len` tokens if it is longer; the front keeps the id's place.
    /// Returns the node that ends there.
    fn split(&mut self, (id, len): (usize, usize)) -> usize {
        let Some(node) = self.nodes.get_mut(&id) else { return ROOT };
        if len == node.tokens.len() {
            return id;
        }
        let back_tokens = node.tokens.split_off(len);
        let back_kv =
            KvRef { start: node.kv.start + len, len: node.kv.len - len, span: node.kv.span.clone() };
        node.kv.len = len;
        let grandchildren = std::mem::take(&mut node.children);
        let used = node.used;
        let first = back_tokens[0];
        let back = self.add(id, back_tokens, back_kv);
        for child in grandchildren.values() {
            if let Some(child) = self.nodes.get_mut(child) {
                child.parent = back;
            }
        }
        if let Some(node) = self.nodes.get_mut(&back) {
            node.children = grandchildren;
            node.used = used;
        }
        self.children_mut(id).insert(first, back);
        id
    }

    /// Drops the least recently used leaf; false if there is none that was last used by `since`.
    fn evict_one(&mut self, since: u64) -> bool {
        let leaves = self.nodes.iter().filter(|(_, node)| node.children.is_empty() && node.used <= since);
        let Some((&id, _)) = leaves.min_by_key(|(id, node)| (node.used, **id)) else { return false };
        if let Some(node) = self.nodes.remove(&id) {
            self.evicted += node.tokens.len();
            self.children_mut(node.parent).remove(&node.tokens[0]);
        }
        true
    }
}

/// Length of the common prefix of two token sequences.
pub fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn insert(cache: &mut PrefixCache, tokens: &[u32]) {
        let since = cache.clock();
        let len = tokens.len() - cache.lookup(tokens).len;
        if len > 0
            && let Some(span) = cache.allocate(len, since)
        {
            cache.insert(tokens, KvRef { span, start: 0, len });
            assert_eq!(cache.lookup(tokens).len, tokens.len(), "what it stands behind is still there");
        }
    }

    /// Tokens held.
    fn held(cache: &PrefixCache) -> usize {
        cache.nodes.values().map(|node| node.tokens.len()).sum()
    }

    #[test]
    fn a_partial_match_shares_a_node_and_a_branch_splits_it() {
        let mut cache = PrefixCache::new(KvPool::new(0, 8));
        insert(&mut cache, &[1, 2, 3, 4]);
        assert_eq!(cache.lookup(&[1, 2, 9]).len, 2);
        insert(&mut cache, &[1, 2, 9]);
        assert_eq!(cache.lookup(&[1, 2, 9, 9]).len, 3);
        let hit = cache.lookup(&[1, 2, 3, 4, 5]);
        assert_eq!((hit.len, hit.past.len()), (4, 2));
        assert_eq!((hit.past[1].start, hit.past[1].len), (2, 2));
        assert_eq!(held(&cache), 5);
    }

    #[test]
    fn the_least_recently_used_leaf_leaves_first() {
        let mut cache = PrefixCache::new(KvPool::new(0, 2));
        insert(&mut cache, &[1; 10]);
        insert(&mut cache, &[2; 10]);
        cache.lookup(&[1; 10]);
        insert(&mut cache, &[3; 10]);
        assert_eq!(cache.lookup(&[1; 10]).len, 10);
        assert_eq!(cache.lookup(&[2; 10]).len, 0);
        assert_eq!((cache.take_evicted(), cache.take_evicted()), (10, 0));
    }

    #[test]
    fn what_can_never_fit_evicts_nothing() {
        let mut cache = PrefixCache::new(KvPool::new(0, 2));
        insert(&mut cache, &[1; 10]);
        assert!(cache.allocate(2 * BLOCK_TOKENS + 1, cache.clock()).is_none());
        assert_eq!((held(&cache), cache.take_evicted()), (10, 0));
    }

    #[test]
    fn a_batch_keeps_what_it_found() {
        let mut cache = PrefixCache::new(KvPool::new(0, 2));
        insert(&mut cache, &[1; 10]);
        insert(&mut cache, &[2; 10]);
        let since = cache.clock();
        let found = cache.lookup(&[1; 12]);
        assert!(
            cache.allocate(2 * BLOCK_TOKENS, since).is_none(),
            "one of the two blocks is the batch's own"
        );
        assert_eq!((cache.lookup(&[1; 12]).len, cache.take_evicted()), (10, 0), "nothing went in vain");
        assert!(cache.allocate(BLOCK_TOKENS, since).is_some(), "the other is free to go");
        assert_eq!((cache.lookup(&[1; 12]).len, cache.take_evicted()), (10, 10));
        insert(&mut cache, &[1; 12]);
        assert_eq!(held(&cache), 12, "what comes after it found its place");
        drop(found);
        assert!(cache.allocate(2 * BLOCK_TOKENS, cache.clock()).is_some(), "later ones may take it");
    }

    proptest! {
        #[test]
        fn what_is_looked_up_is_there_until_its_batch_ends(
            prompts in prop::collection::vec(prop::collection::vec(0u32..3, 1..60), 1..30), blocks in 0usize..6,
        ) {
            let pool = KvPool::new(0, blocks);
            let mut cache = PrefixCache::new(pool.clone());
            for batch in prompts.chunks(3) {
                let since = cache.clock();
                let found: Vec<Hit> = batch.iter().map(|prompt| cache.lookup(prompt)).collect();
                for (prompt, hit) in batch.iter().zip(&found) {
                    let len = prompt.len() - hit.len;
                    if len > 0 && let Some(span) = cache.allocate(len, since) {
                        cache.insert(prompt, KvRef { span, start: 0, len });
                        prop_assert_eq!(cache.lookup(prompt).len, prompt.len());
                    }
                    prop_assert!(batch.iter().zip(&found).all(|(prompt, hit)| cache.lookup(prompt).len >= hit.len));
                }
            }
            drop(cache);
            prop_assert_eq!(pool.used(), 0);
        }

        #[test]
        fn a_hit_is_the_longest_prefix_ever_inserted(prompts in prop::collection::vec(prop::collection::vec(0u32..3, 1..12), 1..30)) {
            let pool = KvPool::new(0, 1000);
            let mut cache = PrefixCache::new(pool.clone());
            for (i, prompt) in prompts.iter().enumerate() {
                let expected = prompts[..i].iter().map(|p| common_prefix(p, prompt)).max().unwrap_or(0);
                let hit = cache.lookup(prompt);
                prop_assert_eq!(hit.len, expected);
                prop_assert_eq!(hit.past.iter().map(|p| p.len).sum::<usize>(), expected);
                insert(&mut cache, prompt);
            }
            cache.clear();
            prop_assert_eq!(pool.used(), 0);
        }
    }
}
