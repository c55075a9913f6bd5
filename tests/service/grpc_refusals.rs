//! gRPC calls whose messages cannot be read, or whose method there is none of: told and counted as HTTP's are.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use prost::Message as _;
use verdict::{config::Settings, metrics::Lane, server::grpc::pb};

use crate::common::{TestServer, model, settings, until, within};

const SCORE: &str = "/relevance.v1.RelevanceService/Score";
const STREAM: &str = "/relevance.v1.RelevanceService/ScoreStream";

/// What a call ended with.
#[derive(Debug)]
struct Ended {
    status: String,
    code: String,
    message: String,
    /// Bytes of its answers.
    answers: Bytes,
}

async fn call(server: &TestServer, path: &str, body: Vec<u8>) -> Ended {
    let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
    let request = Request::post(server.url(path))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::<Bytes>::from(body))
        .expect("a request");
    let (head, body) = within(client.request(request)).await.expect("answered").into_parts();
    let body = within(body.collect()).await.expect("whole");
    let ends = body.trailers().filter(|ends| ends.contains_key("grpc-status")).unwrap_or(&head.headers);
    let text = |name: &str| ends.get(name).map_or("", |value| value.to_str().expect("text")).to_owned();
    let (status, code, message) = (text("grpc-status"), text("x-verdict-code"), text("grpc-message"));
    Ended { status, code, message: message.replace("%20", " "), answers: body.to_bytes() }
}

/// A message with its head.
fn framed(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).expect("short").to_be_bytes();
    [&[0], &length[..], message].concat()
}

fn request(id: &str, query: &str) -> Vec<u8> {
    let document = pb::Document { text: Some("d".into()), ..pb::Document::default() };
    let request = pb::ScoreRequest {
        request_id: id.into(),
        query: query.into(),
        documents: vec![document],
        ..pb::ScoreRequest::default()
    };
    framed(&request.encode_to_vec())
}

/// Field 1, a text of one byte that is no UTF-8.
const NO_TEXT: &[u8] = &[0x0a, 1, 0xff];
/// Field 1, of more bytes than follow.
const CUT: &[u8] = &[0x0a, 9, b'q'];

async fn small() -> TestServer {
    TestServer::with(Settings { max_body_bytes: Some(1000), ..settings() }, model()).await
}

#[tokio::test]
async fn a_message_that_cannot_be_read_is_an_error_of_the_one_table() {
    let server = small().await;
    let long = call(&server, SCORE, request("", &"q".repeat(2000))).await;
    assert_eq!((long.status.as_str(), long.code.as_str()), ("3", "too_large"), "{long:?}");
    assert!(long.message.starts_with("message: 20"), "{long:?}");
    assert!(long.message.ends_with(" bytes, over the limit of 1000"), "{long:?}");
    for wrong in [framed(NO_TEXT), framed(CUT), Vec::new(), framed(b"whole")[..6].to_vec()] {
        let refused = call(&server, SCORE, wrong).await;
        assert_eq!((refused.status.as_str(), refused.code.as_str()), ("3", "invalid"), "{refused:?}");
        assert!(refused.message.starts_with("message: "), "{refused:?}");
    }
    assert_eq!(server.metrics.requests_ended(SCORE, Lane::Score, "too_large"), 1);
    assert_eq!(server.metrics.requests_ended(SCORE, Lane::Score, "invalid"), 4);
    let well = call(&server, SCORE, request("", "q")).await;
    assert_eq!((well.status.as_str(), well.code.as_str()), ("0", ""));
    assert_eq!(server.metrics.requests_ended(SCORE, Lane::Score, "ok"), 1);
    let wrong = call(&server, SCORE, request("", "")).await;
    assert_eq!(wrong.message, "query: is empty");
    assert_eq!(server.metrics.requests_ended(SCORE, Lane::Score, "invalid"), 5, "it is counted once");
}

#[tokio::test]
async fn a_method_that_there_is_none_of_is_named() {
    let server = small().await;
    for path in ["/relevance.v1.RelevanceService/Rank", "/other.Service/Score"] {
        let unknown = call(&server, path, request("", "q")).await;
        assert_eq!((unknown.status.as_str(), unknown.code.as_str()), ("12", "unimplemented"));
        assert_eq!(unknown.message, format!("no method {path}"));
    }
    assert_eq!(server.metrics.requests_ended("other", Lane::Score, "unimplemented"), 2);
}

#[tokio::test]
async fn a_stream_counts_its_requests_and_ends_after_what_cannot_be_read() {
    let server = small().await;
    let well = call(&server, STREAM, request("one", "q")).await;
    assert_eq!(well.status, "0");
    until(|| server.metrics.requests_ended(STREAM, Lane::Score, "ok") == 1).await;
    for (wrong, code, invalid, large) in
        [(framed(NO_TEXT), "invalid", 1, 0), (framed(&[0; 2000]), "too_large", 1, 1)]
    {
        let before = server.metrics.requests_ended(STREAM, Lane::Score, "ok");
        let ended = call(&server, STREAM, [request("one", "q"), request("two", "q"), wrong].concat()).await;
        assert_eq!((ended.status.as_str(), ended.code.as_str()), ("3", code), "{ended:?}");
        for id in [&b"one"[..], b"two"] {
            assert!(ended.answers.windows(id.len()).any(|part| part == id), "{ended:?}");
        }
        let count = |code| server.metrics.requests_ended(STREAM, Lane::Score, code);
        assert_eq!((count("ok"), count("cancelled")), (before + 2, 0));
        assert_eq!((count("invalid"), count("too_large")), (invalid, large));
    }
}

#[tokio::test]
async fn a_stream_of_texts_to_rank_tells_why_it_cannot_be_read() {
    let server = small().await;
    for (wrong, code) in [(framed(NO_TEXT), "invalid"), (framed(&[0; 2000]), "too_large")] {
        let ended = call(&server, "/tei.v1.Rerank/RerankStream", wrong).await;
        assert_eq!((ended.status.as_str(), ended.code.as_str()), ("3", code), "{ended:?}");
        assert!(ended.message.starts_with("message: "), "{ended:?}");
    }
}
