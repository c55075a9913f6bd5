//! What the dialects' answers have in common.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::{
    error::Result,
    grade::Score,
    service::{PairScore, ScoreResponse},
};

/// One scored document.
pub(super) struct Row<'a> {
    /// Its place in the request.
    pub(super) index: usize,
    /// Its text as it was rendered, if the answer was to have it.
    pub(super) text: Option<&'a str>,
    /// All that was read.
    pub(super) pair: &'a PairScore,
}

impl Row<'_> {
    /// Its score.
    pub(super) fn score(&self) -> Score {
        self.pair.distribution.score
    }
}

/// The rows of a response, in its order.
///
/// # Errors
///
/// The first pair's that failed.
pub(super) fn rows(response: &ScoreResponse) -> Result<Vec<Row<'_>>> {
    response
        .results
        .iter()
        .map(|result| match &result.score {
            Ok(pair) => Ok(Row { index: result.index, text: result.document.as_deref(), pair }),
            Err(error) => Err(error.clone()),
        })
        .collect()
}

/// A document in an answer.
#[derive(Serialize)]
pub(super) struct TextBody<'a> {
    text: &'a str,
}

/// One document of a ranking, as Cohere and Jina write it.
#[derive(Serialize)]
pub(super) struct RankedBody<'a> {
    index: usize,
    relevance_score: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<TextBody<'a>>,
}

impl<'a> From<&Row<'a>> for RankedBody<'a> {
    fn from(row: &Row<'a>) -> Self {
        Self {
            index: row.index,
            relevance_score: row.score().get(),
            document: row.text.map(|text| TextBody { text }),
        }
    }
}

/// The same with the document as a plain string, as Infinity and Voyage write it.
#[derive(Serialize)]
pub(super) struct PlainBody<'a> {
    index: usize,
    relevance_score: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<&'a str>,
}

impl<'a> PlainBody<'a> {
    /// With the score's logit if it is to be `raw`.
    pub(super) fn new(row: &Row<'a>, raw: bool) -> Self {
        let score = row.score();
        let relevance_score = if raw { score.logit() } else { score.get() };
        Self { index: row.index, relevance_score, document: row.text }
    }
}

/// Tokens as OpenAI's clients read them.
#[derive(Serialize)]
pub(super) struct UsageBody {
    prompt_tokens: usize,
    total_tokens: usize,
    completion_tokens: usize,
}

impl UsageBody {
    pub(super) fn of(response: &ScoreResponse) -> Self {
        let tokens = response.usage.prompt_tokens();
        Self { prompt_tokens: tokens, total_tokens: tokens, completion_tokens: 0 }
    }
}

/// Cohere's `meta`.
#[derive(Serialize)]
pub(super) struct MetaBody {
    api_version: Version,
    billed_units: Units,
    tokens: Tokens,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct Version {
    version: &'static str,
}

#[derive(Serialize)]
struct Units {
    search_units: usize,
}

#[derive(Serialize)]
struct Tokens {
    input_tokens: usize,
    output_tokens: usize,
}

impl MetaBody {
    /// Cohere counts each hundred documents of a query as one search.
    pub(super) fn new(
        version: &'static str,
        documents: usize,
        response: &ScoreResponse,
        warnings: Vec<String>,
    ) -> Self {
        Self {
            api_version: Version { version },
            billed_units: Units { search_units: documents.div_ceil(100) },
            tokens: Tokens { input_tokens: response.usage.prompt_tokens(), output_tokens: 0 },
            warnings,
        }
    }
}

/// Seconds since 1970, as OpenAI's clients read them.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
