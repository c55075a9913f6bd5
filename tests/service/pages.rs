//! The pages, and the description of the interface.

use hyper::StatusCode;

use crate::common::TestServer;

#[tokio::test]
async fn pages_and_their_files_are_served_with_a_strict_policy() {
    let server = TestServer::start().await;
    for (path, kind) in [
        ("/", "text/html; charset=utf-8"),
        ("/docs", "text/html; charset=utf-8"),
        ("/docs/docs.js", "text/javascript; charset=utf-8"),
        ("/playground/app.js", "text/javascript; charset=utf-8"),
        ("/playground/base.css", "text/css; charset=utf-8"),
        ("/playground/icon.svg", "image/svg+xml"),
    ] {
        let answer = server.get(path).await;
        assert_eq!((answer.status, answer.header("content-type")), (StatusCode::OK, Some(kind)), "{path}");
        let policy = answer.header("content-security-policy").expect("a policy");
        assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
    }
    let answer = server.get("/playground/other.js").await;
    assert_eq!(answer.problem(), ("not_found".into(), "no route GET /playground/other.js".into()));
    assert_eq!(server.get("/docs/../secret").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn the_description_is_json_of_this_version() {
    let server = TestServer::start().await;
    let document = server.get("/openapi.json").await.ok();
    assert_eq!(document["openapi"], "3.1.0");
    assert_eq!(document["info"]["version"], verdict::VERSION);
    // What /info says is what its schema describes.
    let info = server.get("/info").await.ok();
    let described = &document["components"]["schemas"]["Info"]["properties"];
    for name in info.as_object().expect("an object").keys() {
        assert!(described.get(name).is_some(), "{name} is not described");
    }
    for (schema, value) in [("Limits", &info["limits"]), ("ExplainLimits", &info["explain"])] {
        let described =
            document["components"]["schemas"][schema]["properties"].as_object().expect("properties");
        let told: Vec<_> = value.as_object().expect("an object").keys().collect();
        assert!(told.iter().all(|name| described.contains_key(*name)), "{schema}: {told:?}");
        assert_eq!(told.len(), described.len(), "{schema}: {told:?}");
    }
}
