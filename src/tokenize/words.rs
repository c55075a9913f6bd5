//! A memory of how words are tokenized: most words of a request were seen before.
//!
//! Sound only for tokenizers that always begin a new piece at a space between two visible
//! characters, so that a text cut there gives the same tokens piece by piece. [`splits_at_spaces`]
//! recognises those whose pattern and normalizer are known to be so; for others there is no
//! memory and texts are tokenized whole.

use std::{
    collections::HashMap,
    ops::Range,
    sync::{PoisonError, RwLock, RwLockReadGuard, TryLockError},
};

use serde_json::Value;

/// Words that are remembered at most; then all are forgotten. With [`LONGEST`] it bounds the
/// memory to about 26 MB, and to about 10 MB for text as people write it.
const MOST: usize = 1 << 16;
/// Bytes of a word that is remembered at most: with its length it is 32 bytes.
const LONGEST: usize = 31;

/// Words that are looked for one after the other, before anything is made of the first: the machine then waits for the
/// memory of several at once.
const TOGETHER: usize = 16;
/// Bytes that are searched for spaces at once.
const BLOCK: usize = 64;

/// A token of a word, and the bytes of the word it stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Piece {
    id: u32,
    start: u8,
    end: u8,
}

/// Tokens of a text, each with the bytes it stands for.
type Tokens = Vec<(u32, Range<usize>)>;

/// A word in four words of the machine, zeros behind it, its length in the last byte: it is compared, and found in a
/// table, without looking elsewhere in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Word([u64; 4]);

/// What of each part of a [`Word`] belongs to a word of so many bytes.
static MASKS: [[u64; 4]; LONGEST + 1] = {
    let mut masks = [[0; 4]; LONGEST + 1];
    let mut len = 0;
    while len <= LONGEST {
        let mut byte = 0;
        while byte < len {
            masks[len][byte / 8] |= 0xff << (8 * (byte % 8));
            byte += 1;
        }
        len += 1;
    }
    masks
};

impl Word {
    /// None, and not remembered: words have a length.
    const NONE: Self = Self([0; 4]);

    /// The word at `range` of a text; [`Word::NONE`] if it is too long.
    fn at(text: &[u8], range: &Range<usize>) -> Self {
        let Some(masks) = MASKS.get(range.len()) else { return Self::NONE };
        let mut parts = match text[range.start..].first_chunk() {
            Some(chunk) => Self::parts(chunk),
            None => {
                let mut chunk = [0; 32];
                chunk[..range.len()].copy_from_slice(&text[range.clone()]);
                Self::parts(&chunk)
            }
        };
        parts.iter_mut().zip(masks).for_each(|(part, mask)| *part &= mask);
        parts[3] |= (range.len() as u64) << 56;
        Self(parts)
    }

    fn parts(chunk: &[u8; 32]) -> [u64; 4] {
        let (parts, _) = chunk.as_chunks();
        std::array::from_fn(|i| u64::from_le_bytes(parts[i]))
    }
}

/// The tokens of a word; most have one or two.
#[derive(Debug)]
enum Pieces {
    Few([Piece; 3], u8),
    Many(Box<[Piece]>),
}

impl Pieces {
    fn new(tokens: Tokens) -> Self {
        // A word's bytes are at most LONGEST, so positions in it fit.
        let piece =
            |(id, range): (u32, Range<usize>)| Piece { id, start: range.start as u8, end: range.end as u8 };
        let mut few = [Piece::default(); 3];
        if tokens.len() > few.len() {
            return Self::Many(tokens.into_iter().map(piece).collect());
        }
        let count = tokens.len() as u8;
        few.iter_mut().zip(tokens).for_each(|(place, token)| *place = piece(token));
        Self::Few(few, count)
    }

    fn as_slice(&self) -> &[Piece] {
        match self {
            Self::Few(few, count) => &few[..usize::from(*count)],
            Self::Many(many) => many,
        }
    }
}

type Known = HashMap<Word, Pieces, ahash::RandomState>;

