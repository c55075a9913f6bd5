//! One request over HTTP, as server-sent events or over gRPC, and how it ended.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, StatusCode, body::Incoming};
use hyper_util::{
    client::legacy::{Client as Pool, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::Value;
use tonic::transport::{Channel, Endpoint};
use verdict::server::grpc::pb::{self, relevance_service_client::RelevanceServiceClient};

use crate::{scenario::Way, texts::Ask};

/// Connections that gRPC's calls share.
const CHANNELS: usize = 4;
/// Longer than any deadline of a scenario: what takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(120);
/// A connection that closes so soon after a request was sent had been closed when the request came. HTTP/1.1
/// cannot rule that out for idle connections (RFC 9112, 9.3.1: whoever sends it asks again), nor can HTTP/2
/// (RFC 9113, 6.8: what a GOAWAY did not wait for may be sent again; tonic leaves that to its caller); what is
/// closed later cut off a request that the server had.
const CROSSING: Duration = Duration::from_millis(100);

/// Whether a retry could succeed, over gRPC and in other servers' dialects, too. A 504 that says no was given at once: the
/// request was not begun.
const SHOULD_RETRY: &str = "x-should-retry";

/// How a request ended.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    Ok(Answer),
    /// 429, with when to come back; or 504 at once, for what is too slow even alone: then never.
    Refused(Option<Duration>),
    /// 503: starting, draining or stuck.
    Unavailable,
    /// Nobody listens there.
    Gone,
    /// The connection was closed as the request was sent, before anything of an answer.
    Cut,
    /// 504, for what was begun.
    Late,
    /// Anything else.
    Failed(String),
}

/// What an answer said of itself.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Answer {
    /// Where it tells: dialects do not.
    pub(crate) queue_ms: Option<f64>,
    pub(crate) compute_ms: Option<f64>,
    pub(crate) prompt_tokens: u64,
    pub(crate) computed_tokens: u64,
    pub(crate) shared_tokens: u64,
    pub(crate) cached_tokens: u64,
    /// When the scores were there, since it was sent; reading what they are comes after.
    pub(crate) after: Duration,
    /// Whether reasons follow them.
    pub(crate) explained: bool,
    /// Since it was sent: the first piece of a reason.
    pub(crate) reason_after: Option<Duration>,
    /// Reasons that were read to their end, and those that were shed.
    pub(crate) reasons: u64,
    pub(crate) shed: u64,
}

/// Sends requests to one server. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Client {
    url: String,
    pool: Pool<HttpConnector, Full<Bytes>>,
    channels: Vec<Channel>,
}

impl Client {
    /// For the server at `url` (`http://host:port`).
    pub(crate) fn new(url: &str) -> Result<Self> {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let pool = Pool::builder(TokioExecutor::new()).pool_max_idle_per_host(4096).build(connector);
        let endpoint =
            Endpoint::from_shared(url.to_owned()).with_context(|| format!("{url:?} is no address"))?;
        let channels = (0..CHANNELS).map(|_| endpoint.connect_lazy()).collect();
        Ok(Self { url: url.trim_end_matches('/').to_owned(), pool, channels })
    }

