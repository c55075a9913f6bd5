//! Prompt template to token ids, and the truncation rule. Pure.
//!
//! A template is text with placeholders and control tokens:
//!
//! ```text
//! <|im_start|>user\nQuery: {query}\n{|}Document: {document}<|im_end|>
//! ```
//!
//! - `{instruction}`, `{query}`, `{document}` are replaced; `{{` and `}}` are braces.
//! - The tokenizer's added tokens become their ids; nothing in a user's text does.
//! - What stands between control tokens, literals and user text together, is
//!   tokenized as one text, so that the ids are those Hugging Face gives for the
//!   whole prompt. `{|}` is a seam: the texts on its two sides are tokenized apart,
//!   for prompts that are published so, and to tokenize the query's side only once.

mod instructed;
mod template;

use std::ops::Range;

use crate::{
    error::{Code, Error, Result},
    tokenize::Tokenizer,
};

pub use instructed::Instructed;
pub use template::Template;

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

/// What to do with a document that does not fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Truncation {
    /// Cut the document's end, at a token boundary.
    #[default]
    Document,
    /// Refuse the pair with `TooLarge`.
    Error,
}

/// A template filled with one query: renders any number of documents.
#[derive(Clone, Debug)]
pub struct QueryPrompt {
    tokenizer: Tokenizer,
    /// Tokens before the run that holds the document.
    head: Vec<u32>,
    /// Text of that run before the document.
    prefix: String,
    /// Text of that run after the document.
    suffix: String,
    /// Tokens after that run: the answer suffix.
    tail: Vec<u32>,
    /// How the run begins whatever the document is.
    common: Vec<u32>,
    /// Tokens of the prompt around an empty document.
    fixed: usize,
    max_tokens: usize,
}

/// Bytes per token up to which a document is tokenized at first; more only if they fit.
const BYTES_PER_TOKEN: usize = 8;

impl QueryPrompt {
    /// The prompt for one document, in at most the query's `max_tokens`.
    ///
    /// Only the document is cut, to the longest beginning of it that ends where one
    /// of its tokens ends and fits: the tokens are those of rendering that beginning.
    /// `TooLarge` if it does not fit and `truncation` says so, or if nothing of it would be left.
    /// Time is bounded by `max_tokens` and by what of the document leaves no tokens, as white space may.
    pub fn render(&self, document: &str, truncation: Truncation) -> Result<Prompt> {
        let mut bound = (self.max_tokens - self.fixed).saturating_mul(BYTES_PER_TOKEN);
        loop {
            let text = &document[..document.floor_char_boundary(bound)];
            let whole = text.len() == document.len();
            let tokens = self.tokens(text)?;
            let fits = tokens.len() <= self.max_tokens;
            if whole && fits {
                return Ok(self.prompt(tokens, false));
            }
            if fits {
                bound = bound.saturating_mul(2);
                continue;
            }
            if truncation == Truncation::Error {
                return Err(self.too_large(tokens.len(), whole));
            }
            return self.cut(text);
        }
    }

    /// Shortens `text`, which does not fit, until it does.
    fn cut(&self, mut text: &str) -> Result<Prompt> {
        loop {
            text = &text[..self.shorter(text)?];
            if text.is_empty() {
                return Err(no_room(self.max_tokens, self.fixed));
            }
            let tokens = self.tokens(text)?;
            if tokens.len() <= self.max_tokens {
                return Ok(self.prompt(tokens, true));
            }
        }
    }

    /// Bytes of `text` to keep so that as many tokens go as are too many; less than all.
    fn shorter(&self, text: &str) -> Result<usize> {
        let (begin, end) = (self.prefix.len(), self.prefix.len() + text.len());
        let run = [&self.prefix, text, &self.suffix].concat();
        let tokens = self.tokenizer.encode_with_offsets(&run)?;
        let available = self.max_tokens - self.head.len() - self.tail.len();
        let excess = tokens.len().saturating_sub(available).max(1);
        let in_document = tokens.partition_point(|(_, range)| range.start < end);
        let keep = in_document
            .checked_sub(excess)
            .and_then(|index| tokens.get(index))
            .map_or(0, |(_, range)| range.start.saturating_sub(begin));
        // A tokenizer whose offsets do not advance must not stop the loop above from ending.
        let keep = keep.min(text.len().saturating_sub(1));
        Ok(text.floor_char_boundary(keep))
    }

    fn tokens(&self, document: &str) -> Result<Vec<u32>> {
        let mut tokens = Vec::with_capacity(self.fixed + document.len() / 3 + 8);
        tokens.extend_from_slice(&self.head);
        if self.prefix.is_empty() && self.suffix.is_empty() {
            self.tokenizer.encode_into(document, &mut tokens)?;
        } else {
            let run = [&self.prefix, document, &self.suffix].concat();
            self.tokenizer.encode_into(&run, &mut tokens)?;
        }
        tokens.extend_from_slice(&self.tail);
        Ok(tokens)
    }

    fn prompt(&self, tokens: Vec<u32>, truncated: bool) -> Prompt {
        let end = tokens.len() - self.tail.len();
        let start = self.head.len() + common_length(&self.common, &tokens[self.head.len()..end]);
        Prompt { document: start..end, tokens, truncated }
    }

    fn too_large(&self, tokens: usize, whole: bool) -> Error {
        let (limit, value) = (self.max_tokens - self.fixed, tokens - self.fixed.min(tokens));
        if whole {
            return Error::too_large("document", "tokens", limit, value);
        }
        more_than("document", limit, value)
    }
}

/// A field whose beginning is too large already.
fn more_than(field: &str, limit: usize, tokens: usize) -> Error {
    Error::new(Code::TooLarge, format!("{field}: more than {tokens} tokens, over the limit of {limit}"))
}

/// The query and what surrounds it leave no room for a document.
fn no_room(max_tokens: usize, fixed: usize) -> Error {
    let unit = "tokens with the instruction and the prompt around it";
    Error::too_large("query", unit, max_tokens.saturating_sub(1), fixed)
}

/// How many elements two slices begin with in common.
fn common_length(left: &[u32], right: &[u32]) -> usize {
    left.iter().zip(right).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests;
