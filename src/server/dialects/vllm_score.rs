//! `POST /v1/score` of vLLM: one text with many, or texts in pairs.

use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    request::{Document, Items, Pair, ScoreOptions, ScoreRequest},
    server::{call::RequestId, http::write::bytes},
    service::ScoreResponse,
};

use super::{
    Arrived, Dialect, Fields, Shape, in_order,
    lenient::{self, Keys, OneOrMany},
    rows::{UsageBody, now, rows},
};

#[derive(Deserialize)]
pub(super) struct Body {
    text_1: Option<OneOrMany>,
    text_2: Option<OneOrMany>,
    data_1: Option<OneOrMany>,
    data_2: Option<OneOrMany>,
    queries: Option<OneOrMany>,
    documents: Option<OneOrMany>,
    items: Option<OneOrMany>,
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
    created: u64,
    model: &'a str,
    data: Vec<Scored>,
    usage: UsageBody,
}

#[derive(Serialize)]
struct Scored {
    index: usize,
    object: &'static str,
    score: f64,
}

impl Dialect for Body {
    const SHAPE: Shape = Shape::OpenAi;
    const FIELDS: Fields = Fields::new("query", "documents");
    /// Whether scores are to be raw.
    type Kept = bool;

    /// As they are chosen from below.
    fn fields(keys: &Keys) -> Fields {
        Fields::new(
            keys.first_given(&["text_1", "data_1", "queries"]).unwrap_or("query"),
            keys.first_given(&["text_2", "data_2", "documents", "items"]).unwrap_or("documents"),
        )
    }

    fn read(self, _: &Arrived<'_>) -> Result<(ScoreRequest, bool)> {
        // By their old and new names.
        let raw = [self.use_activation, self.activation, self.softmax].contains(&Some(false));
        let first = self.text_1.or(self.data_1).or(self.queries);
        let second = self.text_2.or(self.data_2).or(self.documents).or(self.items);
        let (Some(first), Some(second)) = (first, second) else {
            return Err(Error::invalid(
                "body",
                "needs text_1 and text_2, queries and documents, queries and items, or data_1 and data_2",
            ));
        };
        let options = ScoreOptions { instruction: self.instruction, ..in_order() };
        Ok((ScoreRequest::new(items(first.into_vec(), second.into_vec())?, options)?, raw))
    }

    fn write(raw: bool, response: &ScoreResponse, id: &RequestId) -> Result<Vec<u8>> {
        let rows = rows(response)?;
        let data =
            rows.iter().map(|row| Scored { index: row.index, object: "score", score: row.number(raw) });
        Ok(bytes(&Answer {
            id: id.as_str(),
            object: "list",
            created: now(),
            model: &response.model.name,
            data: data.collect(),
            usage: UsageBody::of(response),
        }))
    }
}

fn items(mut first: Vec<String>, second: Vec<String>) -> Result<Items> {
    match (first.len(), second.len()) {
        (1, _) => {
            let documents = second.into_iter().map(Document::text).collect();
            Ok(Items::Documents { query: first.remove(0), documents })
        }
        (one, two) if one == two => {
            let pair = |(query, text)| Pair { query, document: Document::text(text) };
            Ok(Items::Pairs(first.into_iter().zip(second).map(pair).collect()))
        }
        (one, two) => {
            Err(Error::invalid("body", format!("{one} texts cannot be paired with {two}; give 1 or as many")))
        }
    }
}
