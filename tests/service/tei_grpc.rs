//! `tei.v1` over gRPC, and that it says what HTTP says.

use serde_json::{Value, json};
use tonic::{Code, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use verdict::{
    config::Settings,
    metrics::Lane,
    server::grpc::tei::pb::{self, info_client::InfoClient, rerank_client::RerankClient},
};

use crate::{
    common::{TestServer, model, post, settings, within},
    dialects::{DOCUMENTS, QUERY},
};

async fn client(server: &TestServer) -> RerankClient<Channel> {
    RerankClient::new(server.channel().await)
}

fn request() -> pb::RerankRequest {
    pb::RerankRequest {
        query: QUERY.into(),
        texts: DOCUMENTS.map(str::to_owned).into(),
        truncate: true,
        ..pb::RerankRequest::default()
    }
}

fn stream(texts: &[&str]) -> Vec<pb::RerankStreamRequest> {
    let message = |text: &&str| pb::RerankStreamRequest {
        query: QUERY.into(),
        text: (*text).into(),
        truncate: true,
        return_text: true,
        ..pb::RerankStreamRequest::default()
    };
    texts.iter().map(message).collect()
}

fn rows(response: &pb::RerankResponse) -> Vec<(u64, f32)> {
    response.ranks.iter().map(|rank| (u64::from(rank.index), rank.score)).collect()
}

async fn over_http(server: &TestServer, raw: bool) -> Vec<(u64, f32)> {
    let body = json!({"query": QUERY, "texts": DOCUMENTS, "raw_scores": raw});
    let body = server.send(post(&server.url("/rerank"), &body)).await.ok();
    let row = |row: &Value| {
        (row["index"].as_u64().expect("an index"), row["score"].as_f64().expect("a score") as f32)
    };
    body.as_array().expect("ranks").iter().map(row).collect()
}

#[tokio::test]
async fn grpc_ranks_as_http_does() {
    let server = TestServer::start().await;
    let mut client = client(&server).await;
    let ranked = within(client.rerank(request())).await.expect("ranked").into_inner();
    assert_eq!(rows(&ranked), over_http(&server, false).await);
    assert!(ranked.ranks.iter().all(|rank| rank.text.is_none()));
    let metadata = ranked.metadata.expect("told");
    let chars: usize = DOCUMENTS.iter().map(|text| text.len() + QUERY.len()).sum();
    assert_eq!(metadata.compute_chars as usize, chars);
    assert!(metadata.compute_tokens > 0 && metadata.total_time_ns >= metadata.inference_time_ns);
    let raw = pb::RerankRequest { raw_scores: true, return_text: true, ..request() };
    let raw = within(client.rerank(raw)).await.expect("ranked").into_inner();
    assert_eq!(rows(&raw), over_http(&server, true).await);
    for rank in &raw.ranks {
        assert_eq!(rank.text.as_deref(), Some(DOCUMENTS[rank.index as usize]));
    }
    let streamed = within(client.rerank_stream(futures::stream::iter(stream(&DOCUMENTS)))).await;
    let streamed = streamed.expect("ranked").into_inner();
    assert_eq!(rows(&streamed), rows(&ranked));
    assert_eq!(streamed.ranks[0].text.as_deref(), Some(DOCUMENTS[streamed.ranks[0].index as usize]));
    assert_eq!(server.metrics.requests_ended("/tei.v1.Rerank/Rerank", Lane::Score, "ok"), 2);
    assert_eq!(server.metrics.requests_ended("/tei.v1.Rerank/RerankStream", Lane::Score, "ok"), 1);
}

#[tokio::test]
async fn blank_texts_are_scored_as_empty_ones() {
    let server = TestServer::start().await;
    let mut client = client(&server).await;
    let texts = ["", "a lamp", "\n "];
    let unary = pb::RerankRequest { texts: texts.map(str::to_owned).into(), return_text: true, ..request() };
    let unary = within(client.rerank(unary)).await.expect("ranked").into_inner();
    let streamed = within(client.rerank_stream(futures::stream::iter(stream(&texts)))).await;
    assert_eq!(rows(&streamed.expect("ranked").into_inner()), rows(&unary));
    let score = |index: u64| rows(&unary).iter().find(|row| row.0 == index).expect("a rank").1.to_bits();
    assert_eq!(score(0), score(2));
    for rank in &unary.ranks {
        assert_eq!(rank.text.as_deref(), Some(texts[rank.index as usize]), "as it was sent");
    }
    let blank = pb::RerankRequest { query: " ".into(), ..request() };
    let refused = within(client.rerank(blank)).await.expect_err("no query");
    assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, "query: is empty"));
}

#[tokio::test]
async fn errors_are_those_of_the_one_table() {
    let limits = Settings { max_documents: Some(3), ..settings() };
    let server = TestServer::with(limits, model()).await;
    let mut client = client(&server).await;
    let refused = within(client.rerank(request())).await.expect_err("too many");
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(refused.message(), "texts: 5 documents, over the limit of 3");
    let refused = within(client.rerank_stream(futures::stream::iter(stream(&DOCUMENTS)))).await;
    assert_eq!(refused.expect_err("too many").message(), "texts: 4 texts, over the limit of 3");
    let left = pb::RerankRequest {
        texts: vec!["d".into()],
        truncation_direction: pb::TruncationDirection::Left.into(),
        ..request()
    };
    let refused = within(client.rerank(left)).await.expect_err("not offered");
    let message =
        "truncation_direction: only TRUNCATION_DIRECTION_RIGHT is offered; texts are cut at their end";
    assert_eq!(refused.message(), message);
    let refused = within(client.rerank_stream(futures::stream::iter(stream(&[])))).await;
    let message = "texts: the stream has none; at least one text is needed";
    assert_eq!(refused.expect_err("empty").message(), message);
    let long = pb::RerankRequest { texts: vec!["lamp ".repeat(2000)], truncate: false, ..request() };
    let refused = within(client.rerank(long)).await.expect_err("too long");
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(server.stub.passes(), 0);
}

#[tokio::test]
async fn info_and_health_are_told() {
    let server = TestServer::start().await;
    let info = within(InfoClient::new(server.channel().await).info(pb::InfoRequest {})).await;
    let info = info.expect("told").into_inner();
    let body = server.get("/info").await.ok();
    assert_eq!(info.model_type(), pb::ModelType::Reranker);
    assert_eq!((&info.model_id, &info.version), (&"verdict-mini".into(), &verdict::VERSION.into()));
    for (name, value) in [
        ("max_concurrent_requests", info.max_concurrent_requests),
        ("max_input_length", info.max_input_length),
        ("max_batch_tokens", info.max_batch_tokens),
        ("max_client_batch_size", info.max_client_batch_size),
        ("tokenization_workers", info.tokenization_workers),
    ] {
        assert_eq!(body[name], value, "{name}");
    }
    let mut health = HealthClient::new(server.channel().await);
    for service in ["tei.v1.Rerank", "tei.v1.Info"] {
        let request = HealthCheckRequest { service: service.into() };
        assert_eq!(within(health.check(request)).await.expect("known").into_inner().status, 1);
    }
}
