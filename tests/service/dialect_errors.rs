//! Each dialect's errors, in its own peer's shape.

use hyper::StatusCode;
use serde_json::{Value, json};
use verdict::{config::Settings, metrics::Lane};

use crate::{
    common::{Answer, TestServer, model, post, raw, settings, until, within},
    dialects::{Dialect, all, ask},
};

/// The message where the dialect's clients look for it; also checks the keys around it.
fn message(dialect: &Dialect, answer: &Answer) -> String {
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let mut body = answer.json();
    let object = body.as_object_mut().expect("an object");
    for number in ["limit", "value"] {
        object.remove(number);
    }
    let status = answer.status.as_u16();
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let kind = |body: &Value| text(&body["type"]);
    let (said, expected) = match dialect.name.split([' ', ',']).next().expect("a name") {
        "TEI" => {
            let said = text(&body["error"]);
            (said.clone(), json!({"error": said, "error_type": body["error_type"]}))
        }
        "Cohere" => {
            let said = text(&body["message"]);
            (said.clone(), json!({"message": said}))
        }
        "Jina" | "llama.cpp" => {
            let said = text(&body["message"]);
            (said.clone(), json!({"message": said, "detail": said}))
        }
        "Voyage" if dialect.name.ends_with("own fields") => {
            let said = text(&body["detail"]);
            (said.clone(), json!({"message": said, "detail": said}))
        }
        "Voyage" => {
            let said = text(&body["detail"]);
            (said.clone(), json!({"detail": said}))
        }
        "Mixedbread" => {
            let said = text(&body["message"]);
            (said.clone(), json!({"type": kind(&body), "url": null, "message": said, "details": null}))
        }
        "NIM" => {
            let said = text(&body["message"]);
            let kind = kind(&body);
            (said.clone(), json!({"object": "error", "message": said, "detail": said, "type": kind}))
        }
        "Weaviate" => {
            let said = text(&body["error"]);
            (said.clone(), json!({"error": said}))
        }
        "SGLang" => {
            let said = text(&body["message"]);
            let kind = kind(&body);
            let flat =
                json!({"object": "error", "message": said, "type": kind, "param": null, "code": status});
            (said, flat)
        }
        "Infinity" | "vLLM" => {
            let said = text(&body["error"]["message"]);
            let kind = kind(&body["error"]);
            let nested = json!({"message": said, "type": kind, "param": null, "code": status});
            (said, json!({"error": nested}))
        }
        other => panic!("no shape of {other}"),
    };
    assert_eq!(body, expected, "{}", dialect.name);
    said
}

#[tokio::test]
async fn past_the_limit_of_documents_each_says_413_and_the_limit() {
    let limits = Settings { max_documents: Some(4), ..settings() };
    let server = TestServer::with(limits, model()).await;
    for dialect in all() {
        let answer = ask(&server, &dialect).await;
        assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE, "{}", dialect.name);
        let said = message(&dialect, &answer);
        assert!(
            said.ends_with("5 documents, over the limit of 4")
                || said.ends_with("5 pairs, over the limit of 4")
        );
        assert_eq!((&answer.json()["limit"], &answer.json()["value"]), (&4.into(), &5.into()));
    }
    assert_eq!(server.stub.passes(), 0);
    let tei = server.send(post(&server.url("/rerank"), &json!({"query": "q", "texts": vec!["d"; 5]}))).await;
    assert_eq!(tei.json()["error"], "texts: 5 documents, over the limit of 4");
    assert_eq!(tei.json()["error_type"], "Validation");
}

#[tokio::test]
async fn a_full_queue_refuses_whole_requests_with_a_retry() {
    let limits = Settings { queue_pairs: Some(6), max_documents: Some(6), ..settings() };
    let server = TestServer::with(limits, model()).await;
    server.stub.hold();
    let first = post(&server.url("/v2/rerank"), &json!({"query": "q", "documents": ["a", "b", "c"]}));
    let client = server.client.clone();
    let first =
        tokio::spawn(async move { Answer::read(client.request(first).await.expect("answered")).await });
    until(|| server.held_pairs() == 3).await;
    for dialect in all() {
        let answer = ask(&server, &dialect).await;
        assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS, "{}", dialect.name);
        assert_eq!(answer.header("retry-after"), Some("1"), "{}", dialect.name);
        assert_eq!(answer.header("x-should-retry"), Some("true"), "{}", dialect.name);
        assert!(answer.header("x-request-id").is_some());
        assert_eq!(message(&dialect, &answer), "the queue holds 3 of at most 6 pairs");
        if dialect.name.starts_with("TEI") {
            assert_eq!(answer.json()["error_type"], "Overloaded");
        }
    }
    server.stub.release();
    within(first).await.expect("sent").ok();
}

