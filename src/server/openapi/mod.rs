//! The description of the HTTP interface: `/openapi.json`, and `/docs` to read it.
//!
//! Each group of routes has a part of its own: its paths and the schemas of its
//! bodies, written by hand since most bodies are read and written by hand. What
//! is the same everywhere is added here: the errors, from the one table of them,
//! and the keys. `tests/tidy` holds the parts to the routes and to the fields of
//! the wire types.

use std::sync::{Arc, LazyLock};

use axum::{
    Router,
    body::Body,
    extract::{Path, Request, State as Shared},
    http::{HeaderValue, Response, header::CONTENT_TYPE},
    routing::get,
};
use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::error::{Row, TABLE};

use super::{
    embedded::{self, CSS, HTML, JS},
    http,
    state::State,
};

/// One part for each group of routes: a new group is a file, and a line here. A part
/// of schemas that others refer to has no tag.
const PARTS: [&str; 14] = [
    include_str!("score.json"),
    include_str!("about.json"),
    include_str!("dialects/rerank.json"),
    include_str!("dialects/jina.json"),
    include_str!("dialects/lenient.json"),
    include_str!("dialects/cohere.json"),
    include_str!("dialects/tei.json"),
    include_str!("dialects/voyage.json"),
    include_str!("dialects/weaviate.json"),
    include_str!("dialects/mixedbread.json"),
    include_str!("dialects/nim.json"),
    include_str!("dialects/scores.json"),
    include_str!("dialects/sglang.json"),
    include_str!("dialects/systemone.json"),
];

const PAGE: &str = include_str!("docs.html");
const FILES: [(&str, &str, &str); 2] =
    [("docs.css", CSS, include_str!("docs.css")), ("docs.js", JS, include_str!("docs.js"))];

static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| document().to_string().into());

/// The description and the page that shows it.
pub(super) fn routes() -> Router<Arc<State>> {
    Router::new()
        .route("/openapi.json", get(description))
        .route("/docs", get(page))
        .route("/docs/{file}", get(file))
}

async fn description() -> Response<Body> {
    let mut response = Response::new(Body::from(DOCUMENT.clone()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

async fn page() -> Response<Body> {
    embedded::respond(HTML, PAGE)
}

async fn file(state: Shared<Arc<State>>, Path(name): Path<String>, request: Request) -> Response<Body> {
    match FILES.iter().find(|(known, _, _)| *known == name) {
        Some((_, kind, text)) => embedded::respond(kind, text),
        None => http::not_found(state, request).await,
    }
}

/// The parts as one OpenAPI 3.1 document.
fn document() -> Value {
    let (mut tags, mut paths, mut schemas) = (Vec::new(), Map::new(), Map::new());
    for part in PARTS {
        let mut part: Value = serde_json::from_str(part).expect("a part is JSON: a test reads them all");
        let errors = part.get("errors").cloned();
        let tag = part["tag"].take();
        for (path, mut item) in taken(&mut part, "paths") {
            for (method, operation) in item.as_object_mut().into_iter().flatten() {
                operation["tags"] = json!([tag["name"]]);
                add_errors(operation, method == "get", errors.as_ref());
            }
            paths.insert(path, item);
        }
        schemas.extend(taken(&mut part, "schemas"));
        if !tag.is_null() {
            tags.push(tag);
        }
    }
    schemas.insert("Problem".to_owned(), problem());
    schemas.insert("Code".to_owned(), json!({"type": "string", "enum": TABLE.map(|row| row.name)}));
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Verdict",
            "version": crate::VERSION,
            "description": "Relevance scores from the first token of a causal language model, and reasons from the tokens after it.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        // Without keys in the configuration none is asked for.
        "security": [{}, {"key": []}],
        "tags": tags,
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "An API key of the server, if it asks for one."},
            },
        },
    })
}

