//! The protobuf messages and the JSON of the HTTP interface have the same fields,
//! and the metrics the same names as their documentation.

use std::collections::BTreeSet;

use crate::{
    code::{block_end, code},
    read, report, sources,
};

pub(crate) type Names = BTreeSet<String>;

const PROTO: &str = "proto/relevance/v1/relevance.proto";
pub(crate) const READS: &str = "src/server/http/wire.rs";
pub(crate) const WRITES: &str = "src/server/http/write.rs";
const REGISTER: &str = "src/metrics/register.rs";

/// A message, the Rust item that reads or writes its JSON, and what only one side has.
struct Agreement {
    message: &'static str,
    path: &'static str,
    item: &'static str,
    only_proto: &'static [&'static str],
    only_json: &'static [&'static str],
}

/// Streams name their requests, and carry errors where HTTP has a status.
const STREAM: &[&str] = &["request_id", "error"];

const AGREEMENTS: [Agreement; 10] = [
    agreement("ScoreRequest", READS, "struct ScoreBody", &["request_id"], &[]),
    agreement("Pair", READS, "struct PairBody", &[], &[]),
    agreement("ScoreResponse", WRITES, "impl Serialize for Scores<'_>", STREAM, &[]),
    // Over gRPC reasons are events of their own.
    agreement("ScoreResult", WRITES, "impl Serialize for Result_<'_>", &[], &["reason"]),
    // Over HTTP a whole request's wait is a header; a pair's error has none.
    agreement("Error", WRITES, "struct ErrorView", &["retry_after_ms"], &[]),
    agreement("Usage", WRITES, "struct UsageView", &[], &[]),
    agreement("Timing", WRITES, "struct TimingView", &[], &[]),
    agreement("ReasonDelta", WRITES, "struct Delta", &[], &[]),
    agreement("ReasonDone", WRITES, "impl Serialize for End<'_>", &["index"], &[]),
    agreement("ExplainDone", WRITES, "struct Done", &[], &[]),
];

const fn agreement(
    message: &'static str,
    path: &'static str,
    item: &'static str,
    only_proto: &'static [&'static str],
    only_json: &'static [&'static str],
) -> Agreement {
    Agreement { message, path, item, only_proto, only_json }
}

/// The fields of a message.
fn message(proto: &str, name: &str) -> Option<Names> {
    let from = proto.find(&format!("message {name} {{"))?;
    let body = &proto[from..from + block_end(&proto[from..])];
    let lines = body.lines().map(str::trim).filter(|line| !line.starts_with("//"));
    let fields = lines.filter(|line| line.ends_with(';')).filter_map(|line| {
        let name = line.split('=').next()?.split_whitespace().last()?;
        Some(name.to_owned())
    });
    Some(fields.collect())
}

/// The item that starts with `head`, from there to its end.
pub(crate) fn item<'a>(text: &'a str, head: &str) -> Option<&'a str> {
    let from = text.match_indices(head).map(|(at, _)| at).find(|&at| {
        let after = text[at + head.len()..].chars().next();
        !after.is_some_and(|c| c.is_alphanumeric() || c == '_')
    })?;
    Some(&text[from..from + block_end(&text[from..])])
}

/// The JSON names that an item of Rust reads or writes: a struct's fields, an implementation's entries.
pub(crate) fn json(item: &str) -> Names {
    if item.starts_with("struct") {
        let bare = code(item);
        let fields = bare.lines().skip(1).filter_map(|line| line.trim().split_once(": "));
        return fields.map(|(name, _)| name.trim_start_matches("r#").to_owned()).collect();
    }
    strings_after(item, "serialize_entry(")
}

/// Each string literal that follows `call` at once.
fn strings_after(text: &str, call: &str) -> Names {
    let after = text.split(call).skip(1);
    after
        .filter_map(|rest| rest.trim_start().strip_prefix('"')?.split('"').next().map(str::to_owned))
        .collect()
}

/// The keys of a `json!` text.
fn keys(text: &str) -> Names {
    text.split("\": ").filter_map(|part| part.rsplit('"').next()).map(str::to_owned).collect()
}

fn differences(
    what: &str,
    proto: &Names,
    json: &Names,
    only_proto: &[&str],
    only_json: &[&str],
) -> Vec<String> {
    let missing = |have: &Names, want: &Names, but: &[&str], side: &str| {
        let missing = want.difference(have).filter(|name| !but.contains(&name.as_str()));
        missing.map(|name| format!("{what}: {name} is missing in {side}")).collect::<Vec<_>>()
    };
    let mut problems = missing(json, proto, only_proto, "the JSON");
    problems.extend(missing(proto, json, only_json, PROTO));
    for name in only_proto.iter().filter(|name| json.contains(**name) || !proto.contains(**name)) {
        problems.push(format!("{what}: {name} is no longer in the protobuf alone"));
    }
    for name in only_json.iter().filter(|name| proto.contains(**name) || !json.contains(**name)) {
        problems.push(format!("{what}: {name} is no longer in the JSON alone"));
    }
    problems
}

