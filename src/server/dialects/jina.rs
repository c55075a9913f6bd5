//! The body that most clients write to `/rerank` and `/v1/rerank`: Jina's, vLLM's,
//! llama.cpp's, LiteLLM's, and Cohere's and Voyage's where they name no field of their own.
//!
//! Nothing tells these apart, so the answer holds what each of their readers looks
//! for: `results` and `usage`, Cohere's `meta`, Voyage's `data`. Documents come back
//! unless `return_documents` is false, as Jina and vLLM do it.

use serde::{Deserialize, Serialize};

use crate::{
    error::Result,
    request::{Items, ScoreOptions, ScoreRequest},
    server::{call::RequestId, http::write::bytes},
    service::ScoreResponse,
};

use super::{
    Arrived, Dialect, Fields, Shape, lenient, ranked,
    rows::{MetaBody, RankedBody, UsageBody, rows},
};

const READ: [&str; 6] = ["model", "query", "documents", "top_n", "return_documents", "instruction"];

#[derive(Deserialize)]
pub(super) struct Body {
    model: Option<String>,
    query: String,
    documents: Vec<lenient::Text>,
    #[serde(default, deserialize_with = "lenient::count")]
    top_n: Option<usize>,
    #[serde(default, deserialize_with = "lenient::flag")]
    return_documents: Option<bool>,
    instruction: Option<String>,
}

#[derive(Serialize)]
struct Answer<'a> {
    id: &'a str,
    object: &'static str,
    model: &'a str,
    usage: UsageBody,
    results: Vec<RankedBody<'a>>,
    data: Vec<Scored>,
    meta: MetaBody,
}

#[derive(Serialize)]
struct Scored {
    index: usize,
    relevance_score: f64,
}

pub(super) struct Kept {
    documents: usize,
    warnings: Vec<String>,
}

impl Dialect for Body {
    const SHAPE: Shape = Shape::Jina;
    const FIELDS: Fields = Fields::new("query", "documents");
    type Kept = Kept;

    fn read(self, arrived: &Arrived<'_>) -> Result<(ScoreRequest, Kept)> {
        let kept = Kept {
            documents: self.documents.len(),
            warnings: arrived.warnings(&READ, self.model.as_deref()),
        };
        let items = Items::Documents { query: self.query, documents: lenient::documents(self.documents) };
        let options = ScoreOptions {
            instruction: self.instruction,
            // vLLM's clients send 0 for all.
            top_n: self.top_n.filter(|count| *count > 0),
            return_documents: self.return_documents.unwrap_or(true),
            ..ranked()
        };
        Ok((ScoreRequest::new(items, options)?, kept))
    }

    fn write(kept: Kept, response: &ScoreResponse, id: &RequestId) -> Result<Vec<u8>> {
        let rows = rows(response)?;
        let scored = rows.iter().map(|row| Scored { index: row.index, relevance_score: row.score().get() });
        Ok(bytes(&Answer {
            id: id.as_str(),
            object: "list",
            model: &response.model.name,
            usage: UsageBody::of(response),
            results: rows.iter().map(RankedBody::from).collect(),
            data: scored.collect(),
            meta: MetaBody::new("1", kept.documents, response, kept.warnings),
        }))
    }
}