/// Words and their tokens.
#[derive(Debug, Default)]
pub(super) struct Words {
    /// Hashed with a key that is drawn at start, as what is hashed is what users send.
    known: RwLock<Known>,
}

impl Words {
    /// Calls `each` with every token of `text` and its bytes, in order; unknown words are
    /// tokenized by `encode`.
    pub(super) fn tokens<E>(
        &self,
        text: &str,
        mut each: impl FnMut(u32, Range<usize>),
        encode: impl Fn(&str) -> Result<Tokens, E>,
    ) -> Result<(), E> {
        let mut learned = Vec::new();
        let mut known = self.read();
        let mut ranges = ranges(text);
        loop {
            let (mut group, mut words) = ([const { 0..0 }; TOGETHER], [Word::NONE; TOGETHER]);
            let mut count = 0;
            for range in ranges.by_ref().take(TOGETHER) {
                words[count] = Word::at(text.as_bytes(), &range);
                group[count] = range;
                count += 1;
            }
            if count == 0 {
                break;
            }
            let mut next = 0;
            while next < count {
                let mut found = [None; TOGETHER];
                for (found, word) in found[next..].iter_mut().zip(&words[next..count]) {
                    *found = known.get(word);
                }
                while let Some(pieces) = found.get(next).copied().flatten() {
                    let at = group[next].start;
                    let pieces = pieces.as_slice().iter();
                    pieces.for_each(|p| each(p.id, at + usize::from(p.start)..at + usize::from(p.end)));
                    next += 1;
                }
                if next < count {
                    // An unknown word may be a long one: nobody waits for it but this text.
                    drop(known);
                    let (word, range) = (words[next], group[next].clone());
                    let at = range.start;
                    let tokens = encode(&text[range])?;
                    tokens.iter().for_each(|(id, range)| each(*id, at + range.start..at + range.end));
                    learned.extend((word != Word::NONE).then_some((word, tokens)));
                    next += 1;
                    known = self.read();
                }
            }
        }
        drop(known);
        self.learn(learned);
        Ok(())
    }

    fn read(&self) -> RwLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers words, unless that would wait for those who read: all who come to read would wait behind it.
    fn learn(&self, learned: Vec<(Word, Tokens)>) {
        if learned.is_empty() {
            return;
        }
        let mut known = match self.known.try_write() {
            Ok(known) => known,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        if known.len() + learned.len() > MOST {
            known.clear();
        }
        let learned = learned.into_iter().take(MOST);
        known.extend(learned.map(|(word, tokens)| (word, Pieces::new(tokens))));
    }
}

/// The words of a text: each begins at its start or at a space between two [`is_visible`] characters.
fn ranges(text: &str) -> Ranges<'_> {
    Ranges { text, start: 0, block: 0, spaces: spaces(text.as_bytes()) }
}

struct Ranges<'a> {
    text: &'a str,
    /// Where the next word begins.
    start: usize,
    /// Where the block begins that is searched, and which of its bytes are spaces that were not looked at.
    block: usize,
    spaces: u64,
}

impl Iterator for Ranges<'_> {
    type Item = Range<usize>;

    fn next(&mut self) -> Option<Range<usize>> {
        let len = self.text.len();
        while self.block < len {
            if self.spaces == 0 {
                self.block += BLOCK;
                self.spaces = spaces(self.text.as_bytes().get(self.block..).unwrap_or_default());
                continue;
            }
            let at = self.block + self.spaces.trailing_zeros() as usize;
            self.spaces &= self.spaces - 1;
            if begins(self.text, at) {
                return Some(std::mem::replace(&mut self.start, at)..at);
            }
        }
        let start = std::mem::replace(&mut self.start, len);
        (start < len).then_some(start..len)
    }
}

