//! One request, from its arrival to the end of its answer, on any transport:
//! the one place where requests are counted and logged.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use axum::http::{HeaderMap, HeaderName, HeaderValue};

use crate::{
    error::{Code, Error, Result, TABLE},
    metrics::Lane,
    request::{ExplainRequest, ScoreRequest},
    service::{ExplainStream, ScoreResponse, Service},
    telemetry::Trace,
};

use super::state::{InFlight, State};

/// `x-request-id`, in requests and responses.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longest request id that is taken over, in bytes.
const LONGEST_ID: usize = 128;

/// The client's name for a request, or ours; with its trace, if it has one.
#[derive(Clone, Debug)]
pub(crate) struct RequestId {
    pub(crate) name: HeaderValue,
    pub(crate) trace: Option<Trace>,
    /// When its head had arrived.
    pub(crate) arrived: Instant,
}

impl RequestId {
    /// One request among those of a stream.
    pub(crate) fn nested(&self) -> Self {
        Self { trace: self.trace.as_ref().map(Trace::nested), ..Self::now(self.name.clone()) }
    }

    /// Of a request that arrives now, and is not traced.
    pub(crate) fn now(name: HeaderValue) -> Self {
        Self { name, trace: None, arrived: Instant::now() }
    }

    /// Where a request was given none.
    pub(crate) fn none() -> Self {
        Self::now(HeaderValue::from_static("-"))
    }

    pub(crate) fn as_str(&self) -> &str {
        self.name.to_str().unwrap_or_default()
    }
}

/// Makes request ids: unique in the process by a counter, and among processes by chance.
pub(crate) struct RequestIds {
    process: u64,
    next: AtomicU64,
}

impl RequestIds {
    pub(crate) fn new() -> Self {
        let process = getrandom::u64().unwrap_or_else(|_| std::process::id().into());
        Self { process, next: AtomicU64::new(1) }
    }

    /// The request's own id, if it has a sensible one, else a new one.
    pub(crate) fn of(&self, headers: &HeaderMap) -> RequestId {
        let own = headers.get(REQUEST_ID).filter(|id| {
            !id.is_empty() && id.len() <= LONGEST_ID && id.as_bytes().iter().all(u8::is_ascii_graphic)
        });
        let id = own.cloned().unwrap_or_else(|| {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let id = format!("{:016x}-{number:x}", self.process);
            HeaderValue::try_from(id).unwrap_or(HeaderValue::from_static("-"))
        });
        RequestId::now(id)
    }
}

/// A request that is being answered. Say how it ended with [`Call::end`]; one
/// that is dropped before was cancelled by its client.
pub(crate) struct Call {
    state: Arc<State>,
    route: &'static str,
    lane: Lane,
    id: RequestId,
    in_flight: Option<InFlight>,
    ended: bool,
}

impl Call {
    /// A request on `route` has arrived.
    pub(crate) fn begin(state: &Arc<State>, route: &'static str, lane: Lane, id: RequestId) -> Self {
        let state = Arc::clone(state);
        if let Some(trace) = &id.trace {
            trace.name(route, id.as_str());
        }
        Self { state, route, lane, id, in_flight: None, ended: false }
    }

    /// Lets it in: from here on draining waits for it.
    pub(crate) fn enter(&mut self) -> Result<()> {
        self.in_flight = Some(self.state.enter()?);
        Ok(())
    }

    /// It turned out to ask for reasons.
    pub(crate) fn explains(&mut self) {
        self.lane = Lane::Explain;
    }

    pub(crate) fn service(&self) -> Result<&Service> {
        self.state.service()
    }

    /// [`Service::score`], in this request's trace and with the time since its head arrived.
    pub(crate) async fn score(&self, request: ScoreRequest) -> Result<ScoreResponse> {
        self.service()?.score_in(request.arrived_at(self.id.arrived), self.trace()).await
    }

    /// [`Service::explain`], in this request's trace and with the time since its head arrived.
    pub(crate) async fn explain(&self, request: ExplainRequest) -> Result<ExplainStream> {
        self.service()?.explain_in(request.arrived_at(self.id.arrived), self.trace()).await
    }

    /// The trace that its stages are told to.
    fn trace(&self) -> Option<&Trace> {
        self.id.trace.as_ref().filter(|trace| trace.is_recorded())
    }

    pub(crate) fn state(&self) -> &Arc<State> {
        &self.state
    }

    pub(crate) fn id(&self) -> &RequestId {
        &self.id
    }

    /// It is of many requests, which are counted each by itself: it is not. Its id is left.
    pub(crate) fn uncounted(mut self) -> RequestId {
        self.ended = true;
        if let Some(trace) = &self.id.trace {
            trace.end("ok", self.lane.as_str(), false);
        }
        self.id.clone()
    }

    /// The answer is complete.
    pub(crate) fn end(mut self, error: Option<&Error>) {
        self.record(error.map_or("ok", |error| error.code().row().name));
        self.log(error);
    }

    fn record(&mut self, code: &str) {
        self.ended = true;
        self.state.metrics.request(self.route, self.lane, code, self.id.arrived.elapsed());
        if let Some(trace) = &self.id.trace {
            let fault = TABLE.iter().any(|row| row.name == code && row.http >= 500);
            trace.end(code, self.lane.as_str(), fault);
        }
    }

    fn log(&self, error: Option<&Error>) {
        let trace = self.id.trace.as_ref().map(Trace::id);
        let (id, route, ms) = (self.id.as_str(), self.route, self.id.arrived.elapsed().as_secs_f64() * 1e3);
        match error {
            None => tracing::debug!(id, trace, route, ms, "ok"),
            Some(error) if error.code() == Code::Internal => {
                tracing::error!(id, trace, route, ms, cause = error.causes(), "{error}");
            }
            Some(error) => {
                tracing::info!(id, trace, route, ms, code = error.code().row().name, "{error}");
            }
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.ended {
            if std::thread::panicking() {
                self.record(Code::Internal.row().name);
            } else {
                self.record("cancelled");
                tracing::debug!(id = self.id.as_str(), route = self.route, "cancelled by the client");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_taken_over_or_made() {
        let ids = RequestIds::new();
        let with = |value: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, HeaderValue::from_bytes(value).expect("a header"));
            ids.of(&headers).as_str().to_owned()
        };
        assert_eq!(with(b"abc-1"), "abc-1");
        for unfit in [&b""[..], b"two words", &[b'x'; 129], &[0xff]] {
            let made = with(unfit);
            assert!(made.len() > 17 && made.as_bytes()[16] == b'-', "{made}");
        }
        assert_ne!(ids.of(&HeaderMap::new()).as_str(), ids.of(&HeaderMap::new()).as_str());
    }
}
