//! From HTTP in to HTTP out with no model behind: latency at one client, rate
//! at many, beside a bare handler that returns a body of the same size, and with
//! traces of none, a tenth and all of the requests; then tokenizing alone, beside
//! the tokenizer that is underneath; then what one client waits for beside the
//! passes of a device that computes by itself, as a GPU does.
//!
//! Server and clients share the machine: what is printed includes the load
//! generator. `cargo bench --bench http -- SECONDS` sets how long each part runs.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{Router, routing::post, serve::ListenerExt as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    runtime::{Builder, Runtime},
};
use verdict::{
    backend::{
        Backend,
        stub::{StubBackend, StubControl, StubPace},
    },
    config::{Config, Settings},
    model::Model,
    server::{Phase, Server},
    tokenize::Tokenizer,
};

/// The load generator's texts.
const PASSAGES: &str = include_str!("../loadtest/corpus/passages.txt");
const CLIENTS: usize = 64;
/// Distinct requests, taken in turn, so that nothing lives on one text's being known.
const REQUESTS: usize = 1024;

fn main() {
    let seconds =
        std::env::args().filter_map(|argument| argument.parse::<f64>().ok()).next_back().unwrap_or(3.0);
    let span = Duration::from_secs_f64(seconds);
    let runtime = Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let server = verdict(&runtime, None);
    let answer = ask(server);
    let scores = check(&answer);
    let baseline = bare(&runtime, answer.len());
    println!(
        "{REQUESTS} distinct requests, answers of about {} bytes, {} documents each",
        answer.len(),
        scores.len()
    );
    let traced = |share: f64| verdict(&runtime, Some(share));
    for (name, address) in [
        ("bare handler", baseline),
        ("verdict", server),
        ("traces: none", traced(0.0)),
        ("a tenth", traced(0.1)),
        ("all", traced(1.0)),
        ("verdict again", server),
    ] {
        let alone = one_client(address, &requests(), span);
        let (rate, crowd) = many_clients(address, span);
        println!(
            "{name:>13}: 1 client p50 {:6.1} µs p99 {:6.1} µs | {CLIENTS} clients {rate:8.0} requests/s p50 {:6.0} µs p99 {:6.0} µs",
            quantile(&alone, 0.5),
            quantile(&alone, 0.99),
            quantile(&crowd, 0.5),
            quantile(&crowd, 0.99)
        );
    }
    assert_eq!(check(&ask(server)), scores, "the same scores after the load");
    for (documents, words) in [(16, 46), (16, 232)] {
        tokens(documents, words);
    }
    for (ms, documents, words) in [(1.4, 1, 80), (2.4, 16, 46), (8.4, 16, 232)] {
        let pass = Duration::from_secs_f64(ms / 1e3);
        let address = serve(&runtime, None, Some(pass));
        let beside: Vec<f64> =
            one_client(address, &texts(documents, words), span).iter().map(|us| us - ms * 1e3).collect();
        println!(
            "beside a pass of {ms} ms, {documents} documents of {words} words: p50 {:6.1} µs p95 {:6.1} µs",
            quantile(&beside, 0.5),
            quantile(&beside, 0.95)
        );
    }
}

/// How long a request's texts take to become tokens, beside the tokenizer that remembers no words.
fn tokens(documents: usize, length: usize) {
    let bytes = verdict::model::bundled::TOKENIZER;
    let ours = Tokenizer::from_bytes(bytes, "bundled").expect("loads");
    let peer = tokenizers::Tokenizer::from_bytes(bytes).expect("loads");
    let words: Vec<&str> = PASSAGES.split_whitespace().collect();
    let texts: Vec<String> = (0..REQUESTS).map(|number| document(&words, number, length)).collect();
    let measure = |encode: &mut dyn FnMut(&str) -> usize| {
        // First all words are met once.
        let mut count: usize = texts.iter().map(|text| encode(text)).sum();
        let mut took = Vec::new();
        for texts in texts.chunks_exact(documents) {
            let began = Instant::now();
            count += texts.iter().map(|text| encode(text)).sum::<usize>();
            took.push(began.elapsed().as_secs_f64() * 1e6);
        }
        (quantile(&took, 0.5), count)
    };
    let (alone, count) = measure(&mut |text| ours.encode(text).expect("encodes").len());
    let (beside, same) = measure(&mut |text| peer.encode_fast(text, false).expect("encodes").len());
    assert_eq!(count, same, "as many tokens");
    println!(
        "tokens of {documents} documents of {length} words: p50 {alone:6.1} µs, {:.1} times as fast as tokenizers",
        beside / alone
    );
}

