//! gRPC, and that it says what HTTP says.

use std::time::Duration;

use serde_json::{Value, json};
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::{v1, v1alpha};
use verdict::server::grpc::{
    code_of,
    pb::{self, explain_event::Event},
};

use crate::common::{REASON, TestServer, model, within};

fn text(text: &str) -> pb::Document {
    pb::Document { text: Some(text.into()), ..pb::Document::default() }
}

fn request(query: &str, documents: &[&str]) -> pb::ScoreRequest {
    pb::ScoreRequest {
        query: query.into(),
        documents: documents.iter().copied().map(text).collect(),
        ..pb::ScoreRequest::default()
    }
}

/// A protobuf result as the JSON it must equal.
fn as_json(result: &pb::ScoreResult) -> Value {
    let mut json = json!({
        "index": result.index,
        "relevance_score": result.relevance_score,
        "expected_grade": result.expected_grade,
        "grade": result.grade,
        "label": result.label,
        "confidence": result.confidence,
        "probabilities": result.probabilities,
        "label_mass": result.label_mass,
        "tokens": result.tokens,
        "truncated": result.truncated,
        "logits": result.logits,
    });
    if let Some(id) = &result.id {
        json["id"] = id.as_str().into();
    }
    if let Some(document) = &result.document {
        json["document"] = document.as_str().into();
    }
    json
}

#[tokio::test]
async fn http_and_grpc_give_the_same_numbers() {
    let server = TestServer::start().await;
    let string =
        |text: &str| prost_types::Value { kind: Some(prost_types::value::Kind::StringValue(text.into())) };
    let fields = [("title".to_owned(), string("Lamp")), ("text".to_owned(), string("It is warm."))];
    let mut wire = request("warm lamp", &["a lamp", "a hose"]);
    wire.documents.push(pb::Document {
        id: Some("B07X".into()),
        text: None,
        fields: Some(prost_types::Struct { fields: fields.into() }),
    });
    (wire.raw, wire.sort, wire.return_documents) = (true, true, true);
    let wire = within(server.grpc().await.score(wire)).await.expect("scored").into_inner();
    let body = server
        .score(&json!({
            "query": "warm lamp",
            "documents": ["a lamp", "a hose", {"id": "B07X", "title": "Lamp", "text": "It is warm."}],
            "raw": true, "sort": true, "return_documents": true,
        }))
        .await
        .ok();
    assert_eq!(wire.model, body["model"].as_str().expect("text"));
    let results: Vec<Value> = wire.results.iter().map(as_json).collect();
    assert_eq!(Value::from(results), body["results"]);
    let usage = wire.usage.expect("told");
    assert_eq!(usage.prompt_tokens, body["usage"]["prompt_tokens"].as_u64().expect("told"));
}

