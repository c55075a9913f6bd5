//! A batch as the kernels read it: one list of 32-bit words, copied in once. Pure.
//!
//! The layout is that of `kernels/device.cuh`: a header of counts and offsets, then lists.

use std::{collections::HashMap, sync::Arc};

use crate::engine::{
    kv::BLOCK_TOKENS,
    tree::{Read, Segment, TokenTree},
};

/// (query, query head) pairs of one attention tile.
pub(super) const TILE_ROWS: usize = 64;

/// Words of the header, by their place.
#[derive(Clone, Copy)]
#[repr(i32)]
pub(super) enum Word {
    Rows,
    Answers,
    Tiles,
    Wide,
    Tokens,
    Positions,
    Slots,
    AnswerRows,
    AllTiles,
    AnswerTiles,
    WideAnswers,
    Runs,
    Blocks,
}

const HEADER: usize = Word::Blocks as usize + 1;
/// Words of a tile and of a run.
const TILE: usize = 8;
const RUN: usize = 4;

/// Sizes that grids are made for: those of a batch, or of the graph that it fits into.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Extent {
    pub(super) rows: usize,
    pub(super) answers: usize,
    pub(super) tiles: usize,
    /// Answers for which the whole vocabulary is read.
    pub(super) wide: usize,
    /// Whether there are answers for which the grades are read.
    pub(super) graded: bool,
    /// Whether every row is a token that is decoded: its answer, and in a sequence by itself.
    pub(super) decoded: bool,
}

/// The words, and the counts that launches need.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) words: Vec<i32>,
    pub(super) extent: Extent,
}

impl Plan {
    /// Plans `tree` for `group` query heads to a key head (at most [`TILE_ROWS`]); a score reads the
    /// whole vocabulary for its `label_mass`.
    pub(super) fn of(tree: &TokenTree, group: usize, label_mass: bool) -> Self {
        let paths = Paths::of(tree);
        let tiles = query_tiles(tree, &paths, group);
        let answers = answer_tiles(tree, &paths);
        let wide: Vec<i32> = wide_answers(tree, label_mass);
        let extent = Extent {
            rows: tree.tokens.len(),
            answers: tree.answers.len(),
            tiles: tiles.len() / TILE,
            wide: wide.len(),
            graded: tree.answers.iter().any(|answer| answer.read == Read::Grades),
            decoded: is_decoded(tree),
        };
        let mut plan = Self { words: vec![0; HEADER], extent };
        plan.words[Word::Rows as usize] = word(extent.rows);
        plan.words[Word::Answers as usize] = word(extent.answers);
        plan.words[Word::Tiles as usize] = word(extent.tiles);
        plan.words[Word::Wide as usize] = word(extent.wide);
        plan.put(Word::Tokens, tree.tokens.iter().map(|&token| token as i32));
        plan.put(Word::Positions, tree.positions.iter().map(|&position| position as i32));
        plan.put(Word::Slots, slots(tree));
        plan.put(Word::AnswerRows, tree.answers.iter().map(|answer| word(answer.row)));
        plan.put(Word::AllTiles, tiles);
        plan.put(Word::AnswerTiles, answers);
        plan.put(Word::WideAnswers, wide);
        plan.put(Word::Runs, paths.runs);
        plan.put(Word::Blocks, paths.blocks);
        plan
    }

    /// The words of so many rows, at so many positions in turn, that are not kept, to try products with: of rows they tell
    /// no more.
    pub(super) fn of_lone_rows(rows: usize, positions: usize) -> Vec<i32> {
        let mut plan = Self { words: vec![0; HEADER], extent: Extent::default() };
        plan.words[Word::Rows as usize] = word(rows);
        plan.put(Word::Positions, (0..rows).map(|row| word(row % positions)));
        plan.put(Word::Slots, (0..rows).map(|_| -1));
        plan.words
    }

