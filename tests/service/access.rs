//! Who may ask: API keys, TLS, pages of other origins.

use std::{io::Write as _, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tempfile::NamedTempFile;
use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, ServerName},
    },
};
use tonic::{Code, metadata::MetadataValue};
use verdict::{
    config::{Config, Settings},
    metrics::Lane,
    server::{
        Failure, Server,
        grpc::{
            code_of, pb,
            tei::pb::{self as tei, rerank_client::RerankClient},
        },
    },
};

use crate::common::{Answer, TestServer, get, model, post, settings, within};

fn with_keys() -> Settings {
    Settings { api_keys: Some("first-key,second-key".parse().expect("keys")), ..settings() }
}

fn body() -> serde_json::Value {
    json!({"query": "q", "documents": ["d"]})
}

fn authorized(mut request: Request<Full<Bytes>>, value: &str) -> Request<Full<Bytes>> {
    request.headers_mut().insert("authorization", value.parse().expect("a header"));
    request
}

#[tokio::test]
async fn without_a_key_nothing_is_scored_or_told() {
    let server = TestServer::with(with_keys(), model()).await;
    let refused = server.score(&body()).await;
    assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
    assert_eq!(refused.header("www-authenticate"), Some("Bearer"));
    let message = "authorization: is missing; send `Authorization: Bearer` and an API key";
    assert_eq!(refused.problem(), ("unauthenticated".into(), message.into()));
    for path in ["/info", "/v1/models", "/metrics", "/nothing"] {
        assert_eq!(server.get(path).await.status, StatusCode::UNAUTHORIZED, "{path}");
    }
    for path in ["/", "/playground/app.js", "/docs", "/openapi.json", "/health"] {
        assert_eq!(server.get(path).await.status, StatusCode::OK, "{path}");
    }
    let wrong = server.send(authorized(post(&server.url("/score"), &body()), "Bearer third-key")).await;
    assert_eq!(wrong.problem(), ("unauthenticated".into(), "authorization: no such API key".into()));
    assert_eq!(server.stub.passes(), 0, "nothing of it reached the engine");
    assert_eq!(server.metrics.requests_ended("other", Lane::Score, "unauthenticated"), 6);
    let metrics = get(&format!("http://{}/metrics", server.admin));
    assert_eq!(server.send(metrics).await.status, StatusCode::OK, "the admin port asks for none");
}

