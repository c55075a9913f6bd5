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

/// Every part that `openapi/mod.rs` lists.
fn parts() -> Vec<Value> {
    let list = read(&format!("{PARTS}mod.rs"));
    let names = list.split("include_str!(\"").skip(1).filter_map(|rest| rest.split('"').next());
    let names = names.filter(|name| name.ends_with(".json"));
    names.map(|name| serde_json::from_str(&read(&format!("{PARTS}{name}"))).expect("JSON")).collect()
}

/// The paths of `.route(` calls.
fn routes(text: &str) -> Vec<&str> {
    let calls = text.split(".route(").skip(1);
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
    assert!(served.contains("/score") && served.contains("/docs"), "{served:?}");
    for path in described.difference(&served) {
        problems.push(format!("{PARTS}: {path} is described and not served"));
    }
    report(&problems);
}

#[test]
fn every_field_of_the_wire_types_is_described_and_no_other() {
    let parts = parts();
    let mut problems = Vec::new();
    for (schema, path, head) in SCHEMAS {
        let text = read(path);
        let fields = json(item(&text, head).unwrap_or_else(|| panic!("{path} has no `{head}`")));
        let described = parts.iter().find_map(|part| part["schemas"].get(schema));
        let described =
            names(&described.unwrap_or_else(|| panic!("{schema} is described nowhere"))["properties"]);
        for field in fields.symmetric_difference(&described) {
            let side = if fields.contains(field) { "its schema" } else { path };
            problems.push(format!("{schema}: {field} is missing in {side}"));
        }
    }
    report(&problems);
}

#[test]
fn routes_are_found_however_they_are_laid_out() {
    let text = "router.route(\"/a\", get(a)).route(\n    \"/b/{c}\",\n post(b));";
    assert_eq!(routes(text), ["/a", "/b/{c}"]);
}
