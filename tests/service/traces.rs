//! Traces of requests, as a collector gets them.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::any_value::Value,
    trace::v1::Span,
};
use serde_json::json;
use tonic::transport::server::TcpIncoming;
use verdict::{config::Settings, server::grpc::pb};

use crate::common::{Answer, TestServer, model, post, settings, within};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// A collector that keeps what it gets.
#[derive(Clone, Default)]
struct Collector {
    requests: Arc<Mutex<Vec<ExportTraceServiceRequest>>>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        self.requests.lock().expect("sound").push(request.into_inner());
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    async fn start() -> (Self, SocketAddr) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("bound");
        let collector = Self::default();
        let service = TraceServiceServer::new(collector.clone());
        let serve = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(serve.serve_with_incoming(TcpIncoming::from(listener)));
        (collector, address)
    }

    /// Everything that it got, oldest first.
    fn spans(&self) -> Vec<Span> {
        let requests = self.requests.lock().expect("sound");
        let mut spans: Vec<Span> = requests
            .iter()
            .flat_map(|request| &request.resource_spans)
            .flat_map(|resource| &resource.scope_spans)
            .flat_map(|scope| scope.spans.clone())
            .collect();
        spans.sort_by_key(|span| span.start_time_unix_nano);
        spans
    }
}

async fn traced(endpoint: SocketAddr) -> TestServer {
    let otlp_endpoint = Some(format!("http://{endpoint}"));
    TestServer::with(Settings { otlp_endpoint, ..settings() }, model()).await
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn number(span: &Span, name: &str) -> i64 {
    match value(span, name) {
        Some(Value::IntValue(number)) => number,
        other => panic!("{name} of {} is {other:?}", span.name),
    }
}

fn word(span: &Span, name: &str) -> String {
    match value(span, name) {
        Some(Value::StringValue(word)) => word,
        other => panic!("{name} of {} is {other:?}", span.name),
    }
}

fn value(span: &Span, name: &str) -> Option<Value> {
    span.attributes.iter().find(|pair| pair.key == name)?.value.clone()?.value
}

fn names(spans: &[Span]) -> Vec<&str> {
    spans.iter().map(|span| span.name.as_str()).collect()
}

/// The spans below one, in order.
fn below<'a>(spans: &'a [Span], parent: &Span) -> Vec<&'a Span> {
    spans.iter().filter(|span| span.parent_span_id == parent.span_id).collect()
}

fn named<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    spans.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("no {name} in {:?}", names(spans)))
}

#[tokio::test]
async fn a_request_is_told_stage_by_stage_in_its_callers_trace() {
    let (collector, address) = Collector::start().await;
    let server = traced(address).await;
    let body = json!({"query": "warm lamp", "documents": ["a lamp", "a hose", "a warm lamp"]});
    let mut request = post(&server.url("/score"), &body);
    request.headers_mut().insert("traceparent", PARENT.parse().expect("a header"));
    request.headers_mut().insert("tracestate", "vendor=1".parse().expect("a header"));
    request.headers_mut().insert("x-request-id", "r-1".parse().expect("a header"));
    let answer = server.send(request).await;
    let usage = answer.ok()["usage"].clone();
    let link = answer.header("traceparent").expect("an answer leads to its trace").to_owned();
    assert_eq!(answer.header("tracestate"), Some("vendor=1"));
    server.stop().await.expect("stopped");

    let spans = collector.spans();
    let root = named(&spans, "/score");
    assert_eq!(
        (hex(&root.trace_id).as_str(), hex(&root.parent_span_id).as_str()),
        (TRACE, "b7ad6b7169203331")
    );
    assert_eq!(root.trace_state, "vendor=1");
    assert_eq!(link, format!("00-{TRACE}-{}-01", hex(&root.span_id)));
    assert_eq!(word(root, "verdict.request_id"), "r-1");
    assert_eq!((word(root, "verdict.code"), word(root, "verdict.lane")), ("ok".into(), "score".into()));
    let stages = below(&spans, root);
    let order: Vec<&str> = stages.iter().map(|span| span.name.as_str()).collect();
    assert_eq!(order, ["admit", "tokenize", "queue", "batch"]);
    let batch = stages[3];
    let forward = below(&spans, batch);
    assert_eq!((forward.len(), forward[0].name.as_str()), (1, "forward"));
    assert!(spans.iter().all(|span| span.trace_id == root.trace_id), "{:?}", names(&spans));
    for span in stages.iter().chain(&forward) {
        assert!(span.start_time_unix_nano >= root.start_time_unix_nano, "{}", span.name);
        assert!(span.end_time_unix_nano <= root.end_time_unix_nano, "{}", span.name);
        assert!(span.start_time_unix_nano <= span.end_time_unix_nano, "{}", span.name);
    }
    // The counts are those of the answer.
    let usage = |name: &str| usage[name].as_i64().unwrap_or_else(|| panic!("{name} in {usage}"));
    assert_eq!(number(stages[1], "verdict.tokens"), usage("prompt_tokens"));
    assert_eq!(number(batch, "verdict.tokens.computed"), usage("computed_tokens"));
    assert_eq!(number(batch, "verdict.batch.tokens"), usage("computed_tokens"));
    for stage in &stages {
        assert_eq!(number(stage, "verdict.pairs"), 3, "{}", stage.name);
    }
}