#[tokio::test]
async fn what_is_wrong_is_named_by_the_peers_own_fields() {
    let server = TestServer::start().await;
    for (path, body, status, told) in [
        (
            "/rerank",
            json!({"query": "q", "texts": []}),
            422,
            "texts: is empty; at least one document is needed",
        ),
        (
            "/rerank",
            json!({"query": "q", "texts": ["d", {"image": "x"}]}),
            422,
            "texts[1]: no text in its fields [\"image\"]; see the profile's document template",
        ),
        (
            "/rerank",
            json!({"query": "q", "texts": ["d"], "truncation_direction": "Left"}),
            422,
            "truncation_direction: \"Left\" is not offered; texts are cut at their end (\"Right\")",
        ),
        (
            "/rerank",
            json!({"query": "q", "texts": ["d", 7]}),
            422,
            "texts[1]: expected a string or an object",
        ),
        (
            "/rerank",
            json!({"query": "q", "texts": ["d"], "raw_scores": "maybe"}),
            422,
            "raw_scores: invalid value: string \"maybe\", expected true or false",
        ),
        (
            "/predict",
            json!({"inputs": "alone"}),
            422,
            "inputs: expected a pair [query, text] or a list of such pairs",
        ),
        ("/v1/rerank", json!({"documents": ["d"]}), 400, "body: missing field `query`"),
        ("/v1/rerank", json!({"query": "q"}), 400, "body: missing field `documents`"),
        (
            "/v1/rerank",
            json!({"query": "q", "documents": ["d"], "top_n": -1}),
            400,
            "top_n: invalid value: -1, expected a whole number from 0 to 4294967295",
        ),
        (
            "/v2/rerank",
            json!({"query": "q", "documents": ["d"], "top_n": 0}),
            400,
            "top_n: is 0; at least 1 is needed",
        ),
        (
            "/v1/rerank",
            json!({"query": "q", "documents": [{"image": "x"}]}),
            400,
            "documents[0]: no text in its fields [\"image\"]; see the profile's document template",
        ),
        ("/v1/reranking", json!({"query": "q", "input": [{}]}), 400, "input[0]: is empty"),
        (
            "/v1/reranking",
            json!({"query": "q", "input": ["d"], "top_k": 0}),
            400,
            "top_k: is 0; at least 1 is needed",
        ),
        (
            "/v1/rerank",
            json!({"query": "q", "documents": ["d"], "top_k": 0}),
            400,
            "top_k: is 0; at least 1 is needed",
        ),
        (
            "/v1/rerank",
            json!({"query": "q", "documents": ["d"], "truncation": true, "top_n": 0}),
            400,
            "top_n: is 0; at least 1 is needed",
        ),
        (
            "/rerank",
            json!({"query": "q", "documents": ["d"], "raw_scores": true, "top_k": 0}),
            400,
            "top_k: is 0; at least 1 is needed",
        ),
        ("/v1/score", json!({"text_1": "", "text_2": ["d"]}), 400, "text_1: is empty"),
        ("/v1/score", json!({"data_1": " ", "data_2": ["d", ""]}), 400, "data_1: is empty"),
        ("/v1/score", json!({"queries": ["a", ""], "items": ["d", "e"]}), 400, "queries[1]: is empty"),
        ("/v1/ranking", json!({"query": {"text": "q"}, "passages": []}), 400, "passages: is empty"),
        (
            "/v1/ranking",
            json!({"query": {"text": "q"}, "passages": [{"text": "d"}], "truncate": "START"}),
            400,
            "truncate: \"START\", expected \"NONE\" or \"END\"",
        ),
        ("/v1/score", json!({"text_1": "q"}), 400, "body: needs text_1 and text_2, queries and documents"),
        (
            "/v1/score",
            json!({"text_1": ["a", "b"], "text_2": ["c", "d", "e"]}),
            400,
            "body: 2 texts cannot be paired with 3; give 1 or as many",
        ),
        (
            "/v1/score",
            json!({"query": "q", "items": ["d"], "label_token_ids": [1_000_000]}),
            400,
            "label_token_ids[0]: 1000000 is not a grade's token; this model's are [",
        ),
        (
            "/v1/score",
            json!({"query": "q", "items": ["d"], "item_first": true}),
            400,
            "item_first: true is not offered; the profile's template sets the order",
        ),
    ] {
        let answer = server.send(post(&server.url(path), &body)).await;
        assert_eq!(answer.status.as_u16(), status, "{path} {body}: {}", answer.text());
        let json = answer.json();
        let said = [&json["error"]["message"], &json["message"], &json["detail"], &json["error"]];
        let said = said.iter().find_map(|said| said.as_str()).expect("a message");
        assert!(said.starts_with(told), "{path}: {said}");
    }
    assert_eq!(server.stub.passes(), 0);
}

