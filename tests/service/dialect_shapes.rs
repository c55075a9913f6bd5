//! Each dialect's answers, key by key.

use serde_json::{Value, json};

use crate::common::{TestServer, model, post};

struct Asked {
    server: TestServer,
}

impl Asked {
    async fn start() -> Self {
        Self { server: TestServer::start().await }
    }

    /// The answer to `body`, with its id and its time made known.
    async fn ask(&self, path: &str, body: Value) -> Value {
        let mut request = post(&self.server.url(path), &body);
        request.headers_mut().insert("x-request-id", "r-1".parse().expect("a header"));
        let mut answer = self.server.send(request).await.ok();
        if let Some(created) = answer.get_mut("created") {
            assert!(created.as_u64().expect("seconds") > 1_700_000_000);
            *created = 0.into();
        }
        answer
    }

    /// Index and score by rank, and the tokens, as `/score` has them.
    async fn truth(&self, query: &str, documents: &[&str]) -> (Vec<(Value, Value)>, Value) {
        let body = json!({"query": query, "documents": documents, "sort": true});
        let body = self.server.score(&body).await.ok();
        let rows = body["results"].as_array().expect("results");
        let rows = rows.iter().map(|row| (row["index"].clone(), row["relevance_score"].clone()));
        (rows.collect(), body["usage"]["prompt_tokens"].clone())
    }
}

const DOCUMENTS: [&str; 2] = ["a lamp", "a hose"];

fn place(index: &Value) -> usize {
    usize::try_from(index.as_u64().expect("an index")).expect("small")
}

fn text(index: &Value) -> &'static str {
    DOCUMENTS[place(index)]
}

