//! Protobuf requests as what they mean.

use std::time::Duration;

use prost_types::{Struct, Value, value::Kind};
use serde_json::{Map, Number};

use crate::{
    error::{Error, Result},
    request::{
        Document, ExplainRequest, Explained, Items, Limits, Pair, ScoreOptions, ScoreRequest, Truncation,
    },
};

use super::pb;

/// Nesting of fields up to which they are read, as in JSON.
const DEPTH: usize = 100;

/// A request to score.
///
/// # Errors
///
/// `Invalid`, naming the field; `TooLarge` for more documents than are taken, of which nothing is made.
pub(super) fn score(wire: pb::ScoreRequest, limits: &Limits) -> Result<ScoreRequest> {
    for (field, given) in [
        ("explain_top_n", wire.explain_top_n.is_some()),
        ("max_reason_tokens", wire.max_reason_tokens.is_some()),
        ("explain_indices", !wire.explain_indices.is_empty()),
    ] {
        if given {
            return Err(Error::invalid(field, "needs the method Explain"));
        }
    }
    request(wire, limits)
}

/// A request to score and explain.
///
/// # Errors
///
/// As [`score`].
pub(super) fn explain(mut wire: pb::ScoreRequest, limits: &Limits) -> Result<ExplainRequest> {
    let indices = std::mem::take(&mut wire.explain_indices);
    let explained = match (wire.explain_top_n, indices.is_empty()) {
        (Some(_), false) => {
            return Err(Error::invalid("explain_indices", "cannot be combined with explain_top_n"));
        }
        (Some(count), true) => Explained::Best(size(count)),
        (None, false) => Explained::Indices(indices.into_iter().map(size).collect()),
        (None, true) => Explained::Default,
    };
    let most = wire.max_reason_tokens.map(size);
    ExplainRequest::new(request(wire, limits)?, explained, most)
}

fn request(wire: pb::ScoreRequest, limits: &Limits) -> Result<ScoreRequest> {
    limits.check_count("documents", wire.documents.len())?;
    limits.check_count("pairs", wire.pairs.len())?;
    let truncation = match pb::Truncation::try_from(wire.truncation) {
        Ok(pb::Truncation::Unspecified | pb::Truncation::Document) => Truncation::Document,
        Ok(pb::Truncation::Error) => Truncation::Error,
        Err(_) => {
            return Err(Error::invalid("truncation", format!("{} is not a Truncation", wire.truncation)));
        }
    };
    let options = ScoreOptions {
        instruction: wire.instruction,
        top_n: wire.top_n.map(size),
        sort: wire.sort,
        truncation,
        deadline: wire.deadline_ms.map(Duration::from_millis),
        return_documents: wire.return_documents,
        raw: wire.raw,
        model: wire.model,
        whole: false,
        blank: false,
    };
    let items = if wire.pairs.is_empty() {
        let documents = wire.documents.into_iter().enumerate();
        let documents = documents.map(|(index, wire)| document(wire, || format!("documents[{index}]")));
        Items::Documents { query: wire.query, documents: documents.collect::<Result<_>>()? }
    } else {
        if !wire.query.is_empty() || !wire.documents.is_empty() {
            return Err(Error::invalid("pairs", "cannot be combined with query or documents"));
        }
        let pairs = wire.pairs.into_iter().enumerate();
        Items::Pairs(pairs.map(|(index, wire)| pair(index, wire)).collect::<Result<_>>()?)
    };
    ScoreRequest::new(items, options)
}

fn pair(index: usize, wire: pb::Pair) -> Result<Pair> {
    let name = || format!("pairs[{index}].document");
    let wire_document = wire.document.ok_or_else(|| Error::invalid(&name(), "is missing"))?;
    Ok(Pair { query: wire.query, document: document(wire_document, name)? })
}

fn document(wire: pb::Document, name: impl Fn() -> String) -> Result<Document> {
    let document = match (wire.text, wire.fields) {
        (Some(text), None) => Document::text(text),
        (None, Some(wire)) => {
            Document::fields(fields(wire, DEPTH).map_err(|message| Error::invalid(&name(), message))?)
        }
        (Some(_), Some(_)) => return Err(Error::invalid(&name(), "has both text and fields")),
        (None, None) => return Err(Error::invalid(&name(), "has neither text nor fields")),
    };
    Ok(document.with_id(wire.id))
}

fn fields(wire: Struct, depth: usize) -> Result<Map<String, serde_json::Value>, String> {
    wire.fields.into_iter().map(|(name, wire)| Ok((name, value(wire, depth)?))).collect()
}

