//! The page at `GET /`, where a person can try queries and documents.
//!
//! It is a client like any other: it asks `/info` and `/score`. Its files are in
//! the program, and it loads nothing from elsewhere.

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    extract::{Path, Request, State as Shared},
    http::Response,
    routing::get,
};

use super::{
    embedded::{self, CSS, HTML, JS, SVG},
    http,
    state::State,
};

const PAGE: &str = include_str!("index.html");

/// What the page loads, below `/playground/`.
const FILES: [(&str, &str, &str); 8] = [
    ("base.css", CSS, include_str!("base.css")),
    ("playground.css", CSS, include_str!("playground.css")),
    ("app.js", JS, include_str!("app.js")),
    ("api.js", JS, include_str!("api.js")),
    ("examples.js", JS, include_str!("examples.js")),
    ("results.js", JS, include_str!("results.js")),
    ("snippets.js", JS, include_str!("snippets.js")),
    ("icon.svg", SVG, include_str!("icon.svg")),
];

/// The page and its files.
pub(super) fn routes() -> Router<Arc<State>> {
    Router::new().route("/", get(page)).route("/playground/{file}", get(file))
}

async fn page() -> Response<Body> {
    embedded::respond(HTML, PAGE)
}

async fn file(state: Shared<Arc<State>>, Path(name): Path<String>, request: Request) -> Response<Body> {
    match FILES.iter().find(|(known, _, _)| *known == name) {
        Some((_, kind, text)) => embedded::respond(kind, text),
        None => http::not_found(state, request).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_names_only_files_that_are_served() {
        let named = |text: &str| -> Vec<String> {
            let parts = text.split(['"', '\'']).filter(|part| part.starts_with("/playground/"));
            parts.map(|part| part.trim_start_matches("/playground/").to_owned()).collect()
        };
        let names = named(PAGE);
        assert!(names.len() >= 4, "{names:?}");
        for name in names {
            assert!(FILES.iter().any(|(known, _, _)| *known == name), "{name} is not served");
        }
        for (file, _, text) in FILES {
            for import in text.split("from \"./").skip(1).filter_map(|rest| rest.split('"').next()) {
                assert!(FILES.iter().any(|(known, _, _)| *known == import), "{file}: {import} is not served");
            }
        }
    }

    #[test]
    fn user_text_is_never_parsed_and_nothing_is_loaded_from_elsewhere() {
        for (file, _, text) in FILES.iter().chain(&[("index.html", HTML, PAGE)]) {
            for parsed in
                ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"]
            {
                assert!(!text.contains(parsed), "{file} uses {parsed}");
            }
            let links = text.matches("://").count() - text.matches("http://www.w3.org/2000/svg").count();
            assert_eq!(links, 0, "{file} names another host");
            assert!(
                !text.contains("style=\"") && !text.contains("onclick="),
                "{file} has what its policy forbids"
            );
        }
    }
}
