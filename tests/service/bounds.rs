//! Requests that would make much of little: of memory, of answers, of lines in the log.

use hyper::StatusCode;
use serde_json::{Value, json};
use verdict::{config::Settings, model::Model, server::grpc::pb};

use crate::common::{TestServer, get, model, post, settings, within};

/// As dialects' clients read it, wherever it is.
fn message(body: &Value) -> &str {
    let said = [&body["error"]["message"], &body["message"], &body["detail"]];
    said.iter().find_map(|said| said.as_str()).unwrap_or_else(|| panic!("a message: {body}"))
}

#[tokio::test]
async fn a_field_that_is_named_often_is_read_once() {
    let server = TestServer::start().await;
    let documents = json!([{"t": "a".repeat(200_000)}]);
    for (path, key) in [("/v1/rerank", "documents"), ("/v1/reranking", "input")] {
        let ask = async |names: &Value| {
            let body = json!({"query": "q", key: documents, "rank_fields": names});
            server.send(post(&server.url(path), &body)).await
        };
        // Joined once for each name it would be a gigabyte, and past the limit on a document.
        ask(&vec!["t"; 5000].into()).await.ok();
        let names: Vec<String> = (0..33).map(|number| number.to_string()).collect();
        let many = ask(&names.into()).await;
        assert_eq!(many.status, StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(message(&many.json()), "rank_fields: 33 different names, over the limit of 32");
    }
}

#[tokio::test]
async fn a_state_is_bounded_with_all_its_questions() {
    let mut free: Model = model();
    free.profile.free_questions = true;
    let server = TestServer::with(Settings { max_body_bytes: Some(20_000), ..settings() }, free).await;
    let question = json!({"type": "score", "instructions": "i", "criteria": ["a", "b", "c", "d"]});
    let ask = async |count: usize| {
        let numbered = (0..count).map(|number| (number.to_string(), question.clone()));
        let questions: serde_json::Map<String, Value> = numbered.collect();
        let body = json!({"model": "m", "state": "s".repeat(5_000), "questions": questions});
        server.send(post(&server.url("/v1/systemone"), &body)).await
    };
    ask(4).await.ok();
    let empty = json!({"state": "", "questions": {"x": question}});
    let answer = server.send(post(&server.url("/v1/systemone"), &empty)).await;
    assert_eq!(message(&answer.json()), "state: is empty");
    let answer = ask(5).await;
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
    let expected = "state: 25000 bytes, once for each of 5 questions, over the limit of 20000";
    assert_eq!(message(&answer.json()), expected);
}

#[tokio::test]
async fn an_error_shows_little_of_what_was_sent() {
    let server = TestServer::start().await;
    let long = "x".repeat(1 << 20);
    let model = json!({"query": "q", "documents": ["d"], "model": long});
    let answer = server.score(&model).await;
    let expected = format!("model: \"{}…\" is not served here; \"verdict-mini\" is", "x".repeat(64));
    assert_eq!(answer.problem(), ("not_found".into(), expected.clone()));
    let wire = pb::ScoreRequest {
        query: "q".into(),
        documents: vec![pb::Document { text: Some("d".into()), ..pb::Document::default() }],
        model: Some(long.clone()),
        ..pb::ScoreRequest::default()
    };
    assert_eq!(within(server.grpc().await.score(wire)).await.expect_err("refused").message(), expected);
    let mut unknown = json!({"query": "q", "documents": ["d"]});
    unknown[&long] = 1.into();
    for (body, start, end) in [
        (json!({"query": "q", "documents": ["d"], "truncation": long}), "truncation: unknown variant `x", ""),
        (json!({"query": "q", "documents": ["d"], "top_n": long}), "top_n: invalid type: string \"x", ""),
        (
            json!({"query": "q", "documents": [{&long[..1000]: 1}]}),
            "documents[0]: no text in its fields",
            "template",
        ),
        (unknown, "xxx", ""),
    ] {
        let (_, detail) = server.score(&body).await.problem();
        assert!(detail.len() < 1100 && detail.starts_with(start) && detail.ends_with(end), "{detail}");
    }
}

#[tokio::test]
async fn names_without_end_are_counted() {
    let server = TestServer::start().await;
    let fields: serde_json::Map<String, Value> =
        (0..60_000).map(|number| (number.to_string(), Value::from(1))).collect();
    let answer = server.score(&json!({"query": "q", "documents": [fields]})).await;
    let expected = ", and 59992 more]; see the profile's document template";
    assert!(answer.problem().1.ends_with(expected), "{}", answer.problem().1);
    for path in ["/v2/rerank", "/v1/rerank"] {
        let mut body = json!({"query": "q", "documents": ["d"], "model": "m".repeat(1000), "a\nb": 1});
        body.as_object_mut().expect("an object").extend(fields.clone());
        let answer = server.send(post(&server.url(path), &body)).await.ok();
        let warnings = answer["meta"]["warnings"].as_array().expect("warnings");
        assert_eq!(warnings.len(), 18, "{path}");
        assert_eq!(warnings[16], "59985 more fields: not used here");
        assert!(warnings.iter().all(|warning| warning.as_str().expect("text").len() < 200), "{warnings:?}");
    }
}

#[tokio::test]
async fn a_name_begins_no_line_of_the_log() {
    let server = TestServer::start().await;
    let (_, detail) =
        server.score(&json!({"query": "q", "documents": ["d"], "a\nINFO forged": 1})).await.problem();
    assert!(detail.starts_with(r"a\nINFO forged: unknown field `a\nINFO forged`"), "{detail}");
    let pages = server.send(get(&server.url("/%0aforged?a"))).await.problem().1;
    assert_eq!(pages, "no route GET /%0aforged");
}
