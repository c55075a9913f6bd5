//! Parsing a template.

use crate::{
    error::{Error, Result},
    tokenize::Tokenizer,
};

use super::{Instructed, QueryPrompt, common_length};

/// A parsed prompt template.
#[derive(Clone, Debug)]
pub struct Template {
    /// Blocks before the run that holds the document.
    pub(super) head: Vec<Block>,
    /// That run before the document.
    pub(super) prefix: Vec<Part>,
    /// That run after the document.
    pub(super) suffix: Vec<Part>,
    /// Blocks after it.
    pub(super) tail: Vec<Block>,
    /// Text put before and after an instruction that is not empty.
    instruction_affixes: (String, String),
    /// What is known of the document's run when no query is part of it.
    pub(super) fixed_run: Option<Run>,
}

/// A piece of a template that is tokenized on its own.
#[derive(Clone, Debug)]
pub(super) enum Block {
    Control(u32),
    Run(Vec<Part>),
    /// A run of literals alone, and its tokens.
    Literal {
        text: String,
        tokens: Vec<u32>,
    },
}

/// A piece of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Literal(String),
    Instruction,
    Query,
    Document,
}

/// A piece of a template as it is written.
enum Piece {
    Part(Part),
    Control(u32),
    Seam,
}

/// The texts around the document in its run, and what they say about its tokens.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub(super) prefix: String,
    pub(super) suffix: String,
    /// The run's tokens that are the same before any document.
    pub(super) common: Vec<u32>,
    /// The run's tokens around an empty document.
    pub(super) empty_tokens: usize,
}

/// Beginnings of documents that a pre-tokenizer may join differently to what stands before.
const BEGINNINGS: [&str; 8] = ["a", "A1", "7", " a", "\n", "- ", "\u{301}", "'s"];

impl Template {
    /// Parses a template; the control tokens in its literals are those of `tokenizer`.
    ///
    /// `Invalid` unless `{document}` stands in it once and `{query}` at least once.
    pub fn parse(template: &str, tokenizer: &Tokenizer) -> Result<Self> {
        let mut blocks: Vec<Block> = Vec::new();
        let mut run: Vec<Part> = Vec::new();
        for piece in pieces(template, tokenizer)? {
            match piece {
                Piece::Part(part) => run.push(part),
                Piece::Control(id) => {
                    blocks.push(Block::Run(std::mem::take(&mut run)));
                    blocks.push(Block::Control(id));
                }
                Piece::Seam => blocks.push(Block::Run(std::mem::take(&mut run))),
            }
        }
        blocks.push(Block::Run(run));
        blocks.retain(|block| !matches!(block, Block::Run(parts) if parts.is_empty()));
        Self::from_blocks(blocks, tokenizer)
    }

    fn from_blocks(blocks: Vec<Block>, tokenizer: &Tokenizer) -> Result<Self> {
        let count = |wanted: &Part| {
            blocks
                .iter()
                .map(|block| block.parts().iter().filter(|part| *part == wanted).count())
                .sum::<usize>()
        };
        if count(&Part::Document) != 1 {
            let found = count(&Part::Document);
            return Err(Error::invalid(
                "template",
                format!("{{document}} must stand in it once, not {found} times"),
            ));
        }
        if count(&Part::Query) == 0 {
            return Err(Error::invalid("template", "{query} must stand in it"));
        }
        let (mut head, mut tail) = (Vec::new(), Vec::new());
        let (mut prefix, mut suffix) = (Vec::new(), Vec::new());
        let mut passed = false;
        for block in blocks {
            let at = block.parts().iter().position(|part| *part == Part::Document);
            match (block, at) {
                (Block::Run(mut parts), Some(at)) => {
                    suffix = parts.split_off(at + 1);
                    parts.truncate(at);
                    prefix = parts;
                    passed = true;
                }
                (block, _) if passed => tail.push(block),
                (block, _) => head.push(block),
            }
        }
        let instruction_affixes = Default::default();
        let mut template = Self { head, prefix, suffix, tail, instruction_affixes, fixed_run: None };
        for block in template.head.iter_mut().chain(&mut template.tail) {
            block.settle(tokenizer)?;
        }
        let literal = |part: &Part| matches!(part, Part::Literal(_));
        if template.prefix.iter().chain(&template.suffix).all(literal) {
            template.fixed_run = Some(template.run("", "", tokenizer)?);
        }
        Ok(template)
    }

    /// The control tokens that every prompt begins with.
    pub fn first_controls(&self) -> Vec<u32> {
        let control = |block: &Block| if let Block::Control(id) = block { Some(*id) } else { None };
        self.head.iter().map_while(control).collect()
    }

    /// Sets the text around an instruction: `format` holds `{instruction}` once, and
    /// replaces that placeholder when an instruction is given; nothing does otherwise.
    pub fn with_instruction_format(mut self, format: &str) -> Result<Self> {
        let Some((before, after)) = format.split_once("{instruction}") else {
            return Err(Error::invalid("instruction_format", "{instruction} must stand in it"));
        };
        self.instruction_affixes = (before.to_owned(), after.to_owned());
        Ok(self)
    }