fn usage(tokens: &Value) -> Value {
    json!({"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0})
}

#[tokio::test]
async fn tei_and_weaviate() {
    let asked = Asked::start().await;
    let (rows, _) = asked.truth("q", &DOCUMENTS).await;
    let plain: Vec<Value> = rows.iter().map(|(i, s)| json!({"index": i, "score": s})).collect();
    let body = json!({"query": "q", "texts": DOCUMENTS});
    assert_eq!(asked.ask("/rerank", body).await, Value::from(plain));
    let texts = rows.iter().map(|(i, s)| json!({"index": i, "score": s, "text": text(i)}));
    let body = json!({"query": "q", "texts": DOCUMENTS, "return_text": "true", "truncate": true,
        "truncation_direction": "Right", "extra": 1});
    assert_eq!(asked.ask("/rerank", body).await, Value::from(texts.collect::<Vec<_>>()));
    let mut scores = rows.clone();
    scores.sort_by_key(|(i, _)| i.as_u64());
    let scores: Vec<Value> = scores.iter().map(|(i, s)| json!({"document": text(i), "score": s})).collect();
    let body = json!({"query": "q", "documents": DOCUMENTS, "property": "title"});
    assert_eq!(asked.ask("/rerank", body).await, json!({"query": "q", "scores": scores}));
    assert_eq!(asked.server.get("/meta").await.ok(), json!({"model": "verdict-mini"}));
    for path in ["/.well-known/live", "/.well-known/ready"] {
        assert_eq!(asked.server.get(path).await.status.as_u16(), 204);
    }
}

#[tokio::test]
async fn tei_predict() {
    let asked = Asked::start().await;
    let native = json!({"query": "q", "documents": ["a lamp"], "raw": true});
    let native = asked.server.score(&native).await.ok()["results"][0].clone();
    let labels = [("0", "Irrelevant"), ("1", "Related"), ("2", "Partial"), ("3", "Exact")];
    let sorted = |numbers: &Value| {
        let mut classes: Vec<Value> =
            labels.iter().map(|(grade, label)| json!({"score": numbers[*grade], "label": label})).collect();
        classes.sort_by(|left, right| {
            right["score"].as_f64().expect("number").total_cmp(&left["score"].as_f64().expect("number"))
        });
        Value::from(classes)
    };
    let probabilities = sorted(&native["probabilities"]);
    assert_eq!(asked.ask("/predict", json!({"inputs": ["q", "a lamp"]})).await, probabilities);
    assert_eq!(asked.ask("/predict", json!({"inputs": [["q", "a lamp"]]})).await, json!([probabilities]));
    let raw = json!({"inputs": [["q", "a lamp"], ["q", "a lamp"]], "raw_scores": true, "truncate": true});
    let logits = sorted(&native["logits"]);
    assert_eq!(asked.ask("/predict", raw).await, json!([logits, logits]));
}

#[tokio::test]
async fn cohere() {
    let asked = Asked::start().await;
    let (rows, tokens) = asked.truth("q", &DOCUMENTS).await;
    let tokens = json!({"input_tokens": tokens, "output_tokens": 0});
    let (index, score) = &rows[0];
    let body = json!({"model": "rerank-v3.5", "query": "q", "documents": DOCUMENTS, "top_n": 1,
        "max_tokens_per_doc": 4096, "priority": null});
    let expected = json!({
        "id": "r-1",
        "results": [{"index": index, "relevance_score": score}],
        "meta": {
            "api_version": {"version": "2"}, "billed_units": {"search_units": 1}, "tokens": tokens,
            "warnings": [
                "max_tokens_per_doc: not used here",
                "model: \"rerank-v3.5\" is not served here; \"verdict-mini\" answered",
            ],
        },
    });
    assert_eq!(asked.ask("/v2/rerank", body).await, expected);
    let documents = [json!({"text": "a lamp", "price": 3}), json!({"text": "a hose", "price": 9})];
    let body = json!({"query": "q", "documents": documents, "rank_fields": ["text"],
        "return_documents": true, "model": "verdict-mini"});
    let results: Vec<Value> = rows
        .iter()
        .map(|(i, s)| json!({"index": i, "relevance_score": s, "document": documents[place(i)]}))
        .collect();
    let expected = json!({
        "id": "r-1",
        "results": results,
        "meta": {"api_version": {"version": "1"}, "billed_units": {"search_units": 1}, "tokens": tokens},
    });
    assert_eq!(asked.ask("/v1/rerank", body).await, expected);
    let many: Vec<String> = (0..201).map(|number| format!("text {number}")).collect();
    let body = json!({"query": "q", "documents": many, "top_n": 2});
    let answer = asked.ask("/v2/rerank", body).await;
    assert_eq!(answer["meta"]["billed_units"]["search_units"], 3);
    assert_eq!(answer["results"].as_array().expect("results").len(), 2);
}

#[tokio::test]
async fn jina_and_those_who_share_its_body() {
    let asked = Asked::start().await;
    let (rows, tokens) = asked.truth("q", &DOCUMENTS).await;
    for (path, top_n) in [("/rerank", json!(0)), ("/v1/rerank", json!("2")), ("/v1/rerank", json!(null))] {
        let body = json!({"model": "verdict-mini", "query": "q", "documents": DOCUMENTS, "top_n": top_n});
        let results = rows
            .iter()
            .map(|(i, s)| json!({"index": i, "relevance_score": s, "document": {"text": text(i)}}));
        let data = rows.iter().map(|(i, s)| json!({"index": i, "relevance_score": s}));
        let expected = json!({
            "id": "r-1",
            "object": "list",
            "model": "verdict-mini",
            "usage": usage(&tokens),
            "results": results.collect::<Vec<_>>(),
            "data": data.collect::<Vec<_>>(),
            "meta": {
                "api_version": {"version": "1"}, "billed_units": {"search_units": 1},
                "tokens": {"input_tokens": tokens, "output_tokens": 0},
            },
        });
        assert_eq!(asked.ask(path, body).await, expected);
    }
    let body = json!({"query": "q", "documents": DOCUMENTS, "return_documents": "False", "priority": 1});
    let answer = asked.ask("/v1/rerank", body).await;
    assert!(answer["results"][0].get("document").is_none(), "{answer}");
    assert_eq!(answer["meta"]["warnings"], json!(["priority: not used here"]));
    // Voyage's readers find documents where they asked for them.
    let body = json!({"query": "q", "documents": DOCUMENTS, "return_documents": true});
    let answer = asked.ask("/v1/rerank", body).await;
    for (row, result) in [(0, &answer["results"][0]), (1, &answer["results"][1])] {
        assert_eq!(result["document"], json!({"text": text(&result["index"])}));
        assert_eq!(answer["data"][row]["document"], text(&result["index"]));
    }
}

#[tokio::test]
async fn objects_come_back_as_they_were_sent() {
    let asked = Asked::start().await;
    let (lamp, hose) =
        (json!({"title": "a", "text": "lamp", "price": 3}), json!({"title": "a hose", "n": [1.5]}));
    let told = |rows: &Value, name: &str| {
        let mut rows = rows.as_array().expect("rows").clone();
        rows.sort_by_key(|row| row["index"].as_u64());
        Value::from(rows.iter().map(|row| row[name].clone()).collect::<Vec<_>>())
    };
    let documents = json!([lamp, hose, "a lamp"]);
    let with_text = json!([lamp, {"title": "a hose", "n": [1.5], "text": "a hose"}, {"text": "a lamp"}]);
    for (path, body) in [
        ("/v1/rerank", json!({"query": "q", "documents": documents})),
        ("/v1/rerank", json!({"query": "q", "documents": documents, "return_documents": true})),
        ("/v2/rerank", json!({"query": "q", "documents": documents, "return_documents": true})),
    ] {
        let answer = asked.ask(path, body).await;
        assert_eq!(told(&answer["results"], "document"), with_text, "{path}");
    }
    let picked =
        json!({"query": "q", "documents": documents, "return_documents": true, "rank_fields": ["n"]});
    let answer = asked.ask("/v1/rerank", picked).await;
    let ranked = json!([lamp, {"title": "a hose", "n": [1.5], "text": "[1.5]"}, {"text": "a lamp"}]);
    assert_eq!(told(&answer["results"], "document"), ranked);
    let body = json!({"query": "q", "documents": documents, "return_documents": true, "top_k": 3});
    let answer = asked.ask("/v1/rerank", body).await;
    assert_eq!(
        told(&answer["data"], "document"),
        json!(["a lamp", "a hose", "a lamp"]),
        "Voyage's are texts"
    );
    let body = json!({"query": "q", "input": documents, "return_input": true});
    let answer = asked.ask("/v1/reranking", body).await;
    assert_eq!(told(&answer["data"], "input"), documents);
}

#[tokio::test]
async fn the_number_of_results_is_read_by_either_name() {
    let asked = Asked::start().await;
    let lengths = |answer: &Value| ["data", "results"].map(|name| answer[name].as_array().map(Vec::len));
    for (fields, data, results) in [
        (json!({"truncation": true, "top_n": 1}), Some(1), Some(1)),
        (json!({"top_k": null, "top_n": "1"}), Some(1), Some(1)),
        (json!({"top_k": 2, "top_n": 1}), Some(2), Some(2)),
        (json!({"raw_scores": false, "top_k": 1}), None, Some(1)),
        (json!({"raw_scores": false, "top_n": null, "top_k": 1}), None, Some(1)),
        (json!({"raw_scores": false, "top_n": 2, "top_k": 1}), None, Some(2)),
    ] {
        let mut body = json!({"query": "q", "documents": DOCUMENTS});
        body.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
        let answer = asked.ask("/rerank", body.clone()).await;
        assert_eq!(lengths(&answer), [data, results], "{body}");
    }
}

#[tokio::test]
async fn llama_cpp_and_mixedbread_share_a_route() {
    let asked = Asked::start().await;
    let body = json!({"query": "q", "documents": DOCUMENTS});
    let shared = asked.ask("/v1/rerank", body.clone()).await;
    for path in ["/reranking", "/v1/reranking"] {
        assert_eq!(asked.ask(path, body.clone()).await, shared, "{path}");
    }
    let tei = json!({"query": "q", "texts": DOCUMENTS});
    assert_eq!(asked.ask("/reranking", tei.clone()).await, asked.ask("/rerank", tei).await);
    let both = json!({"query": "q", "input": DOCUMENTS, "documents": ["d"]});
    assert_eq!(asked.ask("/v1/reranking", both).await["data"][0]["object"], "rank_result");
}

#[tokio::test]
async fn scores_that_are_not_to_be_activated_are_logits() {
    let asked = Asked::start().await;
    let (rows, _) = asked.truth("q", &DOCUMENTS).await;
    let logit = |score: f64| (score / (1.0 - score)).ln();
    for name in ["use_activation", "activation", "softmax"] {
        for (flag, raw) in
            [(json!(false), true), (json!("False"), true), (json!(true), false), (Value::Null, false)]
        {
            let truth = |place: usize| {
                let (_, score) = rows.iter().find(|(index, _)| index == &json!(place)).expect("a row");
                let score = score.as_f64().expect("a score");
                json!(if raw { logit(score) } else { score })
            };
            let mut body = json!({"query": "q", "documents": DOCUMENTS});
            body[name] = flag.clone();
            let answer = asked.ask("/v1/rerank", body).await;
            for part in ["results", "data"] {
                let first = &answer[part][0];
                assert_eq!(first["relevance_score"], truth(place(&first["index"])), "{part}, {name}: {flag}");
            }
            assert!(answer["meta"].get("warnings").is_none(), "{answer}");
            let mut body = json!({"text_1": "q", "text_2": DOCUMENTS});
            body[name] = flag.clone();
            let answer = asked.ask("/v1/score", body).await;
            assert_eq!(answer["data"][1]["score"], truth(1), "{name}: {flag}");
        }
    }
}

#[tokio::test]
async fn voyage_mixedbread_and_infinity() {
    let asked = Asked::start().await;
    let (rows, tokens) = asked.truth("q", &DOCUMENTS).await;
    let (index, score) = &rows[0];
    let plain = json!([{"index": index, "relevance_score": score, "document": text(index)}]);
    let body = json!({"model": "rerank-2", "query": "q", "documents": DOCUMENTS, "top_k": 1,
        "truncation": true, "return_documents": true});
    let results = json!([{"index": index, "relevance_score": score, "document": {"text": text(index)}}]);
    let expected = json!({
        "object": "list", "data": plain, "results": results, "model": "verdict-mini", "usage": usage(&tokens),
    });
    for path in ["/rerank", "/v1/rerank"] {
        assert_eq!(asked.ask(path, body.clone()).await, expected);
    }
    let body = json!({"query": "q", "documents": DOCUMENTS, "top_n": 1, "return_documents": true,
        "raw_scores": false, "model": "m"});
    let expected = json!({
        "object": "rerank", "results": plain, "model": "verdict-mini", "usage": usage(&tokens),
        "id": "r-1", "created": 0,
    });
    assert_eq!(asked.ask("/rerank", body).await, expected);
    let body = json!({"model": "m", "query": "q", "input": DOCUMENTS, "top_k": 1, "return_input": true});
    let data = json!([{"index": index, "score": score, "input": text(index), "object": "rank_result"}]);
    let expected = json!({
        "usage": usage(&tokens), "model": "verdict-mini", "data": data, "object": "list",
        "top_k": 1, "return_input": true,
    });
    assert_eq!(asked.ask("/v1/reranking", body).await, expected);
    let fields = json!([{"title": "a lamp", "n": 1}, {"title": "a hose", "n": 2}]);
    let body = json!({"query": "q", "input": fields, "rank_fields": ["title"]});
    let answer = asked.ask("/v1/reranking", body).await;
    assert_eq!((&answer["data"][0]["score"], &answer["top_k"]), (score, &2.into()));
}

#[tokio::test]
async fn nim_and_the_scores_of_vllm() {
    let asked = Asked::start().await;
    let (rows, tokens) = asked.truth("q", &DOCUMENTS).await;
    let logit = |score: &Value| {
        let score = score.as_f64().expect("a score");
        (score / (1.0 - score)).ln()
    };
    let rankings: Vec<Value> = rows.iter().map(|(i, s)| json!({"index": i, "logit": logit(s)})).collect();
    let body =
        json!({"model": "m", "query": {"text": "q"}, "passages": [{"text": "a lamp"}, {"text": "a hose"}]});
    for path in ["/v1/ranking", "/v1/retrieval/some-model/reranking", "/v1/retrieval/nvidia/m/reranking"] {
        let answer = asked.ask(path, body.clone()).await;
        assert_eq!(answer, json!({"rankings": rankings, "usage": usage(&tokens)}), "{path}");
    }
    let mut rows = rows;
    rows.sort_by_key(|(i, _)| i.as_u64());
    let data: Vec<Value> =
        rows.iter().map(|(i, s)| json!({"index": i, "object": "score", "score": s})).collect();
    let expected = json!({
        "id": "r-1", "object": "list", "created": 0, "model": "verdict-mini", "data": data,
        "usage": usage(&tokens),
    });
    for body in [
        json!({"text_1": "q", "text_2": DOCUMENTS}),
        json!({"text_1": ["q"], "text_2": DOCUMENTS}),
        json!({"queries": "q", "documents": DOCUMENTS}),
        json!({"queries": ["q", "q"], "items": DOCUMENTS}),
        json!({"data_1": "q", "data_2": DOCUMENTS}),
    ] {
        assert_eq!(asked.ask("/v1/score", body.clone()).await, expected, "{body}");
    }
}

#[tokio::test]
async fn the_scores_of_sglang() {
    let asked = Asked::start().await;
    let grades = model().profile.grade_tokens();
    let native = asked.server.score(&json!({"query": "q", "documents": ["a lamp"]})).await.ok();
    let native = native["results"][0].clone();
    let p: Vec<f64> = ["0", "1", "2", "3"]
        .iter()
        .map(|grade| native["probabilities"][*grade].as_f64().expect("a probability"))
        .collect();
    let mass = native["label_mass"].as_f64().expect("told");
    let softmax = json!({"query": "q", "items": "a lamp", "apply_softmax": true});
    let answer = asked.ask("/v1/score", softmax).await;
    assert_eq!(answer["scores"], json!([p]));
    assert_eq!((&answer["object"], &answer["model"]), (&"scoring".into(), &"verdict-mini".into()));
    assert!(answer["usage"]["prompt_tokens"].as_u64().expect("told") > 0);
    assert_eq!(answer.as_object().expect("an object").len(), 4);
    let whole = asked.ask("/v1/score", json!({"query": "q", "items": ["a lamp"]})).await;
    assert_eq!(whole["scores"], json!([p.iter().map(|p| p * mass).collect::<Vec<_>>()]));
    let two = json!({"query": "q", "items": ["a lamp"], "label_token_ids": [grades[3], grades[0]],
        "apply_softmax": true});
    let two = asked.ask("/v1/score", two).await;
    let factor = 1.0 / (p[3] + p[0]);
    assert_eq!(two["scores"], json!([[p[3] * factor, p[0] * factor]]));
}

#[tokio::test]
async fn info_tells_tei_clients_theirs_beside_ours() {
    let asked = Asked::start().await;
    let info = asked.server.get("/info").await.ok();
    assert_eq!(info["model"], "verdict-mini");
    assert_eq!(info["model_id"], "verdict-mini");
    let reranker = &info["model_type"]["reranker"];
    assert_eq!(reranker["id2label"]["3"], "Exact");
    assert_eq!(reranker["label2id"]["Exact"], 3);
    assert_eq!(info["max_client_batch_size"], info["limits"]["max_documents"]);
    assert_eq!(info["max_input_length"], info["limits"]["max_tokens"]);
    assert_eq!((&info["auto_truncate"], &info["model_dtype"]), (&true.into(), &"float32".into()));
    for name in ["max_concurrent_requests", "max_batch_tokens", "tokenization_workers"] {
        assert!(info[name].as_u64().expect("a number") > 0, "{name}");
    }
}
