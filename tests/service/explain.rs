//! Reasons over HTTP.

use serde_json::{Value, json};
use verdict::{config::Settings, metrics::Lane};

use crate::common::{Events, REASON, TestServer, model, post, settings, until};

fn names(events: &[(String, Value)]) -> Vec<&str> {
    events.iter().map(|(name, _)| name.as_str()).collect()
}

#[tokio::test]
async fn scores_come_first_then_reasons_then_done() {
    let server = TestServer::start().await;
    let request =
        json!({"query": "warm lamp", "documents": ["a lamp", "a hose", "a warm lamp"], "explain_top_n": 2});
    let events =
        Events::new(server.open(post(&server.url("/score?explain=true"), &request)).await).rest().await;
    assert_eq!(events.first().map(|event| event.0.as_str()), Some("scores"));
    assert_eq!(events.last().map(|event| event.0.as_str()), Some("done"));
    assert_eq!(names(&events).iter().filter(|name| **name == "reason_done").count(), 2);
    let plain = server
        .score(&json!({"query": "warm lamp", "documents": ["a lamp", "a hose", "a warm lamp"]}))
        .await
        .ok();
    assert_eq!(events[0].1["results"], plain["results"], "the same bits as without reasons");
    let mut best: Vec<(f64, u64)> = plain["results"]
        .as_array()
        .expect("results")
        .iter()
        .map(|r| (r["relevance_score"].as_f64().expect("a score"), r["index"].as_u64().expect("an index")))
        .collect();
    best.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut tokens = 0;
    for (_, index) in &best[..2] {
        let of = |name: &str| -> Vec<&Value> {
            events.iter().filter(|e| e.0 == name && e.1["index"] == *index).map(|e| &e.1).collect()
        };
        let text: String = of("reason").iter().map(|data| data["delta"].as_str().expect("text")).collect();
        assert_eq!(text, REASON);
        let ended = of("reason_done");
        assert_eq!(ended[0]["finish_reason"], "stop");
        assert_eq!(ended[0]["sections"], json!({"intent": "warm light"}));
        tokens += ended[0]["tokens"].as_u64().expect("tokens");
    }
    assert_eq!(events.last().expect("done").1["usage"]["reason_tokens"], tokens);
    until(|| server.metrics.requests_ended("/score", Lane::Explain, "ok") == 1).await;
}

#[tokio::test]
async fn the_json_form_puts_reasons_into_results() {
    let server = TestServer::start().await;
    let body = server
        .explain(&json!({"query": "q", "documents": ["one", "two"], "explain_indices": [1]}))
        .await
        .ok();
    assert!(body["results"][0].get("reason").is_none());
    let reason = &body["results"][1]["reason"];
    assert_eq!(reason["text"], REASON);
    assert_eq!(reason["finish_reason"], "stop");
    assert_eq!(reason["sections"]["intent"], "warm light");
    assert_eq!(body["usage"]["reason_tokens"], reason["tokens"]);
    assert!(body["timing_ms"]["explain"].is_number());
}

#[tokio::test]
async fn reasons_end_at_their_limit() {
    let server = TestServer::start().await;
    let request = json!({"query": "q", "documents": ["one"], "max_reason_tokens": 2});
    let body = server.explain(&request).await.ok();
    let reason = &body["results"][0]["reason"];
    assert_eq!((&reason["finish_reason"], &reason["tokens"]), (&json!("length"), &json!(2)));
    assert!(reason.get("sections").is_none(), "an unfinished reason is not parsed");
    assert!(REASON.starts_with(reason["text"].as_str().expect("text")));
}

