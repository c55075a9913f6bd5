//! `POST /v1/reranking` of Mixedbread.

use serde::{Deserialize, Serialize};

use crate::{
    error::Result,
    request::{Items, ScoreOptions, ScoreRequest},
    server::{call::RequestId, http::write::bytes},
    service::ScoreResponse,
};

use super::{
    Arrived, Dialect, Fields, Shape, lenient, ranked,
    rows::{DocumentBody, Sent, UsageBody, rows},
};

#[derive(Deserialize)]
pub(super) struct Body {
    query: String,
    input: Vec<lenient::Text>,
    rank_fields: Option<Vec<String>>,
    #[serde(default, deserialize_with = "lenient::count")]
    top_k: Option<usize>,
    #[serde(default, deserialize_with = "lenient::flag")]
    return_input: Option<bool>,
    instruction: Option<String>,
}

#[derive(Serialize)]
struct Answer<'a> {
    usage: UsageBody,
    model: &'a str,
    data: Vec<Ranked<'a>>,
    object: &'static str,
    top_k: usize,
    return_input: bool,
}

#[derive(Serialize)]
struct Ranked<'a> {
    index: usize,
    score: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    input: Option<DocumentBody<'a>>,
    object: &'static str,
}

pub(super) struct Kept {
    top_k: usize,
    return_input: bool,
    sent: Sent,
}

impl Dialect for Body {
    const SHAPE: Shape = Shape::Mixedbread;
    const FIELDS: Fields = Fields::new("query", "input").cut_by("top_k");
    type Kept = Kept;

    fn read(self, _: &Arrived<'_>) -> Result<(ScoreRequest, Kept)> {
        let return_input = self.return_input.unwrap_or(false);
        let kept = Kept {
            top_k: self.top_k.unwrap_or(self.input.len()),
            return_input,
            sent: Sent::of(&self.input, return_input),
        };
        let documents = lenient::picked(self.input, self.rank_fields.as_deref())?;
        let options = ScoreOptions {
            instruction: self.instruction,
            top_n: self.top_k,
            return_documents: return_input,
            ..ranked()
        };
        Ok((ScoreRequest::new(Items::Documents { query: self.query, documents }, options)?, kept))
    }

    fn write(mut kept: Kept, response: &ScoreResponse, _: &RequestId) -> Result<Vec<u8>> {
        let rows = rows(response)?;
        let ranked = rows.iter().map(|row| Ranked {
            index: row.index,
            score: row.score().get(),
            input: kept.sent.plain(row),
            object: "rank_result",
        });
        Ok(bytes(&Answer {
            usage: UsageBody::of(response),
            model: &response.model.name,
            data: ranked.collect(),
            object: "list",
            top_k: kept.top_k,
            return_input: kept.return_input,
        }))
    }
}