    /// Fills in an instruction: what does not depend on the query is tokenized here, once.
    ///
    /// `TooLarge`, naming the instruction, if it leaves no room for anything else within `max_tokens`.
    pub fn for_instruction<'a>(
        &'a self,
        tokenizer: &'a Tokenizer,
        instruction: &'a str,
        max_tokens: usize,
    ) -> Result<Instructed<'a>> {
        Instructed::new(self, tokenizer, instruction, max_tokens)
    }

    /// As [`Template::for_instruction`], for one query alone.
    ///
    /// `TooLarge` (naming the query or the instruction) if no room is left for a document
    /// within `max_tokens`.
    pub fn for_query(
        &self,
        tokenizer: &Tokenizer,
        instruction: &str,
        query: &str,
        max_tokens: usize,
    ) -> Result<QueryPrompt> {
        self.for_instruction(tokenizer, instruction, max_tokens)?.for_query(query)
    }

    /// The tokens that `answer` adds right after the prompt, tokenized together with it.
    ///
    /// `None` if it changes the tokens before it. Placeholders in the last run stand for a word.
    pub fn appended(&self, tokenizer: &Tokenizer, answer: &str) -> Result<Option<Vec<u32>>> {
        let last = match self.tail.last() {
            Some(Block::Control(_)) => String::new(),
            Some(Block::Literal { text, .. }) => text.clone(),
            Some(Block::Run(parts)) => self.text(parts, "word", "word"),
            None => {
                let text = |parts| self.text(parts, "word", "word");
                format!("{}word{}", text(&self.prefix), text(&self.suffix))
            }
        };
        let before = tokenizer.encode(&last)?;
        let after = tokenizer.encode(&(last + answer))?;
        Ok(after.strip_prefix(before.as_slice()).map(<[u32]>::to_vec))
    }

    /// The texts of the document's run, with what they make of any document's first tokens.
    pub(super) fn run(&self, instruction: &str, query: &str, tokenizer: &Tokenizer) -> Result<Run> {
        let prefix = self.text(&self.prefix, instruction, query);
        let suffix = self.text(&self.suffix, instruction, query);
        let bare = tokenizer.encode(&format!("{prefix}{suffix}"))?;
        let empty_tokens = bare.len();
        let mut common = if prefix.is_empty() { Vec::new() } else { bare };
        for beginning in BEGINNINGS {
            if common.is_empty() {
                break;
            }
            let tokens = tokenizer.encode(&format!("{prefix}{beginning}{suffix}"))?;
            common.truncate(common_length(&common, &tokens));
        }
        Ok(Run { prefix, suffix, common, empty_tokens })
    }

    pub(super) fn text(&self, parts: &[Part], instruction: &str, query: &str) -> String {
        let mut text = String::new();
        for part in parts {
            match part {
                Part::Literal(literal) => text.push_str(literal),
                Part::Query => text.push_str(query),
                Part::Instruction if instruction.is_empty() => {}
                Part::Instruction => {
                    let (before, after) = &self.instruction_affixes;
                    text.extend([before, instruction, after]);
                }
                // The run that holds it is split around it.
                Part::Document => {}
            }
        }
        text
    }
}

impl Block {
    /// Tokenizes a run of literals once and for all.
    fn settle(&mut self, tokenizer: &Tokenizer) -> Result<()> {
        if let Block::Run(parts) = self {
            let mut text = String::new();
            for part in parts {
                let Part::Literal(literal) = part else { return Ok(()) };
                text.push_str(literal);
            }
            *self = Block::Literal { tokens: tokenizer.encode(&text)?, text };
        }
        Ok(())
    }

    fn parts(&self) -> &[Part] {
        match self {
            Block::Control(_) | Block::Literal { .. } => &[],
            Block::Run(parts) => parts,
        }
    }
}

/// Splits a template at its placeholders and control tokens.
fn pieces(template: &str, tokenizer: &Tokenizer) -> Result<Vec<Piece>> {
    let mut pieces = Vec::new();
    let mut literal = String::new();
    let mut rest = template;
    while let Some(at) = rest.find(['{', '}']) {
        literal.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(brace) = ["{{", "}}"].into_iter().find(|pair| rest.starts_with(pair)) {
            literal.push_str(&brace[1..]);
            rest = &rest[2..];
            continue;
        }
        let name = rest.strip_prefix('{').and_then(|text| Some(&text[..text.find('}')?]));
        let piece = match name {
            Some("instruction") => Piece::Part(Part::Instruction),
            Some("query") => Piece::Part(Part::Query),
            Some("document") => Piece::Part(Part::Document),
            Some("|") => Piece::Seam,
            Some(other) => {
                let known = "{instruction}, {query}, {document} and the seam {|}; write {{ and }} for braces";
                return Err(Error::invalid(
                    "template",
                    format!("unknown placeholder {{{other}}}; there are {known}"),
                ));
            }
            None => return Err(Error::invalid("template", "a lone brace; write {{ or }}")),
        };
        rest = &rest[name.map_or(0, str::len) + 2..];
        split_literal(&std::mem::take(&mut literal), tokenizer, &mut pieces)?;
        pieces.push(piece);
    }
    literal.push_str(rest);
    split_literal(&literal, tokenizer, &mut pieces)?;
    Ok(pieces)
}

/// Splits a literal at its control tokens.
fn split_literal(mut literal: &str, tokenizer: &Tokenizer, pieces: &mut Vec<Piece>) -> Result<()> {
    while !literal.is_empty() {
        let found = tokenizer.find_control(literal)?;
        let text = &literal[..found.as_ref().map_or(literal.len(), |found| found.range.start)];
        if !text.is_empty() {
            pieces.push(Piece::Part(Part::Literal(text.to_owned())));
        }
        literal = match found {
            Some(found) => {
                pieces.push(Piece::Control(found.id));
                &literal[found.range.end..]
            }
            None => "",
        };
    }
    Ok(())
}