#[tokio::test]
async fn texts_that_are_too_long_are_cut_or_refused_as_asked() {
    let server = TestServer::start().await;
    let long = "lamp ".repeat(2000);
    for (path, body) in [
        ("/rerank", json!({"query": "q", "texts": [long]})),
        ("/v1/rerank", json!({"query": "q", "documents": [long], "truncation": true})),
        ("/v1/ranking", json!({"query": {"text": "q"}, "passages": [{"text": long}], "truncate": "END"})),
    ] {
        server.send(post(&server.url(path), &body)).await.ok();
    }
    for (path, body, field) in [
        ("/rerank", json!({"query": "q", "texts": ["short", long], "truncate": false}), "texts[1]"),
        (
            "/predict",
            json!({"inputs": [["q", "short"], ["q", long]], "truncate": "false"}),
            "inputs[1].document",
        ),
        ("/v1/rerank", json!({"query": "q", "documents": [long], "truncation": false}), "documents[0]"),
        ("/v1/ranking", json!({"query": {"text": "q"}, "passages": [{"text": long}]}), "passages[0]"),
    ] {
        let answer = server.send(post(&server.url(path), &body)).await;
        assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE, "{path}: {}", answer.text());
        let told = format!("\"{field}: more than ");
        assert!(answer.text().contains(&told), "{path}: {}", answer.text());
        assert!(answer.text().contains("tokens, over the limit of "), "{path}: {}", answer.text());
    }
}

#[tokio::test]
async fn a_body_that_cannot_be_read_is_refused_so_that_any_client_of_the_route_sees_why() {
    let server = TestServer::start().await;
    for (path, keys) in [
        ("/rerank", &["detail", "error", "error_type", "message"][..]),
        ("/reranking", &["detail", "error", "error_type", "message"]),
        ("/v1/rerank", &["detail", "message"]),
        ("/v1/reranking", &["details", "message", "type", "url"]),
        ("/v2/rerank", &["message"]),
        ("/predict", &["error", "error_type"]),
    ] {
        for broken in ["{\"query\": ", r#"{"query": "q", "texts": ["d"], "documents": [NaN]}"#, "[1]"] {
            let answer = server.send(raw(&server.url(path), "application/json", broken)).await;
            assert!(matches!(answer.status.as_u16(), 400 | 422), "{path}");
            let body = answer.json();
            let mut found: Vec<&String> = body.as_object().expect("an object").keys().collect();
            found.sort_unstable();
            assert_eq!(found, keys, "{path} {broken}");
        }
        let answer = server.send(raw(&server.url(path), "text/plain", "{}")).await;
        assert!(answer.text().contains("content-type: \\\"text/plain\\\", expected application/json"));
    }
    let both = server.send(raw(&server.url("/rerank"), "text/plain", "{}")).await.json();
    for key in ["error", "error_type", "detail", "message"] {
        assert!(both[key].is_string(), "{both}");
    }
}

