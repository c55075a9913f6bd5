//! The first thing a request meets: it gets an id, goes to HTTP or gRPC, and a
//! panic on its way becomes an answer.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, header::CONTENT_TYPE},
};
use futures::FutureExt as _;
use hyper::body::Incoming;
use tower::Service as _;

use crate::{
    error::Error,
    telemetry::{TRACEPARENT, TRACESTATE, Trace, Tracing},
};

use super::{
    bodies::Bodies,
    call::{REQUEST_ID, RequestIds},
    dialects, grpc, guard, http,
};

/// The longest message, in bytes, of a call that needs no key: it names a service.
const OPEN_MESSAGE: usize = 4 << 10;

/// Serves both protocols on one port.
pub(crate) struct Front {
    http: Router,
    /// Absent on the admin port.
    grpc: Option<Calls>,
    ids: RequestIds,
    read_timeout: Duration,
    tracing: Option<Arc<Tracing>>,
}

/// What answers gRPC.
pub(crate) struct Calls {
    pub(crate) routes: Router,
    /// What the bodies of all calls may hold.
    pub(crate) bodies: Arc<Bodies>,
    /// The longest message, in bytes.
    pub(crate) message_bytes: usize,
}

impl Front {
    /// `read_timeout` is how long a gRPC client may take to send its request; HTTP's handlers see to that themselves.
    pub(crate) fn new(
        http: Router,
        grpc: Option<Calls>,
        read_timeout: Duration,
        tracing: Option<Arc<Tracing>>,
    ) -> Arc<Self> {
        Arc::new(Self { http, grpc, ids: RequestIds::new(), read_timeout, tracing })
    }

    /// Answers one request.
    pub(crate) async fn call(self: Arc<Self>, mut request: Request<Incoming>) -> Response<Body> {
        let grpc = is_grpc(request.headers());
        let mut id = self.ids.of(request.headers());
        let tracing = self.tracing.as_ref().filter(|_| is_work(&request));
        id.trace = tracing.map(|tracing| trace(tracing, request.headers()));
        request.extensions_mut().insert(id.clone());
        let path = request.uri().path().to_owned();
        let answer = match &self.grpc {
            Some(calls) if grpc => {
                let request = request.map(|body| grpc::measured(body, &path, self.measure(calls, &path)));
                calls.routes.clone().call(request)
            }
            _ => self.http.clone().call(request.map(Body::new)),
        };
        let mut response = match AssertUnwindSafe(answer).catch_unwind().await {
            Ok(Ok(response)) => response,
            Err(_) => {
                // The panic's message and place are on standard error already.
                tracing::error!(id = id.as_str(), "a handler panicked");
                let error = Error::internal("a handler panicked");
                if grpc {
                    grpc::status(&error).into_http()
                } else {
                    dialects::refuse(&path, &error).unwrap_or_else(|| http::problem(&error, &id))
                }
            }
        };
        if let (Some(tracing), Some(trace)) = (tracing, &id.trace) {
            lead_to(response.headers_mut(), tracing, trace);
        }
        response.headers_mut().insert(REQUEST_ID, id.name);
        response
    }

    /// Where an answer to a request of `path` counts until it is taken: not one that needs no key, which is the same
    /// for all.
    pub(crate) fn memory(&self, path: &str) -> Option<&Arc<Bodies>> {
        self.grpc.as_ref().map(|calls| &calls.bodies).filter(|_| !guard::is_open(path))
    }

    /// What the messages of a call may take. Who has no key takes nothing of the memory of those who have one.
    fn measure(&self, calls: &Calls, path: &str) -> grpc::Measure {
        let (held, most) = if guard::is_open(path) {
            (None, OPEN_MESSAGE.min(calls.message_bytes))
        } else {
            (Some(calls.bodies.share()), calls.message_bytes)
        };
        grpc::Measure { bodies: Arc::clone(&calls.bodies), held, most, limit: self.read_timeout }
    }
}

/// Whether a request is worth a trace: pages and health are not.
fn is_work<T>(request: &Request<T>) -> bool {
    request.method() == Method::POST && !request.uri().path().starts_with("/grpc.")
}

/// The request's trace: its caller's, or a new one.
fn trace(tracing: &Tracing, headers: &HeaderMap) -> Trace {
    let parent = headers.get(TRACEPARENT).and_then(|value| value.to_str().ok());
    let state: Vec<&str> =
        headers.get_all(TRACESTATE).iter().filter_map(|value| value.to_str().ok()).collect();
    tracing.arrived(parent, Some(state.join(",").as_str()).filter(|state| !state.is_empty()))
}

/// Tells in an answer's headers which trace is its own.
fn lead_to(headers: &mut HeaderMap, tracing: &Tracing, trace: &Trace) {
    for (name, value) in tracing.headers(trace) {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            headers.insert(name, value);
        }
    }
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}
