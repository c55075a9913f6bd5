//! The description of the HTTP interface has every route, and every field of the wire types.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::{
    read, report, sources,
    wire::{READS, WRITES, item, json},
};

const PARTS: &str = "src/server/openapi/";

/// Routes of pages and of the description itself.
const PAGES: [&str; 5] = ["/", "/playground/{file}", "/docs", "/docs/{file}", "/openapi.json"];

/// Schemas, and the Rust item that reads or writes their JSON.
const SCHEMAS: [(&str, &str, &str); 9] = [
    ("ScoreRequest", READS, "struct ScoreBody"),
    ("Pair", READS, "struct PairBody"),
    ("ScoreResponse", WRITES, "impl Serialize for Scores<'_>"),
    ("ScoreResult", WRITES, "impl Serialize for Result_<'_>"),
    ("PairError", WRITES, "struct ErrorView"),
    ("Usage", WRITES, "struct UsageView"),
    ("Timing", WRITES, "struct TimingView"),
    ("ReasonDelta", WRITES, "struct Delta"),
    ("ExplainDone", WRITES, "struct Done"),
];

/// The same for the files of `server/dialects/`.
const DIALECTS: [(&str, &str, &str); 34] = [
    ("JinaRequest", "jina", "struct Body"),
    ("JinaAnswer", "jina", "struct Answer"),
    ("CohereRequest", "cohere", "struct Body"),
    ("CohereAnswer", "cohere", "struct Answer"),
    ("Ranked", "rows", "struct RankedBody"),
    ("RankedText", "rows", "struct TextBody"),
    ("RankedPlain", "rows", "struct PlainBody"),
    ("TokenUsage", "rows", "struct UsageBody"),
    ("CohereMeta", "rows", "struct MetaBody"),
    ("TeiRequest", "tei", "struct Body"),
    ("TeiRank", "tei", "struct Rank"),
    ("TeiPredictRequest", "tei_predict", "struct Body"),
    ("TeiPrediction", "tei_predict", "struct Prediction"),
    ("VoyageRequest", "voyage", "struct Body"),
    ("VoyageAnswer", "voyage", "struct Answer"),
    ("InfinityRequest", "infinity", "struct Body"),
    ("InfinityAnswer", "infinity", "struct Answer"),
    ("WeaviateRequest", "weaviate", "struct Body"),
    ("WeaviateAnswer", "weaviate", "struct Answer"),
    ("WeaviateScore", "weaviate", "struct Scored"),
    ("MixedbreadRequest", "mixedbread", "struct Body"),
    ("MixedbreadAnswer", "mixedbread", "struct Answer"),
    ("MixedbreadRank", "mixedbread", "struct Ranked"),
    ("NimRequest", "nim", "struct Body"),
    ("NimAnswer", "nim", "struct Answer"),
    ("NimRank", "nim", "struct Ranking"),
    ("VllmScoreRequest", "vllm_score", "struct Body"),
    ("VllmScoreAnswer", "vllm_score", "struct Answer"),
    ("VllmScore", "vllm_score", "struct Scored"),
    ("SglangScoreRequest", "sglang_score", "struct Body"),
    ("SglangScoreAnswer", "sglang_score", "struct Answer"),
    ("SystemOneRequest", "systemone", "struct Body"),
    ("SystemOneQuestion", "systemone", "struct Question"),
    ("SystemOneAnswer", "systemone", "struct Answers"),
];

/// Every part that `openapi/mod.rs` lists.
fn parts() -> Vec<Value> {
    let list = read(&format!("{PARTS}mod.rs"));
    let names = list.split("include_str!(\"").skip(1).filter_map(|rest| rest.split('"').next());
    let names = names.filter(|name| name.ends_with(".json"));
    names.map(|name| serde_json::from_str(&read(&format!("{PARTS}{name}"))).expect("JSON")).collect()
}

