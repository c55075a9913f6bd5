//! Where each dependency may be used.

use crate::{
    File,
    code::{code, line, without_tests, words},
    read, report, sources,
};

/// Where a crate may be used, by the start of the path.
enum Place {
    /// Only there.
    Only(&'static [&'static str]),
    /// Anywhere but there.
    But(&'static [&'static str]),
}

use Place::{But, Only};

/// What is pure has no business with the outside: no clock, no IO, no logs, no wire types.
const PURE: &[&str] = &[
    "src/engine/scheduler.rs",
    "src/engine/tree.rs",
    "src/grade.rs",
    "src/prompt.rs",
    "src/prompt/",
    "src/model/forward.rs",
    "src/backend/cpu/",
];

const GRPC: &[&str] = &["src/server/grpc/"];
const SERVER: &[&str] = &["src/server/"];
const TRACES: &[&str] = &["src/telemetry/"];
const COMPUTE: &[&str] = &["src/backend/cpu/", "src/model/weights/"];
const CUDA: &[&str] = &["src/backend/cuda/"];
const REFERENCE: &[&str] = &["src/backend/reference.rs"];

/// Every dependency, and its place.
const TABLE: [(&str, Place); 48] = [
    ("ahash", Only(&["src/tokenize/"])),
    ("anyhow", Only(&["src/main.rs", "src/cli/"])),
    ("axum", Only(SERVER)),
    ("bytes", Only(SERVER)),
    ("candle-core", Only(REFERENCE)),
    ("candle-nn", Only(REFERENCE)),
    ("candle-transformers", Only(REFERENCE)),
    ("clap", Only(&["src/main.rs", "src/cli/", "src/config/"])),
    ("cudarc", Only(CUDA)),
    ("flate2", Only(&["src/cli/files.rs", "src/server/http/body/"])),
    ("futures", Only(&["src/server/", "src/service/", "src/cli/"])),
    ("getrandom", Only(SERVER)),
    ("half", Only(&["src/backend/cpu/", "src/backend/cuda/", "src/model/weights.rs", "src/model/weights/"])),
    ("http-body-util", Only(SERVER)),
    ("hyper", Only(SERVER)),
    ("hyper-util", Only(SERVER)),
    ("indicatif", Only(&["src/cli/"])),
    ("libc", Only(&["src/backend/cpu/amx/mod.rs", "src/main.rs"])),
    ("libloading", Only(CUDA)),
    ("memmap2", Only(&["src/model/weights.rs"])),
    ("opentelemetry", Only(TRACES)),
    ("opentelemetry-otlp", Only(TRACES)),
    ("opentelemetry_sdk", Only(TRACES)),
    ("prometheus", Only(&["src/metrics/"])),
    ("prost", Only(GRPC)),
    ("prost-types", Only(GRPC)),
    ("rayon", Only(COMPUTE)),
    ("rustix", Only(&["src/cli/serve.rs"])),
    ("safetensors", Only(&["src/model/weights.rs", "src/model/weights/"])),
    ("serde", But(PURE)),
    ("serde_json", But(PURE)),
    ("serde_path_to_error", Only(&["src/server/http/", "src/cli/", "src/config/"])),
    ("subtle", Only(&["src/server/guard.rs"])),
    ("thiserror", Only(&["src/error.rs"])),
    ("tokenizers", Only(&["src/tokenize.rs", "src/tokenize/"])),
    (
        "tokio",
        Only(&[
            "src/server/",
            "src/service/",
            "src/engine/awake.rs",
            "src/engine/job.rs",
            "src/engine/mod.rs",
            "src/cli/",
        ]),
    ),
    ("tokio-rustls", Only(SERVER)),
    ("tokio-stream", Only(&["src/server/", "src/cli/"])),
    ("toml", Only(&["src/profile.rs", "src/profile/", "src/config/"])),
    ("tonic", Only(GRPC)),
    ("tonic-health", Only(GRPC)),
    ("tonic-prost", Only(GRPC)),
    ("tonic-reflection", Only(GRPC)),
    ("tower", Only(SERVER)),
    ("tower-http", Only(&["src/server/guard.rs"])),
    ("tracing", But(PURE)),
    ("tracing-subscriber", Only(&["src/cli/"])),
    ("zstd", Only(&["src/server/http/body/"])),
];