/// Which of the first bytes are spaces; the first byte is the lowest bit.
fn spaces(bytes: &[u8]) -> u64 {
    let block = bytes.first_chunk().copied().unwrap_or_else(|| {
        let mut block = [0; BLOCK];
        block[..bytes.len()].copy_from_slice(bytes);
        block
    });
    let (eights, _) = block.as_chunks::<8>();
    eights.iter().rev().fold(0, |found, &eight| {
        const LOW: u64 = u64::from_le_bytes([0x7f; 8]);
        // Zero in place of spaces; then the high bits of bytes that are zero, gathered in the highest byte.
        let bytes = u64::from_le_bytes(eight) ^ u64::from_le_bytes([b' '; 8]);
        let zeros = !(((bytes & LOW) + LOW) | bytes | LOW);
        (found << 8) | ((zeros >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56)
    })
}

/// Whether a word begins at the space at `at`.
fn begins(text: &str, at: usize) -> bool {
    match (text.as_bytes()[..at].last(), text.as_bytes().get(at + 1)) {
        (Some(before), Some(after)) if before.is_ascii() && after.is_ascii() => {
            before.is_ascii_graphic() && after.is_ascii_graphic()
        }
        _ => {
            text[..at].chars().next_back().is_some_and(is_visible)
                && text[at + 1..].chars().next().is_some_and(is_visible)
        }
    }
}

/// Certainly not white space, to whichever version of Unicode.
fn is_visible(character: char) -> bool {
    character.is_ascii_graphic() || (!character.is_ascii() && character.is_alphanumeric())
}

/// Patterns of GPT's kind: after a visible character none of their branches crosses a space.
const PATTERNS: [&str; 3] = [
    // Qwen2 and Qwen3.
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    // Llama 3.
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    // verdict-mini.
    r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+",
];

/// Whether a tokenizer with this normalizer and pre-tokenizer (as in `tokenizer.json`) may be
/// used word by word.
pub(super) fn splits_at_spaces(normalizer: &Value, pre_tokenizer: &Value) -> bool {
    let steps = &pre_tokenizer["pretokenizers"];
    let (split, bytes) = (&steps[0], &steps[1]);
    let pattern = split["pattern"]["Regex"].as_str();
    pre_tokenizer["type"] == "Sequence"
        && steps.as_array().is_some_and(|steps| steps.len() == 2)
        && split["type"] == "Split"
        && split["behavior"] == "Isolated"
        && split["invert"] == false
        && pattern.is_some_and(|pattern| PATTERNS.contains(&pattern))
        && bytes["type"] == "ByteLevel"
        && bytes["add_prefix_space"] == false
        && bytes["use_regex"] == false
        && keeps_words_apart(normalizer)
}

/// Whether normalizing words apart and together is the same: nothing is done across spaces, or
/// white space is collapsed and trimmed and every text begins with one space, as every word then does.
fn keeps_words_apart(normalizer: &Value) -> bool {
    across_spaces(normalizer).is_empty() || spaces_singly(normalizer)
}

/// Whether a normalizer makes one space of white space, and none of what begins or ends a text.
pub(super) fn spaces_singly(normalizer: &Value) -> bool {
    match across_spaces(normalizer)[..] {
        [replace, strip, prepend] => {
            replace["type"] == "Replace"
                && replace["pattern"]["Regex"] == r"\s+"
                && replace["content"] == " "
                && strip["type"] == "Strip"
                && strip["strip_left"] == true
                && strip["strip_right"] == true
                && prepend["type"] == "Prepend"
                && prepend["prepend"] == " "
        }
        _ => false,
    }
}

/// The steps of a normalizer that do not look at characters alone: composing and lower case never join or part white
/// space and what is beside it.
fn across_spaces(normalizer: &Value) -> Vec<&Value> {
    let single = std::slice::from_ref(normalizer);
    let steps = match normalizer["normalizers"].as_array() {
        Some(steps) => steps.as_slice(),
        None if normalizer.is_null() => &[],
        None => single,
    };
    steps.iter().filter(|step| step["type"] != "NFC" && step["type"] != "Lowercase").collect()
}

#[cfg(test)]
mod tests;
