//! `POST /rerank` of Infinity, where its body has `raw_scores`, which is Infinity's alone.

use serde::{Deserialize, Serialize};

use crate::{
    error::Result,
    request::{Items, ScoreOptions, ScoreRequest},
    server::{call::RequestId, http::write::bytes},
    service::ScoreResponse,
};

use super::{
    Arrived, Dialect, Fields, Shape,
    lenient::{self, Keys},
    ranked,
    rows::{PlainBody, UsageBody, now, rows},
};

#[derive(Deserialize)]
pub(super) struct Body {
    query: String,
    documents: Vec<lenient::Text>,
    #[serde(default, deserialize_with = "lenient::flag")]
    return_documents: Option<bool>,
    #[serde(default, deserialize_with = "lenient::flag")]
    raw_scores: Option<bool>,
    #[serde(default, deserialize_with = "lenient::count")]
    top_n: Option<usize>,
    /// As other peers call it.
    #[serde(default, deserialize_with = "lenient::count")]
    top_k: Option<usize>,
    instruction: Option<String>,
}

#[derive(Serialize)]
struct Answer<'a> {
    object: &'static str,
    results: Vec<PlainBody<'a>>,
    model: &'a str,
    usage: UsageBody,
    id: &'a str,
    created: u64,
}

impl Dialect for Body {
    const SHAPE: Shape = Shape::OpenAi;
    const FIELDS: Fields = Fields::new("query", "documents");
    /// Whether scores are to be raw.
    type Kept = bool;

    fn fields(keys: &Keys) -> Fields {
        Self::FIELDS.cut_by(keys.first_given(&["top_n", "top_k"]).unwrap_or("top_n"))
    }

    fn read(self, _: &Arrived<'_>) -> Result<(ScoreRequest, bool)> {
        let items = Items::Documents { query: self.query, documents: lenient::documents(self.documents) };
        let options = ScoreOptions {
            instruction: self.instruction,
            top_n: self.top_n.or(self.top_k),
            return_documents: self.return_documents.unwrap_or(false),
            ..ranked()
        };
        Ok((ScoreRequest::new(items, options)?, self.raw_scores.unwrap_or(false)))
    }

    fn write(raw: bool, response: &ScoreResponse, id: &RequestId) -> Result<Vec<u8>> {
        Ok(bytes(&Answer {
            object: "rerank",
            results: rows(response)?.iter().map(|row| PlainBody::new(row, raw)).collect(),
            model: &response.model.name,
            usage: UsageBody::of(response),
            id: id.as_str(),
            created: now(),
        }))
    }
}
