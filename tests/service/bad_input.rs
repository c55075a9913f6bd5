//! Every way to ask wrongly, on both transports: code and message.

use hyper::StatusCode;
use serde_json::{Value, json};
use tonic::Code;
use verdict::{
    config::Settings,
    metrics::Lane,
    server::grpc::{code_of, pb},
};

use crate::common::{TestServer, model, post, raw, settings, within};

async fn server() -> TestServer {
    let limits = Settings {
        max_documents: Some(3),
        max_query_bytes: Some(40),
        max_instruction_bytes: Some(30),
        max_document_bytes: Some(50),
        max_body_bytes: Some(1000),
        max_explained: Some(3),
        ..settings()
    };
    TestServer::with(limits, model()).await
}

fn text(text: impl Into<String>) -> pb::Document {
    pb::Document { text: Some(text.into()), ..pb::Document::default() }
}

fn wire(query: &str, documents: &[&str]) -> pb::ScoreRequest {
    pb::ScoreRequest {
        query: query.into(),
        documents: documents.iter().copied().map(text).collect(),
        ..pb::ScoreRequest::default()
    }
}

/// Bodies, what they would be in protobuf, and what both are told.
fn cases() -> Vec<(Value, pb::ScoreRequest, u16, &'static str)> {
    let long = "x".repeat(51);
    let long_query = "x".repeat(41);
    let pairs = |query: &str, document: &str| {
        let pair = pb::Pair { query: query.into(), document: Some(text(document)) };
        pb::ScoreRequest { pairs: vec![pair], ..pb::ScoreRequest::default() }
    };
    vec![
        (json!({"query": "", "documents": ["d"]}), wire("", &["d"]), 400, "query: is empty"),
        (json!({"query": " \n", "documents": ["d"]}), wire(" \n", &["d"]), 400, "query: is empty"),
        (
            json!({"query": "q", "documents": []}),
            wire("q", &[]),
            400,
            "documents: is empty; at least one document is needed",
        ),
        (json!({"query": "q", "documents": ["d", ""]}), wire("q", &["d", ""]), 400, "documents[1]: is empty"),
        (
            json!({"query": "q", "documents": ["a", "b", "c", "d"]}),
            wire("q", &["a", "b", "c", "d"]),
            413,
            "documents: 4 documents, over the limit of 3",
        ),
        (
            json!({"query": long_query, "documents": ["d"]}),
            wire(&long_query, &["d"]),
            413,
            "query: 41 bytes, over the limit of 40",
        ),
        (
            json!({"query": "q", "documents": ["d", long]}),
            wire("q", &["d", &long]),
            413,
            "documents[1]: 51 bytes, over the limit of 50",
        ),
        (
            json!({"query": "q", "documents": ["d"], "instruction": "x".repeat(31)}),
            pb::ScoreRequest { instruction: Some("x".repeat(31)), ..wire("q", &["d"]) },
            413,
            "instruction: 31 bytes, over the limit of 30",
        ),
        (
            json!({"query": "q", "documents": ["d"], "top_n": 0}),
            pb::ScoreRequest { top_n: Some(0), ..wire("q", &["d"]) },
            400,
            "top_n: is 0; at least 1 is needed",
        ),
        (
            json!({"query": "q", "documents": ["d"], "deadline_ms": 0}),
            pb::ScoreRequest { deadline_ms: Some(0), ..wire("q", &["d"]) },
            400,
            "deadline_ms: is 0; at least 1 is needed",
        ),
        (
            json!({"query": "q", "documents": ["d"], "model": "other"}),
            pb::ScoreRequest { model: Some("other".into()), ..wire("q", &["d"]) },
            404,
            "model: \"other\" is not served here; \"verdict-mini\" is",
        ),
        (json!({"pairs": [{"query": "", "document": "d"}]}), pairs("", "d"), 400, "pairs[0].query: is empty"),
        (
            json!({"pairs": [{"query": "q", "document": " "}]}),
            pairs("q", " "),
            400,
            "pairs[0].document: is empty",
        ),
        (
            json!({"pairs": [{"query": "q", "document": long}]}),
            pairs("q", &long),
            413,
            "pairs[0].document: 51 bytes, over the limit of 50",
        ),
        (
            json!({"query": "q", "documents": ["d"], "pairs": [{"query": "q", "document": "d"}]}),
            pb::ScoreRequest { documents: vec![text("d")], ..pairs("q", "d") },
            400,
            "pairs: cannot be combined with query or documents",
        ),
    ]
}

