//! Bodies that are compressed, nested, repeated or of another kind.

use std::io::Write as _;

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http_body_util::Full;
use hyper::{Request, StatusCode};
use serde_json::json;
use tokio::{io::AsyncWriteExt as _, net::TcpStream};
use verdict::{
    config::Settings,
    error::Code,
    server::grpc::{code_of, pb},
};

use crate::common::{TestServer, model, raw, settings, within};

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(text).expect("written");
    encoder.finish().expect("whole")
}

fn zstd(text: &[u8]) -> Vec<u8> {
    zstd::encode_all(text, 19).expect("whole")
}

fn encoded(server: &TestServer, encoding: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    let mut request = raw(&server.url("/score"), "application/json", body);
    request.headers_mut().insert("content-encoding", encoding.parse().expect("a header"));
    request
}

#[tokio::test]
async fn compressed_bodies_score_as_plain_ones() {
    let server = TestServer::start().await;
    let body = json!({"query": "warm lamp", "documents": ["a lamp", "a hose".repeat(1000)]});
    let plain = server.score(&body).await.ok()["results"].clone();
    let text = body.to_string();
    for (encoding, sent) in [("gzip", gzip(text.as_bytes())), ("zstd", zstd(text.as_bytes()))] {
        assert!(sent.len() < text.len() / 2);
        assert_eq!(server.send(encoded(&server, encoding, sent)).await.ok()["results"], plain, "{encoding}");
    }
    assert_eq!(server.send(encoded(&server, "identity", text)).await.ok()["results"], plain);
}

#[tokio::test]
async fn a_bomb_is_refused_by_what_it_would_become() {
    let limit = Settings { max_body_bytes: Some(10_000), ..settings() };
    let server = TestServer::with(limit, model()).await;
    let zeros = vec![b' '; 5 << 20];
    for (encoding, sent) in [("gzip", gzip(&zeros)), ("zstd", zstd(&zeros))] {
        assert!(sent.len() < 10_000);
        let answer = server.send(encoded(&server, encoding, sent)).await;
        assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE, "{encoding}");
        let problem = answer.json();
        assert_eq!(problem["limit"], 10_000);
        assert!(problem["value"].as_u64().expect("told") < 100_000, "it was left early: {problem}");
    }
    assert_eq!(server.stub.passes(), 0);
}

