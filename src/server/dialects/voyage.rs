//! `POST /v1/rerank` of Voyage.

use serde::{Deserialize, Serialize};

use crate::{
    error::Result,
    request::{Items, ScoreOptions, ScoreRequest, Truncation},
    server::{call::RequestId, http::write::bytes},
    service::ScoreResponse,
};

use super::{
    Arrived, Dialect, Fields, Shape,
    lenient::{self, Keys},
    ranked,
    rows::{PlainBody, RankedBody, Sent, UsageBody, rows},
};

#[derive(Deserialize)]
pub(super) struct Body {
    query: String,
    documents: Vec<lenient::Text>,
    #[serde(default, deserialize_with = "lenient::count")]
    top_k: Option<usize>,
    #[serde(default, deserialize_with = "lenient::flag")]
    truncation: Option<bool>,
    #[serde(default, deserialize_with = "lenient::flag")]
    return_documents: Option<bool>,
    /// As other peers call it.
    #[serde(default, deserialize_with = "lenient::count")]
    top_n: Option<usize>,
    instruction: Option<String>,
}

/// `results` beside `data`: a reader of Cohere's finds its own.
#[derive(Serialize)]
struct Answer<'a> {
    object: &'static str,
    data: Vec<PlainBody<'a>>,
    results: Vec<RankedBody<'a>>,
    model: &'a str,
    usage: UsageBody,
}

impl Dialect for Body {
    const SHAPE: Shape = Shape::Voyage;
    const FIELDS: Fields = Fields::new("query", "documents").cut_by("top_k");
    type Kept = ();

    fn fields(keys: &Keys) -> Fields {
        Self::FIELDS.cut_by(keys.first_given(&["top_k", "top_n"]).unwrap_or("top_k"))
    }

    fn read(self, _: &Arrived<'_>) -> Result<(ScoreRequest, ())> {
        let items = Items::Documents { query: self.query, documents: lenient::documents(self.documents) };
        let whole = self.truncation == Some(false);
        let options = ScoreOptions {
            instruction: self.instruction,
            top_n: self.top_k.or(self.top_n),
            truncation: if whole { Truncation::Error } else { Truncation::Document },
            return_documents: self.return_documents.unwrap_or(false),
            ..ranked()
        };
        Ok((ScoreRequest::new(items, options)?, ()))
    }

    fn write((): (), response: &ScoreResponse, _: &RequestId) -> Result<Vec<u8>> {
        let rows = rows(response)?;
        Ok(bytes(&Answer {
            object: "list",
            data: rows.iter().map(|row| PlainBody::new(row, false)).collect(),
            results: rows.iter().map(|row| RankedBody::new(row, false, &mut Sent::default())).collect(),
            model: &response.model.name,
            usage: UsageBody::of(response),
        }))
    }
}