    /// Sends one request and reads its answer to the end. Dropping the future is a client that leaves.
    pub(crate) async fn send(&self, ask: &Ask, number: usize) -> Outcome {
        let sent = match ask.way {
            Way::Http => futures::future::Either::Left(self.http(ask, "/score")),
            Way::Rerank => futures::future::Either::Left(self.http(ask, "/rerank")),
            Way::Sse => futures::future::Either::Left(self.http(ask, "/score?explain=true")),
            Way::Grpc => futures::future::Either::Right(self.grpc(ask, number)),
        };
        let began = Instant::now();
        match tokio::time::timeout(PATIENCE, sent).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(error)) if nobody_listens(error.as_ref()) => Outcome::Gone,
            Ok(Err(error)) if was_closed(error.as_ref()) && began.elapsed() < CROSSING => Outcome::Cut,
            Ok(Err(error)) => Outcome::Failed(format!("{error:#}")),
            Err(_) => Outcome::Failed(format!("no answer within {} s", PATIENCE.as_secs())),
        }
    }

    /// The text of a page; an error if there is none.
    pub(crate) async fn get(&self, url: &str) -> Result<String> {
        let (status, text) = self.page(url).await?;
        anyhow::ensure!(status == StatusCode::OK, "{url}: answered with {status}, expected 200 OK");
        Ok(text)
    }

    /// What is answered to a GET.
    pub(crate) async fn page(&self, url: &str) -> Result<(StatusCode, String)> {
        let request = Request::get(url).body(Full::default())?;
        let response = self.pool.request(request).await.with_context(|| url.to_owned())?;
        let status = response.status();
        Ok((status, text(response).await?))
    }

    async fn http(&self, ask: &Ask, path: &str) -> Result<Outcome> {
        let sent = Instant::now();
        let request = Request::post(format!("{}{path}", self.url))
            .header("content-type", "application/json")
            .body(Full::from(ask.body.clone()))?;
        let response = self.pool.request(request).await?;
        match response.status().as_u16() {
            200 if ask.way == Way::Sse => events(response, sent).await.map(Outcome::Ok),
            200 => {
                let body = response.into_body().collect().await?.to_bytes();
                let after = sent.elapsed();
                let body: Value = serde_json::from_slice(&body)?;
                anyhow::ensure!(
                    body["results"].as_array().is_some_and(|results| results.len() == ask.pairs),
                    "an answer without all results"
                );
                Ok(Outcome::Ok(answer(&body, after)))
            }
            429 => {
                let body = response.into_body().collect().await?.to_bytes();
                let body: Value = serde_json::from_slice(&body)?;
                let ms = body["retry_after_ms"].as_u64().context("429 without retry_after_ms")?;
                Ok(Outcome::Refused(Some(Duration::from_millis(ms))))
            }
            503 => {
                let told = response.headers().contains_key("retry-after");
                response.into_body().collect().await?;
                anyhow::ensure!(told, "503 without Retry-After");
                Ok(Outcome::Unavailable)
            }
            504 => {
                let hopeless = response.headers().get(SHOULD_RETRY).is_some_and(|value| value == "false");
                response.into_body().collect().await?;
                Ok(if hopeless { Outcome::Refused(None) } else { Outcome::Late })
            }
            status => Ok(Outcome::Failed(format!("{status}: {}", text(response).await?))),
        }
    }

    async fn grpc(&self, ask: &Ask, number: usize) -> Result<Outcome> {
        let wire = ask.wire.as_deref().cloned().context("no message")?;
        let channel = self.channels[number % self.channels.len()].clone();
        let sent = Instant::now();
        match RelevanceServiceClient::new(channel).score(wire).await {
            Ok(response) => {
                let (after, response) = (sent.elapsed(), response.into_inner());
                anyhow::ensure!(response.results.len() == ask.pairs, "an answer without all results");
                Ok(Outcome::Ok(from_wire(&response, after)))
            }
            Err(status) => match status.code() {
                tonic::Code::ResourceExhausted => {
                    let ms = status.metadata().get("retry-after-ms");
                    let ms = ms.and_then(|ms| ms.to_str().ok()?.parse().ok());
                    let ms = ms.context("a refusal without retry-after-ms")?;
                    Ok(Outcome::Refused(Some(Duration::from_millis(ms))))
                }
                tonic::Code::Unavailable if status.metadata().contains_key("retry-after-ms") => {
                    Ok(Outcome::Unavailable)
                }
                tonic::Code::DeadlineExceeded => {
                    let hopeless = status.metadata().get(SHOULD_RETRY).is_some_and(|value| value == "false");
                    Ok(if hopeless { Outcome::Refused(None) } else { Outcome::Late })
                }
                _ => Err(status.into()),
            },
        }
    }
}

async fn text(response: Response<Incoming>) -> Result<String> {
    let body = response.into_body().collect().await?.to_bytes();
    Ok(String::from_utf8_lossy(&body).into_owned())
}