#[tokio::test]
async fn what_is_not_read_here_is_told_with_415() {
    let server = TestServer::start().await;
    for encoding in ["br", "deflate", "gzip, zstd"] {
        let answer = server.send(encoded(&server, encoding, "{}")).await;
        assert_eq!(answer.status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{encoding}");
        assert_eq!(answer.header("accept-encoding"), Some("gzip, zstd"));
        let message = format!("content-encoding: {encoding:?}, expected one of gzip, zstd");
        assert_eq!(answer.problem(), ("unsupported_media_type".into(), message));
    }
    let answer = server.send(raw(&server.url("/score"), "text/plain", "{}")).await;
    assert_eq!(answer.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    let broken = server.send(encoded(&server, "gzip", "{}")).await;
    assert_eq!(broken.status, StatusCode::BAD_REQUEST);
    assert!(broken.problem().1.starts_with("body: is not valid gzip: "), "{}", broken.problem().1);
}

#[tokio::test]
async fn deep_nesting_and_repeated_names_are_refused() {
    let server = TestServer::start().await;
    let send = async |body: String| {
        let answer = server.send(raw(&server.url("/score"), "application/json", body)).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        answer.problem().1
    };
    for depth in [200, 1_000_000] {
        let message = send(format!(r#"{{"query": "q", "documents": [{{"t": {}"#, "[".repeat(depth))).await;
        assert!(message.contains("recursion limit exceeded"), "{message}");
        let message = send("[".repeat(depth)).await;
        assert!(message.starts_with("body: invalid type: sequence, expected an object"), "{message}");
    }
    let message = send(r#"{"query": "a", "query": "b", "documents": ["d"]}"#.into()).await;
    assert!(message.contains("duplicate field `query`"), "{message}");
    let message = send(r#"{"query": "q", "documents": [{"text": "x", "text": "y"}]}"#.into()).await;
    assert!(message.contains("duplicate field `text`"), "{message}");
}

#[tokio::test]
async fn bodies_of_other_servers_clients_are_read_the_same_way() {
    let server = TestServer::start().await;
    let text = json!({"query": "warm lamp", "documents": ["a lamp", "a hose".repeat(1000)]}).to_string();
    let send = async |encoding: &str, body: Vec<u8>| {
        let mut request = raw(&server.url("/v2/rerank"), "application/json", body);
        request.headers_mut().insert("content-encoding", encoding.parse().expect("a header"));
        server.send(request).await
    };
    let plain = send("identity", text.clone().into_bytes()).await.ok()["results"].clone();
    for (encoding, sent) in [("gzip", gzip(text.as_bytes())), ("zstd", zstd(text.as_bytes()))] {
        assert_eq!(send(encoding, sent).await.ok()["results"], plain, "{encoding}");
    }
    let refused = send("br", b"{}".to_vec()).await;
    assert_eq!(refused.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    assert_eq!(refused.header("accept-encoding"), Some("gzip, zstd"));
    assert_eq!(refused.json(), json!({"message": "content-encoding: \"br\", expected one of gzip, zstd"}));
    for (body, message) in [
        (r#"{"query": "a", "query": "b", "documents": ["d"]}"#, "body: duplicate field `query`"),
        (r#"{"query": "a", "documents": ["d"], "x": 1, "x": 2}"#, "body: duplicate field `x`"),
        (
            r#"{"query": "a", "documents": ["d", {"text": "x", "text": "y"}]}"#,
            "documents[1]: duplicate field `text`",
        ),
    ] {
        let answer = send("identity", body.into()).await;
        let told = answer.json()["message"].as_str().expect("a message").to_owned();
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        assert!(told.starts_with(message), "{told}");
    }
}

/// Waits until bodies hold so many bytes.
async fn until_held(server: &TestServer, bytes: f64) {
    within(async { while server.metric("verdict_body_bytes").await != bytes {} }).await;
}

#[tokio::test]
async fn bodies_have_one_memory_and_what_has_no_room_is_refused() {
    let small = Settings { queue_body_mib: Some(1), max_body_bytes: Some(1 << 20), ..settings() };
    let server = TestServer::with(small, model()).await;
    let mut half = within(TcpStream::connect(server.address)).await.expect("connected");
    let head = "POST /score HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n";
    half.write_all(head.as_bytes()).await.expect("sent");
    half.write_all(&vec![b' '; 700_000]).await.expect("sent");
    until_held(&server, 700_000.0).await;

    let document = "a lamp ".repeat(70_000);
    let large = json!({"query": "warm lamp", "documents": [document]});
    let refused = server.score(&large).await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(refused.header("retry-after"), Some("1"));
    let (code, message) = refused.problem();
    assert_eq!(code, "overloaded");
    assert!(message.starts_with("body: ") && message.ends_with(" of at most 1048576 bytes"), "{message}");
    let dialect = raw(&server.url("/v2/rerank"), "application/json", large.to_string());
    assert_eq!(server.send(dialect).await.status, StatusCode::TOO_MANY_REQUESTS);
    let zipped = server.send(encoded(&server, "zstd", zstd(large.to_string().as_bytes()))).await;
    assert_eq!(zipped.status, StatusCode::TOO_MANY_REQUESTS, "it counts as it comes out");
    let wire = pb::ScoreRequest {
        query: "warm lamp".into(),
        documents: vec![pb::Document { text: Some(document), ..pb::Document::default() }],
        ..pb::ScoreRequest::default()
    };
    let status = server.grpc().await.score(wire.clone()).await.expect_err("refused");
    assert_eq!(code_of(&status), Some(Code::Overloaded), "{status:?}");
    assert_eq!(status.metadata().get("retry-after-ms").expect("told"), "1000");
    until_held(&server, 700_000.0).await;
    assert_eq!(server.stub.passes(), 0, "nothing that was refused was computed");
    server.score(&json!({"query": "warm lamp", "documents": ["a lamp"]})).await.ok();
    let text = server.get("/metrics").await.text();
    assert!(text.contains("verdict_rejections_total{reason=\"bodies\"} 4"), "{text}");

    // An answer gives back what its body held, over gRPC too.
    drop(half);
    until_held(&server, 0.0).await;
    for _ in 0..3 {
        server.score(&large).await.ok();
        server.grpc().await.score(wire.clone()).await.expect("answered");
    }
    until_held(&server, 0.0).await;
}
