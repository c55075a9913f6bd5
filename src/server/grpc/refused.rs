//! Calls that reach no handler: what tonic makes of a message that it cannot read, or of a method that it does
//! not know, told and counted as every other error is.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State as Shared},
    http::{HeaderName, Response},
    middleware::{self, Next},
};
use tonic::{Code as GrpcCode, Status};

use crate::{
    error::{Code, Error},
    metrics::Lane,
    server::{call::Call, http, state::State},
};

use super::{code_of, status};

const ENCODINGS: HeaderName = HeaderName::from_static("grpc-accept-encoding");

/// Services that are not ours: what they answer is theirs, and not counted.
const THEIRS: &str = "/grpc.";

/// Whether a call has reached its handler, which then tells and counts it.
#[derive(Clone, Default)]
pub(super) struct Reached(Arc<AtomicBool>);

impl Reached {
    pub(super) fn mark(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Puts the layer around the calls.
pub(super) fn told(router: Router, state: &Arc<State>) -> Router {
    router.layer(middleware::from_fn_with_state(Arc::clone(state), tell))
}

async fn tell(Shared(state): Shared<Arc<State>>, mut request: Request, next: Next) -> Response<Body> {
    if request.uri().path().starts_with(THEIRS) {
        return next.run(request).await;
    }
    let (reached, id, path) = (Reached::default(), http::id(&request), request.uri().path().to_owned());
    request.extensions_mut().insert(reached.clone());
    let response = next.run(request).await;
    if reached.0.load(Ordering::Relaxed) {
        return response;
    }
    let Some(made) = Status::from_header_map(response.headers()) else { return response };
    let call = Call::begin(&state, route(&path), Lane::Score, id);
    match code_of(&made) {
        // It is ours: only its count is missing.
        Some(code) => {
            call.end(Some(&Error::new(code, made.message())));
            response
        }
        // The client has left.
        None if made.code() == GrpcCode::Cancelled => response,
        None => {
            let error = error(&made, Some(&path));
            let mut answer = status(&error).into_http();
            if let Some(encodings) = response.headers().get(ENCODINGS) {
                answer.headers_mut().insert(ENCODINGS, encodings.clone());
            }
            call.end(Some(&error));
            answer
        }
    }
}

/// As its handler would have it counted.
fn route(path: &str) -> &'static str {
    super::ROUTES.iter().find(|route| **route == path).copied().unwrap_or("other")
}

/// What a status that was made while a message was read is in the one table. `path` is the method's, if it
/// is not known that there is one.
pub(super) fn error(made: &Status, path: Option<&str>) -> Error {
    match (code_of(made), made.code(), path) {
        (Some(code), ..) => Error::new(code, made.message()),
        (None, GrpcCode::Unimplemented, Some(path)) if made.message().is_empty() => {
            Error::new(Code::Unimplemented, format!("no method {path}"))
        }
        (None, GrpcCode::Unimplemented, _) => Error::new(Code::Unimplemented, made.message()),
        // tonic blames itself for all that it cannot read.
        _ => Error::invalid("message", made.message()),
    }
}
