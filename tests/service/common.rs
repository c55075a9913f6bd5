//! A real server in this process, on free ports, over a stub backend that a
//! test can hold and break.

use std::{collections::HashSet, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{HeaderMap, Method, Request, Response, StatusCode, body::Incoming};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::Value;
use tokio::{sync::oneshot, task::JoinHandle};
use tonic::transport::Channel;
use verdict::{
    backend::stub::{StubBackend, StubControl},
    config::{Config, Settings},
    metrics::Metrics,
    model::Model,
    server::{Failure, Server, grpc::pb::relevance_service_client::RelevanceServiceClient},
};

/// Nothing in these tests takes long; a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// The embedded model, fit for a stub: without probes, and with reasons of one section.
pub(crate) fn model() -> Model {
    let mut model = Model::bundled().expect("loads");
    model.profile.probes.clear();
    if let Some(explain) = &mut model.profile.explain {
        explain.sections = vec!["intent".into()];
        // The stub says what it was told to.
        explain.grounding = None;
    }
    model
}

/// Settings for free ports.
pub(crate) fn settings() -> Settings {
    Settings { port: Some(0), admin_port: Some(0), ..Settings::default() }
}

/// A running server.
pub(crate) struct TestServer {
    pub(crate) address: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) stub: Arc<StubControl>,
    pub(crate) client: Client<HttpConnector, Full<Bytes>>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), Failure>>,
}

impl TestServer {
    /// A ready server with default settings.
    pub(crate) async fn start() -> Self {
        Self::with(settings(), model()).await
    }

    /// A ready server.
    pub(crate) async fn with(settings: Settings, model: Model) -> Self {
        let server = Self::unready(settings, model).await;
        server.ready().await;
        server
    }

    /// A server that may still be starting.
    pub(crate) async fn unready(settings: Settings, model: Model) -> Self {
        // A server that is quick to let go of idle connections may do so while one is taken up again.
        let idle = if settings.read_timeout.is_some() { 0 } else { usize::MAX };
        let server = Server::bind(Config::new(settings).expect("valid settings")).await.expect("bound");
        let (address, admin, metrics) = (server.address(), server.admin_address(), server.metrics());
        let stub = Arc::new(StubControl::default());
        let control = Arc::clone(&stub);
        let grades = model.profile.grades.len();
        let script = script(&model);
        let model = Arc::new(model);
        let (stop, stopped) = oneshot::channel::<()>();
        let load = move || {
            let backend = StubBackend::new(grades, script, control);
            Ok((model, Box::new(backend) as Box<dyn verdict::backend::Backend>))
        };
        let task = tokio::spawn(server.run(load, async {
            // A dropped sender is a stop as well.
            let _ = stopped.await;
        }));
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(idle).build_http();
        Self { address, admin, metrics, stub, client, stop, task }
    }

