//! gRPC: `relevance.v1`, `tei.v1`, health, reflection. The same calls as HTTP, on the same port.

mod from_wire;
mod late;
mod measured;
mod refused;
pub mod tei;
mod to_wire;
pub(crate) mod weighed;

use std::{
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::Duration,
};

use futures::{Stream, StreamExt as _, future, stream};
use prost::Message as _;
use tonic::{
    Code as GrpcCode, Request, Response, Status, Streaming,
    metadata::{MetadataMap, MetadataValue},
    service::Routes,
};
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::{
    error::{Code, Error, Result},
    metrics::Lane,
    request::Limits,
    service::{ExplainItem, ExplainStream},
};

use super::{
    call::{Call, RequestId},
    http,
    state::{Phase, State},
};

/// The generated messages, server and client of `relevance.v1`.
#[expect(clippy::allow_attributes, reason = "generated code has its own")]
pub mod pb {
    tonic::include_proto!("relevance.v1");
}

pub(super) use measured::{Measure, measured};
use pb::relevance_service_server::{RelevanceService, RelevanceServiceServer};

/// What reflection serves.
const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/services.fds"));
/// The service's full name, as health checks ask for it.
const NAME: &str = "relevance.v1.RelevanceService";
/// Methods that are counted by their names.
const ROUTES: [&str; 7] = [SCORE, SCORE_STREAM, EXPLAIN, INFO, tei::RERANK, tei::RERANK_STREAM, tei::INFO];
const SCORE: &str = "/relevance.v1.RelevanceService/Score";
const SCORE_STREAM: &str = "/relevance.v1.RelevanceService/ScoreStream";
const EXPLAIN: &str = "/relevance.v1.RelevanceService/Explain";
const INFO: &str = "/relevance.v1.RelevanceService/Info";
/// Requests of one `ScoreStream` that are worked on at once.
const STREAM_REQUESTS: usize = 32;

/// All gRPC services as a router.
///
/// # Errors
///
/// `Internal` if the embedded descriptors cannot be read.
pub(crate) fn router(state: &Arc<State>) -> Result<axum::Router> {
    let broken = |cause| Error::internal("the protocol's descriptors cannot be read").with_cause(cause);
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let reporter = HealthReporter::new();
    let health = tonic_health::server::HealthService::from_health_reporter(reporter.clone());
    tokio::spawn(report(reporter, Arc::clone(state)));
    let relevance = RelevanceServiceServer::new(Relevance { state: Arc::clone(state) })
        .max_decoding_message_size(state.body_bytes);
    let tei = tei::Tei { state: Arc::clone(state) };
    let rerank =
        tei::pb::rerank_server::RerankServer::new(tei.clone()).max_decoding_message_size(state.body_bytes);
    let routes = Routes::new(relevance)
        .add_service(rerank)
        .add_service(tei::pb::info_server::InfoServer::new(tei))
        .add_service(tonic_health::pb::health_server::HealthServer::new(health))
        .add_service(reflection().build_v1().map_err(broken)?)
        .add_service(reflection().build_v1alpha().map_err(broken)?)
        .prepare()
        .into_axum_router();
    Ok(refused::told(routes, state))
}

/// Keeps the health service in step with the server's phase, until the server is gone.
async fn report(reporter: HealthReporter, state: Arc<State>) {
    let mut phases = state.phases();
    drop(state);
    loop {
        let serving = *phases.borrow_and_update() == Phase::Ready;
        let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        for name in ["", NAME].into_iter().chain(tei::NAMES) {
            reporter.set_service_status(name, status).await;
        }
        if phases.changed().await.is_err() {
            return;
        }
    }
}

struct Relevance {
    state: Arc<State>,
}

/// A call on `route` has arrived.
fn begin<T>(state: &Arc<State>, route: &'static str, lane: Lane, request: &Request<T>) -> Call {
    if let Some(reached) = request.extensions().get::<refused::Reached>() {
        reached.mark();
    }
    let id = request.extensions().get::<RequestId>().cloned().unwrap_or_else(RequestId::none);
    Call::begin(state, route, lane, id)
}

#[tonic::async_trait]
impl RelevanceService for Relevance {
    async fn score(&self, request: Request<pb::ScoreRequest>) -> Result<Response<pb::ScoreResponse>, Status> {
        let call = begin(&self.state, SCORE, Lane::Score, &request);
        let timeout = timeout(request.metadata());
        answer(call, timeout, request.into_inner()).await.map(Response::new).map_err(|error| status(&error))
    }