#[tokio::test]
async fn a_stream_answers_each_request_by_its_id() {
    let server = TestServer::start().await;
    let requests: Vec<pb::ScoreRequest> = (0..20)
        .map(|number| {
            let documents: &[&str] = if number == 7 { &[] } else { &["a lamp", "a hose"] };
            pb::ScoreRequest {
                request_id: format!("r{number}"),
                ..request(&format!("query {number}"), documents)
            }
        })
        .collect();
    let mut client = server.grpc().await;
    let answers = within(client.score_stream(futures::stream::iter(requests))).await.expect("opened");
    let mut answers = answers.into_inner();
    let mut seen = Vec::new();
    while let Some(answer) = within(answers.message()).await.expect("a message") {
        if answer.request_id == "r7" {
            let error = answer.error.expect("failed");
            assert_eq!(error.code, "invalid");
            assert_eq!(error.message, "documents: is empty; at least one document is needed");
        } else {
            assert!(answer.error.is_none());
            let number = &answer.request_id[1..];
            let request = json!({"query": format!("query {number}"), "documents": ["a lamp", "a hose"]});
            let body = server.score(&request).await.ok();
            assert_eq!(
                Some(answer.results[1].relevance_score),
                body["results"][1]["relevance_score"].as_f64()
            );
        }
        seen.push(answer.request_id);
    }
    seen.sort_unstable();
    let mut expected: Vec<String> = (0..20).map(|number| format!("r{number}")).collect();
    expected.sort_unstable();
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn a_stream_lets_later_requests_overtake() {
    let server = TestServer::start().await;
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    let mut client = server.grpc().await;
    let requests = tokio_stream::wrappers::UnboundedReceiverStream::new(receiver);
    let mut answers = within(client.score_stream(requests)).await.expect("opened").into_inner();
    server.stub.hold();
    sender.send(pb::ScoreRequest { request_id: "slow".into(), ..request("q", &["d"]) }).expect("open");
    sender.send(pb::ScoreRequest { request_id: "wrong".into(), ..request("", &["d"]) }).expect("open");
    let first = within(answers.message()).await.expect("a message").expect("an answer");
    assert_eq!(first.request_id, "wrong", "the engine still holds the other");
    server.stub.release();
    let second = within(answers.message()).await.expect("a message").expect("an answer");
    assert_eq!(second.request_id, "slow");
}

#[tokio::test]
async fn explain_sends_what_http_sends() {
    let server = TestServer::start().await;
    let mut wire = request("q", &["one", "two"]);
    wire.explain_top_n = Some(1);
    let mut events = within(server.grpc().await.explain(wire)).await.expect("opened").into_inner();
    let mut text = String::new();
    let (mut scores, mut ended, mut done) = (None, None, None);
    while let Some(event) = within(events.message()).await.expect("a message") {
        match event.event.expect("an event") {
            Event::Scores(response) => {
                assert!(text.is_empty() && ended.is_none(), "scores come first");
                scores = Some(response);
            }
            Event::Reason(delta) => text.push_str(&delta.delta),
            Event::ReasonDone(reason) => ended = Some(reason),
            Event::Done(end) => done = Some(end),
        }
    }
    let body = server.score(&json!({"query": "q", "documents": ["one", "two"]})).await.ok();
    let scores = scores.expect("scores");
    assert_eq!(Some(scores.results[0].relevance_score), body["results"][0]["relevance_score"].as_f64());
    assert_eq!(text, REASON);
    let ended = ended.expect("ended");
    assert_eq!(ended.finish_reason, "stop");
    assert_eq!(ended.sections["intent"], "warm light");
    assert_eq!(done.expect("done").usage.expect("told").reason_tokens, u64::from(ended.tokens));
}

#[tokio::test]
async fn info_says_what_http_says() {
    let server = TestServer::start().await;
    let wire = within(server.grpc().await.info(pb::InfoRequest {})).await.expect("told").into_inner();
    let body = server.get("/info").await.ok();
    assert_eq!(wire.model, body["model"]);
    assert_eq!(wire.profile_hash, body["profile_hash"]);
    assert_eq!(wire.instruction, body["instruction"]);
    assert_eq!((wire.device.as_str(), &body["device"]), ("stub", &"stub".into()));
    assert_eq!(wire.grades.len(), body["grades"].as_array().expect("grades").len());
    let limits = wire.limits.expect("told");
    for (name, value) in [
        ("max_documents", limits.max_documents),
        ("max_tokens", limits.max_tokens),
        ("max_query_bytes", limits.max_query_bytes),
        ("max_instruction_bytes", limits.max_instruction_bytes),
        ("max_document_bytes", limits.max_document_bytes),
        ("max_body_bytes", limits.max_body_bytes),
        ("max_deadline_ms", limits.max_deadline_ms),
    ] {
        assert_eq!(body["limits"][name], value, "{name}");
    }
    let explain = wire.explain.expect("told");
    assert_eq!(body["explain"]["default_top_n"], explain.default_top_n);
    assert_eq!(body["explain"]["max_documents"], explain.max_documents);
    assert_eq!(body["explain"]["max_reason_tokens"], explain.max_reason_tokens);
}

#[tokio::test]
async fn a_timeout_is_the_deadline() {
    let server = TestServer::start().await;
    server.stub.hold();
    let mut wire = tonic::Request::new(request("q", &["d"]));
    wire.set_timeout(Duration::from_millis(40));
    // The client's own timer may win; what counts is the code and that it comes.
    let status = within(server.grpc().await.score(wire)).await.expect_err("late");
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status}");
    let mut wire = tonic::Request::new(request("q", &["d"]));
    wire.metadata_mut().insert("grpc-timeout", "soon".parse().expect("a value"));
    let status = within(server.grpc().await.score(wire)).await.expect_err("refused");
    assert_eq!(
        (status.code(), code_of(&status)),
        (Code::InvalidArgument, Some(verdict::error::Code::Invalid))
    );
    assert!(status.message().starts_with("grpc-timeout: "), "{status}");
    let wire = pb::ScoreRequest { deadline_ms: Some(20), ..request("q", &["d"]) };
    let status = within(server.grpc().await.score(wire)).await.expect_err("late");
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(status.message(), "the deadline of 20 ms passed before all scores were there");
    server.stub.release();
}

#[tokio::test]
async fn health_and_reflection_answer() {
    let server = TestServer::start().await;
    let channel = server.channel().await;
    for service in ["", "relevance.v1.RelevanceService"] {
        let check = HealthCheckRequest { service: service.into() };
        let status =
            within(HealthClient::new(channel.clone()).check(check)).await.expect("known").into_inner();
        assert_eq!(status.status, 1, "{service:?} is serving");
    }
    let ask = v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(v1::server_reflection_request::MessageRequest::ListServices(String::new())),
    };
    let mut client = v1::server_reflection_client::ServerReflectionClient::new(channel.clone());
    let answers = client.server_reflection_info(futures::stream::iter([ask]));
    let answer =
        within(answers).await.expect("opened").into_inner().message().await.expect("sent").expect("one");
    let Some(v1::server_reflection_response::MessageResponse::ListServicesResponse(list)) =
        answer.message_response
    else {
        panic!("{answer:?}")
    };
    let names: Vec<&str> = list.service.iter().map(|service| service.name.as_str()).collect();
    assert!(
        names.contains(&"relevance.v1.RelevanceService") && names.contains(&"grpc.health.v1.Health"),
        "{names:?}"
    );
    let ask = v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(v1alpha::server_reflection_request::MessageRequest::FileContainingSymbol(
            "relevance.v1.RelevanceService".into(),
        )),
    };
    let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(channel);
    let answers = client.server_reflection_info(futures::stream::iter([ask]));
    let answer =
        within(answers).await.expect("opened").into_inner().message().await.expect("sent").expect("one");
    let found = matches!(
        answer.message_response,
        Some(v1alpha::server_reflection_response::MessageResponse::FileDescriptorResponse(_))
    );
    assert!(found, "{answer:?}");
}

#[tokio::test]
async fn a_model_without_reasons_says_so() {
    let mut model = model();
    model.profile.explain = None;
    let server = TestServer::with(crate::common::settings(), model).await;
    let status = within(server.grpc().await.explain(request("q", &["d"]))).await.expect_err("refused");
    assert_eq!(status.code(), Code::Unimplemented);
    assert_eq!(status.message(), "the model \"verdict-mini\" does not explain its grades");
    let answer = server.explain(&json!({"query": "q", "documents": ["d"]})).await;
    assert_eq!(answer.status.as_u16(), 501);
    assert_eq!(server.get("/info").await.ok()["explain"], Value::Null);
}
