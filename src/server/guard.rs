//! Who may ask: API keys, and the origins of pages (CORS).
//!
//! Both are layers around a router that is there only when they are configured: a
//! server without them does nothing of this on a request.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{Request, State as Shared},
    http::{
        HeaderMap, HeaderName, HeaderValue, Method, Response,
        header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER},
    },
    middleware::{self, Next},
};
use subtle::ConstantTimeEq as _;
use tower_http::cors::{AllowOrigin, Any, CorsLayer};

use crate::{
    config::{Access, ApiKeys, Origins},
    error::{Code, Error, Result},
    metrics::Lane,
    telemetry::{TRACEPARENT, TRACESTATE},
};

use super::{
    call::{Call, REQUEST_ID},
    dialects, grpc, http,
    state::State,
};

/// How long a browser may remember what it was allowed.
const REMEMBERED: Duration = Duration::from_secs(3600);

/// Paths without secrets and without work, which need no key: health for load
/// balancers, the pages and their files, and the description of the interface.
pub(super) fn is_open(path: &str) -> bool {
    matches!(path, "/" | "/health" | "/docs" | "/openapi.json" | "/.well-known/live" | "/.well-known/ready")
        || path.starts_with("/playground/")
        || path.starts_with("/docs/")
        || path.starts_with("/grpc.health.v1.Health/")
}

/// Puts the layers that `access` asks for around the HTTP routes.
pub(super) fn http_routes(router: Router, access: &Access, state: &Arc<State>) -> Router {
    let router = with_keys(router, access, state, |path, error, call| {
        dialects::refuse(path, error).unwrap_or_else(|| http::problem(error, call.id()))
    });
    match &access.origins {
        // Outermost: a browser asks for permission without a key, and refusals are to be read too.
        Some(origins) => router.layer(cors(origins)),
        None => router,
    }
}

/// As [`http_routes`], for gRPC: browsers do not call it, so it has no origins.
pub(super) fn grpc_routes(router: Router, access: &Access, state: &Arc<State>) -> Router {
    with_keys(router, access, state, |_, error, _| grpc::status(error).into_http())
}

/// A refusal as the clients of a path read it.
type Refuse = fn(&str, &Error, &Call) -> Response<Body>;

#[derive(Clone)]
struct Guard {
    keys: Arc<ApiKeys>,
    state: Arc<State>,
    refuse: Refuse,
}

fn with_keys(router: Router, access: &Access, state: &Arc<State>, refuse: Refuse) -> Router {
    let Some(keys) = &access.keys else { return router };
    let guard = Guard { keys: Arc::new(keys.clone()), state: Arc::clone(state), refuse };
    router.layer(middleware::from_fn_with_state(guard, check))
}

/// Lets a request through, or refuses it before anything of its body is read.
async fn check(Shared(guard): Shared<Guard>, request: Request, next: Next) -> Response<Body> {
    if is_open(request.uri().path()) {
        return next.run(request).await;
    }
    match admit(request.headers(), &guard.keys) {
        Ok(()) => next.run(request).await,
        Err(error) => {
            let call = Call::begin(&guard.state, "other", Lane::Score, http::id(&request));
            let response = (guard.refuse)(request.uri().path(), &error, &call);
            call.end(Some(&error));
            response
        }
    }
}

/// `Authorization: Bearer KEY`, or the bare key.
fn admit(headers: &HeaderMap, keys: &ApiKeys) -> Result<()> {
    let refuse = |message: &str| Err(Error::new(Code::Unauthenticated, format!("authorization: {message}")));
    let Some(value) = headers.get(AUTHORIZATION) else {
        return refuse("is missing; send `Authorization: Bearer` and an API key");
    };
    let given = value.as_bytes();
    let given = match given.split_at_checked(7) {
        Some((scheme, key)) if scheme.eq_ignore_ascii_case(b"bearer ") => key,
        _ => given,
    };
    let given = given.trim_ascii();
    // Every key is compared, and each in the same time whatever its first differing byte.
    let known = keys.iter().fold(subtle::Choice::from(0), |known, key| known | key.ct_eq(given));
    if bool::from(known) { Ok(()) } else { refuse("no such API key") }
}

/// Cross-origin access for pages of `origins`: without cookies, with our headers.
fn cors(origins: &Origins) -> CorsLayer {
    let listed = || origins.iter().filter_map(|origin| HeaderValue::try_from(origin).ok());
    let allowed = if origins.is_any() { AllowOrigin::from(Any) } else { AllowOrigin::list(listed()) };
    let timeout = HeaderName::from_static("x-request-timeout-ms");
    let (parent, state) = (HeaderName::from_static(TRACEPARENT), HeaderName::from_static(TRACESTATE));
    let server_timing = HeaderName::from_static("server-timing");
    let should_retry = HeaderName::from_static(http::SHOULD_RETRY);
    CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::GET, Method::POST])
        .allow_headers([
            AUTHORIZATION,
            CONTENT_TYPE,
            CONTENT_ENCODING,
            REQUEST_ID,
            timeout,
            parent.clone(),
            state,
        ])
        .expose_headers([REQUEST_ID, RETRY_AFTER, should_retry, server_timing, parent])
        .max_age(REMEMBERED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_in_every_usual_form() {
        let keys: ApiKeys = "first-key,second-key".parse().expect("keys");
        let admit = |value: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, HeaderValue::from_bytes(value).expect("a header"));
            super::admit(&headers, &keys)
        };
        for fine in ["Bearer first-key", "bearer second-key", "BEARER  second-key", "first-key"] {
            admit(fine.as_bytes()).unwrap_or_else(|error| panic!("{fine}: {error}"));
        }
        for wrong in
            ["Bearer first-ke", "Bearer first-keyx", "Bearer ", "", "Basic first-key", "first-key,second-key"]
        {
            let error = admit(wrong.as_bytes()).expect_err("refused");
            assert_eq!(
                (error.code(), error.message()),
                (Code::Unauthenticated, "authorization: no such API key")
            );
        }
        admit(b"Bearer \xff").expect_err("refused");
        let error = super::admit(&HeaderMap::new(), &keys).expect_err("refused");
        assert!(error.message().starts_with("authorization: is missing"), "{error}");
    }

    #[test]
    fn only_pages_and_health_are_open() {
        for open in
            ["/", "/health", "/docs", "/openapi.json", "/playground/app.js", "/grpc.health.v1.Health/Check"]
        {
            assert!(is_open(open), "{open}");
        }
        for closed in
            ["/score", "/info", "/v1/models", "/metrics", "/playground", "//", "/nothing", "/health/x"]
        {
            assert!(!is_open(closed), "{closed}");
        }
    }
}