/// A server over the stub that traces a share of its requests. Nobody collects: spans are made, queued and
/// encoded, and not sent.
fn verdict(runtime: &Runtime, traced: Option<f64>) -> SocketAddr {
    serve(runtime, traced, None)
}

/// The same; or over a device whose every pass takes so long, while the processor does what it likes.
fn serve(runtime: &Runtime, traced: Option<f64>, pass: Option<Duration>) -> SocketAddr {
    let settings = Settings {
        port: Some(0),
        admin_port: Some(0),
        otlp_endpoint: traced.map(|_| "http://127.0.0.1:9".to_owned()),
        trace_sample: traced,
        batch_tokens: Some(8192),
        ..Settings::default()
    };
    let config = Config::new(settings).expect("valid settings");
    let mut model = Model::bundled().expect("loads");
    model.profile.probes.clear();
    let (model, grades) = (Arc::new(model), 4);
    runtime.block_on(async {
        let server = Server::bind(config).await.expect("bound");
        let address = server.address();
        let mut phases = server.phases();
        let load = move || {
            let control = Arc::new(StubControl::default());
            let mut backend = StubBackend::new(grades, vec![0], Arc::clone(&control));
            if let Some(overhead) = pass {
                control.pace(StubPace { overhead, token: Duration::ZERO });
                backend = backend.overlapping();
            }
            Ok((model, Box::new(backend) as Box<dyn Backend>))
        };
        tokio::spawn(server.run(load, std::future::pending()));
        phases.wait_for(|phase| *phase == Phase::Ready).await.expect("ready");
        address
    })
}

/// A handler that reads its body and returns `size` bytes.
fn bare(runtime: &Runtime, size: usize) -> SocketAddr {
    runtime.block_on(async {
        let body = "x".repeat(size);
        let handler = move |_: bytes::Bytes| {
            let body = body.clone();
            async move { body }
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("bound");
        let listener = listener.tap_io(|stream| stream.set_nodelay(true).expect("set"));
        tokio::spawn(
            async move { axum::serve(listener, Router::new().route("/score", post(handler))).await },
        );
        address
    })
}

fn requests() -> Vec<Vec<u8>> {
    (0..REQUESTS).map(request).collect()
}

fn request(number: usize) -> Vec<u8> {
    post_score(&format!(
        r#"{{"query":"wireless earbuds {number} for running","documents":["sport earbuds, sweatproof {number}","garden hose"]}}"#
    ))
}

/// Requests of as many documents, each of so many words of the load generator's passages.
fn texts(documents: usize, length: usize) -> Vec<Vec<u8>> {
    let words: Vec<&str> = PASSAGES.split_whitespace().collect();
    let request = |number: usize| {
        let documents: Vec<String> =
            (0..documents).map(|i| document(&words, number * documents + i, length)).collect();
        let query = format!("which of them is number {number}");
        post_score(&serde_json::json!({"query": query, "documents": documents}).to_string())
    };
    (0..REQUESTS).map(request).collect()
}

/// So many of the words, from one on that the number gives.
fn document(words: &[&str], number: usize, length: usize) -> String {
    let from = number * 7919 % (words.len() - length);
    words[from..from + length].join(" ")
}

fn post_score(body: &str) -> Vec<u8> {
    let length = body.len();
    format!("POST /score HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}")
        .into_bytes()
}

/// The length of the whole response at the start of `bytes`, once its head is there.
fn response_length(bytes: &[u8]) -> Option<usize> {
    let head = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(&bytes[..head]).expect("an HTTP head");
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
    Some(head + length.parse::<usize>().expect("a number"))
}

/// One request on a connection of its own; its body.
fn ask(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).expect("connected");
    let mut buffer = vec![0; 1 << 16];
    let length = exchange(&mut stream, &request(0), &mut buffer);
    let text = std::str::from_utf8(&buffer[..length]).expect("text");
    text.split_once("\r\n\r\n").expect("a body").1.to_owned()
}