#[tokio::test]
async fn reasons_and_calls_over_grpc_are_told_too() {
    let (collector, address) = Collector::start().await;
    let server = traced(address).await;
    let documents = vec![pb::Document { text: Some("a lamp".into()), ..pb::Document::default() }];
    let wire = pb::ScoreRequest { query: "q".into(), documents, ..pb::ScoreRequest::default() };
    let mut request = tonic::Request::new(wire);
    request.metadata_mut().insert("traceparent", PARENT.parse().expect("a header"));
    let answer = within(server.grpc().await.score(request)).await.expect("scored");
    let link =
        answer.metadata().get("traceparent").expect("led to its trace").to_str().expect("text").to_owned();
    let body = json!({"query": "q", "documents": ["one", "two"], "explain_top_n": 2});
    server.explain(&body).await.ok();
    let refused = server.score(&json!({"query": "", "documents": ["d"]})).await;
    assert_eq!(refused.status, 400);
    server.stop().await.expect("stopped");

    let spans = collector.spans();
    let call = named(&spans, "/relevance.v1.RelevanceService/Score");
    assert_eq!(hex(&call.trace_id), TRACE);
    assert_eq!(link, format!("00-{TRACE}-{}-01", hex(&call.span_id)));
    assert_eq!(word(call, "rpc.system"), "grpc");
    assert!(below(&spans, call).iter().any(|span| span.name == "batch"));

    let asked: Vec<&Span> = spans.iter().filter(|span| span.name == "/score").collect();
    assert_eq!(asked.len(), 2);
    let explained = asked.iter().find(|span| word(span, "verdict.lane") == "explain").expect("explained");
    let reasons: Vec<&Span> =
        below(&spans, explained).into_iter().filter(|span| span.name == "decode").collect();
    assert_eq!(reasons.len(), 2);
    for reason in reasons {
        assert_eq!(word(reason, "verdict.finish_reason"), "stop");
        assert!(number(reason, "verdict.tokens") > 0);
        assert_eq!(reason.events.len(), 1, "the first token");
    }
    let wrong = asked.iter().find(|span| word(span, "verdict.code") == "invalid").expect("refused");
    assert!(
        wrong.status.as_ref().is_none_or(|status| status.code == 0),
        "the client's fault is none of ours"
    );
    assert!(below(&spans, wrong).is_empty());
}

#[tokio::test]
async fn what_admission_refuses_is_told() {
    let (collector, address) = Collector::start().await;
    let otlp_endpoint = Some(format!("http://{address}"));
    let settings = Settings { otlp_endpoint, queue_pairs: Some(2), max_documents: Some(2), ..settings() };
    let server = TestServer::with(settings, model()).await;
    server.stub.hold();
    let (client, request) =
        (server.client.clone(), post(&server.url("/score"), &json!({"query": "q", "documents": ["a", "b"]})));
    let first =
        tokio::spawn(async move { Answer::read(client.request(request).await.expect("answered")).await });
    crate::common::until(|| server.stub.waiting() == 1).await;
    let refused = server.score(&json!({"query": "q", "documents": ["c"]})).await;
    assert_eq!(refused.status, 429);
    server.stub.release();
    within(first).await.expect("no panic").ok();
    server.stop().await.expect("stopped");
    let spans = collector.spans();
    let root = spans.iter().find(|span| span.name == "/score" && word(span, "verdict.code") == "overloaded");
    let stages = below(&spans, root.expect("refused"));
    assert_eq!((stages.len(), stages[0].name.as_str()), (1, "admit"));
    assert_eq!(word(stages[0], "error.type"), "overloaded");
}

#[tokio::test]
async fn a_collector_that_is_gone_or_silent_harms_nothing() {
    let gone = {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
        listener.local_addr().expect("bound")
    };
    // It is connected to, and says nothing.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
    for address in [gone, silent.local_addr().expect("bound")] {
        let server = traced(address).await;
        for _ in 0..600 {
            server.score(&json!({"query": "q", "documents": ["d"]})).await.ok();
        }
        server.stop().await.expect("stopped");
    }
}

#[tokio::test]
async fn without_a_collector_there_are_no_traces() {
    let server = TestServer::start().await;
    let mut request = post(&server.url("/score"), &json!({"query": "q", "documents": ["d"]}));
    request.headers_mut().insert("traceparent", PARENT.parse().expect("a header"));
    let answer = server.send(request).await;
    answer.ok();
    assert_eq!((answer.header("traceparent"), answer.header("tracestate")), (None, None));
}
