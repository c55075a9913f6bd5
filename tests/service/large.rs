//! Bodies that would become many times what they are.

use hyper::StatusCode;
use serde_json::{Value, json};
use verdict::{
    config::Settings,
    error::Code,
    server::grpc::{code_of, pb},
};

use crate::common::{Answer, TestServer, model, raw, settings, within};

/// So many values in so many documents.
fn dense(values: usize, documents: usize) -> String {
    let document = format!("{{\"text\":\"t\",\"x\":[{}0]}}", r#"{"a":0},"#.repeat(values));
    format!("{{\"query\":\"q\",\"documents\":[{}]}}", vec![document; documents].join(","))
}

async fn sent(server: &TestServer, path: &str, body: impl Into<bytes::Bytes>) -> Answer {
    server.send(raw(&server.url(path), "application/json", body)).await
}

/// What a refusal says in whichever of the fields its clients read.
fn told(answer: &Answer) -> String {
    let body = answer.json();
    let places = [&body["detail"], &body["message"], &body["error"], &body["error"]["message"]];
    places.into_iter().find_map(Value::as_str).unwrap_or_default().to_owned()
}

#[tokio::test]
async fn documents_of_many_values_are_refused_as_they_would_be_once_they_were_made() {
    let server = TestServer::start().await;
    // 8 bytes for each object and number, 1 for a name; 2 for the list's own and a number, 6 for what else it has.
    let bytes = 200_000 * 17 + 8 + 8 + "texttx".len();
    let message = format!("documents[0]: {bytes} bytes, over the limit of 1048576");
    for path in ["/score", "/rerank", "/v2/rerank"] {
        let answer = sent(&server, path, dense(200_000, 1)).await;
        assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE, "{path}");
        assert_eq!(told(&answer), message, "{path}");
    }
    let many = json!({"query": "q", "documents": vec!["a"; 40_000]}).to_string();
    let message = "documents: 40000 documents, over the limit of 1024";
    for path in ["/score", "/score?explain=true", "/rerank"] {
        assert_eq!(told(&sent(&server, path, many.clone()).await), message, "{path}");
    }
    let many = json!({"query": "q", "texts": vec!["a"; 40_000]}).to_string();
    assert_eq!(told(&sent(&server, "/rerank", many).await), message.replace("documents:", "texts:"));
    let many = json!({"inputs": vec![["q", "a"]; 40_000]}).to_string();
    let answer = sent(&server, "/predict", many).await;
    assert_eq!(told(&answer), "inputs: 40000 pairs, over the limit of 1024");
    assert_eq!(server.stub.passes(), 0);
}

#[tokio::test]
async fn what_is_within_each_limit_is_made_in_the_memory_of_all_bodies() {
    let room = Settings { max_body_bytes: Some(1 << 20), queue_body_mib: Some(16), ..settings() };
    let server = TestServer::with(room, model()).await;
    for path in ["/score", "/rerank"] {
        let answer = sent(&server, path, dense(20_000, 5)).await;
        assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE, "{path}");
        let message = told(&answer);
        assert!(message.starts_with("body: ") && message.ends_with("over the limit of 8388608"), "{message}");
        sent(&server, path, dense(1000, 10)).await.ok();
    }
    let broken = dense(50_000, 2).replace("]}]}", "]}] x}");
    let message = told(&sent(&server, "/score", broken).await);
    assert!(message.starts_with("body: expected `,` or `}`"), "{message}");
    within(async { while server.metric("verdict_body_bytes").await != 0.0 {} }).await;
}

#[tokio::test]
async fn a_message_is_not_read_where_it_would_be_many_times_as_large() {
    let server = TestServer::start().await;
    let refusal = |documents: usize| {
        let documents = vec![pb::Document::default(); documents];
        let request = pb::ScoreRequest { query: "q".into(), documents, ..pb::ScoreRequest::default() };
        let server = &server;
        async move { within(server.grpc().await.score(request)).await.expect_err("refused") }
    };
    let status = refusal(1_000_000).await;
    assert_eq!(code_of(&status), Some(Code::TooLarge), "{status:?}");
    let message = status.message();
    assert!(message.starts_with("message: ") && message.contains(" bytes in memory, 20"), "{message}");
    // Few enough to be read, and too many to be looked at.
    let status = refusal(50_000).await;
    assert_eq!(status.message(), "documents: 50000 documents, over the limit of 1024");
}
