//! What breaks inside: each fault has its outcome, and harms nothing else in flight.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use hyper::StatusCode;
use serde_json::json;
use verdict::{
    backend::stub::Fault,
    config::{Settings, Span},
    error::Error,
    metrics::Lane,
    server::grpc::pb,
};

use crate::common::{Answer, Events, TestServer, get, model, post, settings, until, within};

/// Sends a request whose answer is read later.
fn send(server: &TestServer, body: &serde_json::Value) -> tokio::task::JoinHandle<Answer> {
    let (client, request) = (server.client.clone(), post(&server.url("/score"), body));
    tokio::spawn(async move { Answer::read(client.request(request).await.expect("answered")).await })
}

fn wire(document: &str) -> pb::ScoreRequest {
    let text = Some(document.into());
    let documents = vec![pb::Document { text, ..pb::Document::default() }];
    pb::ScoreRequest { query: "q".into(), documents, ..pb::ScoreRequest::default() }
}

#[tokio::test]
async fn an_engine_that_hangs_is_seen_and_recovers() {
    let stall = Settings { stall: Some(Span(Duration::from_secs(1))), ..settings() };
    let server = TestServer::with(stall, model()).await;
    let body = json!({"query": "q", "documents": ["d"]});
    server.stub.hold();
    let stuck = send(&server, &body);
    until(|| server.stub.waiting() == 1).await;
    let waits = send(&server, &json!({"query": "q", "documents": ["e", "f"]}));
    until(|| server.metrics.jobs_waiting_now(Lane::Score) == 2).await;
    let readyz = format!("http://{}/readyz", server.admin);
    within(async { while server.send(get(&readyz)).await.status == StatusCode::OK {} }).await;
    let livez = server.send(get(&format!("http://{}/livez", server.admin))).await;
    assert_eq!(livez.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(server.metric("verdict_ready").await == 0.0);
    assert!(server.metric("verdict_queue_length{lane=\"score\"}").await == 2.0);
    let refused = server.score(&body).await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(refused.problem(), ("unavailable".into(), "the engine makes no progress".into()));
    server.stub.release();
    within(stuck).await.expect("sent").ok();
    within(waits).await.expect("sent").ok();
    server.ready().await;
    server.score(&body).await.ok();
    assert!(server.metric("verdict_ready").await == 1.0);
    assert!(server.metric("verdict_queue_length{lane=\"score\"}").await == 0.0);
}

#[tokio::test]
async fn a_slow_batch_makes_late_what_it_must_and_nothing_after_it() {
    let server = TestServer::start().await;
    server.stub.hold();
    let slow = send(&server, &json!({"query": "q", "documents": ["a"]}));
    until(|| server.stub.waiting() == 1).await;
    let late = server.score(&json!({"query": "q", "documents": ["b"], "deadline_ms": 40})).await;
    assert_eq!(late.status, StatusCode::GATEWAY_TIMEOUT);
    server.stub.release();
    within(slow).await.expect("sent").ok();
    server.score(&json!({"query": "q", "documents": ["c"], "deadline_ms": 5000})).await.ok();
    until(|| server.held_pairs() == 0).await;
}

#[tokio::test]
async fn numbers_that_are_not_finite_fail_their_pair_alone() {
    let model = model();
    let marked = *model.tokenizer.encode(" lighthouse").expect("encodes").last().expect("a token");
    let server = TestServer::with(settings(), model).await;
    server.stub.inject(Fault::NotFinite(marked));
    let body =
        server.score(&json!({"query": "q", "documents": ["a lamp", "a lighthouse", "a hose"]})).await.ok();
    let results = body["results"].as_array().expect("results");
    let scored: Vec<bool> = results.iter().map(|result| result["relevance_score"].is_number()).collect();
    assert_eq!(scored, [true, false, true], "{body}");
    assert_eq!(results[1]["error"]["code"], "internal", "{body}");
    assert!(!body.to_string().contains("NaN"));
}

/// What is logged on this thread from now on, at the level of errors.
fn log() -> (Arc<Mutex<Vec<u8>>>, tracing::subscriber::DefaultGuard) {
    struct Lines(Arc<Mutex<Vec<u8>>>);
    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("sound").write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let lines = Arc::<Mutex<Vec<u8>>>::default();
    let writes = Arc::clone(&lines);
    let log = tracing_subscriber::fmt().with_max_level(tracing::Level::ERROR).with_ansi(false);
    let log = log.with_writer(move || Lines(Arc::clone(&writes))).finish();
    (lines, tracing::subscriber::set_default(log))
}

fn text(log: &Mutex<Vec<u8>>) -> String {
    String::from_utf8(log.lock().expect("sound").clone()).expect("text")
}

#[tokio::test]
async fn failed_pairs_of_an_answer_are_logged_once_and_counted() {
    let (log, _guard) = log();
    let model = model();
    let marked = *model.tokenizer.encode(" lighthouse").expect("encodes").last().expect("a token");
    let server = TestServer::with(settings(), model).await;
    server.stub.inject(Fault::NotFinite(marked));
    let documents = ["a lamp", "a lighthouse", "a hose", "one lighthouse"];
    server.score(&json!({"query": "q", "documents": documents})).await.ok();
    let said = text(&log);
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("pairs were not scored: the model gave a number that is not finite"), "{said}");
    assert!(said.contains("failed=2 pairs=4"), "{said}");
    assert!(server.metric("verdict_failed_pairs_total{code=\"internal\"}").await == 2.0);
    // A request that fails as a whole has a line of its own.
    let failed = server.score(&json!({"query": "q", "documents": ["my lighthouse"]})).await;
    assert_eq!(failed.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(text(&log).lines().count(), 2, "{}", text(&log));
    assert!(server.metric("verdict_failed_pairs_total{code=\"internal\"}").await == 3.0);
    // What the client is to mend is told to it alone.
    let long = "word ".repeat(1000);
    let refused = json!({"query": "q", "documents": ["a lamp", long], "truncation": "error"});
    server.score(&refused).await.ok();
    assert_eq!(text(&log).lines().count(), 2, "{}", text(&log));
    assert!(server.metric("verdict_failed_pairs_total{code=\"too_large\"}").await == 1.0);
}

#[tokio::test]
async fn what_is_computed_for_a_request_that_fails_as_a_whole_is_counted() {
    let model = model();
    let marked = *model.tokenizer.encode(" lighthouse").expect("encodes").last().expect("a token");
    let server = TestServer::with(settings(), model).await;
    server.stub.inject(Fault::NotFinite(marked));
    let texts = ["a lamp", "a lighthouse"];
    // Scored in part, it is answered.
    server.score(&json!({"query": "q", "documents": texts})).await.ok();
    assert!(server.metric("verdict_wasted_tokens_total").await == 0.0);
    // This dialect has no place for a pair's error.
    let failed = server.send(post(&server.url("/rerank"), &json!({"query": "other", "texts": texts}))).await;
    assert_eq!(failed.status, StatusCode::FAILED_DEPENDENCY);
    assert!(server.metric("verdict_wasted_tokens_total").await > 0.0);
}

#[tokio::test]
async fn a_failed_batch_ends_its_reasons_and_frees_their_memory() {
    let (log, _guard) = log();
    let server = TestServer::start().await;
    let request = json!({"query": "q", "documents": ["one", "two"], "explain_top_n": 2});
    // The second time splits what the cache keeps of the first.
    server.explain(&request).await.ok();
    server.explain(&request).await.ok();
    let before = server.kv_blocks().await;
    server.stub.hold_after(1);
    let events = Events::new(server.open(post(&server.url("/score?explain=true"), &request)).await);
    until(|| server.stub.waiting() == 1).await;
    server.stub.inject(Fault::Fail(Error::internal("the device said no")));
    server.stub.release();
    let events = events.rest().await;
    assert_eq!(events[0].0, "scores");
    assert_eq!(events.last().expect("events").0, "done");
    let ended: Vec<_> = events.iter().filter(|event| event.0 == "reason_done").collect();
    assert!(ended.iter().any(|event| event.1["error"]["code"] == "internal"), "{ended:?}");
    let said = text(&log);
    assert!(said.contains("a reason failed: the device said no"), "{said}");
    until(|| server.held_explanations() == 0).await;
    server.until_kv_blocks(before).await;
    let again = server.explain(&request).await.ok();
    assert!(
        again["results"].as_array().expect("results").iter().all(|r| r["reason"]["finish_reason"] == "stop")
    );
}

#[tokio::test]
async fn reasons_without_memory_are_shed_and_counted() {
    let server = TestServer::with(Settings { explain_kv_mib: Some(0), ..settings() }, model()).await;
    let body = server.explain(&json!({"query": "q", "documents": ["one"]})).await.ok();
    assert!(body["results"][0]["relevance_score"].is_number());
    assert_eq!(body["results"][0]["reason"]["finish_reason"], "shed");
    assert!(server.metric("verdict_rejections_total{reason=\"explain_memory\"}").await == 1.0);
}

#[tokio::test]
async fn a_panic_of_the_engine_answers_everyone_and_ends_the_server() {
    let server = TestServer::start().await;
    server.stub.hold();
    let running = send(&server, &json!({"query": "q", "documents": ["a"]}));
    until(|| server.stub.waiting() == 1).await;
    let queued = send(&server, &json!({"query": "q", "documents": ["b"]}));
    let mut grpc = server.grpc().await;
    let called = tokio::spawn(async move { grpc.score(wire("c")).await });
    until(|| server.held_pairs() == 3).await;
    server.stub.inject(Fault::Panic);
    server.stub.release();
    let running = within(running).await.expect("sent");
    assert!(running.status.is_server_error(), "{}", running.status);
    assert!(within(queued).await.expect("sent").status.is_server_error());
    within(called).await.expect("no panic").expect_err("lost");
    server.ended().await.expect_err("a dead engine is a failure");
}

#[tokio::test]
async fn a_stop_under_load_fails_nothing_that_was_admitted() {
    let server = TestServer::start().await;
    server.stub.hold();
    let first = send(&server, &json!({"query": "q", "documents": ["first"]}));
    until(|| server.stub.waiting() == 1).await;
    let scores: Vec<_> =
        (0..20).map(|i| send(&server, &json!({"query": "q", "documents": [format!("d{i}"), "x"]}))).collect();
    let calls: Vec<_> = {
        let grpc = server.grpc().await;
        let call = |i: usize| {
            let mut grpc = grpc.clone();
            tokio::spawn(async move { grpc.score(wire(&format!("g{i}"))).await })
        };
        (0..10).map(call).collect()
    };
    let explain = post(&server.url("/score?explain=true"), &json!({"query": "q", "documents": ["why"]}));
    let client = server.client.clone();
    let reasons =
        tokio::spawn(
            async move { Events::new(client.request(explain).await.expect("answered")).rest().await },
        );
    until(|| server.held_pairs() == 1 + 40 + 10 + 1).await;
    let (client, url, stub, metrics) =
        (server.client.clone(), server.url("/score"), server.stub.clone(), server.metrics.clone());
    let mut grpc = server.grpc().await;
    let ended = server.tell_to_stop();
    let body = json!({"query": "q", "documents": ["late"]});
    until(|| metrics.text().is_ok_and(|text| String::from_utf8_lossy(&text).contains("verdict_ready 0")))
        .await;
    // New ones are refused until the listener closes.
    let refused = Answer::read(within(client.request(post(&url, &body))).await.expect("answered")).await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.header("retry-after"), Some("1"));
    let status = within(grpc.score(wire("late"))).await.expect_err("refused");
    assert_eq!(status.code(), tonic::Code::Unavailable);
    assert_eq!(status.metadata().get("retry-after-ms").expect("told"), "1000");
    stub.release();
    within(first).await.expect("sent").ok();
    for score in scores {
        within(score).await.expect("sent").ok();
    }
    for call in calls {
        within(call).await.expect("no panic").expect("scored");
    }
    let events = within(reasons).await.expect("no panic");
    assert_eq!(events.last().expect("events").0, "done");
    within(ended).await.expect("no panic").expect("a clean end");
    assert_eq!(metrics.admitted_now(), (0, 0, 0));
    assert_eq!(metrics.pairs_computed(), 52, "and nothing of what was refused was computed");
}

#[tokio::test]
async fn what_is_computed_for_who_left_is_counted() {
    let server = TestServer::with(Settings { batch_sequences: Some(1), ..settings() }, model()).await;
    server.score(&json!({"query": "q", "documents": ["d"]})).await.ok();
    assert!(server.metric("verdict_wasted_tokens_total").await == 0.0);
    let computed = server.stub.tokens();
    server.stub.hold_after(1);
    // The first pair is answered, the second is in a pass, the third waits.
    let leaves = send(&server, &json!({"query": "q", "documents": ["e one", "f two", "g three"]}));
    until(|| server.stub.waiting() == 1 && server.metrics.pairs_computed() == 2).await;
    leaves.abort();
    until(|| server.metrics.requests_ended("/score", Lane::Score, "cancelled") == 1).await;
    server.stub.release();
    until(|| server.held_pairs() == 0 && server.metrics.pairs_computed() == 3).await;
    // The first two pairs, and nothing of the third.
    let spent = || (server.stub.tokens() - computed) as f64;
    within(async { while server.metric("verdict_wasted_tokens_total").await != spent() {} }).await;
    assert!(spent() > 0.0);
    assert_eq!(server.metrics.pairs_computed(), 3);
}