#[tokio::test]
async fn another_method_is_refused_in_each_routes_shape() {
    let server = TestServer::start().await;
    for (path, keys) in [
        ("/rerank", &["detail", "error", "error_type", "message"][..]),
        ("/v1/rerank", &["detail", "message"]),
        ("/v2/rerank", &["message"]),
        ("/v1/score", &["error"]),
        ("/predict", &["error", "error_type"]),
    ] {
        let answer = server.get(path).await;
        assert_eq!((answer.status, answer.header("allow")), (StatusCode::METHOD_NOT_ALLOWED, Some("POST")));
        assert_eq!(answer.header("content-type"), Some("application/json"));
        let body = answer.json();
        let mut found: Vec<&String> = body.as_object().expect("an object").keys().collect();
        found.sort_unstable();
        assert_eq!(found, keys, "{path}");
        assert!(answer.text().contains(&format!("{path} does not take GET")), "{}", answer.text());
    }
    assert_eq!(server.metrics.requests_ended("other", Lane::Score, "method_not_allowed"), 5);
}

#[tokio::test]
async fn odd_bodies_are_refused_and_break_nothing() {
    let server = TestServer::start().await;
    let deep = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
    let odd = [
        String::new(),
        "null".into(),
        "[]".into(),
        "7".into(),
        "{}".into(),
        "{\"query\": \"q\"".into(),
        deep(5000),
        r#"{"query": "q", "query": "q", "documents": ["d"], "texts": ["d"], "input": ["d"]}"#.into(),
        format!(r#"{{"query": "q", "documents": {0}, "texts": {0}, "inputs": {0}}}"#, deep(5000)),
        r#"{"query": {"text": {}}, "documents": {}, "texts": {}, "input": {}, "passages": {}}"#.into(),
        r#"{"query": 1e400, "documents": ["d"], "texts": ["d"], "input": ["d"], "inputs": 1e400}"#.into(),
        r#"{"query": "", "documents": [""], "texts": [""], "input": [""], "items": [""], "inputs": ["", ""]}"#
            .into(),
        r#"{"query": "\ud800", "documents": ["d"], "texts": ["d"], "inputs": ["\ud800", "d"]}"#.into(),
    ];
    let mut paths: Vec<&str> = all().iter().map(|dialect| dialect.path).collect();
    paths.push("/v1/systemone");
    paths.sort_unstable();
    paths.dedup();
    for path in paths {
        for body in &odd {
            let answer = server.send(raw(&server.url(path), "application/json", body.clone())).await;
            let refused = matches!(answer.status.as_u16(), 400 | 422 | 501);
            assert!(refused, "{path} {body:.90}: {} {}", answer.status, answer.text());
            assert!(answer.json().is_object());
        }
    }
    assert_eq!(server.stub.passes(), 0);
}

#[tokio::test]
async fn a_server_that_stops_says_so_in_each_shape() {
    let server = TestServer::start().await;
    server.stub.hold();
    let body = json!({"query": "q", "texts": ["d"], "documents": ["d"], "inputs": ["q", "d"]});
    let (client, stub, metrics) = (server.client.clone(), server.stub.clone(), server.metrics.clone());
    let urls = ["/rerank", "/v1/rerank", "/predict"].map(|path| server.url(path));
    let first = post(&urls[0], &body);
    let first = tokio::spawn({
        let client = client.clone();
        async move { Answer::read(client.request(first).await.expect("answered")).await }
    });
    until(|| stub.waiting() == 1).await;
    let ended = server.tell_to_stop();
    until(|| metrics.text().is_ok_and(|text| String::from_utf8_lossy(&text).contains("verdict_ready 0")))
        .await;
    for (url, key) in urls.iter().zip(["error", "message", "error"]) {
        let answer = Answer::read(within(client.request(post(url, &body))).await.expect("answered")).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{url}");
        assert_eq!(answer.header("retry-after"), Some("1"));
        assert_eq!(answer.json()[key], "the server is shutting down");
        if key == "error" {
            assert_eq!(answer.json()["error_type"], "Unhealthy");
        }
    }
    stub.release();
    within(first).await.expect("sent").ok();
    within(ended).await.expect("no panic").expect("a clean end");
}
