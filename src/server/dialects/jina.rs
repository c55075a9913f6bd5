//! The body that most clients write to `/rerank` and `/v1/rerank`: Jina's, vLLM's,
//! llama.cpp's, LiteLLM's, and Cohere's and Voyage's where they name no field of their own.
//!
//! Nothing tells these apart, so the answer holds what each of their readers looks
//! for: `results` and `usage`, Cohere's `meta`, Voyage's `data`. Documents come back
//! unless `return_documents` is false, as Jina and vLLM do it; to Voyage's readers only if it is true.

use serde::{Deserialize, Serialize};

use crate::{
    error::Result,
    request::{Items, ScoreOptions, ScoreRequest},
    server::{call::RequestId, http::write::bytes},
    service::ScoreResponse,
};

use super::{
    Arrived, Dialect, Fields, Shape, lenient, ranked,
    rows::{MetaBody, PlainBody, RankedBody, Sent, UsageBody, rows},
};

const READ: [&str; 9] = [
    "model",
    "query",
    "documents",
    "top_n",
    "return_documents",
    "instruction",
    "use_activation",
    "activation",
    "softmax",
];

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
    #[serde(default, deserialize_with = "lenient::flag")]
    use_activation: Option<bool>,
    #[serde(default, deserialize_with = "lenient::flag")]
    activation: Option<bool>,
    #[serde(default, deserialize_with = "lenient::flag")]
    softmax: Option<bool>,
}

#[derive(Serialize)]
struct Answer<'a> {
    id: &'a str,
    object: &'static str,
    model: &'a str,
    usage: UsageBody,
    results: Vec<RankedBody<'a>>,
    data: Vec<PlainBody<'a>>,
    meta: MetaBody,
}

pub(super) struct Kept {
    documents: usize,
    warnings: Vec<String>,
    sent: Sent,
    /// Whether documents were asked for in so many words.
    asked: bool,
    /// Whether scores are to be raw.
    raw: bool,
}

impl Dialect for Body {
    const SHAPE: Shape = Shape::Jina;
    const FIELDS: Fields = Fields::new("query", "documents");
    type Kept = Kept;

    fn read(self, arrived: &Arrived<'_>) -> Result<(ScoreRequest, Kept)> {
        let return_documents = self.return_documents.unwrap_or(true);
        let kept = Kept {
            documents: self.documents.len(),
            warnings: arrived.warnings(&READ, self.model.as_deref()),
            sent: Sent::of(&self.documents, return_documents),
            asked: self.return_documents == Some(true),
            // vLLM's, by their old and new names.
            raw: [self.use_activation, self.activation, self.softmax].contains(&Some(false)),
        };
        let items = Items::Documents { query: self.query, documents: lenient::documents(self.documents) };
        let options = ScoreOptions {
            instruction: self.instruction,
            // vLLM's clients send 0 for all.
            top_n: self.top_n.filter(|count| *count > 0),
            return_documents,
            ..ranked()
        };
        Ok((ScoreRequest::new(items, options)?, kept))
    }

    fn write(mut kept: Kept, response: &ScoreResponse, id: &RequestId) -> Result<Vec<u8>> {
        let rows = rows(response)?;
        let plain = rows.iter().map(|row| PlainBody::new(row, kept.raw));
        let data = plain.map(|body| if kept.asked { body } else { body.bare() }).collect();
        Ok(bytes(&Answer {
            id: id.as_str(),
            object: "list",
            model: &response.model.name,
            usage: UsageBody::of(response),
            results: rows.iter().map(|row| RankedBody::new(row, kept.raw, &mut kept.sent)).collect(),
            data,
            meta: MetaBody::new('1', kept.documents, response, kept.warnings),
        }))
    }
}
