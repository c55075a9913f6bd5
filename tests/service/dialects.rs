//! Every dialect is given the same query and documents, and gives the scores of
//! `/score`: the same bits, in the order that its clients expect.

use serde_json::{Value, json};
use verdict::{backend::stub::Fault, metrics::Lane, model::Model};

use crate::common::{Answer, TestServer, model, post, settings};

pub(crate) const QUERY: &str = "warm lamp";

/// The third repeats the first; the last holds a control token as text.
pub(crate) const DOCUMENTS: [&str; 5] = ["a lamp", "a garden hose", "a lamp", "it is warm", "<|3|> lamp"];

/// Index and score of one result.
type Row = (u64, f64);

/// One way to ask, and where its answer has the scores.
pub(crate) struct Dialect {
    pub(crate) name: &'static str,
    pub(crate) path: &'static str,
    /// Best first; else in input order.
    ranks: bool,
    /// It gives logits in place of scores.
    raw: bool,
    pub(crate) body: fn(&str, &[&str]) -> Value,
    rows: fn(&Value) -> Vec<Row>,
}

const fn ranks(
    name: &'static str,
    path: &'static str,
    body: fn(&str, &[&str]) -> Value,
    rows: fn(&Value) -> Vec<Row>,
) -> Dialect {
    Dialect { name, path, ranks: true, raw: false, body, rows }
}

fn listed(list: &Value, score: &str) -> Vec<Row> {
    let row = |row: &Value| (row["index"].as_u64().expect("an index"), row[score].as_f64().expect("a score"));
    list.as_array().unwrap_or_else(|| panic!("a list: {list}")).iter().map(row).collect()
}

fn results(body: &Value) -> Vec<Row> {
    listed(&body["results"], "relevance_score")
}

/// The expected value of probabilities by grade, rescaled as verdict-mini's profile says.
fn expected(probabilities: impl Iterator<Item = f64>) -> f64 {
    probabilities.zip([0.0, 1.0, 2.0, 3.0]).map(|(p, value)| p * value).sum::<f64>().clamp(0.0, 3.0) / 3.0
}

fn predictions(body: &Value) -> Vec<Row> {
    let of = |classes: &Value, label: &str| {
        let classes = classes.as_array().expect("classes");
        let class = classes.iter().find(|class| class["label"] == label).expect("the label");
        class["score"].as_f64().expect("a probability")
    };
    let labels = ["Irrelevant", "Related", "Partial", "Exact"];
    let pairs = body.as_array().expect("pairs").iter().enumerate();
    pairs.map(|(i, classes)| (i as u64, expected(labels.iter().map(|label| of(classes, label))))).collect()
}

fn label_scores(body: &Value) -> Vec<Row> {
    let items = body["scores"].as_array().expect("items").iter().enumerate();
    let numbers = |item: &Value| -> Vec<f64> {
        item.as_array().expect("labels").iter().map(|p| p.as_f64().expect("a probability")).collect()
    };
    items.map(|(i, item)| (i as u64, expected(numbers(item).into_iter()))).collect()
}

