//! `relevance.toml` and the built-in profiles: how a checkpoint is prompted and read.
//!
//! ```toml
//! name = "verdict-mini"
//! aliases = []
//! # profile = "qwen3-reranker"         # start from a built-in profile, and override it
//! [prompt]
//! template = "<|query|>{query}<|document|>{document}<|answer|>"   # see `prompt`
//! document = "{title} {text}"          # how a document that is an object becomes text
//! instruction = "the default instruction"
//! instruction_format = "{instruction}" # what stands for {instruction} when there is one
//! max_tokens = 512                     # of the whole prompt
//! free_questions = false               # whether a query may be any question with levels of its own
//! [score]
//! read = "expected"                    # or "softmax", with positive and negative: grade names
//! label_mass = true                    # false: the head multiplies the grades' rows alone
//! [[grades]]
//! token = "<|0|>"                      # one token: a control token's text, or plain text
//! name = "0"
//! label = "Irrelevant"
//! value = 0.0
//! [calibration]
//! temperature = 1.0                    # divides the logits
//! points = [[0, 0], [0.4, 0.2], [1, 1]]  # then a monotone map of the score
//! [explain]
//! stop = ["<|end|>"]
//! sections = ["intent", "verdict"]
//! max_tokens = 96
//! [explain.grounding]                  # keeps reasons true, see `grounding`; names the sections that
//! asked = "intent"                     # list the query's words,
//! found = "match"                      # those that are in the document,
//! missing = "gaps"                     # those that are not,
//! grade = "verdict"                    # and that name the grade,
//! grades = ["irrelevant", "exact"]     # in these words
//! none = "none"                        # an empty list
//! max_words = 10                       # the query's first words count
//! skip = ["the", "of"]                 # words that do not
//! [[probes]]
//! query = "…"
//! document = "…"
//! min_score = 0.6                      # and/or max_score
//! ```

mod check;
mod document;
mod file;

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::{
    error::{Code, Error, Result},
    grade::Score,
    grounding::Grounding,
    model::config::ModelConfig,
    prompt::Template,
    tokenize::Tokenizer,
};

use document::DocumentTemplate;

/// How a checkpoint is prompted and read. Checked against its tokenizer.
#[derive(Clone, Debug)]
pub struct Profile {
    /// The served model's name.
    pub name: String,
    /// Other names it answers to.
    pub aliases: Vec<String>,
    /// The prompt.
    pub template: Template,
    /// The instruction used when a request has none.
    pub instruction: String,
    /// Most tokens of a prompt.
    pub max_tokens: usize,
    /// Whether the model was made to judge any question by the levels that come with it.
    pub free_questions: bool,
    /// The scale, in its order; at least two.
    pub grades: Vec<Grade>,
    /// How the score is read from the grades' distribution.
    pub read: ScoreRead,
    /// Whether a score says how much of the whole vocabulary's probability fell on the grades.
    pub label_mass: bool,
    /// What is done to logits and score to make them honest.
    pub calibration: Calibration,
    /// How the model explains itself; `None` if it does not.
    pub explain: Option<ExplainProfile>,
    /// Pairs whose scores are known.
    pub probes: Vec<Probe>,
    /// Hex hash of everything above, however it was put together.
    pub hash: String,
    document: DocumentTemplate,
}

/// One grade of the scale.
#[derive(Clone, Debug, PartialEq)]
pub struct Grade {
    /// Short name, unique: the key in `probabilities`.
    pub name: String,
    /// What it means.
    pub label: String,
    /// Its place on the grade scale; finite.
    pub value: f64,
    /// The token that says it.
    pub token: u32,
    /// That token's text.
    pub text: String,
}

/// How the score is read, before calibration of the score.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScoreRead {
    /// The expected value, rescaled to \[0, 1\] by the smallest and largest value.
    Expected,
    /// The probability of one grade against another: indices into the grades.
    Softmax {
        /// The grade that means relevant.
        positive: usize,
        /// The grade that means not relevant.
        negative: usize,
    },
}

/// Calibration of a profile.
#[derive(Clone, Debug, PartialEq)]
pub struct Calibration {
    /// Divides the logits; positive.
    pub temperature: f64,
    /// Knots of a monotone piecewise-linear map of the score in \[0, 1\]; empty: none.
    pub points: Vec<[f64; 2]>,
}

/// How a model explains a grade.
#[derive(Clone, Debug)]
pub struct ExplainProfile {
    /// Any of them ends the text.
    pub stop_tokens: Arc<[u32]>,
    /// Names of the lines `name: …` that the text consists of; empty: free text.
    pub sections: Vec<String>,
    /// Most tokens of a text.
    pub max_tokens: usize,
    /// What keeps the text true, if it is asked for.
    pub grounding: Option<Arc<Grounding>>,
}

/// A pair whose score is known within bounds: scored before the server is ready.
#[derive(Clone, Debug, PartialEq)]
pub struct Probe {
    /// The query.
    pub query: String,
    /// The document.
    pub document: String,
    /// The instruction, if not the profile's.
    pub instruction: Option<String>,
    /// The score must not be below.
    pub min_score: Option<f64>,
    /// The score must not be above.
    pub max_score: Option<f64>,
}