#[tokio::test]
async fn both_transports_name_the_field_the_limit_and_the_value() {
    let server = server().await;
    let mut client = server.grpc().await;
    for (body, wire, status, message) in cases() {
        let answer = server.score(&body).await;
        assert_eq!((answer.status.as_u16(), answer.problem().1.as_str()), (status, message), "{body}");
        let grpc = within(client.score(wire)).await.expect_err("refused");
        assert_eq!(grpc.message(), message);
        let code = code_of(&grpc).expect("told");
        assert_eq!(answer.problem().0, code.row().name);
        assert_eq!(grpc.code() as i32, code.row().grpc);
    }
    assert_eq!(server.stub.passes(), 0, "nothing of it reached the engine");
    assert!(server.metrics.requests_ended("/score", Lane::Score, "invalid") > 0);
    let route = "/relevance.v1.RelevanceService/Score";
    assert!(server.metrics.requests_ended(route, Lane::Score, "too_large") > 0);
}

#[tokio::test]
async fn json_that_is_not_a_request_is_refused_by_field() {
    let server = server().await;
    for (body, message) in [
        (json!({"query": 5, "documents": ["d"]}), "query: invalid type: integer `5`, expected a string"),
        (
            json!({"query": "q", "documents": "d"}),
            "documents: invalid type: string \"d\", expected a sequence",
        ),
        (
            json!({"query": "q", "documents": ["d", null]}),
            "documents[1]: invalid type: null, expected a string or an object",
        ),
        (
            json!({"query": "q", "documents": ["d"], "top_n": "3"}),
            "top_n: invalid type: string \"3\", expected a whole number from 0 to 18446744073709551615, in digits alone",
        ),
        (
            json!({"query": "q", "documents": ["d"], "truncation": "left"}),
            "truncation: unknown variant `left`",
        ),
        (json!({"query": "q", "documents": ["d"], "topn": 3}), "topn: unknown field `topn`, expected one of"),
        (json!({"query": "q"}), "documents: is missing"),
        (json!({"documents": ["d"]}), "query: is missing; or give pairs"),
        (json!({"query": "q", "documents": [{"id": "x"}]}), "documents[0]: is empty"),
        (json!({"query": "q", "documents": [{"a": "x"}]}), "documents[0]: no text in its fields [\"a\"]"),
        (json!({"query": "q", "documents": ["d"], "explain_top_n": 1}), "explain_top_n: needs ?explain=true"),
    ] {
        let answer = server.score(&body).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{body}");
        let (code, detail) = answer.problem();
        assert_eq!(code, "invalid");
        assert!(detail.starts_with(message), "{detail}");
    }
}