fn taken(part: &mut Value, name: &str) -> Map<String, Value> {
    match part[name].take() {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// What may go wrong on an operation, where the part does not say it itself.
/// `content` is the body of errors, if the group has one of its own.
fn add_errors(operation: &mut Value, read_only: bool, content: Option<&Value>) {
    let public = operation.get("security").and_then(Value::as_array).is_some_and(Vec::is_empty);
    let problem = json!({"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}});
    for Row { name, http, retryable, .. } in TABLE {
        let fits = match http {
            401 => !public,
            // Of what is described, every method is taken.
            405 => false,
            500 | 503 => true,
            _ => !read_only,
        };
        let Some(responses) = operation["responses"].as_object_mut().filter(|_| fits) else { continue };
        let mut response = json!({
            "description": format!("`{name}`: {}", meaning(http)),
            "content": content.unwrap_or(&problem),
        });
        let retry = json!({"description": "Whether the same request may succeed later.", "schema": {"type": "boolean"}});
        response["headers"] = json!({(http::SHOULD_RETRY): retry});
        if retryable && http != 504 {
            response["headers"]["retry-after"] =
                json!({"description": "Seconds.", "schema": {"type": "integer"}});
        }
        responses.entry(http.to_string()).or_insert(response);
    }
}

fn meaning(status: u16) -> &'static str {
    match status {
        400 => "the request is malformed; the detail names the field, the limit and the value.",
        401 => "no API key, or one that is not known.",
        404 => "no such model.",
        413 => "past a limit; `limit` and `value` say which and by how much.",
        415 => "a body of a type or an encoding that is not read.",
        429 => "the queue is full, or the wait would be past the deadline.",
        501 => "this model does not offer it.",
        503 => "starting, draining, or stuck.",
        504 => "the deadline passed before the work was done.",
        _ => "a fault of the server; its log has the cause.",
    }
}

/// Errors of native routes (RFC 9457).
fn problem() -> Value {
    json!({
        "type": "object",
        "additionalProperties": false,
        "description": "What went wrong, as RFC 9457 has it.",
        "required": ["type", "title", "status", "detail", "code", "retryable", "request_id"],
        "properties": {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string", "description": "Names the field, the limit and the value."},
            "code": {"$ref": "#/components/schemas/Code"},
            "retryable": {"type": "boolean", "description": "The same request may succeed later."},
            "retry_after_ms": {"type": "integer", "minimum": 0},
            "limit": {"type": "integer", "minimum": 0},
            "value": {"type": "integer", "minimum": 0},
            "request_id": {"type": "string"},
        },
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::error::Code;

    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(map) => {
                if let Some(Value::String(target)) = map.get("$ref") {
                    found.insert(target.clone());
                }
                map.values().for_each(|value| references(value, found));
            }
            Value::Array(items) => items.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }

    #[test]
    fn every_reference_leads_to_a_schema_and_every_schema_is_told_of() {
        let document = document();
        let mut found = BTreeSet::new();
        references(&document, &mut found);
        for target in &found {
            let pointer = target.strip_prefix('#').expect("within the document");
            assert!(document.pointer(pointer).is_some(), "{target} leads nowhere");
        }
        // The data of events have no place of their own in OpenAPI: the text names them.
        let text = document.to_string();
        for name in document["components"]["schemas"].as_object().expect("schemas").keys() {
            let referred = found.contains(&format!("#/components/schemas/{name}"));
            assert!(referred || text.matches(name.as_str()).count() > 1, "{name} is used nowhere");
        }
    }

    #[test]
    fn no_part_overwrites_another() {
        let (mut paths, mut schemas) = (Vec::new(), vec!["Problem".to_owned(), "Code".to_owned()]);
        for part in PARTS {
            let mut part: Value = serde_json::from_str(part).expect("JSON");
            paths.extend(taken(&mut part, "paths").into_iter().map(|(path, _)| path));
            schemas.extend(taken(&mut part, "schemas").into_iter().map(|(name, _)| name));
        }
        for names in [paths, schemas] {
            assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "{names:?}");
        }
    }

    #[test]
    fn every_operation_tells_what_may_go_wrong() {
        let document = document();
        let score = &document["paths"]["/score"]["post"]["responses"];
        for row in TABLE.iter().filter(|row| row.code != Code::MethodNotAllowed) {
            let problem =
                &score[row.http.to_string()]["content"]["application/problem+json"]["schema"]["$ref"];
            assert_eq!(problem, "#/components/schemas/Problem", "{}", row.http);
        }
        assert!(score.get("405").is_none(), "it is an operation because its method is taken");
        let health = &document["paths"]["/health"]["get"]["responses"];
        assert!(health.get("401").is_none(), "it needs no key");
        assert!(health["503"]["content"].get("application/json").is_some(), "it has a body of its own");
        let info = &document["paths"]["/info"]["get"]["responses"];
        assert!(info.get("401").is_some() && info.get("413").is_none());
    }
}
