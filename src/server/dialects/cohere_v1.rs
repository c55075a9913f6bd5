//! `POST /v1/rerank` of Cohere, where its body has a field that is Cohere's alone.

use serde::{Deserialize, Serialize};

use crate::{
    error::Result,
    request::{Items, ScoreOptions, ScoreRequest},
    server::{call::RequestId, http::write::bytes},
    service::ScoreResponse,
};

use super::{
    Arrived, Dialect, Fields, Shape, lenient, ranked,
    rows::{MetaBody, RankedBody, rows},
};

const READ: [&str; 6] = ["query", "documents", "model", "top_n", "rank_fields", "return_documents"];

#[derive(Deserialize)]
pub(super) struct Body {
    query: String,
    documents: Vec<lenient::Text>,
    model: Option<String>,
    #[serde(default, deserialize_with = "lenient::count")]
    top_n: Option<usize>,
    rank_fields: Option<Vec<String>>,
    #[serde(default, deserialize_with = "lenient::flag")]
    return_documents: Option<bool>,
}

#[derive(Serialize)]
struct Answer<'a> {
    id: &'a str,
    results: Vec<RankedBody<'a>>,
    meta: MetaBody,
}

pub(super) struct Kept {
    documents: usize,
    warnings: Vec<String>,
}

impl Dialect for Body {
    const SHAPE: Shape = Shape::Cohere;
    const FIELDS: Fields = Fields::new("query", "documents");
    type Kept = Kept;

    fn read(self, arrived: &Arrived<'_>) -> Result<(ScoreRequest, Kept)> {
        let kept = Kept {
            documents: self.documents.len(),
            warnings: arrived.warnings(&READ, self.model.as_deref()),
        };
        let documents = lenient::picked(self.documents, self.rank_fields.as_deref())?;
        let options = ScoreOptions {
            top_n: self.top_n,
            return_documents: self.return_documents.unwrap_or(false),
            ..ranked()
        };
        Ok((ScoreRequest::new(Items::Documents { query: self.query, documents }, options)?, kept))
    }

    fn write(kept: Kept, response: &ScoreResponse, id: &RequestId) -> Result<Vec<u8>> {
        Ok(bytes(&Answer {
            id: id.as_str(),
            results: rows(response)?.iter().map(RankedBody::from).collect(),
            meta: MetaBody::new("1", kept.documents, response, kept.warnings),
        }))
    }
}