#[tokio::test]
async fn a_full_explain_lane_sheds_reasons_and_keeps_scores() {
    let server = TestServer::with(Settings { queue_explanations: Some(1), ..settings() }, model()).await;
    let request = json!({"query": "q", "documents": ["one", "two"], "explain_top_n": 2});
    let body = server.explain(&request).await.ok();
    let mut finishes: Vec<&str> = body["results"]
        .as_array()
        .expect("results")
        .iter()
        .map(|result| {
            assert!(result["relevance_score"].is_number());
            result["reason"]["finish_reason"].as_str().expect("ended")
        })
        .collect();
    finishes.sort_unstable();
    assert_eq!(finishes, ["shed", "stop"]);
    let text = server.get("/metrics").await.text();
    assert!(text.contains("verdict_rejections_total{reason=\"explain\"} 1"), "{text}");
    until(|| server.held_explanations() == 0).await;
    let again = server.explain(&json!({"query": "q", "documents": ["one"]})).await.ok();
    assert_eq!(again["results"][0]["reason"]["finish_reason"], "stop", "the lane is free again");
}

/// KV blocks that the prefix cache keeps of the query "q" with these documents.
async fn cached_blocks(server: &TestServer, documents: &[String]) -> usize {
    let body = json!({"query": "q", "documents": documents});
    server.score(&body).await.ok();
    server.score(&body).await.ok();
    server.kv_blocks().await
}

#[tokio::test]
async fn a_client_that_leaves_frees_the_memory() {
    let server = TestServer::start().await;
    let documents = ["one", "two", "three"].map(String::from);
    let cached = cached_blocks(&server, &documents).await;
    let request = json!({"query": "q", "documents": documents, "explain_top_n": 3});
    server.stub.hold_after(1);
    let mut events = Events::new(server.open(post(&server.url("/score?explain=true"), &request)).await);
    let (name, _) = events.next().await.expect("an event");
    assert_eq!(name, "scores");
    until(|| server.stub.waiting() == 1).await;
    drop(events);
    until(|| server.metrics.requests_ended("/score", Lane::Explain, "cancelled") == 1).await;
    server.stub.release();
    server.until_kv_blocks(cached).await;
    until(|| server.held_explanations() == 0).await;
    // All three, undisturbed, would have taken four steps or more each.
    let text = server.get("/metrics").await.text();
    let steps =
        text.lines().find_map(|line| line.strip_prefix("verdict_explain_steps_total ")).expect("counted");
    assert!((1..=3).contains(&steps.parse::<u32>().expect("a number")), "{steps} steps");
}

#[tokio::test]
async fn what_is_not_explained_gives_its_memory_back() {
    let server = TestServer::start().await;
    let documents: Vec<String> = (0..50).map(|number| format!("document {number}")).collect();
    let cached = cached_blocks(&server, &documents).await;
    let body = server.explain(&json!({"query": "q", "documents": documents, "explain_top_n": 1})).await.ok();
    let explained = body["results"].as_array().expect("results").iter().filter(|r| r.get("reason").is_some());
    assert_eq!(explained.count(), 1);
    server.until_kv_blocks(cached).await;
}

#[tokio::test]
async fn ranked_and_cut_results_are_explained_best_first() {
    let server = TestServer::start().await;
    let documents = ["one", "two", "three", "four", "five"];
    let request = json!({"query": "q", "documents": documents, "top_n": 2, "explain_top_n": 5});
    let body = server.explain(&request).await.ok();
    let results = body["results"].as_array().expect("results");
    assert_eq!(results.len(), 2);
    assert!(results.iter().all(|result| result["reason"]["text"] == REASON), "{body}");
}

#[tokio::test]
async fn a_grounded_reason_says_only_what_is_true_whatever_the_model_wants() {
    let mut bundled = verdict::model::Model::bundled().expect("loads");
    bundled.profile.probes.clear();
    let server = TestServer::with(settings(), bundled).await;
    let request =
        json!({"query": "the warm lamps", "documents": ["a lamp <|end|>", "hose"], "explain_top_n": 2});
    let body = server.explain(&request).await.ok();
    for (index, found, missing) in [(0, "lamps", "warm"), (1, "none", "warm lamps")] {
        let result = &body["results"][index];
        let (sections, label) = (&result["reason"]["sections"], result["label"].as_str().expect("a label"));
        assert_eq!(result["reason"]["finish_reason"], "stop");
        assert_eq!((&sections["match"], &sections["gaps"]), (&json!(found), &json!(missing)), "{result}");
        let verdict = sections["verdict"].as_str().expect("text");
        assert!(verdict.starts_with(&label.to_lowercase()), "{result}");
    }
}
