//! `POST /v1/rerank` of Cohere, where its body has a field that is Cohere's alone, and `POST /v2/rerank`.

use serde::{Deserialize, Serialize};

use crate::{
    error::Result,
    request::{Items, ScoreOptions, ScoreRequest},
    server::{call::RequestId, http::write::bytes},
    service::ScoreResponse,
};

use super::{
    Arrived, Dialect, Fields, Shape, lenient, ranked,
    rows::{MetaBody, RankedBody, Sent, rows},
};

const READ: [&str; 7] =
    ["query", "documents", "model", "top_n", "rank_fields", "return_documents", "instruction"];

/// A body of either version; answers tell which.
#[derive(Deserialize)]
pub(super) struct Body<const VERSION: char> {
    query: String,
    documents: Vec<lenient::Text>,
    model: Option<String>,
    #[serde(default, deserialize_with = "lenient::count")]
    top_n: Option<usize>,
    rank_fields: Option<Vec<String>>,
    #[serde(default, deserialize_with = "lenient::flag")]
    return_documents: Option<bool>,
    instruction: Option<String>,
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
    sent: Sent,
}

impl<const VERSION: char> Dialect for Body<VERSION> {
    const SHAPE: Shape = Shape::Cohere;
    const FIELDS: Fields = Fields::new("query", "documents");
    type Kept = Kept;

    fn read(self, arrived: &Arrived<'_>) -> Result<(ScoreRequest, Kept)> {
        let return_documents = self.return_documents.unwrap_or(false);
        let kept = Kept {
            documents: self.documents.len(),
            warnings: arrived.warnings(&READ, self.model.as_deref()),
            sent: Sent::of(&self.documents, return_documents),
        };
        let documents = lenient::picked(self.documents, self.rank_fields.as_deref())?;
        let options =
            ScoreOptions { instruction: self.instruction, top_n: self.top_n, return_documents, ..ranked() };
        Ok((ScoreRequest::new(Items::Documents { query: self.query, documents }, options)?, kept))
    }

    fn write(mut kept: Kept, response: &ScoreResponse, id: &RequestId) -> Result<Vec<u8>> {
        let rows = rows(response)?;
        Ok(bytes(&Answer {
            id: id.as_str(),
            results: rows.iter().map(|row| RankedBody::new(row, false, &mut kept.sent)).collect(),
            meta: MetaBody::new(VERSION, kept.documents, response, kept.warnings),
        }))
    }
}