#[tokio::test]
async fn clients_of_other_servers_are_refused_in_their_own_shape() {
    let server = TestServer::with(with_keys(), model()).await;
    let message = "authorization: is missing; send `Authorization: Bearer` and an API key";
    let openai = json!({"message": message, "type": "AuthenticationError", "param": null, "code": 401});
    let nim =
        json!({"object": "error", "message": message, "detail": message, "type": "AuthenticationError"});
    let any = json!({"error": message, "error_type": "Validation", "detail": message, "message": message});
    for (path, expected) in [
        ("/rerank", any),
        ("/v1/rerank", json!({"detail": message, "message": message})),
        ("/v2/rerank", json!({"message": message})),
        ("/predict", json!({"error": message, "error_type": "Validation"})),
        ("/v1/score", json!({ "error": openai })),
        ("/v1/ranking", nim.clone()),
        ("/v1/retrieval/nvidia/reranker/reranking", nim),
    ] {
        let refused = server.send(post(&server.url(path), &body())).await;
        assert_eq!(refused.status, StatusCode::UNAUTHORIZED, "{path}");
        assert_eq!(refused.header("www-authenticate"), Some("Bearer"), "{path}");
        assert_eq!(refused.json(), expected, "{path}");
    }
    assert_eq!(server.get("/meta").await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(server.get("/.well-known/live").await.status, StatusCode::NO_CONTENT);
    assert_eq!(server.stub.passes(), 0, "nothing of it reached the engine");
    let known = authorized(post(&server.url("/v2/rerank"), &body()), "Bearer first-key");
    assert_eq!(server.send(known).await.status, StatusCode::OK);
}

#[tokio::test]
async fn tei_over_grpc_needs_a_key() {
    let server = TestServer::with(with_keys(), model()).await;
    let mut client = RerankClient::new(server.channel().await);
    let wire =
        || tei::RerankRequest { query: "q".into(), texts: vec!["d".into()], ..tei::RerankRequest::default() };
    let refused = within(client.rerank(wire())).await.expect_err("refused");
    assert_eq!(refused.code(), Code::Unauthenticated);
    let mut request = tonic::Request::new(wire());
    request.metadata_mut().insert("authorization", MetadataValue::from_static("Bearer first-key"));
    within(client.rerank(request)).await.expect("ranked");
}

#[tokio::test]
async fn any_key_lets_in_over_http() {
    let server = TestServer::with(with_keys(), model()).await;
    for value in ["Bearer first-key", "bearer second-key", "second-key"] {
        let answer = server.send(authorized(post(&server.url("/score"), &body()), value)).await;
        assert_eq!(answer.status, StatusCode::OK, "{value}");
    }
}

#[tokio::test]
async fn grpc_needs_a_key_but_for_its_health() {
    let server = TestServer::with(with_keys(), model()).await;
    let wire = || pb::ScoreRequest {
        query: "q".into(),
        documents: vec![pb::Document { text: Some("d".into()), ..pb::Document::default() }],
        ..pb::ScoreRequest::default()
    };
    let mut client = server.grpc().await;
    let refused = within(client.score(wire())).await.expect_err("refused");
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert_eq!(code_of(&refused), Some(verdict::error::Code::Unauthenticated));
    for value in ["Bearer second-key", "second-key"] {
        let mut request = tonic::Request::new(wire());
        request.metadata_mut().insert("authorization", MetadataValue::try_from(value).expect("a value"));
        within(client.score(request)).await.expect("scored");
    }
    let mut health = tonic_health::pb::health_client::HealthClient::new(server.channel().await);
    within(health.check(tonic_health::pb::HealthCheckRequest::default())).await.expect("told");
}

#[tokio::test]
async fn pages_of_listed_origins_may_ask() {
    let origins = Some("https://app.example".parse().expect("origins"));
    let server = TestServer::with(Settings { cors_origins: origins, ..with_keys() }, model()).await;
    let preflight = |origin: &str| {
        Request::options(server.url("/score"))
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization,content-type")
            .body(Full::default())
            .expect("a request")
    };
    let allowed = server.send(preflight("https://app.example")).await;
    assert_eq!(allowed.status, StatusCode::OK, "a browser asks before it has a key to show");
    assert_eq!(allowed.header("access-control-allow-origin"), Some("https://app.example"));
    assert!(allowed.header("access-control-allow-headers").expect("told").contains("authorization"));
    let other = server.send(preflight("https://evil.example")).await;
    assert_eq!(other.header("access-control-allow-origin"), None);
    let mut refused = post(&server.url("/score"), &body());
    refused.headers_mut().insert("origin", "https://app.example".parse().expect("a header"));
    let refused = server.send(refused).await;
    assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
    assert_eq!(refused.header("access-control-allow-origin"), Some("https://app.example"), "to be read");
    let plain = TestServer::start().await;
    let mut request = post(&plain.url("/score"), &body());
    request.headers_mut().insert("origin", "https://app.example".parse().expect("a header"));
    assert_eq!(plain.send(request).await.header("access-control-allow-origin"), None, "off by default");
}

/// A certificate of its own, for `localhost`, and its key, as files.
struct Certificate {
    der: CertificateDer<'static>,
    cert: NamedTempFile,
    key: NamedTempFile,
}

fn file(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().expect("a file");
    file.write_all(text.as_bytes()).expect("written");
    file
}

impl Certificate {
    fn new() -> Self {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        let (cert, key) = (file(&made.cert.pem()), file(&made.signing_key.serialize_pem()));
        Self { der: made.cert.der().clone(), cert, key }
    }

    fn settings(&self) -> Settings {
        let (cert, key) = (self.cert.path().to_owned(), self.key.path().to_owned());
        Settings { tls_cert: Some(cert), tls_key: Some(key), ..settings() }
    }

    async fn connect(&self, address: SocketAddr, protocol: &str) -> TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        roots.add(self.der.clone()).expect("a root");
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        let stream = TcpStream::connect(address).await.expect("connected");
        let name = ServerName::try_from("localhost").expect("a name");
        within(TlsConnector::from(Arc::new(config)).connect(name, stream)).await.expect("TLS")
    }
}