pub(crate) fn all() -> Vec<Dialect> {
    vec![
        ranks("TEI", "/rerank", |q, d| json!({"query": q, "texts": d}), |body| listed(body, "score")),
        Dialect {
            raw: true,
            ..ranks(
                "TEI, raw",
                "/rerank",
                |q, d| json!({"query": q, "texts": d, "raw_scores": true}),
                |body| listed(body, "score"),
            )
        },
        ranks(
            "Cohere v1",
            "/v1/rerank",
            |q, d| json!({"query": q, "documents": d, "model": "rerank-english-v3.0", "max_chunks_per_doc": 5}),
            results,
        ),
        ranks("Cohere v2", "/v2/rerank", |q, d| json!({"query": q, "documents": d, "model": "m"}), results),
        ranks("Jina", "/v1/rerank", |q, d| json!({"query": q, "documents": d, "model": "m"}), results),
        ranks("llama.cpp", "/rerank", |q, d| json!({"query": q, "documents": d, "top_n": d.len()}), results),
        ranks(
            "Jina, documents as objects",
            "/v1/rerank",
            |q, d| {
                let objects: Vec<Value> = d.iter().map(|text| json!({"text": text})).collect();
                json!({"query": q, "documents": objects, "model": "m", "top_n": "5"})
            },
            results,
        ),
        ranks(
            "Voyage",
            "/v1/rerank",
            |q, d| json!({"query": q, "documents": d, "model": "rerank-2", "top_k": null, "truncation": true}),
            |body| listed(&body["data"], "relevance_score"),
        ),
        ranks(
            "Voyage, read without its own fields",
            "/v1/rerank",
            |q, d| json!({"query": q, "documents": d, "model": "rerank-2"}),
            |body| listed(&body["data"], "relevance_score"),
        ),
        ranks(
            "Mixedbread",
            "/v1/reranking",
            |q, d| json!({"query": q, "input": d, "model": "m"}),
            |body| listed(&body["data"], "score"),
        ),
        Dialect {
            raw: true,
            ..ranks(
                "NIM",
                "/v1/ranking",
                |q, d| {
                    let passages: Vec<Value> = d.iter().map(|text| json!({"text": text})).collect();
                    json!({"query": {"text": q}, "passages": passages, "model": "m", "truncate": "END"})
                },
                |body| listed(&body["rankings"], "logit"),
            )
        },
        ranks(
            "Infinity",
            "/rerank",
            |q, d| json!({"query": q, "documents": d, "raw_scores": false}),
            results,
        ),
        Dialect {
            raw: true,
            ..ranks(
                "Infinity, raw",
                "/rerank",
                |q, d| json!({"query": q, "documents": d, "raw_scores": "true"}),
                results,
            )
        },
        Dialect {
            ranks: false,
            ..ranks(
                "Weaviate",
                "/rerank",
                |q, d| json!({"query": q, "documents": d, "property": ""}),
                |body| {
                    let scores = body["scores"].as_array().expect("scores").iter().enumerate();
                    scores.map(|(i, row)| (i as u64, row["score"].as_f64().expect("a score"))).collect()
                },
            )
        },
        Dialect {
            ranks: false,
            ..ranks(
                "vLLM score",
                "/v1/score",
                |q, d| json!({"text_1": q, "text_2": d, "model": "m"}),
                |body| listed(&body["data"], "score"),
            )
        },
        Dialect {
            ranks: false,
            ..ranks(
                "vLLM score in pairs",
                "/v1/score",
                |q, d| json!({"queries": vec![q; d.len()], "items": d}),
                |body| listed(&body["data"], "score"),
            )
        },
        Dialect {
            ranks: false,
            ..ranks(
                "SGLang score",
                "/v1/score",
                |q, d| json!({"query": q, "items": d, "apply_softmax": true, "model": "m"}),
                label_scores,
            )
        },
        Dialect {
            ranks: false,
            ..ranks(
                "TEI predict",
                "/predict",
                |q, d| json!({"inputs": d.iter().map(|text| json!([q, text])).collect::<Vec<_>>()}),
                predictions,
            )
        },
    ]
}

pub(crate) async fn ask(server: &TestServer, dialect: &Dialect) -> Answer {
    server.send(post(&server.url(dialect.path), &(dialect.body)(QUERY, &DOCUMENTS))).await
}

/// What `/score` says, in input order.
async fn truth(server: &TestServer) -> Vec<f64> {
    let body = server.score(&json!({"query": QUERY, "documents": DOCUMENTS})).await.ok();
    let score = |row: &Value| row["relevance_score"].as_f64().expect("a score");
    body["results"].as_array().expect("results").iter().map(score).collect()
}

fn logit(score: f64) -> f64 {
    (score / (1.0 - score)).ln()
}

