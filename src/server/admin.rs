//! The admin port: `/livez`, `/readyz`, `/metrics`. Also `/health` and `/metrics` of the main port.

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    extract::State as Shared,
    http::{HeaderValue, Response, StatusCode, header::CONTENT_TYPE},
    routing::get,
};

use crate::error::{Error, Result};

use super::{http, state::State};

/// The admin port's routes.
pub(crate) fn router(state: Arc<State>) -> Router {
    Router::new()
        .route("/livez", get(live))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .fallback(http::not_found)
        .method_not_allowed_fallback(http::method_not_allowed)
        .with_state(state)
}

/// 200 while the process is worth keeping.
async fn live(Shared(state): Shared<Arc<State>>) -> Response<Body> {
    let stuck = || Error::new(crate::error::Code::Unavailable, "the engine makes no progress");
    answer(if state.is_alive() { Ok(()) } else { Err(stuck()) })
}

/// 200 while requests are taken: the probes passed, the engine is well, nothing told it to stop.
pub(crate) async fn ready(Shared(state): Shared<Arc<State>>) -> Response<Body> {
    answer(state.check_ready())
}

fn answer(result: Result<()>) -> Response<Body> {
    let (status, text) = match result {
        Ok(()) => (StatusCode::OK, r#"{"status":"ok"}"#.to_owned()),
        Err(error) => {
            let body = serde_json::json!({"status": "unavailable", "detail": error.public_message()});
            (StatusCode::SERVICE_UNAVAILABLE, body.to_string())
        }
    };
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// All metrics in the Prometheus text format.
pub(crate) async fn metrics(Shared(state): Shared<Arc<State>>) -> Response<Body> {
    state.gauge();
    match state.metrics.text() {
        Ok(text) => {
            let mut response = Response::new(Body::from(text));
            let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
            response.headers_mut().insert(CONTENT_TYPE, kind);
            response
        }
        Err(error) => {
            tracing::error!(cause = error.causes(), "{error}");
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            response
        }
    }
}