    type ScoreStreamStream = Pin<Box<dyn Stream<Item = Result<pb::ScoreResponse, Status>> + Send>>;

    async fn score_stream(
        &self,
        request: Request<Streaming<pb::ScoreRequest>>,
    ) -> Result<Response<Self::ScoreStreamStream>, Status> {
        // Each of its requests is counted by itself.
        let id = begin(&self.state, SCORE_STREAM, Lane::Score, &request).uncounted();
        let timeout = timeout(request.metadata());
        let broken = Arc::new(OnceLock::new());
        let requests = readable(request.into_inner(), Arc::clone(&broken));
        let (state, nested) = (Arc::clone(&self.state), id.clone());
        let answers = requests.map(move |request| {
            let call = Call::begin(&state, SCORE_STREAM, Lane::Score, nested.nested());
            let timeout = timeout.clone();
            async move {
                let request_id = request.request_id.clone();
                Ok(match answer(call, timeout, request).await {
                    Ok(response) => pb::ScoreResponse { request_id, ..response },
                    Err(error) => {
                        let error = Some(to_wire::error(&error));
                        pb::ScoreResponse { request_id, error, ..pb::ScoreResponse::default() }
                    }
                })
            }
        });
        let state = Arc::clone(&self.state);
        let end = stream::once(async move {
            let error = refused::error(broken.get()?, None);
            Call::begin(&state, SCORE_STREAM, Lane::Score, id.nested()).end(Some(&error));
            Some(Err(status(&error)))
        });
        let answers = answers.buffer_unordered(STREAM_REQUESTS).chain(end.filter_map(future::ready));
        Ok(Response::new(Box::pin(answers)))
    }

    type ExplainStream = Events;

    async fn explain(&self, request: Request<pb::ScoreRequest>) -> Result<Response<Events>, Status> {
        let mut call = begin(&self.state, EXPLAIN, Lane::Explain, &request);
        let timeout = timeout(request.metadata());
        match explained(&mut call, timeout, request.into_inner()).await {
            Ok(stream) => Ok(Response::new(Events { stream, call: Some(call) })),
            Err(error) => {
                call.end(Some(&error));
                Err(status(&error))
            }
        }
    }

    async fn info(&self, request: Request<pb::InfoRequest>) -> Result<Response<pb::InfoResponse>, Status> {
        let call = begin(&self.state, INFO, Lane::Score, &request);
        match self.state.service() {
            Ok(service) => {
                let info = to_wire::info(service);
                call.end(None);
                Ok(Response::new(info))
            }
            Err(error) => {
                call.end(Some(&error));
                Err(status(&error))
            }
        }
    }
}

/// A stream's messages up to one that cannot be read: why is put into `broken`, for after it no
/// message's beginning can be told.
fn readable<T>(messages: Streaming<T>, broken: Arc<OnceLock<Status>>) -> impl Stream<Item = T> {
    messages.scan((), move |(), message| {
        future::ready(match message {
            Ok(message) => Some(message),
            Err(status) => {
                // Nothing is read after the first.
                let _ = broken.set(status);
                None
            }
        })
    })
}

/// Scores one request and ends its call.
async fn answer(
    mut call: Call,
    timeout: Result<Option<Duration>>,
    request: pb::ScoreRequest,
) -> Result<pb::ScoreResponse> {
    let result = scored(&mut call, timeout, request).await;
    call.end(result.as_ref().err());
    result
}

async fn scored(
    call: &mut Call,
    timeout: Result<Option<Duration>>,
    request: pb::ScoreRequest,
) -> Result<pb::ScoreResponse> {
    call.enter()?;
    let mut held = call.state().bodies.share();
    held.grow(request.encoded_len())?;
    let mut request = from_wire::score(request, call.service()?.limits())?;
    if let Some(timeout) = timeout? {
        request.limit_deadline(timeout);
    }
    Ok(to_wire::scores(call.score(request).await?))
}

async fn explained(
    call: &mut Call,
    timeout: Result<Option<Duration>>,
    request: pb::ScoreRequest,
) -> Result<ExplainStream> {
    call.enter()?;
    let mut held = call.state().bodies.share();
    held.grow(request.encoded_len())?;
    let mut request = from_wire::explain(request, call.service()?.limits())?;
    if let Some(timeout) = timeout? {
        request.limit_deadline(timeout);
    }
    call.explain(request).await
}

/// The event stream. Dropping it, because the client left, cancels the explanation.
pub struct Events {
    stream: ExplainStream,
    call: Option<Call>,
}

