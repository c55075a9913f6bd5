//! The batch as a prefix tree: every distinct token is computed once.
//!
//! Pure: token sequences in, packed segments out. A segment's tokens are
//! consecutive rows of the batch; its ancestors' rows and cached KV are all the
//! keys that come before its own.

use std::ops::Range;

use super::{
    kv::{Blocks, KvRef},
    prefix::common_prefix,
};

/// One sequence to put into a batch.
#[derive(Clone, Debug)]
pub struct Sequence<'a> {
    /// KV that is already there, covering the first `position` tokens.
    pub past: &'a [KvRef],
    /// Two sequences with equal keys have equal pasts.
    pub key: (usize, usize),
    /// Absolute position of the first token.
    pub position: usize,
    /// Tokens to compute; at least one. The last one's row is read.
    pub tokens: &'a [u32],
    /// Start a new segment at this index into `tokens` (0: nowhere).
    pub cut: usize,
    /// What to read.
    pub read: Read,
}

/// What is read at a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Read {
    /// The logits of the grades.
    Grades,
    /// The most probable next token.
    Next,
    /// Nothing: a part of a prompt, computed for its keys and values.
    Nothing,
}

/// A run of tokens that every sequence below it shares.
#[derive(Clone, Debug)]
pub struct Segment {
    /// The segment before it, if any; always earlier in the list.
    pub parent: Option<usize>,
    /// Its rows of the batch.
    pub rows: Range<usize>,
    /// Absolute position of its first token.
    pub position: usize,
    /// For a segment without parent: the KV before it.
    pub past: Vec<KvRef>,
    /// Where its keys and values are written, if they are kept.
    pub keep: Option<KvRef>,
}

/// A row whose logits are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Row of the batch.
    pub row: usize,
    /// Segment of that row.
    pub segment: usize,
    /// What to read.
    pub read: Read,
}

/// A packed batch.
#[derive(Clone, Debug, Default)]
pub struct TokenTree {
    /// Token ids by row.
    pub tokens: Vec<u32>,
    /// Absolute positions by row.
    pub positions: Vec<u32>,
    /// Segments, parents first; their rows are the batch in order.
    pub segments: Vec<Segment>,
    /// Distinct rows to read, in order of row.
    pub answers: Vec<Answer>,
    /// For each sequence, its index in `answers`.
    pub answer_of: Vec<usize>,
}

