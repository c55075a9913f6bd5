//! Admission, deadlines, and requests that are dropped in the queue.

use std::time::Duration;

use hyper::StatusCode;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use verdict::{
    backend::stub::StubPace,
    config::Settings,
    metrics::{DropReason, Lane},
    server::grpc::{code_of, pb},
};

use crate::common::{Answer, TestServer, model, post, settings, until, within};

async fn small() -> TestServer {
    let limits = Settings { queue_pairs: Some(4), max_documents: Some(4), ..settings() };
    TestServer::with(limits, model()).await
}

/// Sends a request that the held engine does not answer.
fn send(server: &TestServer, body: &serde_json::Value) -> tokio::task::JoinHandle<Answer> {
    let (client, request) = (server.client.clone(), post(&server.url("/score"), body));
    tokio::spawn(async move { Answer::read(client.request(request).await.expect("answered")).await })
}

#[tokio::test]
async fn a_full_queue_refuses_whole_requests_with_a_retry() {
    let server = small().await;
    server.stub.hold();
    let first = send(&server, &json!({"query": "q", "documents": ["a", "b", "c"]}));
    until(|| server.stub.waiting() == 1).await;
    let refused = server.score(&json!({"query": "q", "documents": ["d", "e"]})).await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(refused.problem(), ("overloaded".into(), "the queue holds 3 of at most 4 pairs".into()));
    assert_eq!(
        (&refused.json()["retryable"], &refused.json()["retry_after_ms"]),
        (&true.into(), &1000.into())
    );
    let wire = pb::ScoreRequest {
        query: "q".into(),
        documents: ["d", "e"]
            .map(|d| pb::Document { text: Some(d.into()), ..pb::Document::default() })
            .into(),
        ..pb::ScoreRequest::default()
    };
    let status = within(server.grpc().await.score(wire)).await.expect_err("refused");
    assert_eq!(status.code(), tonic::Code::ResourceExhausted);
    assert_eq!(code_of(&status), Some(verdict::error::Code::Overloaded));
    assert_eq!(status.metadata().get("grpc-retry-pushback-ms").expect("told"), "1000");
    let fits = send(&server, &json!({"query": "q", "documents": ["d"]}));
    until(|| server.held_pairs() == 4).await;
    server.stub.release();
    assert_eq!(within(first).await.expect("sent").ok()["results"].as_array().expect("results").len(), 3);
    assert_eq!(within(fits).await.expect("sent").status, StatusCode::OK);
    assert_eq!(server.metrics.pairs_computed(), 4, "nothing of a refused request was computed");
    until(|| server.held_pairs() == 0).await;
    server.score(&json!({"query": "q", "documents": ["d", "e", "f", "g"]})).await.ok();
}

#[tokio::test]
async fn a_request_past_its_deadline_is_dropped_before_any_compute() {
    let server = TestServer::start().await;
    server.stub.hold();
    let first = send(&server, &json!({"query": "q", "documents": ["a"]}));
    until(|| server.stub.waiting() == 1).await;
    let late = server.score(&json!({"query": "q", "documents": ["b", "c"], "deadline_ms": 30})).await;
    assert_eq!(late.status, StatusCode::GATEWAY_TIMEOUT);
    let expected = "the deadline of 30 ms passed before all scores were there";
    assert_eq!(late.problem(), ("deadline_exceeded".into(), expected.into()));
    let mut request = post(&server.url("/score"), &json!({"query": "q", "documents": ["d"]}));
    request.headers_mut().insert("x-request-timeout-ms", 20.into());
    let late = server.send(request).await;
    assert_eq!(late.problem().1, "the deadline of 20 ms passed before all scores were there");
    server.stub.release();
    within(first).await.expect("sent").ok();
    let dropped = || {
        server.metrics.jobs_dropped(DropReason::Abandoned) + server.metrics.jobs_dropped(DropReason::Expired)
    };
    until(|| dropped() == 3).await;
    assert_eq!(server.metrics.pairs_computed(), 1);
    assert_eq!(server.stub.answers(), 1);
}

