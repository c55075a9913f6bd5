//! JSON requests as they are written, and as what they mean.

use std::{fmt, time::Duration};

use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, Visitor},
};
use serde_json::Map;

use crate::{
    error::{Error, Result},
    request::{Document, ExplainRequest, Explained, Items, Pair, ScoreOptions, ScoreRequest, Truncation},
};

use super::{
    object::{Object, Whole},
    parse::parse,
    unique::{Unique, repeated},
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ScoreBody {
    model: Option<String>,
    query: Option<String>,
    documents: Option<Vec<DocumentBody>>,
    pairs: Option<Vec<Object<PairBody>>>,
    instruction: Option<String>,
    top_n: Option<Whole>,
    sort: Option<bool>,
    truncation: Option<TruncationBody>,
    deadline_ms: Option<Whole>,
    return_documents: Option<bool>,
    raw: Option<bool>,
    explain_top_n: Option<Whole>,
    max_reason_tokens: Option<Whole>,
    explain_indices: Option<Vec<Whole>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PairBody {
    query: String,
    document: DocumentBody,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum TruncationBody {
    Document,
    Error,
}

/// A string, or an object whose `id` is the document's and whose other members are its fields.
struct DocumentBody(Document);

impl<'de> Deserialize<'de> for DocumentBody {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct DocumentVisitor;

        impl<'de> Visitor<'de> for DocumentVisitor {
            type Value = DocumentBody;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a string or an object")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> std::result::Result<DocumentBody, E> {
                Ok(DocumentBody(Document::text(text)))
            }

            fn visit_string<E: de::Error>(self, text: String) -> std::result::Result<DocumentBody, E> {
                Ok(DocumentBody(Document::text(text)))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<DocumentBody, A::Error> {
                let mut id = None;
                let mut fields = Map::new();
                while let Some(key) = map.next_key::<String>()? {
                    if key == "id" {
                        if id.replace(map.next_value::<Option<String>>()?).is_some() {
                            return Err(repeated(&key));
                        }
                    } else {
                        if fields.contains_key(&key) {
                            return Err(repeated(&key));
                        }
                        let Unique(value) = map.next_value()?;
                        fields.insert(key, value);
                    }
                }
                Ok(DocumentBody(Document::fields(fields).with_id(id.flatten())))
            }
        }

        deserializer.deserialize_any(DocumentVisitor)
    }
}

/// Reads a request to score.
///
/// # Errors
///
/// `Invalid`, naming the field and what was expected.
pub(crate) fn score(body: &[u8]) -> Result<ScoreRequest> {
    let Object(body): Object<ScoreBody> = parse(body)?;
    for (field, given) in [
        ("explain_top_n", body.explain_top_n.is_some()),
        ("max_reason_tokens", body.max_reason_tokens.is_some()),
        ("explain_indices", body.explain_indices.is_some()),
    ] {
        if given {
            return Err(Error::invalid(field, "needs ?explain=true"));
        }
    }
    Ok(request(body)?.0)
}

/// Reads a request to score and explain.
///
/// # Errors
///
/// `Invalid`, naming the field and what was expected.
pub(crate) fn explain(body: &[u8]) -> Result<ExplainRequest> {
    let Object(body) = parse(body)?;
    let (score, explained, max_reason_tokens) = request(body)?;
    ExplainRequest::new(score, explained, max_reason_tokens)
}

fn request(body: ScoreBody) -> Result<(ScoreRequest, Explained, Option<usize>)> {
    let explained = match (body.explain_top_n, body.explain_indices) {
        (Some(_), Some(_)) => {
            return Err(Error::invalid("explain_indices", "cannot be combined with explain_top_n"));
        }
        (Some(count), None) => Explained::Best(count.size()),
        (None, Some(indices)) => Explained::Indices(indices.into_iter().map(Whole::size).collect()),
        (None, None) => Explained::Default,
    };
    let items = match (body.query, body.documents, body.pairs) {
        (Some(query), Some(documents), None) => {
            Items::Documents { query, documents: documents.into_iter().map(|document| document.0).collect() }
        }
        (None, None, Some(pairs)) => Items::Pairs(
            pairs
                .into_iter()
                .map(|Object(pair)| Pair { query: pair.query, document: pair.document.0 })
                .collect(),
        ),
        (_, _, Some(_)) => return Err(Error::invalid("pairs", "cannot be combined with query or documents")),
        (None, _, None) => return Err(Error::invalid("query", "is missing; or give pairs")),
        (Some(_), None, None) => return Err(Error::invalid("documents", "is missing")),
    };
    let options = ScoreOptions {
        instruction: body.instruction,
        top_n: body.top_n.map(Whole::size),
        sort: body.sort.unwrap_or(false),
        truncation: match body.truncation {
            None | Some(TruncationBody::Document) => Truncation::Document,
            Some(TruncationBody::Error) => Truncation::Error,
        },
        deadline: body.deadline_ms.map(|Whole(ms)| Duration::from_millis(ms)),
        return_documents: body.return_documents.unwrap_or(false),
        raw: body.raw.unwrap_or(false),
        model: body.model,
        whole: false,
        blank: false,
    };
    Ok((ScoreRequest::new(items, options)?, explained, body.max_reason_tokens.map(Whole::size)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Body;

    fn refusal(body: &str) -> String {
        score(body.as_bytes()).expect_err("refused").message().to_owned()
    }

    #[test]
    fn a_full_request_is_read() {
        let body = r#"{"model": "m", "query": "q", "documents": ["a", {"id": "x", "title": "t", "n": 5}],
            "instruction": "i", "top_n": 1, "sort": true, "truncation": "error", "deadline_ms": 50,
            "return_documents": true, "raw": true}"#;
        let (items, options) = score(body.as_bytes()).expect("valid").into_parts();
        let Items::Documents { query, documents } = items else { panic!("documents") };
        assert_eq!(query, "q");
        assert_eq!(documents[0], Document::text("a"));
        assert_eq!(documents[1].id(), Some("x"));
        let Body::Fields(fields) = documents[1].body() else { panic!("fields") };
        assert_eq!(serde_json::to_string(fields).expect("JSON"), r#"{"n":5,"title":"t"}"#);
        let expected = ScoreOptions {
            instruction: Some("i".into()),
            top_n: Some(1),
            sort: true,
            truncation: Truncation::Error,
            deadline: Some(Duration::from_millis(50)),
            return_documents: true,
            raw: true,
            model: Some("m".into()),
            whole: false,
            blank: false,
        };
        assert_eq!(options, expected);
    }

    #[test]
    fn wrong_types_name_the_path() {
        assert_eq!(
            refusal(r#"{"query": 5, "documents": ["a"]}"#),
            "query: invalid type: integer `5`, expected a string at line 1 column 11"
        );
        assert_eq!(
            refusal(r#"{"query": "q", "documents": ["a", 7]}"#),
            "documents[1]: invalid type: integer `7`, expected a string or an object at line 1 column 35"
        );
        assert!(
            refusal(r#"{"query": "q", "documents": "a"}"#).starts_with("documents: invalid type: string")
        );
        assert!(
            refusal(r#"{"query": "q", "documents": [{"id": 5, "t": "x"}]}"#).starts_with("documents[0].id: ")
        );
        assert!(refusal(r#"{"pairs": [{"query": "q"}]}"#).starts_with("pairs[0]: missing field `document`"));
        assert!(
            refusal(r#"{"query": "q", "documents": ["a"], "top_n": -1}"#).starts_with("top_n: invalid value")
        );
        assert!(
            refusal(r#"{"query": "q", "documents": ["a"], "truncation": "left"}"#)
                .starts_with("truncation: unknown variant `left`, expected `document` or `error`")
        );
    }

    #[test]
    fn a_list_of_values_is_no_object() {
        let list = r#"[null, "q", ["a"], null, null, null, null, null, null, null, null, null, null, null]"#;
        assert_eq!(refusal(list), "body: invalid type: sequence, expected an object at line 1 column 0");
        let pair = r#"{"pairs": [{"query": "q", "document": "d"}, ["q", "d"]]}"#;
        assert_eq!(refusal(pair), "pairs[1]: invalid type: sequence, expected an object at line 1 column 44");
    }

    #[test]
    fn unknown_fields_are_named() {
        let message = refusal(r#"{"query": "q", "documents": ["a"], "topn": 3}"#);
        assert!(message.starts_with("topn: unknown field `topn`, expected one of `model`"), "{message}");
        let message = refusal(r#"{"pairs": [{"query": "q", "document": "d", "doc": 1}]}"#);
        assert!(message.starts_with("pairs[0].doc: unknown field `doc`"), "{message}");
    }

    #[test]
    fn a_field_twice_is_refused_by_name() {
        for (body, message) in [
            (r#"{"query": "a", "query": "b", "documents": ["d"]}"#, "body: duplicate field `query`"),
            (
                r#"{"query": "q", "documents": [{"id": "a", "t": "x", "id": "b"}]}"#,
                "documents[0]: duplicate field `id`",
            ),
            (r#"{"query": "q", "documents": [{"t": "x", "t": "y"}]}"#, "documents[0]: duplicate field `t`"),
            (
                r#"{"query": "q", "documents": [{"t": {"u": 1, "u": 2}}]}"#,
                "documents[0].t: duplicate field `u`",
            ),
        ] {
            assert!(refusal(body).starts_with(message), "{}", refusal(body));
        }
    }

    #[test]
    fn deep_nesting_is_refused_where_it_is_too_deep() {
        let deep = |depth: usize| {
            format!(r#"{{"query": "q", "documents": [{{"t": {}{}}}]}}"#, "[".repeat(depth), "]".repeat(depth))
        };
        score(deep(100).as_bytes()).expect("deep, but not too deep");
        for depth in [200, 100_000] {
            let message = refusal(&deep(depth));
            assert!(message.contains("recursion limit exceeded"), "{message}");
            assert!(message.starts_with("documents[0].t[0]") && message.len() < 600, "{message}");
        }
    }

    #[test]
    fn what_is_no_json_is_told() {
        assert_eq!(refusal(""), "body: EOF while parsing a value at line 1 column 0");
        assert!(
            refusal("{\"query\": ").starts_with("query: EOF while parsing"),
            "{}",
            refusal("{\"query\": ")
        );
        assert!(refusal(r#"{"query": "q", "documents": ["a"]} x"#).starts_with("body: trailing characters"));
        let error = score(b"{\"query\": \"\xff\"}").expect_err("refused");
        assert_eq!(error.message(), "body: not valid UTF-8 at byte 11");
    }

    #[test]
    fn parts_that_do_not_go_together_are_named() {
        assert_eq!(refusal(r#"{"documents": ["a"]}"#), "query: is missing; or give pairs");
        assert_eq!(refusal(r#"{"query": "q"}"#), "documents: is missing");
        assert_eq!(
            refusal(r#"{"query": "q", "pairs": []}"#),
            "pairs: cannot be combined with query or documents"
        );
        let explain_only = r#"{"query": "q", "documents": ["a"], "explain_top_n": 1}"#;
        assert_eq!(refusal(explain_only), "explain_top_n: needs ?explain=true");
        let request = explain(explain_only.as_bytes()).expect("valid");
        assert_eq!(request.explained(), &Explained::Best(1));
        let both = r#"{"query": "q", "documents": ["a"], "explain_top_n": 1, "explain_indices": [0]}"#;
        let error = explain(both.as_bytes()).expect_err("refused");
        assert_eq!(error.message(), "explain_indices: cannot be combined with explain_top_n");
    }
}
