//! Native HTTP: `POST /score`, `GET /info`, `/v1/models`, `/health`, `/metrics`; and the pages.

pub(in crate::server) mod body;
mod explain;
pub(in crate::server) mod large;
pub(in crate::server) mod object;
pub(in crate::server) mod parse;
mod problem;
pub(crate) mod unique;
pub(in crate::server) mod weigh;
pub(crate) mod wire;
pub(crate) mod write;

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    extract::State as Shared,
    http::{
        HeaderMap, HeaderName, HeaderValue, Request, Response,
        header::{ACCEPT, CONTENT_TYPE},
    },
    routing::{get, post},
};

use crate::{
    error::{Code, Error, Result},
    metrics::Lane,
    service::{ScoreResponse, Service, Timing},
};

use super::{
    admin,
    call::{Call, RequestId},
    dialects, openapi, playground,
    state::State,
};

pub(in crate::server) use problem::{LEAVE, SHOULD_RETRY, should_retry};
pub(crate) use problem::{advise, problem};

const TIMEOUT: HeaderName = HeaderName::from_static("x-request-timeout-ms");
pub(in crate::server) const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// The main port's routes.
pub(crate) fn router(state: Arc<State>) -> Router {
    let mut router = Router::new()
        .route("/score", post(score))
        .route("/info", get(info))
        .route("/v1/models", get(models))
        .route("/health", get(admin::ready))
        .merge(dialects::routes());
    if state.metrics_on_main {
        router = router.route("/metrics", get(admin::metrics));
    }
    router = router.merge(playground::routes()).merge(openapi::routes());
    router.fallback(not_found).method_not_allowed_fallback(method_not_allowed).with_state(state)
}

/// `POST /score`, with or without reasons.
async fn score(Shared(state): Shared<Arc<State>>, request: Request<Body>) -> Response<Body> {
    let mut call = Call::begin(&state, "/score", Lane::Score, id(&request));
    match explain_asked(request.uri().query()) {
        Err(error) => failed(call, &error),
        Ok(false) => match scored(&mut call, request).await {
            Ok(response) => {
                let answer = scores(&response, &[]);
                call.end(None);
                answer
            }
            Err(error) => failed(call, &error),
        },
        Ok(true) => {
            call.explains();
            explain::explain(call, request).await
        }
    }
}

async fn scored(call: &mut Call, request: Request<Body>) -> Result<ScoreResponse> {
    call.enter()?;
    let (head, body) = request.into_parts();
    let (body, held) = body::read(&head.headers, body, call.state()).await?;
    let (mut request, _held) = large::request(call, body, held, wire::score, Service::rendered).await?;
    if let Some(timeout) = timeout(&head.headers)? {
        request.limit_deadline(timeout);
    }
    call.score(request).await
}

/// `?explain=true`; any other parameter is refused.
fn explain_asked(query: Option<&str>) -> Result<bool> {
    let mut asked = false;
    for parameter in query.unwrap_or_default().split('&').filter(|parameter| !parameter.is_empty()) {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, "true"));
        asked = match (name, value) {
            ("explain", "true" | "1") => true,
            ("explain", "false" | "0") => false,
            ("explain", other) => {
                return Err(Error::invalid("explain", format!("{other:?}, expected true or false")));
            }
            (other, _) => return Err(Error::invalid(other, "unknown query parameter; there is explain")),
        };
    }
    Ok(asked)
}

/// The deadline that the client or a proxy set.
pub(in crate::server) fn timeout(headers: &HeaderMap) -> Result<Option<std::time::Duration>> {
    let Some(value) = headers.get(&TIMEOUT) else { return Ok(None) };
    let text = value.to_str().unwrap_or_default().trim();
    match text.parse::<u64>() {
        Ok(milliseconds) if milliseconds > 0 => Ok(Some(std::time::Duration::from_millis(milliseconds))),
        _ => Err(Error::invalid(TIMEOUT.as_str(), format!("{value:?}, expected milliseconds, at least 1"))),
    }
}

/// `application/json` without `text/event-stream`; `*/*` takes events. Parameters make no difference.
fn wants_json(headers: &HeaderMap) -> bool {
    let ranges = || {
        let values = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).filter_map(|range| range.split(';').next())
    };
    let named = |kind: &str| ranges().any(|range| range.trim().eq_ignore_ascii_case(kind));
    named("application/json") && !named("text/event-stream")
}

