//! `POST /rerank` of Weaviate's reranker-transformers container, and what
//! Weaviate asks of it when it starts.

use std::sync::Arc;

use axum::{
    extract::State as Shared,
    http::{Response, StatusCode},
};
use serde::{Deserialize, Serialize};

use crate::{
    error::Result,
    request::{Items, ScoreOptions, ScoreRequest},
    server::{
        call::RequestId,
        http::{self, write::bytes},
        state::State,
    },
    service::ScoreResponse,
};

use super::{Arrived, Dialect, Fields, Shape, in_order, lenient, rows::rows};

#[derive(Deserialize)]
pub(super) struct Body {
    query: String,
    documents: Vec<lenient::Text>,
}

#[derive(Serialize)]
struct Answer<'a> {
    query: &'a str,
    scores: Vec<Scored<'a>>,
}

#[derive(Serialize)]
struct Scored<'a> {
    document: &'a str,
    score: f64,
}

impl Dialect for Body {
    const SHAPE: Shape = Shape::Weaviate;
    const FIELDS: Fields = Fields::new("query", "documents");
    /// The query.
    type Kept = String;

    fn read(self, _: &Arrived<'_>) -> Result<(ScoreRequest, String)> {
        let kept = self.query.clone();
        let items = Items::Documents { query: self.query, documents: lenient::documents(self.documents) };
        let options = ScoreOptions { return_documents: true, ..in_order() };
        Ok((ScoreRequest::new(items, options)?, kept))
    }

    /// In input order: Weaviate joins scores to its objects by their place.
    fn write(query: String, response: &ScoreResponse, _: &RequestId) -> Result<Vec<u8>> {
        let rows = rows(response)?;
        let scores = rows
            .iter()
            .map(|row| Scored { document: row.text.unwrap_or_default(), score: row.score().get() });
        Ok(bytes(&Answer { query: &query, scores: scores.collect() }))
    }
}

/// `GET /meta`: which model answers.
pub(super) async fn meta(Shared(state): Shared<Arc<State>>) -> Response<axum::body::Body> {
    match state.service() {
        Ok(service) => http::json(bytes(&serde_json::json!({"model": service.model().name}))),
        Err(error) => super::refusal::refuse(Shape::Weaviate, Fields::default(), &error),
    }
}

/// `GET /.well-known/live`.
pub(super) async fn live() -> StatusCode {
    StatusCode::NO_CONTENT
}

/// `GET /.well-known/ready`: Weaviate waits for it.
pub(super) async fn ready(Shared(state): Shared<Arc<State>>) -> StatusCode {
    match state.check_ready() {
        Ok(()) => StatusCode::NO_CONTENT,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}