fn exchange(stream: &mut TcpStream, request: &[u8], buffer: &mut [u8]) -> usize {
    stream.write_all(request).expect("sent");
    let mut filled = 0;
    loop {
        let read = stream.read(&mut buffer[filled..]).expect("received");
        assert_ne!(read, 0, "the connection was closed");
        filled += read;
        if let Some(length) = response_length(&buffer[..filled])
            && filled >= length
        {
            return length;
        }
    }
}

/// The scores in an answer.
fn check(answer: &str) -> Vec<f64> {
    let answer: serde_json::Value = serde_json::from_str(answer).expect("JSON");
    let results = answer["results"].as_array().expect("results");
    let scores: Vec<f64> = results.iter().map(|r| r["relevance_score"].as_f64().expect("a score")).collect();
    assert_eq!(scores.len(), 2);
    assert!(scores.iter().all(|score| (0.0..=1.0).contains(score)), "{scores:?}");
    scores
}

/// Latencies in microseconds of one client that waits for each answer.
fn one_client(address: SocketAddr, requests: &[Vec<u8>], span: Duration) -> Vec<f64> {
    let mut stream = TcpStream::connect(address).expect("connected");
    stream.set_nodelay(true).expect("set");
    let mut buffer = vec![0; 1 << 16];
    for request in requests.iter().take(REQUESTS / 4) {
        exchange(&mut stream, request, &mut buffer);
    }
    let mut next = requests.iter().cycle();
    let mut latencies = Vec::new();
    let end = Instant::now() + span;
    while Instant::now() < end {
        let request = next.next().expect("a cycle has no end");
        let start = Instant::now();
        exchange(&mut stream, request, &mut buffer);
        latencies.push(start.elapsed().as_secs_f64() * 1e6);
    }
    latencies
}

/// Requests a second, and their latencies in microseconds, of many clients on one thread.
fn many_clients(address: SocketAddr, span: Duration) -> (f64, Vec<f64>) {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let stop = Arc::new(AtomicBool::new(false));
    runtime.block_on(async {
        let requests = Arc::new(requests());
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let first = number * REQUESTS / CLIENTS;
                tokio::spawn(client(address, Arc::clone(&requests), first, Arc::clone(&stop)))
            })
            .collect();
        let start = Instant::now();
        tokio::time::sleep(span).await;
        stop.store(true, Ordering::Relaxed);
        let mut latencies = Vec::new();
        for client in clients {
            latencies.extend(client.await.expect("no panic"));
        }
        (latencies.len() as f64 / start.elapsed().as_secs_f64(), latencies)
    })
}

async fn client(
    address: SocketAddr,
    requests: Arc<Vec<Vec<u8>>>,
    first: usize,
    stop: Arc<AtomicBool>,
) -> Vec<f64> {
    let mut stream = tokio::net::TcpStream::connect(address).await.expect("connected");
    stream.set_nodelay(true).expect("set");
    let mut buffer = vec![0; 1 << 14];
    let mut next = requests.iter().cycle().skip(first);
    let mut latencies = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let request = next.next().expect("a cycle has no end");
        let start = Instant::now();
        stream.write_all(request).await.expect("sent");
        let mut filled = 0;
        loop {
            let read = stream.read(&mut buffer[filled..]).await.expect("received");
            assert_ne!(read, 0, "the connection was closed");
            filled += read;
            if response_length(&buffer[..filled]).is_some_and(|length| filled >= length) {
                break;
            }
        }
        latencies.push(start.elapsed().as_secs_f64() * 1e6);
    }
    latencies
}

fn quantile(values: &[f64], at: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * at).round() as usize).copied().unwrap_or(f64::NAN)
}