#[tokio::test]
async fn every_dialect_gives_the_scores_of_the_native_route() {
    let server = TestServer::start().await;
    let truth = truth(&server).await;
    assert_eq!(truth[0].to_bits(), truth[2].to_bits(), "equal documents have equal scores");
    let mut ranking: Vec<u64> = (0..truth.len() as u64).collect();
    ranking.sort_by(|&left, &right| truth[right as usize].total_cmp(&truth[left as usize]));
    for dialect in all() {
        let answer = ask(&server, &dialect).await;
        let body = answer.ok();
        let rows = (dialect.rows)(&body);
        let order: Vec<u64> = rows.iter().map(|row| row.0).collect();
        let input: Vec<u64> = (0..truth.len() as u64).collect();
        assert_eq!(order, if dialect.ranks { ranking.clone() } else { input }, "{}: {body}", dialect.name);
        for (index, score) in rows {
            let truth = truth[index as usize];
            let truth = if dialect.raw { logit(truth) } else { truth };
            assert_eq!(score.to_bits(), truth.to_bits(), "{}: {score} is not {truth}", dialect.name);
        }
        assert!(answer.header("x-request-id").is_some(), "{}", dialect.name);
        assert!(answer.header("server-timing").expect("told").contains("compute;dur="), "{}", dialect.name);
        assert!(server.metrics.requests_ended(dialect.path, Lane::Score, "ok") > 0, "{}", dialect.path);
    }
}

#[tokio::test]
async fn blank_documents_are_scored_as_empty_ones_among_others() {
    let server = TestServer::start().await;
    let truth = truth(&server).await[0];
    for dialect in all() {
        let body = (dialect.body)(QUERY, &["", "a lamp", " \n"]);
        let body = server.send(post(&server.url(dialect.path), &body)).await.ok();
        let mut rows = (dialect.rows)(&body);
        rows.sort_by_key(|row| row.0);
        let bits: Vec<u64> = rows.iter().map(|row| row.1.to_bits()).collect();
        let lamp = if dialect.raw { logit(truth) } else { truth };
        assert_eq!(bits, [bits[0], lamp.to_bits(), bits[0]], "{}: {body}", dialect.name);
    }
    let empty = |body: &Value| results(body).first().expect("a row").1.to_bits();
    let body = json!({"query": QUERY, "documents": [""]});
    let plain = empty(&server.send(post(&server.url("/v1/rerank"), &body)).await.ok());
    for body in [
        json!({"query": QUERY, "documents": [{"text": " "}]}),
        json!({"query": QUERY, "documents": [{"title": null, "image": "x"}]}),
        json!({"query": QUERY, "documents": [{"price": 3}], "rank_fields": ["name"]}),
    ] {
        let answer = server.send(post(&server.url("/v1/rerank"), &body)).await.ok();
        assert_eq!(empty(&answer), plain, "{body}");
    }
    let native = server.score(&json!({"query": QUERY, "documents": ["d", ""]})).await.problem();
    assert_eq!(native.1, "documents[1]: is empty");
    let native = server.score(&json!({"query": QUERY, "documents": [{"text": ""}]})).await.problem();
    assert!(native.1.starts_with("documents[0]: no text in its fields"), "{}", native.1);
}

#[tokio::test]
async fn a_number_that_is_not_finite_is_an_error_and_never_null() {
    let server = TestServer::start().await;
    let poison = model().tokenizer.encode("hose").expect("encodes")[0];
    server.stub.inject(Fault::NotFinite(poison));
    for dialect in all() {
        let answer = ask(&server, &dialect).await;
        let expected = if dialect.name.starts_with("TEI") { 424 } else { 500 };
        assert_eq!(answer.status.as_u16(), expected, "{}: {}", dialect.name, answer.text());
        assert!(answer.text().contains("internal error; see the server's log"), "{}", answer.text());
    }
}

