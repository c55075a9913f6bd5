//! Errors as problem details (RFC 9457).

use axum::{
    body::Body,
    http::{
        HeaderMap, HeaderName, HeaderValue, Response, StatusCode,
        header::{ACCEPT_ENCODING, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE},
    },
};
use serde::Serialize;

use crate::{
    error::{Code, Error},
    server::call::RequestId,
};

use super::body::ENCODINGS;

/// Asks Envoy to count this server as failed at once, and not only at its next health check.
pub(in crate::server) const LEAVE: &str = "x-envoy-immediate-health-check-fail";

/// Whether the same request may succeed later, in every dialect and over gRPC: `true` or `false`. OpenAI's client
/// and Mixedbread's read it.
pub(in crate::server) const SHOULD_RETRY: &str = "x-should-retry";

#[derive(Serialize)]
struct Problem<'a> {
    r#type: &'static str,
    title: &'static str,
    status: u16,
    detail: &'a str,
    code: &'static str,
    retryable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<usize>,
    request_id: &'a str,
}

/// An error as a response.
pub(crate) fn problem(error: &Error, id: &RequestId) -> Response<Body> {
    let row = error.code().row();
    let status = StatusCode::from_u16(row.http).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let problem = Problem {
        r#type: "about:blank",
        title: status.canonical_reason().unwrap_or("Error"),
        status: status.as_u16(),
        detail: error.public_message(),
        code: row.name,
        retryable: error.retryable(),
        retry_after_ms: error.retry_after().map(|wait| wait.as_millis().try_into().unwrap_or(u64::MAX)),
        limit: error.limit().map(|limit| limit.limit),
        value: error.limit().map(|limit| limit.value),
        request_id: id.as_str(),
    };
    // A struct of text and numbers always has a JSON form.
    let body = serde_json::to_vec(&problem).unwrap_or_default();
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    advise(headers, error);
    response
}

/// Headers that tell a client or a proxy what to do next: whether and when to try again,
/// how to show a key, which encodings are read, to send nothing more here.
pub(crate) fn advise(headers: &mut HeaderMap, error: &Error) {
    let retry = HeaderValue::from_static(should_retry(error));
    headers.insert(HeaderName::from_static(SHOULD_RETRY), retry);
    match error.code() {
        Code::Unauthenticated => headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")),
        Code::UnsupportedMedia => headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(ENCODINGS)),
        Code::Unavailable => headers.insert(HeaderName::from_static(LEAVE), HeaderValue::from_static("true")),
        _ => None,
    };
    if let Some(wait) = error.retry_after() {
        // Whole seconds, and never "at once".
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds.max(1)));
    }
}

/// What [`SHOULD_RETRY`] says of an error.
pub(in crate::server) fn should_retry(error: &Error) -> &'static str {
    if error.retryable() { "true" } else { "false" }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http_body_util::BodyExt as _;

    use super::*;
    use crate::error::TABLE;

    async fn parts(error: &Error) -> (u16, Option<String>, serde_json::Value) {
        let response = problem(error, &RequestId::now(HeaderValue::from_static("r-1")));
        let status = response.status().as_u16();
        assert_eq!(response.headers()[SHOULD_RETRY], should_retry(error));
        let retry = response.headers().get(RETRY_AFTER).map(|value| value.to_str().expect("text").to_owned());
        assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
        let body = response.into_body().collect().await.expect("whole").to_bytes();
        (status, retry, serde_json::from_slice(&body).expect("JSON"))
    }

    #[tokio::test]
    async fn every_code_has_its_row() {
        for row in TABLE {
            let (status, _, body) = parts(&Error::new(row.code, "what is wrong")).await;
            assert_eq!(status, row.http);
            assert_eq!(body["status"], row.http);
            assert_eq!(body["code"], row.name);
            assert_eq!(body["retryable"], row.retryable);
            assert_eq!(should_retry(&Error::new(row.code, "")), row.retryable.to_string());
            assert_eq!(body["request_id"], "r-1");
            let said = body["detail"] == "what is wrong";
            assert_eq!(said, row.code != Code::Internal, "{body}");
        }
    }

    #[tokio::test]
    async fn retry_and_limit_are_told() {
        let error = Error::new(Code::Overloaded, "full").with_retry_after(Duration::from_millis(2500));
        let (_, retry, body) = parts(&error).await;
        assert_eq!(retry.as_deref(), Some("3"));
        assert_eq!(body["retry_after_ms"], 2500);
        let (_, retry, body) = parts(&Error::too_large("documents", "documents", 10, 11)).await;
        assert_eq!(retry, None);
        assert_eq!((&body["limit"], &body["value"]), (&10.into(), &11.into()));
        assert!(body.get("retry_after_ms").is_none());
    }
}