#[tokio::test]
async fn http_1_and_2_and_grpc_are_served_over_tls() {
    let certificate = Certificate::new();
    let server = TestServer::with(certificate.settings(), model()).await;

    let stream = certificate.connect(server.address, "http/1.1").await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP");
    tokio::spawn(connection);
    let answer = within(sender.send_request(post("/score", &body()))).await.expect("answered");
    assert_eq!(Answer::read(answer).await.status, StatusCode::OK);

    let stream = certificate.connect(server.address, "h2").await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.expect("HTTP/2");
    tokio::spawn(connection);
    let request = post("https://localhost/score", &body());
    let answer = within(sender.send_request(request)).await.expect("answered");
    assert_eq!(Answer::read(answer).await.status, StatusCode::OK);

    let mut request = Request::post("https://localhost/relevance.v1.RelevanceService/Info")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(Bytes::from_static(&[0; 5])))
        .expect("a request");
    *request.version_mut() = hyper::Version::HTTP_2;
    let answer = within(sender.send_request(request)).await.expect("answered");
    assert_eq!(answer.headers()["content-type"], "application/grpc");
    assert!(Answer::read(answer).await.text_lossy().contains("verdict-mini"));
    server.stop().await.expect("stopped");
}

#[tokio::test]
async fn what_is_not_tls_disturbs_nobody() {
    let certificate = Certificate::new();
    let server = TestServer::with(certificate.settings(), model()).await;
    within(server.client.request(get(&server.url("/health")))).await.expect_err("in clear");
    certificate.connect(server.address, "h2").await;
    // One that never speaks does not keep the server from stopping.
    let silent = TcpStream::connect(server.address).await.expect("connected");
    server.stop().await.expect("stopped");
    drop(silent);
}

#[tokio::test]
async fn files_that_cannot_be_used_are_named() {
    let (certificate, other) = (Certificate::new(), Certificate::new());
    let refusal = async |settings: Settings| {
        let config = Config::new(settings).expect("valid settings");
        match Server::bind(config).await.err().expect("refused") {
            Failure::Settings(error) => error.message().to_owned(),
            other => panic!("{other:?}"),
        }
    };
    let missing = Settings { tls_cert: Some("/nonexistent/cert.pem".into()), ..certificate.settings() };
    let message = refusal(missing).await;
    assert!(message.starts_with("tls_cert: /nonexistent/cert.pem: cannot be read: "), "{message}");
    let key = certificate.key.path().to_owned();
    let swapped = Settings { tls_cert: Some(key.clone()), ..certificate.settings() };
    assert_eq!(refusal(swapped).await, format!("tls_cert: {}: holds no certificate", key.display()));
    let cert = certificate.cert.path().to_owned();
    let swapped = Settings { tls_key: Some(cert.clone()), ..certificate.settings() };
    let message = format!("tls_key: {}: holds no private key that is not encrypted", cert.display());
    assert_eq!(refusal(swapped).await, message);
    let broken = file("-----BEGIN PRIVATE KEY-----\nsecret!\n");
    let settings = Settings { tls_key: Some(broken.path().to_owned()), ..certificate.settings() };
    let message = format!("tls_key: {}: is not well-formed PEM", broken.path().display());
    assert_eq!(refusal(settings).await, message);
    let foreign = other.key.path().to_owned();
    let settings = Settings { tls_key: Some(foreign.clone()), ..certificate.settings() };
    let message = refusal(settings).await;
    let start = format!("tls_cert: {} with the key of {}: ", cert.display(), foreign.display());
    assert!(message.starts_with(&start), "{message}");
}