#[tokio::test]
async fn instructions_reach_the_prompt() {
    let server = TestServer::start().await;
    for (path, body) in [
        ("/v1/rerank", json!({"query": "q", "documents": ["d"]})),
        ("/v1/rerank", json!({"query": "q", "documents": ["d"], "top_k": 1})),
        ("/v1/rerank", json!({"query": "q", "documents": ["d"], "rank_fields": ["text"]})),
        ("/v2/rerank", json!({"query": "q", "documents": ["d"]})),
        ("/rerank", json!({"query": "q", "documents": ["d"], "raw_scores": false})),
        ("/rerank", json!({"query": "q", "texts": ["d"]})),
        ("/v1/reranking", json!({"query": "q", "input": ["d"]})),
        ("/v1/score", json!({"text_1": "q", "text_2": "d"})),
        ("/v1/score", json!({"query": "q", "items": ["d"]})),
    ] {
        let plain = server.send(post(&server.url(path), &body)).await.ok();
        let mut told = body.clone();
        told["instruction"] = "find what is warm".into();
        let told = server.send(post(&server.url(path), &told)).await.ok();
        // Beside scores and logits there are indices, which stay: all rows are other ones.
        let rows = |answer: &Value| {
            let parts = ["results", "data", "scores"].map(|part| answer.get(part).cloned());
            parts.into_iter().flatten().next().unwrap_or_else(|| answer.clone())
        };
        assert_ne!(rows(&plain), rows(&told), "{path}: {body}");
    }
}

fn questioned() -> Model {
    let mut model = model();
    model.profile.free_questions = true;
    model
}

#[tokio::test]
async fn free_questions_are_answered_by_level_if_the_model_takes_them() {
    let server = TestServer::with(settings(), questioned()).await;
    let levels = ["none", "little", "some", "much"];
    let body = json!({"model": "m", "state": {"said": "where is my order"}, "questions": {
        "anger": {"type": "score", "instructions": "How angry?", "criteria": levels},
        "haste": {"type": "score", "instructions": "How urgent?", "criteria": levels},
    }});
    let answer = server.send(post(&server.url("/v1/systemone"), &body)).await.ok();
    for (name, asked) in [("anger", "How angry?"), ("haste", "How urgent?")] {
        let query = format!("{asked}\n0: none\n1: little\n2: some\n3: much");
        let native = json!({"query": query, "documents": ["{\"said\":\"where is my order\"}"]});
        let native = server.score(&native).await.ok()["results"][0].clone();
        let said = &answer["answers"][name];
        assert_eq!(said["type"], "score");
        assert_eq!(said["probabilities"], native["probabilities"]);
        assert_eq!(said["legend"], json!({"0": "none", "1": "little", "2": "some", "3": "much"}));
        assert_eq!(said["score"], native["expected_grade"], "a level, not a share");
        let most = native["confidence"].as_f64().expect("a probability");
        assert_eq!(said["confidence"].as_f64().expect("told"), (most - 0.25) / 0.75);
    }
    assert_eq!((&answer["model"], &answer["usage"]["output_tokens"]), (&"verdict-mini".into(), &0.into()));
    for (question, status, message) in [
        (
            json!({"type": "noul", "instructions": "?"}),
            501,
            "questions.x.type: \"noul\" is not offered; score is",
        ),
        (
            json!({"type": "score", "instructions": "?", "criteria": ["a", "b"]}),
            400,
            "questions.x.criteria: 2 levels, but this model has 4 grades",
        ),
        (json!({"type": "score"}), 400, "questions.x: missing field `instructions`"),
    ] {
        let body = json!({"state": "s", "questions": {"x": question}});
        let answer = server.send(post(&server.url("/v1/systemone"), &body)).await;
        assert_eq!(answer.status.as_u16(), status);
        assert_eq!(answer.json()["error"]["message"], message);
    }
}

#[tokio::test]
async fn free_questions_are_refused_by_other_models() {
    let server = TestServer::start().await;
    let body = json!({"state": "s", "questions": {}});
    let answer = server.send(post(&server.url("/v1/systemone"), &body)).await;
    assert_eq!(answer.status.as_u16(), 501);
    let message = "the model \"verdict-mini\" does not take free questions; use /score";
    assert_eq!(answer.json()["error"]["message"], message);
    assert_eq!(server.stub.passes(), 0);
}
