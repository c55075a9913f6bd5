//! A server's life: starting, probing, draining, dying.

use std::{sync::Arc, time::Duration};

use hyper::StatusCode;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use verdict::{
    backend::stub::Fault,
    config::{Config, Settings, Span},
    profile::Probe,
    server::{Failure, Server},
};

use crate::common::{Answer, TestServer, get, model, post, settings, until, within};

fn probe(max_score: f64) -> Probe {
    Probe {
        query: "q".into(),
        document: "d".into(),
        instruction: None,
        min_score: None,
        max_score: Some(max_score),
    }
}

#[tokio::test]
async fn draining_finishes_what_was_admitted_and_refuses_the_rest() {
    let server = TestServer::start().await;
    let mut health = HealthClient::new(server.channel().await);
    server.stub.hold();
    let (client, url) = (server.client.clone(), server.url("/score"));
    let ready = format!("http://{}/readyz", server.admin);
    let body = json!({"query": "q", "documents": ["d"]});
    let (first_client, first_request) = (client.clone(), post(&url, &body));
    let first = tokio::spawn(async move {
        Answer::read(first_client.request(first_request).await.expect("answered")).await
    });
    until(|| server.stub.waiting() == 1).await;
    let stub = server.stub.clone();
    let metrics = server.metrics.clone();
    let ended = server.tell_to_stop();
    until(|| metrics.text().is_ok_and(|text| String::from_utf8_lossy(&text).contains("verdict_ready 0")))
        .await;
    let refused = Answer::read(within(client.request(post(&url, &body))).await.expect("answered")).await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(refused.header("x-envoy-immediate-health-check-fail"), Some("true"));
    assert_eq!(refused.problem(), ("unavailable".into(), "the server is shutting down".into()));
    let unready = Answer::read(within(client.request(get(&ready))).await.expect("answered")).await;
    assert_eq!(
        (unready.status, &unready.json()["detail"]),
        (StatusCode::SERVICE_UNAVAILABLE, &"the server is shutting down".into())
    );
    let serving = async |health: &mut HealthClient<_>| {
        within(health.check(HealthCheckRequest::default())).await.expect("known").into_inner().status == 1
    };
    within(async {
        while serving(&mut health).await {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(!ended.is_finished());
    stub.release();
    assert_eq!(within(first).await.expect("sent").status, StatusCode::OK);
    within(ended).await.expect("no panic").expect("a clean end");
}

#[tokio::test]
async fn the_grace_period_bounds_draining() {
    let grace = Settings { grace: Some(Span(std::time::Duration::from_millis(20))), ..settings() };
    let server = TestServer::with(grace, model()).await;
    server.stub.hold();
    let stub = server.stub.clone();
    let (client, request) =
        (server.client.clone(), post(&server.url("/score"), &json!({"query": "q", "documents": ["d"]})));
    let stuck = tokio::spawn(async move { client.request(request).await });
    until(|| stub.waiting() == 1).await;
    let cut = server.stop().await.expect_err("a request was cut off");
    assert_eq!(cut.error().message(), "the grace period of 20ms ended before 1 requests did");
    assert!(within(stuck).await.expect("no panic").is_err(), "its connection was closed");
    stub.release();
}

#[tokio::test]
async fn a_body_that_was_only_begun_holds_up_no_end() {
    let server = TestServer::start().await;
    let address = server.url("").trim_start_matches("http://").to_owned();
    let mut slow = TcpStream::connect(address).await.expect("connects");
    let head =
        "POST /rerank HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{";
    slow.write_all(head.as_bytes()).await.expect("sent");
    let metrics = server.metrics.clone();
    // Its body has begun to be read once memory is held for it.
    while server.metric("verdict_body_bytes").await == 0.0 {
        tokio::task::yield_now().await;
    }
    within(server.stop()).await.expect("a clean end");
    let mut answer = String::new();
    within(slow.read_to_string(&mut answer)).await.expect("text");
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("the server is shutting down"), "{answer}");
    let counted = metrics.text().expect("text");
    let counted = String::from_utf8_lossy(&counted);
    assert!(counted.contains("verdict_rejections_total{reason=\"unavailable\"} 1"), "{counted}");
}

#[tokio::test]
async fn nothing_is_served_before_the_probes_passed() {
    let mut model = model();
    model.profile.probes = vec![probe(1.0), probe(1.0)];
    let server = TestServer::unready(settings(), model).await;
    // On this thread the server has not run yet: the first answer comes before the model is there.
    let answer = server.score(&json!({"query": "q", "documents": ["d"]})).await;
    if answer.status != StatusCode::OK {
        assert_eq!(answer.problem(), ("unavailable".into(), "the server is starting".into()));
        assert_eq!(answer.header("retry-after"), Some("1"));
    }
    server.ready().await;
    assert_eq!(server.stub.passes(), 2 + usize::from(answer.status == StatusCode::OK));
    server.score(&json!({"query": "q", "documents": ["d"]})).await.ok();
}

#[tokio::test]
async fn a_failed_probe_ends_the_server() {
    let mut model = model();
    model.profile.probes = vec![probe(1.0), probe(0.0)];
    let failure = TestServer::unready(settings(), model).await.ended().await.expect_err("refused");
    let Failure::Model(error) = failure else { panic!("{failure:?}") };
    assert!(error.message().contains("above its max_score of 0"), "{error}");
}

#[tokio::test]
async fn limits_of_requests_are_not_those_of_probes() {
    let mut model = model();
    model.profile.probes = vec![Probe { query: "a query of more than 8 bytes".into(), ..probe(1.0) }];
    let tight = Settings { max_query_bytes: Some(8), max_document_bytes: Some(1), ..settings() };
    let server = TestServer::with(tight, model).await;
    let refused = server.score(&json!({"query": "a long query", "documents": ["d"]})).await;
    assert_eq!(refused.problem().1, "query: 12 bytes, over the limit of 8");
}

#[tokio::test]
async fn a_probe_that_cannot_be_scored_is_named() {
    let mut model = model();
    model.profile.probes = vec![probe(1.0), Probe { query: "x".repeat(2000), ..probe(1.0) }];
    let failure = TestServer::unready(settings(), model).await.ended().await.expect_err("refused");
    let Failure::Model(error) = failure else { panic!("{failure:?}") };
    assert!(error.message().starts_with("the probe with query \"xxx"), "{error}");
    assert!(error.message().contains(" was not scored: query: "), "{error}");
}

#[tokio::test]
async fn a_probe_without_end_ends_the_server() {
    let mut model = model();
    model.profile.probes = vec![probe(1.0)];
    let stall = Settings { stall: Some(Span(Duration::from_millis(200))), ..settings() };
    let server = TestServer::unready(stall, model).await;
    let stub = Arc::clone(&server.stub);
    stub.hold();
    let failure = server.ended().await.expect_err("stuck");
    let Failure::Model(error) = failure else { panic!("{failure:?}") };
    assert_eq!(error.message(), "the probes were not scored: the engine made no progress for 200ms");
    stub.release();
}

#[tokio::test]
async fn a_model_that_cannot_be_loaded_ends_the_server() {
    let server = Server::bind(Config::new(settings()).expect("valid")).await.expect("bound");
    let load = || Err(verdict::error::Error::invalid("config.json", "is not there"));
    let failure = within(server.run(load, std::future::pending())).await.expect_err("refused");
    let Failure::Model(error) = failure else { panic!("{failure:?}") };
    assert_eq!(error.message(), "config.json: is not there");
}

#[tokio::test]
async fn a_dead_engine_ends_the_server() {
    let server = TestServer::start().await;
    server.stub.inject(Fault::Panic);
    let answer = server.score(&json!({"query": "q", "documents": ["d"]})).await;
    assert!(answer.status.is_server_error(), "{}", answer.status);
    let failure = server.ended().await.expect_err("died");
    let Failure::Runtime(error) = failure else { panic!("{failure:?}") };
    assert_eq!(error.message(), "the engine's thread panicked");
}

#[tokio::test]
async fn a_lost_device_ends_the_server() {
    let server = TestServer::start().await;
    server.stub.inject(Fault::Lose(verdict::error::Error::internal("the device is gone")));
    let answer = server.score(&json!({"query": "q", "documents": ["d"]})).await;
    assert!(answer.status.is_server_error(), "{}", answer.status);
    let failure = server.ended().await.expect_err("lost");
    let Failure::Runtime(error) = failure else { panic!("{failure:?}") };
    assert_eq!(error.message(), "the device is gone");
}

#[tokio::test]
async fn a_failed_batch_fails_its_requests_alone() {
    let server = TestServer::start().await;
    server.stub.inject(Fault::Fail(verdict::error::Error::internal("out of memory")));
    let answer = server.score(&json!({"query": "q", "documents": ["d"]})).await;
    assert_eq!(answer.problem(), ("internal".into(), "internal error; see the server's log".into()));
    server.score(&json!({"query": "q", "documents": ["d"]})).await.ok();
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let server = TestServer::start().await;
    let taken = Settings { port: Some(server.address.port()), ..settings() };
    let Err(failure) = Server::bind(Config::new(taken).expect("valid")).await else { panic!("bound twice") };
    let Failure::Bind(error) = failure else { panic!("{failure:?}") };
    let expected = format!("{} cannot be bound: ", server.address);
    assert!(error.message().starts_with(&expected), "{error}");
}
