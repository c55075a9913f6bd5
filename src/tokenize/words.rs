//! A memory of how words are tokenized: most words of a request were seen before.
//!
//! Sound only for tokenizers that always begin a new piece at a space between two visible ASCII
//! characters, so that a text cut there gives the same tokens piece by piece. [`splits_at_spaces`]
//! recognises those whose pattern and normalizer are known to be so; for others there is no
//! memory and texts are tokenized whole.

use std::{
    collections::HashMap,
    ops::Range,
    sync::{PoisonError, RwLock},
};

use serde_json::Value;

/// Words that are remembered at most; then all are forgotten. With [`LONGEST`] it bounds the
/// memory to about 25 MB, and to about 6 MB for text as people write it.
const MOST: usize = 1 << 16;
/// Bytes of a word that is remembered at most.
const LONGEST: usize = 32;

/// A token of a word, and the bytes of the word it stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    id: u32,
    start: u8,
    end: u8,
}

/// Tokens of a text, each with the bytes it stands for.
type Tokens = Vec<(u32, Range<usize>)>;

/// Words and their tokens.
#[derive(Debug, Default)]
pub(super) struct Words {
    known: RwLock<HashMap<Box<str>, Box<[Piece]>>>,
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
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        for range in ranges(text) {
            let (word, at) = (&text[range.clone()], range.start);
            if let Some(pieces) = known.get(word) {
                pieces.iter().for_each(|p| each(p.id, at + usize::from(p.start)..at + usize::from(p.end)));
                continue;
            }
            let tokens = encode(word)?;
            tokens.iter().for_each(|(id, range)| each(*id, at + range.start..at + range.end));
            if word.len() <= LONGEST {
                learned.push((word, tokens));
            }
        }
        drop(known);
        self.learn(learned);
        Ok(())
    }

    fn learn(&self, learned: Vec<(&str, Tokens)>) {
        if learned.is_empty() {
            return;
        }
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() + learned.len() > MOST {
            known.clear();
        }
        for (word, tokens) in learned.into_iter().take(MOST) {
            // A word's bytes are at most LONGEST, so positions in it fit.
            let piece = |(id, range): (u32, Range<usize>)| Piece {
                id,
                start: range.start as u8,
                end: range.end as u8,
            };
            known.insert(word.into(), tokens.into_iter().map(piece).collect());
        }
    }
}

/// The words of a text: each begins at its start or at a space between two visible ASCII characters.
fn ranges(text: &str) -> impl Iterator<Item = Range<usize>> {
    let bytes = text.as_bytes();
    let mut start = 0;
    std::iter::from_fn(move || {
        if start >= bytes.len() {
            return None;
        }
        let cut = |i: &usize| {
            bytes[*i] == b' ' && bytes[i - 1].is_ascii_graphic() && bytes[i + 1].is_ascii_graphic()
        };
        let end = (start + 1..bytes.len().saturating_sub(1)).find(cut).unwrap_or(bytes.len());
        let range = start..end;
        start = end;
        Some(range)
    })
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
    let single = std::slice::from_ref(normalizer);
    let steps = match normalizer["normalizers"].as_array() {
        Some(steps) => steps.as_slice(),
        None if normalizer.is_null() => &[],
        None => single,
    };
    let rest: Vec<&Value> =
        steps.iter().filter(|step| step["type"] != "NFC" && step["type"] != "Lowercase").collect();
    match rest[..] {
        [] => true,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<&str> {
        ranges(text).map(|range| &text[range]).collect()
    }

    #[test]
    fn words_begin_at_spaces_between_visible_characters() {
        assert_eq!(words("a b, c.\nd  e f"), ["a", " b,", " c.\nd  e", " f"]);
        assert_eq!(words("é x é\u{301} y "), ["é x é\u{301} y "]);
        assert_eq!(words(" a b "), [" a", " b "]);
        assert_eq!(words(""), [""; 0]);
    }

    #[test]
    fn words_are_remembered_and_forgotten() {
        let memory = Words::default();
        let asked = std::cell::Cell::new(0);
        let lengths = |text: &str| {
            let mut found = Vec::new();
            let encode = |word: &str| {
                asked.set(asked.get() + 1);
                Ok::<_, ()>(vec![(word.len() as u32, 0..word.len())])
            };
            memory.tokens(text, |id, range| found.push((id, range)), encode).expect("encodes");
            found
        };
        let expected = vec![(3, 0..3), (5, 3..8), (5, 8..13)];
        assert_eq!(lengths("the same same"), expected);
        assert_eq!(asked.replace(0), 3);
        assert_eq!(lengths("the same same"), expected);
        assert_eq!(asked.replace(0), 0);
        lengths(&"x".repeat(LONGEST + 1));
        lengths(&"x".repeat(LONGEST + 1));
        assert_eq!(asked.replace(0), 2, "long words are not remembered");
        for index in 0..MOST {
            lengths(&index.to_string());
        }
        assert!(memory.known.read().expect("sound").len() <= MOST);
        assert_eq!(lengths("the same same"), expected);
    }
}
