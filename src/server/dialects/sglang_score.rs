//! `POST /v1/score` of SGLang: the probability of each label token after a query and an item.

use serde::{Deserialize, Serialize};

use crate::{
    error::{Code, Error, Result},
    profile::Profile,
    request::{Document, Items, ScoreOptions, ScoreRequest},
    server::{
        call::RequestId,
        http::{object::Whole, write::bytes},
    },
    service::{PairScore, ScoreResponse},
};

use super::{
    Arrived, Dialect, Fields, Shape, in_order, lenient,
    rows::{UsageBody, rows},
};

#[derive(Deserialize)]
pub(super) struct Body {
    query: String,
    items: lenient::OneOrMany,
    label_token_ids: Option<Vec<Whole>>,
    #[serde(default, deserialize_with = "lenient::flag")]
    apply_softmax: Option<bool>,
    #[serde(default, deserialize_with = "lenient::flag")]
    item_first: Option<bool>,
    instruction: Option<String>,
}

#[derive(Serialize)]
struct Answer<'a> {
    scores: Vec<Vec<f64>>,
    model: &'a str,
    usage: UsageBody,
    object: &'static str,
}

pub(super) struct Kept {
    /// The grades that were asked for, by their place in the profile.
    labels: Vec<usize>,
    softmax: bool,
}

impl Dialect for Body {
    const SHAPE: Shape = Shape::Flat;
    const FIELDS: Fields = Fields::new("query", "items");
    type Kept = Kept;

    fn read(self, arrived: &Arrived<'_>) -> Result<(ScoreRequest, Kept)> {
        if self.item_first == Some(true) {
            return Err(Error::invalid(
                "item_first",
                "true is not offered; the profile's template sets the order",
            ));
        }
        let labels = labels(self.label_token_ids.as_deref(), arrived.profile)?;
        let documents = self.items.into_vec().into_iter().map(Document::text).collect();
        let options = ScoreOptions { instruction: self.instruction, ..in_order() };
        let request = ScoreRequest::new(Items::Documents { query: self.query, documents }, options)?;
        Ok((request, Kept { labels, softmax: self.apply_softmax.unwrap_or(false) }))
    }

    fn write(kept: Kept, response: &ScoreResponse, _: &RequestId) -> Result<Vec<u8>> {
        let rows = rows(response)?;
        let scores = rows.iter().map(|row| kept.scores(row.pair)).collect::<Result<_>>()?;
        let (model, usage) = (&response.model.name, UsageBody::of(response));
        Ok(bytes(&Answer { scores, model, usage, object: "scoring" }))
    }
}

impl Kept {
    /// With softmax the labels' probabilities sum to 1; without it they are what each has of
    /// the whole vocabulary: its share of the grades' probability, times the label mass.
    fn scores(&self, pair: &PairScore) -> Result<Vec<f64>> {
        let read = &pair.distribution;
        let chosen: Vec<f64> = self.labels.iter().map(|&label| read.probabilities[label]).collect();
        // All grades sum to 1 already, and so keep the bits that /score gives.
        let whole = self.labels.len() == read.probabilities.len();
        let factor = match (self.softmax, read.label_mass) {
            (true, _) if whole => 1.0,
            (true, _) => 1.0 / chosen.iter().sum::<f64>().max(f64::MIN_POSITIVE),
            (false, Some(mass)) => mass,
            (false, None) => {
                let message = "apply_softmax: false needs the whole vocabulary, which is not computed here";
                return Err(Error::new(Code::Unimplemented, message));
            }
        };
        Ok(chosen.iter().map(|probability| probability * factor).collect())
    }
}

/// The grades of these tokens; all of them if none is named.
fn labels(tokens: Option<&[Whole]>, profile: &Profile) -> Result<Vec<usize>> {
    let Some(tokens) = tokens else { return Ok((0..profile.grades.len()).collect()) };
    if tokens.is_empty() {
        return Err(Error::invalid("label_token_ids", "is empty; leave it out for all grades"));
    }
    let place = |(index, &Whole(token)): (usize, &Whole)| {
        let found =
            profile.grades.iter().position(|grade| u64::from(grade.token) == token).ok_or_else(|| {
                let known = profile.grade_tokens();
                let message = format!("{token} is not a grade's token; this model's are {known:?}");
                Error::invalid(&format!("label_token_ids[{index}]"), message)
            })?;
        if tokens[..index].iter().any(|&Whole(other)| other == token) {
            return Err(Error::invalid(&format!("label_token_ids[{index}]"), format!("repeats {token}")));
        }
        Ok(found)
    };
    tokens.iter().enumerate().map(place).collect()
}
