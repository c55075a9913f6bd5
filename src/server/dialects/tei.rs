//! `POST /rerank` of text-embeddings-inference.

use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    request::{Items, ScoreOptions, ScoreRequest, Truncation},
    server::{call::RequestId, http::write::bytes},
    service::ScoreResponse,
};

use super::{Arrived, Dialect, Fields, Shape, lenient, ranked, rows::rows};

#[derive(Deserialize)]
pub(super) struct Body {
    query: String,
    texts: Vec<lenient::Text>,
    #[serde(default, deserialize_with = "lenient::flag")]
    truncate: Option<bool>,
    truncation_direction: Option<String>,
    #[serde(default, deserialize_with = "lenient::flag")]
    raw_scores: Option<bool>,
    #[serde(default, deserialize_with = "lenient::flag")]
    return_text: Option<bool>,
    instruction: Option<String>,
}

#[derive(Serialize)]
struct Rank<'a> {
    index: usize,
    score: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
}

impl Dialect for Body {
    const SHAPE: Shape = Shape::Tei;
    const FIELDS: Fields = Fields::new("query", "texts");
    /// Whether scores are to be raw.
    type Kept = bool;

    fn read(self, _: &Arrived<'_>) -> Result<(ScoreRequest, bool)> {
        let items = Items::Documents { query: self.query, documents: lenient::documents(self.texts) };
        let options = ScoreOptions {
            truncation: truncation(self.truncate, self.truncation_direction.as_deref())?,
            instruction: self.instruction,
            return_documents: self.return_text.unwrap_or(false),
            ..ranked()
        };
        Ok((ScoreRequest::new(items, options)?, self.raw_scores.unwrap_or(false)))
    }

    fn write(raw: bool, response: &ScoreResponse, _: &RequestId) -> Result<Vec<u8>> {
        let rows = rows(response)?;
        let ranks = rows.iter().map(|row| Rank { index: row.index, score: row.number(raw), text: row.text });
        Ok(bytes(&ranks.collect::<Vec<_>>()))
    }
}

/// Texts are cut unless `truncate` is false, as `/info` says, and at their end alone.
pub(super) fn truncation(truncate: Option<bool>, direction: Option<&str>) -> Result<Truncation> {
    match direction {
        Some(direction) if direction.eq_ignore_ascii_case("left") => Err(Error::invalid(
            "truncation_direction",
            format!("{direction:?} is not offered; texts are cut at their end (\"Right\")"),
        )),
        Some(direction) if !direction.eq_ignore_ascii_case("right") => {
            Err(Error::invalid("truncation_direction", format!("{direction:?}, expected \"Right\"")))
        }
        _ if truncate == Some(false) => Ok(Truncation::Error),
        _ => Ok(Truncation::Document),
    }
}