/// Whether a connection was refused: then nothing was sent.
fn nobody_listens(error: &(dyn std::error::Error + 'static)) -> bool {
    causes(error).any(|error| is_io(error, std::io::ErrorKind::ConnectionRefused))
}

/// Whether a connection was closed, and not for a fault, before its answer began.
fn was_closed(error: &(dyn std::error::Error + 'static)) -> bool {
    causes(error).any(|error| {
        // Cancelled is what waited for its turn on the connection: nothing of it was sent.
        let closed = |error: &hyper::Error| error.is_incomplete_message() || error.is_canceled();
        error.downcast_ref::<hyper::Error>().is_some_and(closed)
            || error.downcast_ref::<h2::Error>().is_some_and(is_farewell)
            || is_io(error, std::io::ErrorKind::ConnectionReset)
    })
}

/// Whether the other side said GOAWAY, and nothing was wrong.
fn is_farewell(error: &h2::Error) -> bool {
    error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR)
}

fn causes<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}

fn is_io(error: &(dyn std::error::Error + 'static), kind: std::io::ErrorKind) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == kind)
}

fn answer(body: &Value, after: Duration) -> Answer {
    let (usage, timing) = (&body["usage"], &body["timing_ms"]);
    let count = |name: &str| usage[name].as_u64().unwrap_or(0);
    Answer {
        after,
        queue_ms: timing["queue"].as_f64(),
        compute_ms: timing["compute"].as_f64(),
        prompt_tokens: count("prompt_tokens"),
        computed_tokens: count("computed_tokens"),
        shared_tokens: count("shared_tokens"),
        cached_tokens: count("cached_tokens"),
        ..Answer::default()
    }
}

fn from_wire(response: &pb::ScoreResponse, after: Duration) -> Answer {
    let usage = response.usage.unwrap_or_default();
    Answer {
        after,
        queue_ms: response.timing_ms.map(|timing| timing.queue),
        compute_ms: response.timing_ms.map(|timing| timing.compute),
        prompt_tokens: usage.prompt_tokens,
        computed_tokens: usage.computed_tokens,
        shared_tokens: usage.shared_tokens,
        cached_tokens: usage.cached_tokens,
        ..Answer::default()
    }
}

/// Reads events to the last one, `done`.
async fn events(response: Response<Incoming>, sent: Instant) -> Result<Answer> {
    let mut body = response.into_body();
    let mut text = String::new();
    let mut read = Answer::default();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        text.push_str(std::str::from_utf8(&data)?);
        while let Some(end) = text.find("\n\n") {
            let event: String = text.drain(..end + 2).collect();
            let field =
                |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            match field("event: ") {
                "scores" => {
                    let after = sent.elapsed();
                    read = answer(&serde_json::from_str(field("data: "))?, after);
                    read.explained = true;
                }
                "reason" if read.reason_after.is_none() => read.reason_after = Some(sent.elapsed()),
                "reason_done" if event.contains("\"shed\"") => read.shed += 1,
                "reason_done" => read.reasons += 1,
                "done" => return Ok(read),
                _ => {}
            }
        }
    }
    anyhow::bail!("the events ended without `done`")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of a call over a connection that its server ends with `reason`.
    async fn parted(reason: h2::Reason) -> Outcome {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let server = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.expect("a connection");
            let mut connection = h2::server::handshake(stream).await.expect("HTTP/2");
            connection.abrupt_shutdown(reason);
            // Sends that, takes what comes, and returns when the client has closed.
            while connection.accept().await.is_some() {}
        });
        let ask = Ask { way: Way::Grpc, wire: Some(Box::default()), ..Ask::default() };
        let outcome = Client::new(&url).expect("a client").send(&ask, 0).await;
        server.abort();
        outcome
    }

    #[tokio::test]
    async fn a_call_that_crosses_a_farewell_is_cut_and_no_failure() {
        let outcome = parted(h2::Reason::NO_ERROR).await;
        assert!(matches!(outcome, Outcome::Cut), "{outcome:?}");
    }

    #[tokio::test]
    async fn a_connection_that_ends_for_a_fault_is_a_failure() {
        for reason in [h2::Reason::PROTOCOL_ERROR, h2::Reason::INTERNAL_ERROR] {
            let outcome = parted(reason).await;
            assert!(matches!(outcome, Outcome::Failed(_)), "{outcome:?}");
        }
    }
}
