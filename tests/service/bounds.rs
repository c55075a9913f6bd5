//! Requests that would make much of little: of memory, of answers, of lines in the log.

use hyper::StatusCode;
use serde_json::{Value, json};
use verdict::{config::Settings, model::Model};

use crate::common::{TestServer, model, post, settings};

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
    let answer = ask(5).await;
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
    let expected = "state: 25000 bytes, once for each of 5 questions, over the limit of 20000";
    assert_eq!(message(&answer.json()), expected);
}
