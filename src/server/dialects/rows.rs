//! What the dialects' answers have in common.

use std::{
    collections::HashMap,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::Serialize;
use serde_json::{Map, Value};

use crate::{
    error::Result,
    grade::Score,
    service::{PairScore, ScoreResponse},
};

use super::lenient::Text;

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

    /// Its score as a number. A raw one is the logit: the peers' models have one, whose logistic is the score.
    pub(super) fn number(&self, raw: bool) -> f64 {
        if raw { self.score().logit() } else { self.score().get() }
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

/// Documents that were sent as objects, by their place: kept only for an answer that gives them back, and as JSON, which
/// takes less memory while it waits than what is made of it.
#[derive(Default)]
pub(super) struct Sent(HashMap<usize, Box<str>>);

impl Sent {
    /// Those of a request, if they are `wanted`. Texts are not among them: they come back with their scores.
    pub(super) fn of(texts: &[Text], wanted: bool) -> Self {
        let object = |(index, text): (usize, &Text)| match text {
            Text::Fields(fields) if wanted => Some((index, serde_json::to_string(fields).ok()?.into())),
            _ => None,
        };
        Self(texts.iter().enumerate().filter_map(object).collect())
    }

    fn take(&mut self, index: usize) -> Option<Map<String, Value>> {
        serde_json::from_str(&self.0.remove(&index)?).ok()
    }

    /// A row's document as it was sent.
    pub(super) fn plain<'a>(&mut self, row: &Row<'a>) -> Option<DocumentBody<'a>> {
        let sent = self.take(row.index);
        row.text.map(|text| sent.map_or(DocumentBody::Plain(text), DocumentBody::Sent))
    }

    /// A row's document as an object that has a `text`: what was scored, unless it was sent with one.
    fn object<'a>(&mut self, row: &Row<'a>) -> Option<DocumentBody<'a>> {
        let text = row.text?;
        let Some(mut sent) = self.take(row.index) else {
            return Some(DocumentBody::Text(TextBody { text }));
        };
        sent.entry("text").or_insert_with(|| text.into());
        Some(DocumentBody::Sent(sent))
    }
}

/// A document in an answer.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum DocumentBody<'a> {
    /// Its text.
    Plain(&'a str),
    /// An object with its text.
    Text(TextBody<'a>),
    /// The object that was sent.
    Sent(Map<String, Value>),
}

/// A document's text, where an answer has objects.
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
    document: Option<DocumentBody<'a>>,
}

impl<'a> RankedBody<'a> {
    /// With the score's logit if it is to be `raw`, and the document as it was `sent`.
    pub(super) fn new(row: &Row<'a>, raw: bool, sent: &mut Sent) -> Self {
        Self { index: row.index, relevance_score: row.number(raw), document: sent.object(row) }
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
        Self { index: row.index, relevance_score: row.number(raw), document: row.text }
    }

    /// Without its document.
    pub(super) fn bare(self) -> Self {
        Self { document: None, ..self }
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
    version: char,
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
        version: char,
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
