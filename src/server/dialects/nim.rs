//! `POST /v1/ranking` of NVIDIA NIM.

use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    request::{Items, ScoreOptions, ScoreRequest, Truncation},
    server::{call::RequestId, http::write::bytes},
    service::ScoreResponse,
};

use super::{
    Arrived, Dialect, Fields, Shape, lenient, ranked,
    rows::{UsageBody, rows},
};

#[derive(Deserialize)]
pub(super) struct Body {
    query: lenient::Text,
    passages: Vec<lenient::Text>,
    truncate: Option<String>,
}

#[derive(Serialize)]
struct Answer {
    rankings: Vec<Ranking>,
    usage: UsageBody,
}

#[derive(Serialize)]
struct Ranking {
    index: usize,
    logit: f64,
}

impl Dialect for Body {
    const SHAPE: Shape = Shape::Nim;
    const FIELDS: Fields = Fields::new("query", "passages");
    type Kept = ();

    fn read(self, _: &Arrived<'_>) -> Result<(ScoreRequest, ())> {
        let query = match self.query {
            lenient::Text::Plain(query) => query,
            lenient::Text::Fields(mut fields) => match fields.remove("text") {
                Some(serde_json::Value::String(query)) => query,
                _ => return Err(Error::invalid("query", "expected {\"text\": …} or a string")),
            },
        };
        // NIM refuses what is too long unless it is told to cut.
        let truncation = match self.truncate.as_deref() {
            None | Some("NONE") => Truncation::Error,
            Some("END") => Truncation::Document,
            Some(other) => {
                return Err(Error::invalid("truncate", format!("{other:?}, expected \"NONE\" or \"END\"")));
            }
        };
        let items = Items::Documents { query, documents: lenient::documents(self.passages) };
        Ok((ScoreRequest::new(items, ScoreOptions { truncation, ..ranked() })?, ()))
    }

    fn write((): (), response: &ScoreResponse, _: &RequestId) -> Result<Vec<u8>> {
        let rows = rows(response)?;
        let rankings = rows.iter().map(|row| Ranking { index: row.index, logit: row.score().logit() });
        Ok(bytes(&Answer { rankings: rankings.collect(), usage: UsageBody::of(response) }))
    }
}