impl TokenTree {
    /// Merges the sequences' common prefixes.
    pub fn build(sequences: &[Sequence<'_>]) -> Self {
        let mut order: Vec<usize> = (0..sequences.len()).collect();
        order.sort_by(|&a, &b| {
            let (a, b) = (&sequences[a], &sequences[b]);
            (a.read, a.key, a.position).cmp(&(b.read, b.key, b.position)).then_with(|| a.tokens.cmp(b.tokens))
        });
        let mut tree = Self { answer_of: vec![0; sequences.len()], ..Self::default() };
        let same_root = |a: &usize, b: &usize| {
            let (a, b) = (&sequences[*a], &sequences[*b]);
            (a.read, a.key, a.position) == (b.read, b.key, b.position)
        };
        for group in order.chunk_by(same_root) {
            tree.grow(sequences, group, 0, None);
        }
        tree
    }

    /// Adds the segments of `group`: sorted sequences that agree on their first `depth` tokens.
    fn grow(&mut self, sequences: &[Sequence<'_>], group: &[usize], depth: usize, parent: Option<usize>) {
        let ended = group.iter().take_while(|&&s| sequences[s].tokens.len() == depth).count();
        let rest = &group[ended..];
        let same_next = |a: &usize, b: &usize| sequences[*a].tokens[depth] == sequences[*b].tokens[depth];
        for branch in rest.chunk_by(same_next) {
            let (first, last) = (&sequences[branch[0]], &sequences[branch[branch.len() - 1]]);
            let shared = common_prefix(first.tokens, last.tokens);
            let cuts = branch.iter().map(|&s| sequences[s].cut).filter(|&cut| cut > depth);
            let end = cuts.fold(shared, usize::min);
            let segment = self.push(first, depth..end, parent);
            let row = self.tokens.len() - 1;
            let ends = branch.iter().take_while(|&&s| sequences[s].tokens.len() == end);
            for &sequence in ends {
                self.answer_of[sequence] = self.answer(Answer { row, segment, read: first.read });
            }
            self.grow(sequences, branch, end, Some(segment));
        }
    }

    fn push(&mut self, of: &Sequence<'_>, range: Range<usize>, parent: Option<usize>) -> usize {
        let row = self.tokens.len();
        let position = of.position + range.start;
        self.positions.extend((position..position + range.len()).map(|p| p as u32));
        self.tokens.extend_from_slice(&of.tokens[range]);
        let past = if parent.is_none() { of.past.to_vec() } else { Vec::new() };
        self.segments.push(Segment { parent, rows: row..self.tokens.len(), position, past, keep: None });
        self.segments.len() - 1
    }

    fn answer(&mut self, answer: Answer) -> usize {
        if self.answers.last() != Some(&answer) {
            self.answers.push(answer);
        }
        self.answers.len() - 1
    }

    /// Whether it is a step of the explain lane: no score is read.
    pub fn is_explain(&self) -> bool {
        self.answers.iter().all(|answer| answer.read != Read::Grades)
    }

    /// The KV blocks that it reads and writes.
    pub fn blocks(&self) -> Blocks {
        let mut blocks = Blocks::default();
        for segment in &self.segments {
            segment.past.iter().for_each(|part| blocks.reads.add(part));
            segment.keep.iter().for_each(|part| blocks.writes.add(part));
        }
        blocks
    }

    /// The segments from the root down to `segment`.
    pub fn path(&self, segment: usize) -> Vec<usize> {
        let mut path = vec![segment];
        while let Some(parent) = self.segments[path[path.len() - 1]].parent {
            path.push(parent);
        }
        path.reverse();
        path
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sequence(tokens: &[u32], cut: usize) -> Sequence<'_> {
        Sequence { past: &[], key: (0, 0), position: 0, tokens, cut, read: Read::Grades }
    }

    #[test]
    fn a_shared_prefix_is_one_segment() {
        let (a, b, c) = ([1, 2, 3, 4], [1, 2, 5], [1, 2, 3, 4]);
        let tree = TokenTree::build(&[sequence(&a, 0), sequence(&b, 0), sequence(&c, 0)]);
        assert_eq!(tree.tokens, [1, 2, 3, 4, 5]);
        assert_eq!(tree.positions, [0, 1, 2, 3, 2]);
        assert_eq!(tree.answers.len(), 2, "duplicates are read once");
        assert_eq!(tree.answer_of, [0, 1, 0]);
        assert_eq!(tree.segments.iter().map(|s| s.rows.clone()).collect::<Vec<_>>(), [0..2, 2..4, 4..5]);
    }

    #[test]
    fn a_cut_starts_a_segment() {
        let a = [1, 2, 3, 4];
        let tree = TokenTree::build(&[sequence(&a, 3)]);
        assert_eq!(tree.segments.iter().map(|s| s.rows.clone()).collect::<Vec<_>>(), [0..3, 3..4]);
        assert_eq!(tree.segments[1].parent, Some(0));
    }

    #[test]
    fn a_sequence_may_end_inside_another() {
        let (a, b) = ([1, 2], [1, 2, 3]);
        let tree = TokenTree::build(&[sequence(&b, 0), sequence(&a, 0)]);
        assert_eq!(tree.answers.iter().map(|a| a.row).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(tree.answer_of, [1, 0]);
    }

    proptest! {
        #[test]
        fn paths_unpack_to_the_sequences(
            prompts in prop::collection::vec((prop::collection::vec(0u32..3, 1..15), 0usize..15, 0usize..2), 1..40)
        ) {
            let sequences: Vec<Sequence<'_>> = prompts.iter().map(|(tokens, cut, key)| Sequence {
                key: (*key, 0), position: 7 * key, ..sequence(tokens, (*cut).min(tokens.len()))
            }).collect();
            let tree = TokenTree::build(&sequences);
            for (i, sequence) in sequences.iter().enumerate() {
                let answer = tree.answers[tree.answer_of[i]];
                let path = tree.path(answer.segment);
                let rows: Vec<usize> = path.iter().flat_map(|&s| tree.segments[s].rows.clone()).collect();
                let tokens: Vec<u32> = rows.iter().map(|&row| tree.tokens[row]).collect();
                prop_assert_eq!(&tokens, sequence.tokens);
                prop_assert_eq!(rows.last(), Some(&answer.row));
                let positions: Vec<usize> = rows.iter().map(|&row| tree.positions[row] as usize).collect();
                let expected: Vec<usize> = (0..tokens.len()).map(|p| p + sequence.position).collect();
                prop_assert_eq!(positions, expected);
                let starts: Vec<usize> = path.iter().map(|&s| tree.segments[s].position - sequence.position).collect();
                prop_assert!(sequence.cut == 0 || sequence.cut >= sequence.tokens.len() || starts.contains(&sequence.cut));
            }
            // No token is computed twice: distinct prefixes under distinct roots.
            let mut prefixes = std::collections::HashSet::new();
            for s in &sequences {
                for end in 1..=s.tokens.len() {
                    prefixes.insert((s.key, &s.tokens[..end]));
                }
            }
            prop_assert_eq!(tree.tokens.len(), prefixes.len());
            prop_assert!(tree.segments.iter().enumerate().all(|(i, s)| s.parent.is_none_or(|p| p < i)));
        }
    }
}
