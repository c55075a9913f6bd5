//! Reasons whose claims hold: what each line may say of a query and a document. Pure.
//!
//! A profile's `[explain.grounding]` names four sections: one lists words of the query, one those
//! of them that are in the document, one those that are not, one names the reported grade. The
//! model writes the reason; a [`Guard`] looks at every token before it counts, and one that would
//! make a line say something untrue, or break the form, gives way to the rule's own next token.
//! Which words are listed, in which order, and when a list ends is the model's choice.

mod guard;
mod words;

use std::collections::HashSet;

use crate::{error::Result, tokenize::Tokenizer};

pub use guard::Guard;

/// A profile's rule, checked against its tokenizer.
#[derive(Clone, Debug)]
pub struct Grounding {
    /// In the reason's order.
    sections: Vec<Section>,
    /// What the section of the grade says, by grade.
    grades: Vec<Vec<u32>>,
    /// Stands for an empty list.
    none: Vec<u32>,
    /// Ends the reason.
    stop: u32,
    /// The word that stands for an empty list, and so for nothing else.
    none_word: String,
    /// Words that are not listed, in lower case.
    skip: HashSet<String>,
    /// Words of a query that count.
    most_words: usize,
    spelling: Tokenizer,
}

#[derive(Clone, Debug)]
struct Section {
    /// Its name and colon, after the line break before it.
    opening: Vec<u32>,
    says: Says,
}

/// What a section says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Says {
    /// Words of the query.
    Asked,
    /// Words of the query that are in the document.
    Found,
    /// Words of the query that are not in the document.
    Missing,
    /// The reported grade.
    Grade,
}

/// A rule as a profile writes it.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Name of every section and what it says, in the reason's order.
    pub sections: Vec<(String, Says)>,
    /// What the section of the grade says, for each grade of the profile in its order.
    pub grades: Vec<String>,
    /// Stands for an empty list; as a word of a query it is never listed.
    pub none: String,
    /// Ends the reason.
    pub stop: u32,
    /// Words that are never listed, unless a query has no others.
    pub skip: Vec<String>,
    /// Words of a query that are listed at most: its first.
    pub most_words: usize,
}

/// What is true of a query and a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The query's words that count, each once, in its order.
    asked: Vec<Asked>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Asked {
    /// A space and the word.
    tokens: Vec<u32>,
    found: bool,
}

impl Grounding {
    /// Spells the rule in a tokenizer's tokens.
    ///
    /// # Errors
    ///
    /// What is wrong, if the tokenizer cannot write the lines such that they read the same.
    pub fn new(rule: Rule, tokenizer: &Tokenizer) -> std::result::Result<Self, String> {
        let written = |(name, says): &(String, Says)| match says {
            Says::Grade => format!("{name}: {}", rule.grades.join(" ")),
            _ => format!("{name}: {}", rule.none),
        };
        let sample = rule.sections.iter().map(written).collect::<Vec<_>>().join("\n");
        // A normalizer that tidies white space is for prompts: reasons have line breaks.
        let candidates =
            [tokenizer.clone(), tokenizer.without_normalizer().map_err(|error| error.to_string())?];
        let reads_back = |speller: &&Tokenizer| {
            speller.encode(&sample).and_then(|ids| speller.decode(&ids)).is_ok_and(|text| text == sample)
        };
        let spelling = candidates
            .iter()
            .find(reads_back)
            .ok_or_else(|| format!("the tokenizer cannot write {sample:?} such that it reads the same"))?;
        let spell = |text: &str| spelling.encode(text).map_err(|error| error.to_string());
        let mut sections = Vec::with_capacity(rule.sections.len());
        for (index, (name, says)) in rule.sections.iter().enumerate() {
            let line_break = if index == 0 { "" } else { "\n" };
            sections.push(Section { opening: spell(&format!("{line_break}{name}:"))?, says: *says });
        }
        Ok(Self {
            sections,
            grades: rule
                .grades
                .iter()
                .map(|text| spell(&format!(" {text}")))
                .collect::<std::result::Result<_, _>>()?,
            none: spell(&format!(" {}", rule.none))?,
            stop: rule.stop,
            none_word: rule.none.to_lowercase(),
            skip: rule.skip.iter().map(|word| word.to_lowercase()).collect(),
            most_words: rule.most_words,
            spelling: spelling.clone(),
        })
    }

    /// What is true of a query and a document: which of the query's words are in it, inflected or not.
    ///
    /// # Errors
    ///
    /// `Internal` if the tokenizer fails.
    pub fn facts(&self, query: &str, document: &str) -> Result<Facts> {
        let mut seen = HashSet::new();
        let counts = |word: &String| *word != self.none_word && seen.insert(word.clone());
        let all: Vec<String> = words::words(query).filter(counts).collect();
        let telling: Vec<String> = all.iter().filter(|word| !self.skip.contains(*word)).cloned().collect();
        let chosen = if telling.is_empty() { all } else { telling };
        let chosen: Vec<String> = chosen.into_iter().take(self.most_words).collect();
        let forms: Vec<String> = chosen.iter().map(|word| words::form(word)).collect();
        let found = among(&forms, document);
        let mut asked = Vec::with_capacity(chosen.len());
        for (word, found) in chosen.iter().zip(found) {
            let text = format!(" {word}");
            let tokens = self.spelling.encode(&text)?;
            // A word that the tokenizer cannot write is not listed.
            if self.spelling.decode(&tokens)?.trim_start() == word {
                asked.push(Asked { tokens, found });
            }
        }
        Ok(Facts { asked })
    }
}

/// Which of some forms a document has; reads no further than it must.
fn among(forms: &[String], document: &str) -> Vec<bool> {
    let mut found = vec![false; forms.len()];
    let mut left = forms.len();
    for word in words::words(document) {
        if left == 0 {
            break;
        }
        let first = word.as_bytes().first();
        // Folding is dear, and keeps the first letter.
        if !forms.iter().zip(&found).any(|(form, found)| !found && form.as_bytes().first() == first) {
            continue;
        }
        let word = words::form(&word);
        for (_, found) in forms.iter().zip(&mut found).filter(|(form, _)| **form == word) {
            left -= usize::from(!std::mem::replace(found, true));
        }
    }
    found
}

#[cfg(test)]
mod tests;