#[tokio::test]
async fn what_is_too_slow_even_alone_is_told_not_to_come_back() {
    let server = TestServer::start().await;
    server.stub.pace(StubPace { overhead: Duration::from_millis(400), token: Duration::ZERO });
    server.score(&json!({"query": "q", "documents": ["a"]})).await.ok();
    let passes = server.stub.passes();
    let hurried = |path: &str, body: &serde_json::Value| {
        let mut request = post(&server.url(path), body);
        request.headers_mut().insert("x-request-timeout-ms", 200.into());
        server.send(request)
    };
    let problem = hurried("/score", &json!({"query": "q", "documents": ["b"]})).await;
    assert_eq!(problem.status, StatusCode::GATEWAY_TIMEOUT);
    assert_eq!((problem.header("x-should-retry"), problem.header("retry-after")), (Some("false"), None));
    assert_eq!(problem.json()["retryable"], false);
    let dialect = hurried("/v2/rerank", &json!({"query": "q", "documents": ["b"]})).await;
    assert_eq!(dialect.status, StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(dialect.header("x-should-retry"), Some("false"));
    let wire = pb::ScoreRequest {
        query: "q".into(),
        documents: vec![pb::Document { text: Some("b".into()), ..pb::Document::default() }],
        deadline_ms: Some(200),
        ..pb::ScoreRequest::default()
    };
    let status = within(server.grpc().await.score(wire)).await.expect_err("refused");
    assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
    assert_eq!(status.metadata().get("x-should-retry").expect("told by the server"), "false");
    assert_eq!(server.stub.passes(), passes, "none of them was begun");
}

#[tokio::test]
async fn a_deadline_counts_from_the_head_of_a_request() {
    let server = TestServer::start().await;
    for (path, key) in [("/score", "documents"), ("/score?explain=true", "documents"), ("/rerank", "texts")] {
        let body = json!({"query": "q", key: ["d"]}).to_string();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nx-request-timeout-ms: 300\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let mut slow = within(TcpStream::connect(server.address)).await.expect("connected");
        slow.write_all((head + &body[..5]).as_bytes()).await.expect("sent");
        within(async { while server.metric("verdict_body_bytes").await != 5.0 {} }).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        slow.write_all(&body.as_bytes()[5..]).await.expect("sent");
        let mut answer = String::new();
        within(slow.read_to_string(&mut answer)).await.expect("answered");
        assert!(answer.starts_with("HTTP/1.1 504"), "{answer}");
        assert!(
            answer.contains("the deadline of 300 ms had gone by when all of the request had come"),
            "{answer}"
        );
    }
    assert_eq!(server.metric("verdict_rejections_total{reason=\"late\"}").await, 3.0);
    assert_eq!(server.stub.passes(), 0);
}

#[tokio::test]
async fn a_client_that_leaves_the_queue_costs_nothing() {
    let server = small().await;
    server.stub.hold();
    let first = send(&server, &json!({"query": "q", "documents": ["a"]}));
    until(|| server.stub.waiting() == 1).await;
    let second = send(&server, &json!({"query": "q", "documents": ["b", "c", "d"]}));
    until(|| server.held_pairs() == 4).await;
    second.abort();
    until(|| server.metrics.requests_ended("/score", Lane::Score, "cancelled") == 1).await;
    server.stub.release();
    within(first).await.expect("sent").ok();
    until(|| server.metrics.jobs_dropped(DropReason::Abandoned) == 3).await;
    assert_eq!(server.metrics.pairs_computed(), 1, "none of its pairs ran");
    until(|| server.held_pairs() == 0).await;
    server.score(&json!({"query": "q", "documents": ["d", "e", "f", "g"]})).await.ok();
}

#[tokio::test]
async fn tokens_are_admitted_by_an_upper_bound_that_tokenizing_corrects() {
    let limits = Settings { queue_tokens: Some(600), ..settings() };
    let server = TestServer::with(limits, model()).await;
    let words = "lamp ".repeat(60);
    server.stub.hold();
    let first = send(&server, &json!({"query": "q", "documents": [words]}));
    until(|| server.stub.waiting() == 1).await;
    let held = server.held_tokens();
    assert!((60..200).contains(&held), "300 bytes became {held} tokens");
    let second = send(&server, &json!({"query": "q", "documents": [words]}));
    until(|| server.held_tokens() == 2 * held).await;
    server.stub.release();
    within(first).await.expect("sent").ok();
    within(second).await.expect("sent").ok();
    let huge = server.score(&json!({"query": "q", "documents": [words, words, words, words]})).await;
    assert_eq!(huge.status, StatusCode::PAYLOAD_TOO_LARGE, "no idle queue would ever take it");
    assert!(huge.problem().1.ends_with("tokens, over the limit of 600"), "{}", huge.problem().1);
}