#[tokio::test]
async fn bodies_that_are_not_json_are_refused() {
    let server = server().await;
    let url = server.url("/score");
    let answer = server.send(raw(&url, "application/json", &b"{\"query\": \"\xff\"}"[..])).await;
    assert_eq!(answer.problem(), ("invalid".into(), "body: not valid UTF-8 at byte 11".into()));
    let answer = server.send(raw(&url, "application/json", "{")).await;
    assert!(answer.problem().1.starts_with("body: EOF while parsing an object"), "{}", answer.problem().1);
    let answer = server.send(raw(&url, "application/json", "")).await;
    assert!(answer.problem().1.starts_with("body: EOF while parsing a value"), "{}", answer.problem().1);
    let answer = server.send(raw(&url, "text/plain", "{}")).await;
    assert_eq!(answer.problem().1, "content-type: \"text/plain\", expected application/json");
    let answer = server.send(raw(&url, "application/json", "x".repeat(1001))).await;
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(answer.problem(), ("too_large".into(), "body: 1001 bytes, over the limit of 1000".into()));
    assert_eq!((&answer.json()["limit"], &answer.json()["value"]), (&1000.into(), &1001.into()));
    let answer = server.send(raw(&server.url("/score?explian=1"), "application/json", "{}")).await;
    assert_eq!(answer.problem().1, "explian: unknown query parameter; there is explain");
    let mut request = post(&url, &json!({"query": "q", "documents": ["d"]}));
    request.headers_mut().insert("x-request-timeout-ms", "soon".parse().expect("a header"));
    let answer = server.send(request).await;
    assert_eq!(answer.problem().1, "x-request-timeout-ms: \"soon\", expected milliseconds, at least 1");
}

#[tokio::test]
async fn wishes_for_reasons_are_checked() {
    let server = server().await;
    let with = |name: &str, value: Value| {
        let mut body = json!({"query": "q", "documents": ["a", "b"]});
        body[name] = value;
        body
    };
    for (body, status, message) in [
        (with("explain_top_n", 0.into()), 400, "explain_top_n: is 0; at least 1 is needed"),
        (with("explain_top_n", 4.into()), 413, "explain_top_n: 4 documents, over the limit of 3"),
        (with("max_reason_tokens", 0.into()), 400, "max_reason_tokens: is 0; at least 1 is needed"),
        (with("max_reason_tokens", 97.into()), 413, "max_reason_tokens: 97 tokens, over the limit of 96"),
        (with("explain_indices", json!([])), 400, "explain_indices: is empty; at least one index is needed"),
        (with("explain_indices", json!([0, 2])), 400, "explain_indices[1]: is 2, but the last document is 1"),
        (with("explain_indices", json!([1, 1])), 400, "explain_indices[1]: repeats 1"),
    ] {
        let answer = server.explain(&body).await;
        assert_eq!((answer.status.as_u16(), answer.problem().1.as_str()), (status, message));
    }
    let grpc = pb::ScoreRequest { explain_top_n: Some(4), ..wire("q", &["a"]) };
    let status = within(server.grpc().await.explain(grpc)).await.expect_err("refused");
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(status.message(), "explain_top_n: 4 documents, over the limit of 3");
    assert_eq!(server.stub.passes(), 0);
}

#[tokio::test]
async fn an_instruction_that_leaves_no_room_is_named_and_not_the_queries() {
    let server = TestServer::start().await;
    let pairs: Vec<_> = (0..50).map(|i| json!({"query": format!("q{i}"), "document": "d"})).collect();
    let answer = server.score(&json!({"pairs": pairs, "instruction": "x".repeat(12 << 10)})).await;
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
    let (code, detail) = answer.problem();
    assert_eq!(code, "too_large");
    assert!(detail.starts_with("instruction: "), "{detail}");
    assert!(detail.ends_with(" tokens with the prompt around it, over the limit of 511"), "{detail}");
    assert_eq!(server.stub.passes(), 0);
}

#[tokio::test]
async fn control_tokens_in_texts_stay_text() {
    let server = server().await;
    let plain = server.score(&json!({"query": "q", "documents": ["<|3|>", "<|end|>"]})).await.ok();
    let controls = model();
    for (result, control) in plain["results"].as_array().expect("results").iter().zip(["<|3|>", "<|end|>"]) {
        let as_text = controls.tokenizer.encode(control).expect("encodes").len() as u64;
        assert!(as_text > 1, "{control} is several tokens as text");
        let around = server.score(&json!({"query": "q", "documents": ["x"]})).await.ok();
        let fixed = around["results"][0]["tokens"].as_u64().expect("tokens") - 1;
        assert_eq!(result["tokens"], fixed + as_text);
    }
}