    /// Words that a plan of so many rows can have, beside what its runs and blocks need.
    pub(super) fn most_words(rows: usize, answers: usize) -> usize {
        HEADER + 32 + rows * (3 + TILE) + answers * (2 + TILE)
    }

    fn put(&mut self, at: Word, list: impl IntoIterator<Item = i32>) {
        // Tiles and runs are read 16 bytes at a time.
        self.words.resize(self.words.len().next_multiple_of(4), 0);
        self.words[at as usize] = word(self.words.len());
        self.words.extend(list);
    }
}

/// Counts are bounded by the capacity that is checked before a plan is copied.
fn word(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// Where each segment's keys lie, from position 0 to its end.
struct Paths {
    runs: Vec<i32>,
    /// First run and number of runs, by segment.
    of_segment: Vec<(usize, usize)>,
    blocks: Vec<i32>,
}

impl Paths {
    fn of(tree: &TokenTree) -> Self {
        let mut paths = Self { runs: Vec::new(), of_segment: Vec::new(), blocks: Vec::new() };
        let mut tables: HashMap<usize, usize> = HashMap::new();
        for segment in &tree.segments {
            let first = paths.runs.len() / RUN;
            match segment.parent {
                Some(parent) => {
                    let (from, count) = paths.of_segment[parent];
                    paths.runs.extend_from_within(from * RUN..(from + count) * RUN);
                }
                None => paths.push_past(segment, &mut tables),
            }
            let (rows, len) = (&segment.rows, segment.rows.len());
            paths.push([word(segment.position), word(len), word(rows.start), 0], first);
            paths.of_segment.push((first, paths.runs.len() / RUN - first));
        }
        paths
    }

    fn push_past(&mut self, segment: &Segment, tables: &mut HashMap<usize, usize>) {
        let (first, mut position) = (self.runs.len() / RUN, 0);
        for part in segment.past.iter().filter(|part| part.len > 0) {
            let table = *tables.entry(Arc::as_ptr(&part.span).addr()).or_insert_with(|| {
                self.blocks.extend(part.span.blocks().iter().map(|&block| block as i32));
                self.blocks.len() - part.span.blocks().len()
            });
            self.push([word(position), word(part.len), !word(table), word(part.start)], first);
            position += part.len;
        }
    }

    /// Adds a run to a path that begins with the run `first`; what lies right behind the last one makes that longer. What
    /// is cached was often cut in parts, and a sequence that is decoded has a part for each token.
    fn push(&mut self, [position, len, source, start]: [i32; RUN], first: usize) {
        if let [.., _, before, from, at] = &mut self.runs[first * RUN..]
            && (if source < 0 {
                (source, start) == (*from, *at + *before)
            } else {
                source == *from + *before
            })
            && (source < 0) == (*from < 0)
        {
            *before += len;
        } else {
            self.runs.extend([position, len, source, start]);
        }
    }
}

fn tile(query: usize, count: usize, position: usize, (first, runs): (usize, usize)) -> [i32; TILE] {
    [word(query), word(count), word(position), word(first), word(runs), 0, 0, 0]
}

/// Tiles over all rows, those with most keys first: they take longest.
fn query_tiles(tree: &TokenTree, paths: &Paths, group: usize) -> Vec<i32> {
    let most = (TILE_ROWS / group).max(1);
    let mut tiles = Vec::new();
    for (segment, path) in tree.segments.iter().zip(&paths.of_segment) {
        for from in segment.rows.clone().step_by(most) {
            let count = most.min(segment.rows.end - from);
            tiles.push(tile(from, count, segment.position + from - segment.rows.start, *path));
        }
    }
    tiles.sort_by_key(|tile| std::cmp::Reverse(tile[1] + tile[2]));
    tiles.concat()
}

fn answer_tiles(tree: &TokenTree, paths: &Paths) -> Vec<i32> {
    let tiles =
        tree.answers.iter().enumerate().map(|(i, answer)| {
            tile(i, 1, tree.positions[answer.row] as usize, paths.of_segment[answer.segment])
        });
    tiles.flatten().collect()
}

fn wide_answers(tree: &TokenTree, label_mass: bool) -> Vec<i32> {
    let wide = |read: Read| read == Read::Next || (label_mass && read == Read::Grades);
    let chosen = tree.answers.iter().enumerate().filter(|(_, answer)| wide(answer.read));
    chosen.map(|(i, _)| word(i)).collect()
}

/// Answers are in the order of rows, so that answer i is row i where there are as many.
fn is_decoded(tree: &TokenTree) -> bool {
    tree.answers.len() == tree.tokens.len()
        && tree.segments.len() == tree.tokens.len()
        && tree.segments.iter().all(|segment| segment.parent.is_none())
        && tree.answers.iter().all(|answer| answer.read == Read::Next)
}

/// The KV cache slot (tokens over all blocks) of each row that is kept; -1 for the others.
fn slots(tree: &TokenTree) -> Vec<i32> {
    let mut slots = vec![-1; tree.tokens.len()];
    for segment in &tree.segments {
        let Some(keep) = &segment.keep else { continue };
        for (i, row) in segment.rows.clone().enumerate().take(keep.len) {
            let (block, offset) = keep.place(i);
            slots[row] = word(block * BLOCK_TOKENS + offset);
        }
    }
    slots
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{
        kv::{KvPool, KvRef},
        tree::{Read, Sequence},
    };

    fn list(plan: &Plan, at: Word, len: usize) -> &[i32] {
        let at = plan.words[at as usize] as usize;
        &plan.words[at..at + len]
    }

    #[test]
    fn a_tree_is_planned_by_absolute_position() {
        let span = KvPool::new(7, 4).allocate(40).expect("three blocks");
        let whole = KvRef { span: span.clone(), start: 0, len: 40 };
        let blocks: Vec<i32> = (0..3).map(|i| word(whole.place(i * BLOCK_TOKENS).0)).collect();
        let past = [KvRef { span: span.clone(), start: 0, len: 18 }, KvRef { span, start: 20, len: 2 }];
        let of =
            |tokens| Sequence { past: &past, key: (1, 2), position: 20, tokens, cut: 0, read: Read::Grades };
        let tree = TokenTree::build(&[of(&[1, 2, 3][..]), of(&[1, 9][..])]);
        let plan = Plan::of(&tree, 64, true);
        let extent = Extent { rows: 4, answers: 2, tiles: 4, wide: 2, graded: true, decoded: false };
        assert_eq!(plan.extent, extent, "one query a tile");
        assert_eq!(list(&plan, Word::WideAnswers, 2), [0, 1]);
        assert_eq!(Plan::of(&tree, 64, false).extent.wide, 0);
        assert_eq!(list(&plan, Word::Tokens, 4), [1, 2, 3, 9]);
        assert_eq!(list(&plan, Word::Positions, 4), [20, 21, 22, 21]);
        assert_eq!(list(&plan, Word::AnswerRows, 2), [2, 3]);
        assert_eq!(list(&plan, Word::Slots, 4), [-1; 4]);
        assert_eq!(list(&plan, Word::Blocks, 3), blocks, "a span's table is there once");
        // The last segment's path: two cached runs, its parent's row, its own; the first one's rows are one run.
        let tiles = list(&plan, Word::AnswerTiles, 16);
        assert_eq!(tiles[8..13], [1, 1, 21, tiles[11], 4]);
        let runs = list(&plan, Word::Runs, (tiles[11] as usize + 4) * RUN);
        assert_eq!(runs[tiles[11] as usize * RUN..], [0, 18, !0, 0, 18, 2, !0, 20, 20, 1, 0, 0, 21, 1, 3, 0]);
        assert!(plan.words[Word::Runs as usize] % 4 == 0 && plan.words[Word::AllTiles as usize] % 4 == 0);
    }

    #[test]
    fn what_lies_together_is_one_run() {
        let pool = KvPool::new(3, 9);
        let (span, other) = (pool.allocate(40).expect("blocks"), pool.allocate(20).expect("blocks"));
        let part = |span: &Arc<_>, start, len| KvRef { span: Arc::clone(span), start, len };
        let past = [
            part(&span, 2, 3),
            part(&span, 5, 0),
            part(&span, 5, 20),
            part(&other, 25, 5),
            part(&other, 0, 2),
        ];
        let sequences = |cut| {
            let of =
                |tokens| Sequence { past: &past, key: (1, 2), position: 30, tokens, cut, read: Read::Grades };
            [of(&[1, 2, 3, 4][..]), of(&[1, 2, 3, 9][..])]
        };
        let runs = |cut| {
            let plan = Plan::of(&TokenTree::build(&sequences(cut)), 64, true);
            let tiles = list(&plan, Word::AnswerTiles, 2 * TILE).to_vec();
            [0, TILE].map(|at| {
                let (first, count) = (tiles[at + 3] as usize, tiles[at + 4] as usize);
                list(&plan, Word::Runs, (first + count) * RUN)[first * RUN..].to_vec()
            })
        };
        let [first, second] = runs(0);
        let cached = [0, 23, !0, 2, 23, 5, !3, 25, 28, 2, !3, 0];
        assert_eq!(first, [&cached[..], &[30, 4, 0, 0]].concat(), "its rows follow its parent's");
        assert_eq!(second, [&cached[..], &[30, 3, 0, 0, 33, 1, 4, 0]].concat());
        assert_eq!(runs(2), [first, second], "wherever they are cut");
    }

    #[test]
    fn kept_rows_have_slots_and_long_segments_have_tiles() {
        let tokens: Vec<u32> = (0..70).collect();
        let sequence =
            Sequence { past: &[], key: (0, 0), position: 0, tokens: &tokens, cut: 0, read: Read::Next };
        let mut tree = TokenTree::build(&[sequence]);
        let span = KvPool::new(3, 9).allocate(80).expect("blocks");
        let keep = KvRef { span, start: 4, len: 70 };
        let slot = |i: usize| word(keep.place(i).0 * BLOCK_TOKENS + (4 + i) % BLOCK_TOKENS);
        tree.segments[0].keep = Some(keep.clone());
        let plan = Plan::of(&tree, 2, false);
        let wanted: Vec<i32> = (0..70).map(slot).collect();
        assert_eq!(list(&plan, Word::Slots, 70), wanted);
        assert_eq!((plan.extent.tiles, plan.extent.wide, plan.extent.decoded), (3, 1, false));
        let tiles = list(&plan, Word::AllTiles, 24);
        assert_eq!([&tiles[..3], &tiles[8..11], &tiles[16..19]], [[64, 6, 64], [32, 32, 32], [0, 32, 0]]);
    }

    #[test]
    fn single_tokens_that_read_the_next_one_are_decoded() {
        let span = KvPool::new(0, 9).allocate(80).expect("blocks");
        let past = [KvRef { span, start: 0, len: 7 }];
        let of = |i, tokens, read| Sequence { past: &past, key: (9, i), position: 7, tokens, cut: 0, read };
        let decoded = |sequences: &[Sequence<'_>]| {
            let extent = Plan::of(&TokenTree::build(sequences), 2, true).extent;
            (extent.decoded, extent.wide, extent.graded)
        };
        let (one, two) = ([5], [5, 6]);
        assert_eq!(decoded(&[of(0, &one, Read::Next), of(1, &one, Read::Next)]), (true, 2, false));
        assert_eq!(decoded(&[of(0, &one, Read::Next), of(1, &two, Read::Next)]), (false, 2, false));
        assert_eq!(decoded(&[of(0, &one, Read::Nothing)]), (false, 0, false), "a prompt's part");
        assert_eq!(decoded(&[of(0, &one, Read::Next), of(1, &one, Read::Grades)]), (false, 2, true));
    }
}
