//! Errors in each peer's own shape. Past a limit, every shape also carries the
//! limit and the value as numbers: clients shrink their batches by them.

use axum::{
    body::Body,
    http::{Response, StatusCode},
};
use serde_json::{Map, Value, json};

use crate::{
    error::{Code, Error},
    server::http::{self, weigh::Lists},
};

/// Whose clients read the error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// Before it is known whose: TEI's, Jina's, Cohere's and Weaviate's readers all find theirs.
    Any,
    /// `error` and `error_type`.
    Tei,
    /// `message`.
    Cohere,
    /// `detail` and `message`.
    Jina,
    /// `detail`.
    Voyage,
    /// `type`, `url`, `message`, `details`.
    Mixedbread,
    /// `object`, `message`, `detail`, `type`.
    Nim,
    /// `error`, a text.
    Weaviate,
    /// `error`, an object, as vLLM, Infinity and OpenAI's clients have it.
    OpenAi,
    /// `object`, `message`, `type`, `param`, `code`, as SGLang has it.
    Flat,
}

/// What a peer calls the fields that errors name, so that they name its own.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fields {
    query: &'static str,
    documents: &'static str,
    top_n: &'static str,
    pairs: Pairs,
}

/// Where a peer's pairs are.
#[derive(Clone, Copy, Debug)]
enum Pairs {
    /// Under one name.
    Together(&'static str),
    /// In two lists: queries and documents.
    Apart(&'static str, &'static str),
    /// Queries in a list, with one document for all of them.
    About(&'static str, &'static str),
}

impl Fields {
    pub(super) const fn new(query: &'static str, documents: &'static str) -> Self {
        Self { query, documents, top_n: "top_n", pairs: Pairs::Apart(query, documents) }
    }

    /// For a peer whose queries and documents come in pairs, under one name.
    pub(super) const fn paired(pairs: &'static str) -> Self {
        Self { pairs: Pairs::Together(pairs), ..Self::new("query", "documents") }
    }

    /// For a peer whose queries are about one document.
    pub(super) const fn about(queries: &'static str, document: &'static str) -> Self {
        Self { pairs: Pairs::About(queries, document), ..Self::new("query", "documents") }
    }

    /// For a peer who calls so how many of the best are wanted.
    pub(super) const fn cut_by(self, top_n: &'static str) -> Self {
        Self { top_n, ..self }
    }

    /// Where its documents or pairs are; `whole` if all of them is read.
    pub(super) fn lists(self, whole: bool) -> Lists {
        let pairs = match self.pairs {
            Pairs::Together(list) => Some(list),
            Pairs::Apart(..) | Pairs::About(..) => None,
        };
        Lists { documents: self.documents, pairs, whole }
    }

    /// An error about our field as one about the peer's.
    fn name(self, error: &Error) -> Error {
        if let Some(message) = self.pairs.name(error.message()) {
            return error.clone().with_message(message);
        }
        let error = error.clone().rename_field("query", self.query);
        error.rename_field("documents", self.documents).rename_field("top_n", self.top_n)
    }
}

impl Pairs {
    /// A message about one of our pairs, or about all of them, in the peer's names.
    fn name(self, message: &str) -> Option<String> {
        let (Self::Together(list) | Self::Apart(list, _) | Self::About(list, _)) = self;
        let rest = message.strip_prefix("pairs")?;
        if rest.starts_with(':') {
            return Some(format!("{list}{rest}"));
        }
        let (index, part) = rest.strip_prefix('[')?.split_once(']')?;
        Some(match (self, part.strip_prefix(".document"), part.strip_prefix(".query")) {
            (Self::Together(_), ..) | (_, None, None) => format!("{list}[{index}]{part}"),
            (_, None, Some(rest)) => format!("{list}[{index}]{rest}"),
            (Self::Apart(_, documents), Some(rest), _) => format!("{documents}[{index}]{rest}"),
            (Self::About(_, document), Some(rest), _) => format!("{document}{rest}"),
        })
    }
}

impl Default for Fields {
    fn default() -> Self {
        Self::new("query", "documents")
    }
}

/// An error as a response.
pub(super) fn refuse(shape: Shape, fields: Fields, error: &Error) -> Response<Body> {
    let error = fields.name(error);
    let status = status(shape, error.code());
    let mut body = shape.body(status, error.code(), error.public_message());
    if let Some(limit) = error.limit() {
        body.insert("limit".into(), limit.limit.into());
        body.insert("value".into(), limit.value.into());
    }
    let mut response = http::json(http::write::bytes(&body));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    http::advise(response.headers_mut(), &error);
    response
}

/// TEI answers what it cannot read with 422 and a failed backend with 424.
fn status(shape: Shape, code: Code) -> u16 {
    match (shape, code) {
        (Shape::Tei, Code::Invalid) => 422,
        (Shape::Tei, Code::Internal) => 424,
        _ => code.row().http,
    }
}

/// TEI's names: clients wait and retry on `Overloaded`.
fn tei_type(code: Code) -> &'static str {
    match code {
        Code::Invalid
        | Code::TooLarge
        | Code::UnsupportedMedia
        | Code::NotFound
        | Code::MethodNotAllowed
        | Code::Unauthenticated
        | Code::Unimplemented => "Validation",
        Code::Overloaded | Code::DeadlineExceeded => "Overloaded",
        Code::Internal => "Backend",
        Code::Unavailable => "Unhealthy",
    }
}