/// A number without a fraction becomes a whole one, so that it is written as in JSON.
fn value(wire: Value, depth: usize) -> Result<serde_json::Value, String> {
    let depth = depth.checked_sub(1).ok_or("its fields are nested too deeply")?;
    Ok(match wire.kind {
        None | Some(Kind::NullValue(_)) => serde_json::Value::Null,
        Some(Kind::BoolValue(value)) => value.into(),
        Some(Kind::StringValue(text)) => text.into(),
        Some(Kind::StructValue(wire)) => fields(wire, depth)?.into(),
        Some(Kind::ListValue(list)) => {
            let values = list.values.into_iter().map(|wire| value(wire, depth));
            serde_json::Value::Array(values.collect::<Result<_, _>>()?)
        }
        Some(Kind::NumberValue(number)) => whole(number)
            .map(Number::from)
            .or_else(|| Number::from_f64(number))
            .ok_or_else(|| format!("its number {number} is not finite"))?
            .into(),
    })
}

/// Up to 2^53 every whole f64 is exactly that integer.
fn whole(number: f64) -> Option<i64> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    (number.fract() == 0.0 && number.abs() <= EXACT).then_some(number as i64)
}

fn size(value: u32) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Body;

    fn text(text: &str) -> pb::Document {
        pb::Document { text: Some(text.into()), ..pb::Document::default() }
    }

    fn refusal(wire: pb::ScoreRequest) -> String {
        score(wire, &Limits { documents: 2, ..Limits::default() }).expect_err("refused").message().to_owned()
    }

    fn with(documents: Vec<pb::Document>) -> pb::ScoreRequest {
        pb::ScoreRequest { query: "q".into(), documents, ..pb::ScoreRequest::default() }
    }

    #[test]
    fn faults_are_named() {
        assert_eq!(refusal(pb::ScoreRequest::default()), "query: is empty");
        assert_eq!(refusal(with(vec![])), "documents: is empty; at least one document is needed");
        let neither = pb::Document::default();
        assert_eq!(refusal(with(vec![text("a"), neither])), "documents[1]: has neither text nor fields");
        let both = pb::Document { fields: Some(Struct::default()), ..text("a") };
        assert_eq!(refusal(with(vec![both])), "documents[0]: has both text and fields");
        // Nothing is made of documents that are too many: they are not looked at.
        let many = vec![pb::Document::default(); 3];
        assert_eq!(refusal(with(many)), "documents: 3 documents, over the limit of 2");
        let many = vec![pb::Pair::default(); 3];
        let many = pb::ScoreRequest { pairs: many, ..pb::ScoreRequest::default() };
        assert_eq!(refusal(many), "pairs: 3 pairs, over the limit of 2");
        let odd = pb::ScoreRequest { truncation: 7, ..with(vec![text("a")]) };
        assert_eq!(refusal(odd), "truncation: 7 is not a Truncation");
        let pairs = vec![pb::Pair { query: "q".into(), document: None }];
        assert_eq!(
            refusal(pb::ScoreRequest { pairs: pairs.clone(), ..pb::ScoreRequest::default() }),
            "pairs[0].document: is missing"
        );
        assert_eq!(
            refusal(pb::ScoreRequest { pairs, ..with(vec![text("a")]) }),
            "pairs: cannot be combined with query or documents"
        );
        let reasons = pb::ScoreRequest { explain_top_n: Some(1), ..with(vec![text("a")]) };
        assert_eq!(refusal(reasons), "explain_top_n: needs the method Explain");
    }

    #[test]
    fn fields_become_what_json_would_be() {
        let json = |kind| Value { kind: Some(kind) };
        let list = prost_types::ListValue {
            values: vec![json(Kind::NumberValue(5.0)), json(Kind::NumberValue(0.5))],
        };
        let wire = Struct {
            fields: [
                ("n".to_owned(), json(Kind::ListValue(list))),
                ("t".to_owned(), json(Kind::StringValue("x".into()))),
                ("z".to_owned(), json(Kind::NullValue(0))),
            ]
            .into(),
        };
        let document = document(pb::Document { fields: Some(wire), ..pb::Document::default() }, String::new);
        let document = document.expect("valid");
        let Body::Fields(fields) = document.body() else { panic!("fields") };
        assert_eq!(serde_json::to_string(fields).expect("JSON"), r#"{"n":[5,0.5],"t":"x","z":null}"#);
    }

    #[test]
    fn odd_numbers_and_depths_are_refused() {
        let infinite = Value { kind: Some(Kind::NumberValue(f64::INFINITY)) };
        assert_eq!(value(infinite, DEPTH).expect_err("refused"), "its number inf is not finite");
        let mut deep = Value { kind: Some(Kind::BoolValue(true)) };
        for _ in 0..DEPTH {
            let list = prost_types::ListValue { values: vec![deep] };
            deep = Value { kind: Some(Kind::ListValue(list)) };
        }
        assert_eq!(value(deep, DEPTH).expect_err("refused"), "its fields are nested too deeply");
    }
}