/// The paths of `route(` calls: a router's, and those of the dialects' table.
fn routes(text: &str) -> Vec<&str> {
    let calls = text.split("route(").skip(1);
    calls.filter_map(|rest| rest.trim_start().strip_prefix('"')?.split('"').next()).collect()
}

fn names(object: &Value) -> BTreeSet<String> {
    object.as_object().map(|map| map.keys().cloned().collect()).unwrap_or_default()
}

#[test]
fn every_route_of_the_main_port_is_described() {
    let described: BTreeSet<String> = parts().iter().flat_map(|part| names(&part["paths"])).collect();
    let mut problems = Vec::new();
    let mut served = BTreeSet::new();
    for file in sources().iter().filter(|file| file.path.starts_with("src/server/")) {
        for route in routes(&file.text).into_iter().filter(|_| !file.path.ends_with("server/admin.rs")) {
            served.insert(route.to_owned());
            if !described.contains(route) && !PAGES.contains(&route) {
                problems.push(format!("{}: {route} is described by no part in {PARTS}", file.path));
            }
        }
    }
    for path in
        ["/score", "/docs", "/rerank", "/v1/retrieval/{vendor}/{model}/reranking", "/.well-known/ready"]
    {
        assert!(served.contains(path), "{path} is not found: {served:?}");
    }
    for path in described.difference(&served) {
        problems.push(format!("{PARTS}: {path} is described and not served"));
    }
    report(&problems);
}

#[test]
fn every_field_of_the_wire_types_is_described_and_no_other() {
    let parts = parts();
    let mut problems = Vec::new();
    let native = SCHEMAS.map(|(schema, path, head)| (schema, path.to_owned(), head));
    let dialects =
        DIALECTS.map(|(schema, name, head)| (schema, format!("src/server/dialects/{name}.rs"), head));
    for (schema, path, head) in native.into_iter().chain(dialects) {
        let text = read(&path);
        let fields = json(item(&text, head).unwrap_or_else(|| panic!("{path} has no `{head}`")));
        let described = parts.iter().find_map(|part| part["schemas"].get(schema));
        let described =
            names(&described.unwrap_or_else(|| panic!("{schema} is described nowhere"))["properties"]);
        for field in fields.symmetric_difference(&described) {
            let side = if fields.contains(field) { "its schema" } else { &path };
            problems.push(format!("{schema}: {field} is missing in {side}"));
        }
    }
    report(&problems);
}

#[test]
fn routes_are_found_however_they_are_laid_out() {
    let text = "router.route(\"/a\", get(a)).route(\n    \"/b/{c}\",\n post(b)); [route(\"/d\", d)] fn route(path: &str)";
    assert_eq!(routes(text), ["/a", "/b/{c}", "/d"]);
}

#[test]
fn every_dialect_is_described_in_a_short_part() {
    let list = read(&format!("{PARTS}mod.rs"));
    let listed = |name: &str| list.contains(&format!("include_str!(\"{name}\")"));
    let mut problems = Vec::new();
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(PARTS).join("dialects");
    for entry in std::fs::read_dir(folder).expect("the parts") {
        let name = format!("dialects/{}", entry.expect("an entry").file_name().to_string_lossy());
        let lines = read(&format!("{PARTS}{name}")).lines().count();
        if lines > 120 {
            problems.push(format!("{PARTS}{name}: {lines} lines, over the limit of 120"));
        }
        if !listed(&name) {
            problems.push(format!("{PARTS}{name}: is not listed in {PARTS}mod.rs"));
        }
    }
    // Of each file with a dialect, the body is held to a schema.
    for file in sources().iter().filter(|file| file.text.contains("Dialect for Body")) {
        let held = |(_, name, head): &(&str, &str, &str)| {
            file.path.ends_with(&format!("dialects/{name}.rs")) && *head == "struct Body"
        };
        if !DIALECTS.iter().any(held) {
            problems.push(format!("{}: its body is held to no schema", file.path));
        }
    }
    report(&problems);
}