/// A profile that comes with the program.
struct Builtin {
    name: &'static str,
    toml: &'static str,
    /// A checkpoint is this model's if its name holds all of these.
    marks: &'static [&'static str],
}

const BUILTINS: [Builtin; 2] = [
    Builtin {
        name: "qwen3-reranker",
        toml: include_str!("profile/builtin/qwen3-reranker.toml"),
        marks: &["qwen3", "reranker"],
    },
    Builtin {
        name: "mxbai-rerank-v2",
        toml: include_str!("profile/builtin/mxbai-rerank-v2.toml"),
        marks: &["mxbai", "rerank", "v2"],
    },
];

impl Profile {
    /// Reads a `relevance.toml`; `origin` (its path) begins every error message.
    ///
    /// `Invalid` for unknown or missing fields, values out of bounds, and grades that are not
    /// single distinct tokens after the prompt.
    pub fn from_toml(text: &str, origin: &str, tokenizer: &Tokenizer, config: &ModelConfig) -> Result<Self> {
        let file = parse(text, origin)?;
        let file = match &file.profile {
            None => file,
            Some(name) => {
                let base = BUILTINS.iter().find(|builtin| builtin.name == name).ok_or_else(|| {
                    Error::invalid(
                        origin,
                        format!("profile: no built-in {name:?}; there are {}", builtin_names()),
                    )
                })?;
                let base = parse(base.toml, base.name)?;
                file.over(base)
            }
        };
        check::profile(file, tokenizer, config).map_err(|problem| Error::invalid(origin, problem))
    }

    /// The built-in profile of a checkpoint without a `relevance.toml`, by what it is called:
    /// the names of its directory and in its files. `origin` (the directory) begins errors.
    ///
    /// `Invalid`, saying what to write, if none is known by these names.
    pub fn builtin(
        names: &[&str],
        origin: &str,
        tokenizer: &Tokenizer,
        config: &ModelConfig,
    ) -> Result<Self> {
        let names: Vec<String> = names.iter().map(|name| name.to_lowercase()).collect();
        let known = |builtin: &&Builtin| {
            names.iter().any(|name| builtin.marks.iter().all(|mark| name.contains(mark)))
        };
        let builtin = BUILTINS.iter().find(known).ok_or_else(|| {
            let remedy = format!(
                "write one with [prompt] and [[grades]], or with the line profile = \"…\", one of {}",
                builtin_names()
            );
            Error::invalid(
                origin,
                format!("no relevance.toml, and no built-in profile by these names: {names:?}; {remedy}"),
            )
        })?;
        Self::from_toml(builtin.toml, builtin.name, tokenizer, config)
    }

    /// The text of a document that is an object.
    pub fn render_document(&self, fields: &Map<String, Value>) -> String {
        self.document.render(fields)
    }

    /// Whether the document template names any of these fields.
    pub fn names_field_of(&self, fields: &Map<String, Value>) -> bool {
        self.document.names_field_of(fields)
    }

    /// Whether `name` is the model's name or one of its aliases.
    pub fn answers_to(&self, name: &str) -> bool {
        self.name == name || self.aliases.iter().any(|alias| alias == name)
    }

    /// The grades' tokens, in their order.
    pub fn grade_tokens(&self) -> Vec<u32> {
        self.grades.iter().map(|grade| grade.token).collect()
    }
}

impl Calibration {
    /// Maps a score in \[0, 1\] to one in \[0, 1\].
    pub fn apply(&self, score: f64) -> f64 {
        let (Some(first), Some(last)) = (self.points.first(), self.points.last()) else {
            return score.clamp(0.0, 1.0);
        };
        if score <= first[0] {
            return first[1];
        }
        for pair in self.points.windows(2) {
            let ([x0, y0], [x1, y1]) = (pair[0], pair[1]);
            if score <= x1 {
                return (y0 + (score - x0) / (x1 - x0) * (y1 - y0)).clamp(y0, y1);
            }
        }
        last[1]
    }
}

impl Probe {
    /// That there is no score to check, and why.
    pub fn not_scored(&self, error: Error) -> Error {
        let Self { query, document, .. } = self;
        let message =
            format!("the probe with query {query:?} and document {document:?} was not scored: {error}");
        Error::new(error.code(), message).with_cause(error)
    }

    /// `Internal`, naming probe, score and bound, if the score is outside.
    pub fn check(&self, score: Score) -> Result<()> {
        let score = score.get();
        let below = self.min_score.filter(|bound| score < *bound).map(|bound| ("below its min_score", bound));
        let above = self.max_score.filter(|bound| score > *bound).map(|bound| ("above its max_score", bound));
        match below.or(above) {
            None => Ok(()),
            Some((where_, bound)) => Err(Error::internal(format!(
                "the probe with query {:?} and document {:?} scored {score:.4}, {where_} of {bound}",
                self.query, self.document
            ))),
        }
    }
}

fn parse(text: &str, origin: &str) -> Result<file::File> {
    toml::from_str(text).map_err(|cause| {
        // The place is shown below the message, in lines of their own.
        Error::with_lines(Code::Invalid, format!("{origin}: {}", cause.to_string().trim_end()))
    })
}

fn builtin_names() -> String {
    BUILTINS.map(|builtin| format!("{:?}", builtin.name)).join(", ")
}

#[cfg(test)]
mod tests;