    /// Waits until the server is ready.
    pub(crate) async fn ready(&self) {
        let url = format!("http://{}/readyz", self.admin);
        within(async {
            while self.send(get(&url)).await.status != StatusCode::OK {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    /// Tells it to stop, without waiting.
    pub(crate) fn tell_to_stop(self) -> JoinHandle<Result<(), Failure>> {
        let _ = self.stop.send(());
        self.task
    }

    /// Stops it and returns how it ended.
    pub(crate) async fn stop(self) -> Result<(), Failure> {
        within(self.tell_to_stop()).await.expect("the server did not panic")
    }

    /// Waits for it to end by itself.
    pub(crate) async fn ended(self) -> Result<(), Failure> {
        within(self.task).await.expect("the server did not panic")
    }

    /// Pairs that admission holds now.
    pub(crate) fn held_pairs(&self) -> usize {
        self.metrics.admitted_now().0
    }

    /// Tokens that admission holds now.
    pub(crate) fn held_tokens(&self) -> usize {
        self.metrics.admitted_now().1
    }

    /// Explanations that admission holds now.
    pub(crate) fn held_explanations(&self) -> usize {
        self.metrics.admitted_now().2
    }

    /// A metric without labels, as it is served now.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").await.text();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().expect("a number")
    }

    /// KV blocks held now.
    pub(crate) async fn kv_blocks(&self) -> usize {
        self.metric("verdict_kv_blocks_used").await as usize
    }

    /// Waits until so many KV blocks are held; nothing runs meanwhile.
    pub(crate) async fn until_kv_blocks(&self, blocks: usize) {
        within(async { while self.kv_blocks().await != blocks {} }).await;
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// `POST /score` with a JSON body.
    pub(crate) async fn score(&self, body: &Value) -> Answer {
        self.send(post(&self.url("/score"), body)).await
    }

    /// `POST /score?explain=true`, one JSON body.
    pub(crate) async fn explain(&self, body: &Value) -> Answer {
        let mut request = post(&self.url("/score?explain=true"), body);
        request.headers_mut().insert("accept", "application/json".parse().expect("a header"));
        self.send(request).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(get(&self.url(path))).await
    }

    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Answer {
        Answer::read(self.open(request).await).await
    }

    /// The response's head; its body is still to be read.
    pub(crate) async fn open(&self, request: Request<Full<Bytes>>) -> Response<Incoming> {
        within(self.client.request(request)).await.expect("answered")
    }

    pub(crate) async fn grpc(&self) -> RelevanceServiceClient<Channel> {
        RelevanceServiceClient::new(self.channel().await)
    }

    pub(crate) async fn channel(&self) -> Channel {
        let endpoint = Channel::from_shared(format!("http://{}", self.address)).expect("an address");
        within(endpoint.connect()).await.expect("connected")
    }
}

/// What the stub decodes as a reason.
pub(crate) const REASON: &str = "intent: warm light";

/// Its tokens, which the stub needs to be distinct, then a stop token.
fn script(model: &Model) -> Vec<u32> {
    let Some(explain) = &model.profile.explain else { return vec![0] };
    let mut tokens = model.tokenizer.encode(REASON).expect("encodes");
    assert_eq!(tokens.iter().collect::<HashSet<_>>().len(), tokens.len(), "{tokens:?}");
    tokens.push(explain.stop_tokens[0]);
    tokens
}

/// A whole response.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) async fn read(response: Response<Incoming>) -> Self {
        let (head, body) = response.into_parts();
        let body = within(body.collect()).await.expect("a whole body").to_bytes();
        Self { status: head.status, headers: head.headers, body }
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {:?}", String::from_utf8_lossy(&self.body)))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.to_vec()).expect("text")
    }

    /// What of it is text.
    pub(crate) fn text_lossy(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("text"))
    }

    /// The body of a 200.
    pub(crate) fn ok(&self) -> Value {
        assert_eq!(self.status, StatusCode::OK, "{}", String::from_utf8_lossy(&self.body));
        self.json()
    }

    /// Code and message of an error.
    pub(crate) fn problem(&self) -> (String, String) {
        assert_eq!(self.header("content-type"), Some("application/problem+json"));
        let body = self.json();
        assert_eq!(body["status"], self.status.as_u16(), "{body}");
        let text = |name: &str| body[name].as_str().expect("text").to_owned();
        (text("code"), text("detail"))
    }
}

pub(crate) fn get(url: &str) -> Request<Full<Bytes>> {
    Request::get(url).body(Full::default()).expect("a request")
}

pub(crate) fn post(url: &str, body: &Value) -> Request<Full<Bytes>> {
    raw(url, "application/json", body.to_string())
}

pub(crate) fn raw(url: &str, kind: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    let request = Request::builder().method(Method::POST).uri(url).header("content-type", kind);
    request.body(Full::new(body.into())).expect("a request")
}

/// Fails a test that waits for ever.
pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("something that should happen did not")
}

/// Waits until `condition` holds.
pub(crate) async fn until(condition: impl Fn() -> bool) {
    within(async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// Server-sent events, read one at a time.
pub(crate) struct Events {
    body: Incoming,
    text: String,
}

impl Events {
    pub(crate) fn new(response: Response<Incoming>) -> Self {
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { body: response.into_body(), text: String::new() }
    }

    /// Name and data of the next event; comments are skipped.
    pub(crate) async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            while let Some(end) = self.text.find("\n\n") {
                let event: String = self.text.drain(..end + 2).collect();
                let field =
                    |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
                if let (Some(name), Some(data)) = (field("event:"), field("data:")) {
                    return Some((name.to_owned(), serde_json::from_str(data).expect("JSON")));
                }
            }
            let frame = within(self.body.frame()).await?.expect("a frame");
            if let Ok(data) = frame.into_data() {
                self.text.push_str(std::str::from_utf8(&data).expect("text"));
            }
        }
    }

    /// All events until the stream's end.
    pub(crate) async fn rest(mut self) -> Vec<(String, Value)> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            events.push(event);
        }
        events
    }
}
