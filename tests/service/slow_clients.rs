//! Clients that send or take little at a time, or nothing: what they hold is given back. And those that leave.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::BoxBody};
use hyper::{Request, Response, StatusCode, body::Frame, body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use verdict::{
    config::{Settings, Span},
    metrics::Lane,
};

use crate::{
    bad_clients::{PREFACE, connect, frame, frames, rest, serves},
    common::{TestServer, get, model, settings, until, within},
};

const SCORE: &str = "/relevance.v1.RelevanceService/Score";
const SCORE_STREAM: &str = "/relevance.v1.RelevanceService/ScoreStream";
const CHECK: &str = "/grpc.health.v1.Health/Check";

/// A server that waits so many milliseconds for its clients, with a mebibyte for their bodies.
fn patience(ms: u64) -> Settings {
    Settings {
        read_timeout: Some(Span(Duration::from_millis(ms))),
        queue_body_mib: Some(1),
        max_body_bytes: Some(1 << 20),
        ..settings()
    }
}

type Body = BoxBody<Bytes, std::io::Error>;

/// A connection of HTTP/2 whose client takes `window` bytes of each answer before it says more.
async fn http2(server: &TestServer, window: u32) -> http2::SendRequest<Body> {
    let io = TokioIo::new(connect(server).await);
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(window);
    let (sender, connection) = within(builder.handshake(io)).await.expect("HTTP/2");
    tokio::spawn(connection);
    sender
}

fn request(server: &TestServer, path: &str, kind: &str, body: Body) -> Request<Body> {
    let request = Request::post(server.url(path)).header("content-type", kind).header("te", "trailers");
    request.body(body).expect("a request")
}

/// The head of a message of `length` bytes, and so many zeros of it.
fn part(length: u32, zeros: usize) -> Bytes {
    let mut part = vec![0];
    part.extend(length.to_be_bytes());
    part.resize(5 + zeros, 0);
    part.into()
}

/// Pieces that are sent a tenth of a second after each other, and no end.
fn trickle(pieces: Vec<Bytes>) -> Body {
    let pieces = tokio_stream::iter(pieces);
    let slow = futures::StreamExt::then(pieces, async |piece| {
        tokio::time::sleep(Duration::from_millis(100)).await;
        Ok(Frame::data(piece))
    });
    StreamBody::new(futures::StreamExt::chain(slow, tokio_stream::pending())).boxed()
}

/// A call's status and its message.
async fn status(response: Response<Incoming>) -> (String, String) {
    let (head, body) = response.into_parts();
    let body = within(body.collect()).await.expect("whole");
    let trailers = body.trailers().cloned().unwrap_or_default();
    let told = |name: &str| {
        let value = head.headers.get(name).or_else(|| trailers.get(name));
        value.map(|value| value.to_str().expect("text").to_owned()).unwrap_or_default()
    };
    (told("grpc-status"), told("grpc-message"))
}

async fn until_held(server: &TestServer, held: impl Fn(f64) -> bool) {
    within(async { while !held(server.metric("verdict_body_bytes").await) {} }).await;
}

/// A request with an answer of about `kib` KiB.
fn much(kib: usize) -> Value {
    let documents: Vec<String> = (0..kib / 64).map(|i| format!("{i:5}{}", "lamp ".repeat(13106))).collect();
    json!({"query": "q", "documents": documents, "return_documents": true})
}

#[tokio::test]
async fn a_message_that_never_comes_whole_holds_nothing() {
    let server = TestServer::with(patience(500), model()).await;
    for (path, pieces) in [
        (SCORE_STREAM, vec![part(900_000, 800_000)]),
        // A byte now and then is no more.
        (SCORE_STREAM, [vec![part(900_000, 800_000)], vec![Bytes::from_static(b"\0"); 100]].concat()),
        (SCORE, [vec![part(900_000, 800_000)], vec![Bytes::from_static(b"\0"); 100]].concat()),
    ] {
        let mut sender = http2(&server, 1 << 16).await;
        let call = sender.send_request(request(&server, path, "application/grpc", trickle(pieces)));
        let call = tokio::spawn(call);
        until_held(&server, |held| held >= 800_000.0).await;
        let (code, message) = status(within(call).await.expect("no panic").expect("answered")).await;
        // DEADLINE_EXCEEDED; the message's spaces are escaped.
        assert_eq!((&*code, &*message.replace("%20", " ")), ("4", "body: not sent within 500 ms"), "{path}");
        until_held(&server, |held| held == 0.0).await;
        serves(&server).await;
    }
}

#[tokio::test]
async fn who_has_no_key_takes_no_memory_of_those_who_have() {
    let keys = Settings { api_keys: Some("a-key".parse().expect("keys")), ..patience(500) };
    let server = TestServer::with(keys, model()).await;
    let mut sender = http2(&server, 1 << 16).await;
    let admin = format!("http://{}/metrics", server.admin);
    let long = request(&server, CHECK, "application/grpc", trickle(vec![part(5000, 1)]));
    let (code, message) = status(within(sender.send_request(long)).await.expect("answered")).await;
    assert_eq!((&*code, &*message.replace("%20", " ")), ("3", "message: 5000 bytes, over the limit of 4096"));
    let short = request(&server, CHECK, "application/grpc", trickle(vec![part(4000, 3000)]));
    let call = tokio::spawn(sender.send_request(short));
    while !call.is_finished() {
        let text = server.send(get(&admin)).await.text();
        assert!(text.contains("\nverdict_body_bytes 0\n"), "{text}");
    }
    assert_eq!(status(within(call).await.expect("no panic").expect("answered")).await.0, "4");
    let whole = Full::new(part(0, 0)).map_err(|never| match never {}).boxed();
    let whole = request(&server, CHECK, "application/grpc", whole);
    assert_eq!(status(within(sender.send_request(whole)).await.expect("answered")).await.0, "0");
}

/// `POST /score` over HTTP/1, and what stands behind it.
async fn post_and(server: &TestServer, body: &Value, behind: &[u8]) -> TcpStream {
    let mut stream = connect(server).await;
    let body = body.to_string();
    let head = "POST /score HTTP/1.1\r\nhost: x\r\ncontent-type: application/json";
    let head = format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    stream.write_all(&[head.as_bytes(), behind].concat()).await.expect("sent");
    stream
}

const HEALTH: &[u8] = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n";

#[tokio::test]
async fn a_client_that_leaves_is_noticed_whatever_it_has_sent() {
    let server = TestServer::start().await;
    server.stub.hold();
    let (two, three) =
        (json!({"query": "q", "documents": ["a", "b"]}), json!({"query": "q", "documents": ["a", "b", "c"]}));
    let first = post_and(&server, &two, b"").await;
    until(|| server.stub.waiting() == 1).await;
    let cancelled = || server.metrics.requests_ended("/score", Lane::Score, "cancelled");
    for (count, behind) in [&b""[..], b"\r\n", b"G", HEALTH, &[HEALTH; 9].concat()].into_iter().enumerate() {
        let count = count as u64 * 2;
        let leaving = post_and(&server, &three, behind).await;
        until(|| server.held_pairs() >= 5).await;
        drop(leaving);
        until(|| cancelled() == count + 1).await;
        // One that says only that it sends no more is not told from one that has left.
        let mut half = post_and(&server, &three, b"").await;
        half.write_all(behind).await.expect("sent");
        half.shutdown().await.expect("open");
        until(|| cancelled() == count + 2).await;
        assert!(rest(&mut half).await.is_empty());
    }
    server.stub.release();
    drop(first);
    until(|| server.held_pairs() == 0).await;
    assert!(server.metrics.pairs_computed() <= 2, "of those that left nothing was");
}

#[tokio::test]
async fn what_stands_behind_a_request_is_answered_after_it() {
    let server = TestServer::start().await;
    server.stub.hold();
    let score = json!({"query": "q", "documents": ["a"]});
    // A mebibyte of requests is more than is read ahead.
    let count = (1 << 20) / HEALTH.len();
    let many = [&HEALTH.repeat(count), &b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"[..]]
        .concat();
    let stream = post_and(&server, &score, b"\r\n").await;
    until(|| server.stub.waiting() == 1).await;
    let (mut reading, mut writing) = stream.into_split();
    let sending = tokio::spawn(async move {
        for piece in many.chunks(50_000) {
            writing.write_all(piece).await.expect("sent");
        }
        writing
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    server.stub.release();
    let mut answers = Vec::new();
    within(reading.read_to_end(&mut answers)).await.expect("closed");
    drop(within(sending).await.expect("no panic"));
    assert!(answers.starts_with(b"HTTP/1.1 200"));
    let scored = answers.windows(9).position(|part| part == b"\"results\"").expect("the first answer");
    let others = answers[scored..].windows(12).filter(|part| part == b"HTTP/1.1 200").count();
    assert_eq!(others, count + 1);
    // An answer that is there at once is told to one that has ended its side, too.
    let mut half = connect(&server).await;
    half.write_all(&[HEALTH, b"\r\n"].concat()).await.expect("sent");
    half.shutdown().await.expect("open");
    assert!(rest(&mut half).await.starts_with(b"HTTP/1.1 200"));
}

#[tokio::test]
async fn answers_that_nobody_reads_are_memory_and_given_up() {
    // One body at a time has room, and its answer is as large.
    let server = TestServer::with(patience(1000), model()).await;
    let body = much(832);
    let mut sender = http2(&server, 0).await;
    let whole = Full::new(Bytes::from(body.to_string())).map_err(|never| match never {}).boxed();
    let unread = within(sender.send_request(request(&server, "/score", "application/json", whole))).await;
    let unread = unread.expect("answered");
    assert_eq!(unread.status(), StatusCode::OK);
    until_held(&server, |held| held > 800_000.0).await;
    let refused = server.score(&body).await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS, "what is not taken leaves no room");
    until_held(&server, |held| held == 0.0).await;
    server.score(&body).await.ok();
    // And the connection, on which nothing else goes on, is parted with.
    within(async { while server.metric("verdict_connections").await > 1.0 {} }).await;
    within(unread.into_body().collect()).await.expect_err("cut off");
}

#[tokio::test]
async fn a_stream_that_nobody_reads_is_given_up() {
    let server = TestServer::with(patience(500), model()).await;
    let documents = much(832)["documents"].as_array().expect("a list").clone();
    let text = |document: &Value| document.as_str().map(str::to_owned);
    let message = prost::Message::encode_to_vec(&verdict::server::grpc::pb::ScoreRequest {
        query: "q".into(),
        documents: documents
            .iter()
            .map(|document| verdict::server::grpc::pb::Document {
                text: text(document),
                ..verdict::server::grpc::pb::Document::default()
            })
            .collect(),
        return_documents: true,
        ..verdict::server::grpc::pb::ScoreRequest::default()
    });
    let mut whole = part(message.len() as u32, 0).to_vec();
    whole.extend(message);
    // Small windows that are not taken on: nothing goes on after the first bytes of the answer.
    for window in [0, 100] {
        let mut sender = http2(&server, window).await;
        let open = StreamBody::new(futures::StreamExt::chain(
            tokio_stream::iter([Ok(Frame::data(Bytes::from(whole.clone())))]),
            tokio_stream::pending(),
        ));
        let call = request(&server, SCORE_STREAM, "application/grpc", open.boxed());
        let unread = within(sender.send_request(call)).await.expect("answered");
        until_held(&server, |held| held > 800_000.0).await;
        until_held(&server, |held| held == 0.0).await;
        within(async { while server.metric("verdict_connections").await > 1.0 {} }).await;
        within(unread.into_body().collect()).await.expect_err("cut off");
    }
    serves(&server).await;
}

#[tokio::test]
async fn a_client_that_reads_slowly_gets_all_of_its_answer() {
    let limits = Settings { max_body_bytes: Some(32 << 20), queue_body_mib: Some(64), ..patience(700) };
    let server = TestServer::with(limits, model()).await;
    let mut slow = post_and(&server, &much(24 << 10), b"").await;
    let (mut answer, mut space) = (Vec::new(), vec![0; 1 << 20]);
    loop {
        let length = within(slow.read(&mut space)).await.expect("not reset");
        answer.extend_from_slice(&space[..length]);
        if length == 0 {
            break;
        }
        // Far longer than the limit, all together.
        tokio::time::sleep(Duration::from_millis(length as u64 / 10_000)).await;
    }
    assert!(answer.ends_with(b"}") && answer.len() > 24 << 20, "{} bytes", answer.len());
}

#[tokio::test]
async fn a_request_that_crosses_the_end_of_an_idle_connection_is_answered() {
    let server = TestServer::with(patience(400), model()).await;
    let mut idle = connect(&server).await;
    idle.write_all(PREFACE).await.expect("sent");
    let mut read = Vec::new();
    const GOAWAY: u8 = 7;
    while !frames(&read).iter().any(|(kind, _)| *kind == GOAWAY) {
        let mut space = [0; 1000];
        let length = within(idle.read(&mut space)).await.expect("open");
        read.extend_from_slice(&space[..length]);
    }
    // It has not seen that yet, and asks.
    server.stub.hold();
    let body = json!({"query": "q", "documents": ["d"]}).to_string();
    // `POST /score` as HPACK: two indexed fields, a path and an authority of one letter.
    let head = [&[0x83, 0x86, 0x04, 0x06][..], b"/score", &[0x01, 0x01, b'x']].concat();
    idle.write_all(&[frame(1, 4, 1, &head), frame(0, 1, 1, body.as_bytes())].concat()).await.expect("sent");
    until(|| server.stub.waiting() == 1).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    server.stub.release();
    let answer = rest(&mut idle).await;
    let found = String::from_utf8_lossy(&answer);
    assert!(found.contains("\"results\""), "{found}");
}

#[tokio::test]
async fn silent_connections_keep_no_probe_from_the_admin_port_for_long() {
    let server = TestServer::start().await;
    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.push(within(TcpStream::connect(server.admin)).await.expect("connected"));
    }
    // The default of --read-timeout is more than this waits.
    let live = server.send(get(&format!("http://{}/livez", server.admin))).await;
    assert_eq!(live.status, StatusCode::OK);
}
