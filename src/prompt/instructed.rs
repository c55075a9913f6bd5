//! Filling a template: first with an instruction, then with queries.

use crate::{
    error::{Error, Result},
    tokenize::Tokenizer,
};

use super::{
    QueryPrompt, Template, more_than, no_room,
    template::{Block, Part, Run},
};

/// A template filled with one instruction: fills in any number of queries.
#[derive(Debug)]
pub struct Instructed<'a> {
    template: &'a Template,
    tokenizer: &'a Tokenizer,
    instruction: &'a str,
    /// Before and after the run that holds the document.
    head: Vec<Piece<'a>>,
    tail: Vec<Piece<'a>>,
    /// That run, if no query is part of it.
    run: Option<Run>,
    max_tokens: usize,
}

/// A piece of the prompt: what is the same for every query, or a run that holds the query. Such a run is
/// tokenized whole: a tokenizer may join the query to what stands beside it.
#[derive(Debug)]
enum Piece<'a> {
    Tokens(Vec<u32>),
    Query(&'a [Part]),
}

impl<'a> Instructed<'a> {
    pub(super) fn new(
        template: &'a Template,
        tokenizer: &'a Tokenizer,
        instruction: &'a str,
        max_tokens: usize,
    ) -> Result<Self> {
        check_size("instruction", instruction, tokenizer, max_tokens)?;
        let run = match &template.fixed_run {
            Some(run) => Some(run.clone()),
            None if template.prefix.iter().chain(&template.suffix).any(|part| *part == Part::Query) => None,
            None => Some(template.run(instruction, "", tokenizer)?),
        };
        let (head, tail) = (Vec::new(), Vec::new());
        let mut filled = Self { template, tokenizer, instruction, head, tail, run, max_tokens };
        filled.head = filled.pieces(&template.head)?;
        filled.tail = filled.pieces(&template.tail)?;
        let bare = filled.bare_tokens()?;
        if bare >= max_tokens && !instruction.is_empty() {
            let limit = max_tokens.saturating_sub(1);
            return Err(Error::too_large("instruction", "tokens with the prompt around it", limit, bare));
        }
        Ok(filled)
    }

    /// Fills in a query: what does not depend on the document is tokenized here, once.
    ///
    /// `TooLarge`, naming the query, if no room is left for a document.
    pub fn for_query(&self, query: &str) -> Result<QueryPrompt> {
        let max_tokens = self.max_tokens;
        check_size("query", query, self.tokenizer, max_tokens)?;
        let head = self.encode(&self.head, query)?;
        let tail = self.encode(&self.tail, query)?;
        let run = match &self.run {
            Some(run) => run.clone(),
            None => self.template.run(self.instruction, query, self.tokenizer)?,
        };
        let fixed = head.len() + run.empty_tokens + tail.len();
        if fixed >= max_tokens {
            return Err(no_room(max_tokens, fixed));
        }
        let Run { prefix, suffix, common, .. } = run;
        let tokenizer = self.tokenizer.clone();
        Ok(QueryPrompt { tokenizer, head, prefix, suffix, tail, common, fixed, max_tokens })
    }

    /// Tokens of the prompt around an empty query and an empty document.
    fn bare_tokens(&self) -> Result<usize> {
        let run = match &self.run {
            Some(run) => run.empty_tokens,
            None => {
                let text = |parts| self.template.text(parts, self.instruction, "");
                let text = text(&self.template.prefix) + &text(&self.template.suffix);
                self.tokenizer.encode(&text)?.len()
            }
        };
        Ok(self.encode(&self.head, "")?.len() + run + self.encode(&self.tail, "")?.len())
    }

    fn pieces(&self, blocks: &'a [Block]) -> Result<Vec<Piece<'a>>> {
        let mut pieces = Vec::new();
        let mut tokens = Vec::new();
        for block in blocks {
            match block {
                Block::Control(id) => tokens.push(*id),
                Block::Literal { tokens: literal, .. } => tokens.extend_from_slice(literal),
                Block::Run(parts) if parts.contains(&Part::Query) => {
                    pieces.push(Piece::Tokens(std::mem::take(&mut tokens)));
                    pieces.push(Piece::Query(parts));
                }
                Block::Run(parts) => {
                    let text = self.template.text(parts, self.instruction, "");
                    self.tokenizer.encode_into(&text, &mut tokens)?;
                }
            }
        }
        pieces.push(Piece::Tokens(tokens));
        Ok(pieces)
    }

    fn encode(&self, pieces: &[Piece<'_>], query: &str) -> Result<Vec<u32>> {
        let mut tokens = Vec::new();
        for piece in pieces {
            match piece {
                Piece::Tokens(known) => tokens.extend_from_slice(known),
                Piece::Query(parts) => {
                    let text = self.template.text(parts, self.instruction, query);
                    self.tokenizer.encode_into(&text, &mut tokens)?;
                }
            }
        }
        Ok(tokens)
    }
}

/// `TooLarge` if a text cannot fit, whatever is around it. To say how much too large it is would be costly:
/// of a long text a beginning is tokenized, and a longer one if that fits, as white space may leave no tokens.
fn check_size(field: &str, text: &str, tokenizer: &Tokenizer, max_tokens: usize) -> Result<()> {
    let longest = tokenizer.longest_token_bytes();
    let mut bound = max_tokens.max(1).saturating_mul(longest);
    while bound < text.len() {
        let tokens = tokenizer.encode(&text[..text.floor_char_boundary(bound)])?.len();
        // A token that is cut may be as many as it has bytes.
        if tokens > max_tokens.saturating_add(longest) {
            return Err(more_than(field, max_tokens.saturating_sub(1), tokens));
        }
        bound = bound.saturating_mul(2);
    }
    Ok(())
}
