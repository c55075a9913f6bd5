//! HTTP/1 as bytes: what comes after a request, and heads that are none.

use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use verdict::metrics::Lane;

use crate::common::{TestServer, until, within};

async fn send(server: &TestServer, bytes: &str) -> TcpStream {
    let mut stream = within(TcpStream::connect(server.address)).await.expect("connected");
    stream.write_all(bytes.as_bytes()).await.expect("sent");
    stream
}

/// What comes up to `end`, which has to come.
async fn up_to(stream: &mut TcpStream, end: &str) -> String {
    let (mut read, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        let text = String::from_utf8_lossy(&read);
        if text.contains(end) {
            return text.into_owned();
        }
        let bytes = within(stream.read(&mut piece)).await.expect("open");
        assert!(bytes > 0, "it ended before {end:?}: {text}");
        read.extend_from_slice(&piece[..bytes]);
    }
}

fn score(path: &str) -> String {
    let body = json!({"query": "q", "documents": ["d"]}).to_string();
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

#[tokio::test]
async fn an_answer_does_not_wait_for_what_comes_after_its_request() {
    let server = TestServer::start().await;
    // An empty line is allowed there (RFC 9112, 2.2); the others are the beginnings of another request.
    for after in ["\r\n", "G", "GET /info HTTP/1.1\r\nhost:"] {
        let mut stream = send(&server, &(score("/score") + after)).await;
        let answer = up_to(&mut stream, "timing_ms").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let mut stream = send(&server, &(score("/score?explain=true") + after)).await;
        let answer = up_to(&mut stream, "event: done").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

#[tokio::test]
async fn requests_in_one_piece_are_answered_in_turn() {
    let server = TestServer::start().await;
    let three =
        score("/score") + "\r\n" + &score("/score?explain=true") + "GET /health HTTP/1.1\r\nhost: x\r\n\r\n";
    let mut stream = send(&server, &three).await;
    let answers = up_to(&mut stream, "{\"status\":\"ok\"").await;
    assert_eq!(answers.matches("HTTP/1.1 200").count(), 3, "{answers}");
    until(|| server.metrics.requests_ended("/score", Lane::Score, "ok") == 1).await;
}

#[tokio::test]
async fn a_head_that_is_none_is_told_so() {
    let server = TestServer::start().await;
    let all = async |bytes: &str| {
        let mut stream = send(&server, bytes).await;
        let mut answer = String::new();
        within(stream.read_to_string(&mut answer)).await.expect("answered and closed");
        answer
    };
    for wrong in ["no request\r\n\r\n", "GET /info HTTP/1.1\r\nno header\r\n\r\n"] {
        let answer = all(wrong).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
        let answer = all(&(score("/score") + wrong)).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("HTTP/1.1 400"), "{answer}");
    }
}

#[tokio::test]
async fn a_client_that_ends_its_side_has_left() {
    let server = TestServer::start().await;
    server.stub.hold();
    let mut stream = send(&server, &score("/score")).await;
    until(|| server.held_pairs() == 1).await;
    stream.shutdown().await.expect("open");
    until(|| server.metrics.requests_ended("/score", Lane::Score, "cancelled") == 1).await;
    server.stub.release();
    let mut answer = Vec::new();
    within(stream.read_to_end(&mut answer)).await.expect("closed");
    assert!(answer.is_empty());
}
