//! `POST /predict` of text-embeddings-inference: the grades of pairs as classes.

use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    request::{Document, Items, Pair, ScoreOptions, ScoreRequest},
    server::{call::RequestId, http::write::bytes},
    service::ScoreResponse,
};

use super::{Arrived, Dialect, Fields, Shape, in_order, lenient, rows::rows, tei};

#[derive(Deserialize)]
pub(super) struct Body {
    inputs: Inputs,
    #[serde(default, deserialize_with = "lenient::flag")]
    truncate: Option<bool>,
    truncation_direction: Option<String>,
    #[serde(default, deserialize_with = "lenient::flag")]
    raw_scores: Option<bool>,
}

/// TEI takes single texts here too; a grade is of a query and a text.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a pair [query, text] or a list of such pairs")]
enum Inputs {
    One(String, String),
    Many(Vec<(String, String)>),
}

#[derive(Serialize)]
struct Prediction<'a> {
    score: f64,
    label: &'a str,
}

pub(super) struct Kept {
    raw: bool,
    single: bool,
}

impl Dialect for Body {
    const SHAPE: Shape = Shape::Tei;
    const FIELDS: Fields = Fields::paired("inputs");
    type Kept = Kept;

    fn read(self, _: &Arrived<'_>) -> Result<(ScoreRequest, Kept)> {
        let single = matches!(self.inputs, Inputs::One(..));
        let inputs = match self.inputs {
            Inputs::One(query, text) => vec![(query, text)],
            Inputs::Many(inputs) => inputs,
        };
        let pairs = inputs.into_iter().map(|(query, text)| Pair { query, document: Document::text(text) });
        let raw = self.raw_scores.unwrap_or(false);
        let truncation = tei::truncation(self.truncate, self.truncation_direction.as_deref())?;
        let options = ScoreOptions { truncation, raw, ..in_order() };
        Ok((ScoreRequest::new(Items::Pairs(pairs.collect()), options)?, Kept { raw, single }))
    }

    /// Each pair's likeliest grade first; raw scores are the grades' logits.
    fn write(kept: Kept, response: &ScoreResponse, _: &RequestId) -> Result<Vec<u8>> {
        let grades = &response.model.profile.grades;
        let mut all = Vec::with_capacity(response.results.len());
        for row in rows(response)? {
            let scores = match &row.pair.logits {
                Some(logits) if kept.raw => logits.iter().copied().map(f64::from).collect(),
                _ => row.pair.distribution.probabilities.clone(),
            };
            let mut predictions: Vec<_> = grades
                .iter()
                .zip(scores)
                .map(|(grade, score)| Prediction { score, label: &grade.label })
                .collect();
            predictions.sort_by(|left, right| right.score.total_cmp(&left.score));
            all.push(predictions);
        }
        match all.first() {
            Some(only) if kept.single => Ok(bytes(only)),
            Some(_) => Ok(bytes(&all)),
            None => Err(Error::internal("a request has no results")),
        }
    }
}