#[test]
fn protobuf_and_json_have_the_same_fields() {
    let proto = read(PROTO);
    let mut problems = Vec::new();
    for Agreement { message: name, path, item: head, only_proto, only_json } in AGREEMENTS {
        let text = read(path);
        match (message(&proto, name), item(&text, head)) {
            (Some(fields), Some(item)) => {
                problems.extend(differences(name, &fields, &json(item), only_proto, only_json));
            }
            (None, _) => problems.push(format!("{PROTO} has no message {name}")),
            (_, None) => problems.push(format!("{path} has no `{head}`: tell tests/tidy/wire.rs")),
        }
    }
    let text = read(WRITES);
    let info = item(&text, "pub(crate) fn info").expect("writes /info");
    let told = keys(info);
    for name in ["InfoResponse", "Grade", "Limits", "ExplainLimits"] {
        for field in message(&proto, name).unwrap_or_default().difference(&told) {
            problems.push(format!("{name}: {field} is missing in /info"));
        }
    }
    report(&problems);
}

/// Name and help of every metric, in order.
fn metrics(register: &str) -> Vec<(String, String)> {
    let strings: Vec<&str> = register.split('"').skip(1).step_by(2).collect();
    let pairs = strings.windows(2).filter(|pair| pair[0].starts_with("verdict_"));
    pairs.map(|pair| (pair[0].to_owned(), pair[1].to_owned())).collect()
}

fn metric_problems(register: &str, documented: &str) -> Vec<String> {
    let mut seen = Names::new();
    let mut problems = Vec::new();
    for (name, help) in metrics(register) {
        if !documented.contains(&format!("`{name}`")) {
            problems.push(format!("{name} is not in docs/metrics.md"));
        }
        if !help.ends_with('.') || help.len() < 15 {
            problems.push(format!("{name} needs a sentence of help, not {help:?}"));
        }
        if !seen.insert(name.clone()) {
            problems.push(format!("{name} is registered twice"));
        }
    }
    for name in documented.split("| `").skip(1).filter_map(|row| row.split('`').next()) {
        if !seen.contains(name) {
            problems.push(format!("docs/metrics.md has {name}, which no code counts"));
        }
    }
    problems
}

#[test]
fn every_metric_is_named_once_and_documented() {
    let register = read(REGISTER);
    assert!(metrics(&register).len() >= 30, "{} metrics found", metrics(&register).len());
    let mut problems = metric_problems(&register, &read("docs/metrics.md"));
    let registers = ["Opts::new(", "Counter::new(", "Gauge::new(", "Histogram::with_opts("];
    for file in sources().iter().filter(|file| file.path != REGISTER) {
        let bare = code(&file.text);
        for call in registers.iter().filter(|call| bare.contains(**call)) {
            problems.push(format!("{}: {call}: metrics are registered in {REGISTER} alone", file.path));
        }
    }
    report(&problems);
}

#[test]
fn a_field_on_one_side_alone_is_found() {
    let proto = "message A {\n  // Words = here;\n  optional string id = 1;\n  repeated B other = 2;\n}\nmessage AB {}";
    let fields = message(proto, "A").expect("a message");
    assert_eq!(fields, Names::from(["id".into(), "other".into()]));
    assert!(message(proto, "C").is_none());
    let body =
        "struct Ab { z: u8 }\nstruct A {\n    // note: this\n    id: Option<String>,\n    r#type: u8,\n}\n";
    let read = json(item(body, "struct A").expect("an item"));
    assert_eq!(read, Names::from(["id".into(), "type".into()]));
    assert_eq!(differences("A", &fields, &read, &[], &[]).len(), 2);
    assert_eq!(differences("A", &fields, &read, &["other"], &["type"]), Vec::<String>::new());
    assert_eq!(differences("A", &fields, &fields, &["id"], &["other"]).len(), 2);
    let writes = "impl X { map.serialize_entry(\"a\", 1)?; map.serialize_entry(\n  \"b\", 2)?; }";
    assert_eq!(json(writes), Names::from(["a".into(), "b".into()]));
    assert!(keys("json!({\"a\": 1, \"b\": x})").contains("b"));
}

#[test]
fn a_metric_without_words_is_found() {
    let good = "counter(\"verdict_a_total\", \"Things that happened.\")";
    assert_eq!(metric_problems(good, "| `verdict_a_total` | counter |"), Vec::<String>::new());
    assert_eq!(metric_problems(good, "").len(), 1);
    assert_eq!(metric_problems(&good.repeat(2), "| `verdict_a_total` |").len(), 1);
    assert_eq!(metric_problems("counter(\"verdict_a_total\", \"Hm\")", "| `verdict_a_total` |").len(), 1);
    assert_eq!(metric_problems(good, "| `verdict_a_total` |\n| `verdict_b_total` |").len(), 1);
}