async fn info(Shared(state): Shared<Arc<State>>, request: Request<Body>) -> Response<Body> {
    let call = Call::begin(&state, "/info", Lane::Score, id(&request));
    match state.service() {
        Ok(service) => {
            let answer = json(write::info(service));
            call.end(None);
            answer
        }
        Err(error) => failed(call, &error),
    }
}

async fn models(Shared(state): Shared<Arc<State>>, request: Request<Body>) -> Response<Body> {
    let call = Call::begin(&state, "/v1/models", Lane::Score, id(&request));
    match state.service() {
        Ok(service) => {
            let answer = json(write::models(service));
            call.end(None);
            answer
        }
        Err(error) => failed(call, &error),
    }
}

/// Any route there is none of.
pub(crate) async fn not_found(Shared(state): Shared<Arc<State>>, request: Request<Body>) -> Response<Body> {
    let call = Call::begin(&state, "other", Lane::Score, id(&request));
    let message = format!("no route {} {}", request.method(), request.uri().path());
    failed(call, &Error::new(Code::NotFound, message))
}

/// A route with another method; the `allow` header says which.
pub(crate) async fn method_not_allowed(
    Shared(state): Shared<Arc<State>>,
    request: Request<Body>,
) -> Response<Body> {
    let call = Call::begin(&state, "other", Lane::Score, id(&request));
    let message = format!("{} does not take {}", request.uri().path(), request.method());
    let error = Error::new(Code::MethodNotAllowed, message);
    let response =
        dialects::refuse(request.uri().path(), &error).unwrap_or_else(|| problem(&error, call.id()));
    call.end(Some(&error));
    response
}

/// The id that the request was given when it arrived.
pub(in crate::server) fn id(request: &Request<Body>) -> RequestId {
    request.extensions().get::<RequestId>().cloned().unwrap_or_else(RequestId::none)
}

/// Ends a call with an error.
fn failed(call: Call, error: &Error) -> Response<Body> {
    let response = problem(error, call.id());
    call.end(Some(error));
    response
}

/// A whole response with its timing.
fn scores(response: &ScoreResponse, reasons: &[crate::service::Explanation]) -> Response<Body> {
    let mut answer = json(write::scores(response, reasons));
    answer.headers_mut().insert(SERVER_TIMING, server_timing(&response.timing));
    answer
}

pub(in crate::server) fn json(body: Vec<u8>) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

pub(in crate::server) fn server_timing(timing: &Timing) -> HeaderValue {
    let ms = |duration: std::time::Duration| duration.as_secs_f64() * 1e3;
    let text = format!(
        "tokenize;dur={:.3}, queue;dur={:.3}, compute;dur={:.3}, total;dur={:.3}",
        ms(timing.tokenize),
        ms(timing.queue),
        ms(timing.compute),
        ms(timing.total)
    );
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_query_asks_for_reasons_or_is_refused() {
        assert_eq!(explain_asked(None).ok(), Some(false));
        assert_eq!(explain_asked(Some("")).ok(), Some(false));
        assert_eq!(explain_asked(Some("explain")).ok(), Some(true));
        assert_eq!(explain_asked(Some("explain=true")).ok(), Some(true));
        assert_eq!(explain_asked(Some("explain=0")).ok(), Some(false));
        let message = |query| explain_asked(Some(query)).expect_err("refused").message().to_owned();
        assert_eq!(message("explain=yes"), "explain: \"yes\", expected true or false");
        assert_eq!(message("explian=true"), "explian: unknown query parameter; there is explain");
    }

    #[test]
    fn only_a_wish_for_json_alone_gets_json() {
        let accept = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, HeaderValue::from_static(value));
            wants_json(&headers)
        };
        assert!(accept("application/json"));
        assert!(accept("application/json, */*"));
        assert!(accept("Application/JSON"));
        assert!(accept("text/html,application/json ; q=0.9"));
        assert!(!accept("application/jsonlines"));
        assert!(!accept("application/json-seq, */*"));
        assert!(!accept("application/json, Text/Event-Stream;q=0.5"));
        assert!(!accept("text/event-stream"));
        assert!(!accept("text/event-stream, application/json"));
        assert!(!accept("*/*"));
        assert!(!wants_json(&HeaderMap::new()));
    }
}