impl Stream for Events {
    type Item = Result<pb::ExplainEvent, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.stream.poll_item(context).map(|item| {
            let item = item?;
            if matches!(item, ExplainItem::Done { .. })
                && let Some(call) = self.call.take()
            {
                call.end(None);
            }
            Some(Ok(to_wire::event(item)))
        })
    }
}

/// `grpc-timeout`: at most eight digits and a unit.
fn timeout(metadata: &MetadataMap) -> Result<Option<Duration>> {
    let Some(value) = metadata.get("grpc-timeout") else { return Ok(None) };
    let parsed = value.to_str().ok().and_then(|text| {
        let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
        if digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let count: u64 = digits.parse().ok()?;
        match unit {
            "H" => Some(Duration::from_secs(count * 3600)),
            "M" => Some(Duration::from_secs(count * 60)),
            "S" => Some(Duration::from_secs(count)),
            "m" => Some(Duration::from_millis(count)),
            "u" => Some(Duration::from_micros(count)),
            "n" => Some(Duration::from_nanos(count)),
            _ => None,
        }
    });
    match parsed {
        Some(timeout) => Ok(Some(timeout)),
        None => Err(Error::invalid(
            "grpc-timeout",
            format!("{value:?}, expected digits and one of H, M, S, m, u, n"),
        )),
    }
}

/// An error as a status: code and message from the one table; the code's name
/// and when to try again in the metadata.
pub(crate) fn status(error: &Error) -> Status {
    let row = error.code().row();
    let mut metadata = MetadataMap::new();
    metadata.insert("x-verdict-code", MetadataValue::from_static(row.name));
    metadata.insert(http::SHOULD_RETRY, MetadataValue::from_static(http::should_retry(error)));
    if error.code() == Code::Unavailable {
        metadata.insert(http::LEAVE, MetadataValue::from_static("true"));
    }
    if let Some(wait) = error.retry_after() {
        let milliseconds = MetadataValue::from(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
        // The first is read by people and proxies, the second by gRPC clients with a retry policy.
        metadata.insert("retry-after-ms", milliseconds.clone());
        metadata.insert("grpc-retry-pushback-ms", milliseconds);
    }
    Status::with_metadata(GrpcCode::from_i32(row.grpc), error.public_message(), metadata)
}

/// What Score makes of a message, as its handler does with the limits of a server that was told none; `None` if it is not a message.
pub fn read_message(message: &[u8]) -> Option<Result<crate::request::ScoreRequest>> {
    let wire = pb::ScoreRequest::decode(message).ok()?;
    Some(from_wire::score(wire, &Limits::default()))
}

/// The code of our table that a status came from, as its metadata say.
pub fn code_of(status: &Status) -> Option<Code> {
    let name = status.metadata().get("x-verdict-code")?.to_str().ok()?;
    crate::error::TABLE.iter().find(|row| row.name == name).map(|row| row.code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::TABLE;

    #[test]
    fn every_code_has_its_row() {
        for row in TABLE {
            let error = Error::new(row.code, "what is wrong").with_retry_after(Duration::from_millis(1500));
            let status = status(&error);
            assert_eq!(status.code() as i32, row.grpc);
            assert_eq!(code_of(&status), Some(row.code));
            let retry = status.metadata().get(http::SHOULD_RETRY).expect("told");
            assert_eq!(retry, if row.retryable { "true" } else { "false" });
            assert_eq!(status.metadata().get("retry-after-ms").expect("told"), "1500");
            assert_eq!(status.metadata().get("grpc-retry-pushback-ms").expect("told"), "1500");
            assert_eq!(status.message() == "what is wrong", row.code != Code::Internal);
        }
    }

    #[test]
    fn timeouts_are_read() {
        let read = |text: &'static str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", MetadataValue::from_static(text));
            timeout(&metadata)
        };
        assert_eq!(timeout(&MetadataMap::new()).expect("none"), None);
        assert_eq!(read("50m").expect("valid"), Some(Duration::from_millis(50)));
        assert_eq!(read("2S").expect("valid"), Some(Duration::from_secs(2)));
        assert_eq!(read("99999999H").expect("valid"), Some(Duration::from_secs(99_999_999 * 3600)));
        assert_eq!(read("7u").expect("valid"), Some(Duration::from_micros(7)));
        for wrong in ["", "m", "5", "5x", "-5m", "123456789m", "1.5S"] {
            let error = read(wrong).expect_err("refused");
            assert_eq!(error.code(), Code::Invalid);
            assert!(error.message().starts_with("grpc-timeout: "), "{error}");
        }
    }
}
