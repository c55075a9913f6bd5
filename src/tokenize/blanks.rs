//! Runs of white space, for tokenizers that read each as one space.

use std::ops::Range;

/// Bytes that are searched at once.
const BLOCK: usize = 256;

/// A text with one space in place of each run of white space, and where in it there was more.
///
/// A tokenizer is far slower at such runs than at words that it met before, and nothing of them is left in the end. Runs within ASCII are enough to be fast: others are the tokenizer's own to replace, and so is what is
/// left of a run that has both.
pub(super) struct Short {
    text: String,
    /// Ends of spaces that stand for a run, and the bytes that were left out up to there.
    cuts: Vec<(usize, usize)>,
}

impl Short {
    /// `None` of a text that has no such run.
    pub(super) fn of(text: &str) -> Option<Self> {
        let first = first_run(text.as_bytes())?;
        let mut short = Self { text: String::with_capacity(text.len()), cuts: Vec::new() };
        let (mut rest, mut left_out) = (text, 0);
        let mut at = first;
        loop {
            let (before, run) = rest.split_at(at);
            let blanks = run.bytes().take_while(|&byte| blank(byte)).count();
            short.text.push_str(before);
            if blanks == 0 {
                return Some(short);
            }
            short.text.push(' ');
            left_out += blanks - 1;
            short.cuts.push((short.text.len(), left_out));
            rest = &run[blanks..];
            at = first_run(rest.as_bytes()).unwrap_or(rest.len());
        }
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Where a token's bytes are in the whole text. A run is its first byte to what begins in it, and all of it to what
    /// ends there.
    pub(super) fn whole(&self, range: &Range<usize>) -> Range<usize> {
        let left_out = |at: usize| match self.cuts.partition_point(|&(end, _)| end <= at) {
            0 => 0,
            cuts => self.cuts[cuts - 1].1,
        };
        range.start + left_out(range.start)..range.end + left_out(range.end)
    }
}

/// Where two blanks are beside each other.
fn first_run(bytes: &[u8]) -> Option<usize> {
    let next = bytes.get(1..)?;
    let mut blocks = bytes.chunks(BLOCK).zip(next.chunks(BLOCK)).enumerate();
    // No way out within a block: so it is compared many bytes at a time.
    let pair = |(&one, &two): (&u8, &u8)| blank(one) & blank(two);
    let (block, (ones, twos)) = blocks
        .find(|(_, (ones, twos))| ones.iter().zip(*twos).fold(false, |found, both| found | pair(both)))?;
    Some(block * BLOCK + ones.iter().zip(twos).position(pair)?)
}

/// White space in ASCII.
fn blank(byte: u8) -> bool {
    (byte == b' ') | (byte.wrapping_sub(b'\t') <= b'\r' - b'\t')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn short(text: &str) -> Option<String> {
        Short::of(text).map(|short| short.text)
    }

    #[test]
    fn runs_become_one_space() {
        for text in ["", " ", "a b", "a\nb ", "a \u{a0} b", "é\u{3000}\u{3000}x"] {
            assert_eq!(short(text), None, "{text:?}");
        }
        for (text, expected) in [
            ("  ", " "),
            ("a  b", "a b"),
            ("a\n\nb c\t \u{b}\u{c}\r\n", "a b c "),
            ("\t\ta \u{a0}  \u{a0}\nb", " a \u{a0} \u{a0}\nb"),
        ] {
            assert_eq!(short(text).as_deref(), Some(expected), "{text:?}");
        }
        let far = "x ".repeat(BLOCK) + "y";
        for at in BLOCK - 3..BLOCK + 3 {
            assert_eq!(
                short(&(far[..at].replace(' ', "-") + "  y")),
                Some(far[..at].replace(' ', "-") + " y")
            );
        }
    }

    #[test]
    fn places_are_those_in_the_whole_text() {
        let text = "ab   cd\n\n\ne";
        let short = Short::of(text).expect("runs");
        assert_eq!(short.text(), "ab cd e");
        for (range, whole) in [(0..2, "ab"), (2..5, "   cd"), (3..5, "cd"), (2..3, "   "), (5..7, "\n\n\ne")]
        {
            assert_eq!(text.get(short.whole(&range)), Some(whole), "{range:?}");
        }
    }
}
