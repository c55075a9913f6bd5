//! Prompt template to token ids, and the truncation rule. Pure.

use std::ops::Range;

/// One pair's rendered prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// The whole prompt; the answer position is the last token.
    pub tokens: Vec<u32>,
    /// Tokens (partly) made of the document. What stands before `start` is
    /// shared by every document of the query and worth keeping in the prefix cache.
    pub document: Range<usize>,
    /// Whether the document was cut to fit.
    pub truncated: bool,
}