/// Dependencies that only code made from the protobuf files names.
const GENERATED: [&str; 2] = ["prost", "tonic-prost"];

impl Place {
    fn takes(&self, path: &str) -> bool {
        let within = |places: &[&str]| places.iter().any(|place| path.starts_with(place));
        match self {
            Only(places) => within(places),
            But(places) => !within(places),
        }
    }
}

fn is_test(path: &str) -> bool {
    path.ends_with("/tests.rs") || path.contains("/tests/")
}

/// The lines of `bare` where the crate `name` is named at the start of a path.
fn uses(bare: &str, name: &str) -> Vec<usize> {
    let name = name.replace('-', "_");
    words(bare, &name)
        .filter(|&at| {
            let (before, after) = (bare[..at].trim_end(), bare[at + name.len()..].trim_start());
            let imported = before.ends_with("use") && after.starts_with([';', ' ', 'a']);
            !before.ends_with("::") && !before.ends_with('.') && (after.starts_with("::") || imported)
        })
        .map(|at| line(bare, at))
        .collect()
}

fn misplaced(file: &File) -> Vec<String> {
    if is_test(&file.path) {
        return Vec::new();
    }
    let bare = without_tests(&code(&file.text));
    let mut problems = Vec::new();
    for (name, place) in TABLE.iter().filter(|(_, place)| !place.takes(&file.path)) {
        let allowed = match place {
            Only(places) => format!("only in {}", places.join(", ")),
            But(places) => format!("not in {}", places.join(", ")),
        };
        for line in uses(&bare, name) {
            problems.push(format!("{}:{line}: {name} is used {allowed}", file.path));
        }
    }
    problems
}

fn dependencies(manifest: &str) -> Vec<String> {
    let manifest: toml::Table = toml::from_str(manifest).expect("Cargo.toml is TOML");
    let table = manifest["dependencies"].as_table().expect("a table");
    table.keys().cloned().collect()
}

#[test]
fn each_dependency_is_used_where_it_belongs() {
    report(&sources().iter().flat_map(misplaced).collect::<Vec<_>>());
}

#[test]
fn every_dependency_has_a_place_and_a_use() {
    let sources: Vec<String> = sources().iter().map(|file| code(&file.text)).collect();
    let mut problems = Vec::new();
    for name in dependencies(&read("Cargo.toml")) {
        if !TABLE.iter().any(|(known, _)| *known == name) {
            problems.push(format!("{name}: say in tests/tidy/placement.rs where it may be used"));
        }
        let used = sources.iter().any(|bare| !uses(bare, &name).is_empty());
        if !used && !GENERATED.contains(&name.as_str()) {
            problems.push(format!("{name}: nothing uses it; take it out of Cargo.toml"));
        }
    }
    report(&problems);
}

#[test]
fn a_misplaced_dependency_is_found() {
    let file = |path: &str, text: &str| File { path: path.into(), text: text.into() };
    let found =
        misplaced(&file("src/engine/scheduler.rs", "use tokio::sync::mpsc;\nfn f() { tracing::info!(1) }"));
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].starts_with("src/engine/scheduler.rs:2: tracing") || found[0].contains(":1: tokio"));
    assert_eq!(misplaced(&file("src/grade.rs", "use {std::fmt, axum::Router};")).len(), 1);
    for fine in [
        "// tokio::spawn\n",
        "let s = \"tokio::spawn\";",
        "use crate::tokio::x;",
        "#[cfg(test)]\nmod tests { use tokio::x; }",
        "use my_tokio::x;",
    ] {
        assert_eq!(misplaced(&file("src/grade.rs", fine)), Vec::<String>::new(), "{fine}");
    }
    assert!(misplaced(&file("src/server/http/mod.rs", "use axum::Router;")).is_empty());
    assert_eq!(dependencies("[dependencies]\na = '1'\n[dev-dependencies]\nb = '1'"), ["a"]);
}
