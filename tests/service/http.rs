//! Native HTTP.

use hyper::StatusCode;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use serde_json::{Value, json};
use verdict::{backend::stub::Fault, config::Settings, metrics::Lane};

use crate::common::{Answer, TestServer, get, model, post, settings, until, within};

fn scores(body: &Value) -> Vec<f64> {
    body["results"]
        .as_array()
        .expect("results")
        .iter()
        .map(|r| r["relevance_score"].as_f64().expect("a score"))
        .collect()
}

fn indices(body: &Value) -> Vec<u64> {
    body["results"]
        .as_array()
        .expect("results")
        .iter()
        .map(|r| r["index"].as_u64().expect("an index"))
        .collect()
}

#[tokio::test]
async fn scores_come_in_input_order_with_everything_that_was_read() {
    let server = TestServer::start().await;
    let answer =
        server.score(&json!({"query": "warm lamp", "documents": ["a lamp", "a hose", "a warm lamp"]})).await;
    let timing = answer.header("server-timing").expect("told").to_owned();
    for part in ["tokenize;dur=", "queue;dur=", "compute;dur=", "total;dur="] {
        assert!(timing.contains(part), "{timing}");
    }
    let body = answer.ok();
    assert_eq!(body["model"], "verdict-mini");
    assert_eq!(indices(&body), [0, 1, 2]);
    let mut prompt_tokens = 0;
    for result in body["results"].as_array().expect("results") {
        let probabilities: Vec<f64> = result["probabilities"]
            .as_object()
            .expect("a map")
            .values()
            .map(|p| p.as_f64().expect("p"))
            .collect();
        assert_eq!(probabilities.len(), 4);
        assert!((probabilities.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{result}");
        let score = result["relevance_score"].as_f64().expect("a score");
        let expected = result["expected_grade"].as_f64().expect("a grade");
        assert!((0.0..=1.0).contains(&score) && (score - expected / 3.0).abs() < 1e-9, "{result}");
        let best = probabilities.iter().copied().fold(0.0, f64::max);
        assert_eq!(result["confidence"].as_f64(), Some(best));
        let grade = result["grade"].as_str().expect("a grade");
        assert_eq!(result["probabilities"][grade].as_f64(), Some(best));
        assert!(result["label"].is_string() && result["label_mass"].is_number());
        assert_eq!(result["truncated"], false);
        assert!(
            result.get("logits").is_none()
                && result.get("document").is_none()
                && result.get("error").is_none()
        );
        prompt_tokens += result["tokens"].as_u64().expect("tokens");
    }
    let usage = &body["usage"];
    let part = |name: &str| usage[name].as_u64().expect("tokens");
    assert_eq!(part("prompt_tokens"), prompt_tokens);
    assert_eq!(part("computed_tokens") + part("shared_tokens") + part("cached_tokens"), prompt_tokens);
    let total = body["timing_ms"]["total"].as_f64().expect("a time");
    assert!(total >= body["timing_ms"]["compute"].as_f64().expect("a time"));
    server.stop().await.expect("stopped");
}

#[tokio::test]
async fn ranking_puts_the_best_first_and_keeps_ties_in_order() {
    let server = TestServer::start().await;
    let documents = ["one", "two", "one", "three", "two", "one"];
    let plain = server.score(&json!({"query": "q", "documents": documents})).await.ok();
    let given = scores(&plain);
    assert_eq!((given[0], given[1]), (given[2], given[4]), "equal documents score the same");
    let sorted = server.score(&json!({"query": "q", "documents": documents, "sort": true})).await.ok();
    let mut expected: Vec<usize> = (0..6).collect();
    expected.sort_by(|&a, &b| given[b].total_cmp(&given[a]).then(a.cmp(&b)));
    assert_eq!(indices(&sorted), expected.iter().map(|&i| i as u64).collect::<Vec<_>>());
    let top = server.score(&json!({"query": "q", "documents": documents, "top_n": 2})).await.ok();
    assert_eq!(indices(&top), indices(&sorted)[..2]);
    let all = server.score(&json!({"query": "q", "documents": documents, "top_n": 99})).await.ok();
    assert_eq!(indices(&all), indices(&sorted));
}

#[tokio::test]
async fn pairs_score_as_their_queries_would() {
    let server = TestServer::start().await;
    let pairs = json!({"pairs": [
        {"query": "a", "document": "x"}, {"query": "b", "document": "x"}, {"query": "a", "document": "y"}]});
    let pairs = scores(&server.score(&pairs).await.ok());
    let a = scores(&server.score(&json!({"query": "a", "documents": ["x", "y"]})).await.ok());
    let b = scores(&server.score(&json!({"query": "b", "documents": ["x"]})).await.ok());
    assert_eq!(pairs, [a[0], b[0], a[1]]);
    assert_ne!(a[0], b[0], "the query is part of the prompt");
}

#[tokio::test]
async fn object_documents_are_rendered_and_keep_their_ids() {
    let server = TestServer::start().await;
    let body = server
        .score(&json!({
            "query": "lamp",
            "documents": [{"id": "B07X", "title": "Lamp", "text": "It is warm."}, "Lamp It is warm.", {"text": "x"}],
            "return_documents": true,
            "raw": true,
        }))
        .await
        .ok();
    let results = body["results"].as_array().expect("results");
    assert_eq!(results[0]["id"], "B07X");
    assert_eq!(results[0]["document"], "Lamp It is warm.");
    assert_eq!(results[0]["relevance_score"], results[1]["relevance_score"]);
    assert!(results[1].get("id").is_none());
    assert_eq!(results[0]["logits"].as_object().expect("a map").len(), 4);
}

#[tokio::test]
async fn an_instruction_changes_the_prompt_and_a_name_is_checked() {
    let server = TestServer::start().await;
    let score = async |instruction: Option<&str>| {
        let mut body = json!({"query": "q", "documents": ["d"], "model": "verdict-mini"});
        if let Some(instruction) = instruction {
            body["instruction"] = instruction.into();
        }
        scores(&server.score(&body).await.ok())[0]
    };
    let default = score(None).await;
    assert_eq!(score(Some(&model().profile.instruction)).await, default);
    assert_ne!(score(Some("another task")).await, default);
    let answer = server.score(&json!({"query": "q", "documents": ["d"], "model": "gpt"})).await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    let expected = "model: \"gpt\" is not served here; \"verdict-mini\" is";
    assert_eq!(answer.problem(), ("not_found".into(), expected.into()));
}

#[tokio::test]
async fn long_documents_are_cut_or_refused_in_their_place() {
    let server = TestServer::start().await;
    let long = "lamp ".repeat(2000);
    let cut = server.score(&json!({"query": "q", "documents": [long, "short"]})).await.ok();
    assert_eq!(cut["results"][0]["truncated"], true);
    assert_eq!(cut["results"][0]["tokens"], model().profile.max_tokens);
    assert_eq!(cut["results"][1]["truncated"], false);
    let body = json!({"query": "q", "documents": [long, "short"], "truncation": "error", "sort": true});
    let mixed = server.score(&body).await.ok();
    assert_eq!(indices(&mixed), [1, 0], "failed pairs come last");
    assert_eq!(mixed["results"][1]["error"]["code"], "too_large");
    let message = mixed["results"][1]["error"]["message"].as_str().expect("text");
    assert!(message.starts_with("documents[0]: ") && message.contains("over the limit of"), "{message}");
    assert!(mixed["results"][1].get("relevance_score").is_none());
    let alone = server.score(&json!({"query": "q", "documents": [long], "truncation": "error"})).await;
    assert_eq!(alone.status, StatusCode::PAYLOAD_TOO_LARGE, "nothing of it was scored");
    assert_eq!(alone.problem().0, "too_large");
}

#[tokio::test]
async fn a_number_that_is_not_finite_fails_its_pair_alone() {
    let server = TestServer::start().await;
    let poison = model().tokenizer.encode("poison").expect("encodes");
    server.stub.inject(Fault::NotFinite(poison[0]));
    let body = server.score(&json!({"query": "q", "documents": ["good", "poison"]})).await.ok();
    assert!(body["results"][0]["relevance_score"].is_number());
    assert_eq!(body["results"][1]["error"]["code"], "internal");
    assert_eq!(body["results"][1]["error"]["message"], "internal error; see the server's log");
    assert!(body["results"][1].get("relevance_score").is_none());
    let alone = server.score(&json!({"query": "q", "documents": ["poison"]})).await;
    assert_eq!(alone.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(alone.problem(), ("internal".into(), "internal error; see the server's log".into()));
}

#[tokio::test]
async fn request_ids_are_echoed_or_made() {
    let server = TestServer::start().await;
    let mut request = post(&server.url("/score"), &json!({"query": "q", "documents": ["d"]}));
    request.headers_mut().insert("x-request-id", "mine-7".parse().expect("a header"));
    assert_eq!(server.send(request).await.header("x-request-id"), Some("mine-7"));
    let first = server.get("/nothing").await;
    let second = server.get("/nothing").await;
    assert_ne!(first.header("x-request-id").expect("made"), second.header("x-request-id").expect("made"));
    assert_eq!(first.json()["request_id"], first.header("x-request-id").expect("made"));
}

#[tokio::test]
async fn other_routes_answer() {
    let server = TestServer::start().await;
    let info = server.get("/info").await.ok();
    assert_eq!(info["model"], "verdict-mini");
    assert_eq!(info["grades"][3], json!({"name": "3", "label": "Exact", "value": 3.0}));
    assert_eq!(info["limits"]["max_documents"], 1024);
    assert_eq!(info["explain"]["default_top_n"], 3);
    assert_eq!(server.get("/v1/models").await.ok()["data"][0]["id"], "verdict-mini");
    assert_eq!(server.get("/health").await.ok()["status"], "ok");
    let answer = server.get("/nothing").await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    assert_eq!(answer.problem(), ("not_found".into(), "no route GET /nothing".into()));
    let answer = server.get("/score").await;
    assert_eq!((answer.status, answer.header("allow")), (StatusCode::METHOD_NOT_ALLOWED, Some("POST")));
    assert_eq!(answer.problem(), ("method_not_allowed".into(), "/score does not take GET".into()));
}

#[tokio::test]
async fn metrics_tell_what_happened() {
    let server = TestServer::start().await;
    server.score(&json!({"query": "q", "documents": ["d", "e"]})).await.ok();
    server.score(&json!({"query": "", "documents": ["d"]})).await;
    assert_eq!(server.metrics.requests_ended("/score", Lane::Score, "ok"), 1);
    assert_eq!(server.metrics.requests_ended("/score", Lane::Score, "invalid"), 1);
    until(|| server.held_pairs() == 0).await;
    let text = server.get("/metrics").await.text();
    for line in [
        "verdict_requests_total{code=\"ok\",lane=\"score\",route=\"/score\"} 1",
        "verdict_pairs_computed_total 2",
        "verdict_relevance_score_count 2",
        "verdict_ready 1",
        "verdict_admitted_pairs 0",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    let admin = format!("http://{}", server.admin);
    assert!(server.send(get(&format!("{admin}/metrics"))).await.text().contains("verdict_ready 1"));
    assert_eq!(server.send(get(&format!("{admin}/livez"))).await.status, StatusCode::OK);
    assert_eq!(server.send(get(&format!("{admin}/score"))).await.status, StatusCode::NOT_FOUND);
    let hidden = TestServer::with(Settings { metrics_on_main: Some(false), ..settings() }, model()).await;
    assert_eq!(hidden.get("/metrics").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn http2_without_negotiation_is_served() {
    let server = TestServer::start().await;
    let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
    let body = json!({"query": "q", "documents": ["d"]});
    let response = within(client.request(post(&server.url("/score"), &body))).await.expect("answered");
    assert_eq!(response.version(), hyper::Version::HTTP_2);
    assert_eq!(scores(&Answer::read(response).await.ok()), scores(&server.score(&body).await.ok()));
}

#[tokio::test]
async fn long_requests_are_scored_as_short_ones_are() {
    let server = TestServer::start().await;
    let documents: Vec<String> =
        (0..300).map(|i| format!("document {i} {}", "about a warm lamp ".repeat(i % 20))).collect();
    let all = scores(&server.score(&json!({"query": "q", "documents": documents})).await.ok());
    assert_eq!(all.len(), 300);
    for index in [0, 7, 150, 299] {
        let one = scores(&server.score(&json!({"query": "q", "documents": [documents[index]]})).await.ok());
        assert_eq!(one[0], all[index], "document {index}");
    }
    until(|| server.metrics.requests_ended("/score", Lane::Score, "ok") == 5).await;
}