/// The names of vLLM and SGLang.
fn openai_type(code: Code) -> &'static str {
    match code {
        Code::Invalid | Code::TooLarge | Code::UnsupportedMedia | Code::MethodNotAllowed => "BadRequestError",
        Code::Unauthenticated => "AuthenticationError",
        Code::NotFound => "NotFoundError",
        Code::Overloaded => "RateLimitError",
        Code::Internal => "InternalServerError",
        Code::Unimplemented => "NotImplementedError",
        Code::Unavailable => "ServiceUnavailableError",
        Code::DeadlineExceeded => "TimeoutError",
    }
}

impl Shape {
    fn body(self, status: u16, code: Code, message: &str) -> Map<String, Value> {
        let kind = openai_type(code);
        let body = match self {
            Shape::Any => {
                json!({"error": message, "error_type": tei_type(code), "detail": message, "message": message})
            }
            Shape::Tei => json!({"error": message, "error_type": tei_type(code)}),
            Shape::Cohere => json!({"message": message}),
            Shape::Jina => json!({"detail": message, "message": message}),
            Shape::Voyage => json!({"detail": message}),
            Shape::Mixedbread => {
                json!({"type": code.row().name, "url": null, "message": message, "details": null})
            }
            Shape::Nim => json!({"object": "error", "message": message, "detail": message, "type": kind}),
            Shape::Weaviate => json!({"error": message}),
            Shape::OpenAi => {
                json!({"error": {"message": message, "type": kind, "param": null, "code": status}})
            }
            Shape::Flat => {
                json!({"object": "error", "message": message, "type": kind, "param": null, "code": status})
            }
        };
        match body {
            Value::Object(body) => body,
            // Every arm is an object.
            _ => Map::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_peers_own_fields() {
        let name = |fields: Fields, message: &str| {
            fields.name(&Error::new(Code::Invalid, message)).message().to_owned()
        };
        let fields = Fields::new("question", "texts");
        assert_eq!(name(fields, "documents[3]: is empty"), "texts[3]: is empty");
        assert_eq!(name(fields, "query: is empty"), "question: is empty");
        assert_eq!(name(Fields::default(), "query: is empty"), "query: is empty");
        assert_eq!(name(Fields::paired("inputs"), "pairs[0].query: is empty"), "inputs[0].query: is empty");
        let fields = Fields::new("query", "documents").cut_by("top_k");
        assert_eq!(name(fields, "top_n: is 0; at least 1 is needed"), "top_k: is 0; at least 1 is needed");
        let fields = Fields::new("text_1", "text_2");
        assert_eq!(name(fields, "pairs[1].query: is empty"), "text_1[1]: is empty");
        assert_eq!(name(fields, "pairs[1].document: is empty"), "text_2[1]: is empty");
        assert_eq!(name(fields, "pairs: 5 pairs, over"), "text_1: 5 pairs, over");
        let fields = Fields::about("questions", "state");
        assert_eq!(name(fields, "pairs[2].document: is empty"), "state: is empty");
        assert_eq!(name(fields, "pairs[2].query: 9 bytes"), "questions[2]: 9 bytes");
    }

    #[test]
    fn clients_of_one_route_find_their_error_before_the_body_is_read() {
        let any = Shape::Any.body(503, Code::Unavailable, "starting");
        for shape in [Shape::Tei, Shape::Cohere, Shape::Jina, Shape::Voyage, Shape::Weaviate] {
            for (key, value) in shape.body(503, Code::Unavailable, "starting") {
                assert_eq!(any.get(&key), Some(&value), "{shape:?} reads {key}");
            }
        }
    }
}
