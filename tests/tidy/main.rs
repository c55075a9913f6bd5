//! Checks of the repository itself: what a reviewer would otherwise have to look for.
//!
//! Each check is a function from text to problems, tried on small bad texts beside it,
//! and then run over the repository. A problem says where it is and what to do.

mod code;
mod house;
mod licences;
mod openapi;
mod placement;
mod profile;
mod wire;

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Directories that git ignores, or that are not ours.
const SKIPPED: [&str; 9] =
    ["target", ".git", ".venv", ".cuda", ".dev", "__pycache__", "node_modules", "runs", "cache"];

/// A text file, by its path from the repository's root.
struct File {
    path: String,
    text: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every text file below `dir` whose name ends so, in order of path.
fn files(dir: &str, ends: &[&str]) -> Vec<File> {
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = vec![root().join(dir)];
    while let Some(path) = open.pop() {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if path.is_dir() {
            if !SKIPPED.contains(&name.as_str()) {
                let entries = fs::read_dir(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
                open.extend(entries.filter_map(|entry| Some(entry.ok()?.path())));
            }
        } else if ends.iter().any(|end| name.ends_with(end))
            && let Ok(text) = fs::read_to_string(&path)
        {
            let path = path.strip_prefix(root()).unwrap_or(&path).to_string_lossy().into_owned();
            found.push(File { path, text });
        }
    }
    found.sort_by(|one, other| one.path.cmp(&other.path));
    found
}

/// Rust sources of the crate itself.
fn sources() -> Vec<File> {
    files("src", &[".rs"])
}

/// Fails with every problem on a line of its own.
fn report(problems: &[String]) {
    assert!(problems.is_empty(), "{} to mend:\n  {}", problems.len(), problems.join("\n  "));
}

#[test]
fn the_walk_finds_what_there_is() {
    let paths: Vec<String> = files("", &[".rs", ".toml"]).into_iter().map(|file| file.path).collect();
    for expected in ["Cargo.toml", "src/lib.rs", "tests/tidy/main.rs"] {
        assert!(paths.iter().any(|path| path == expected), "{expected} is not in {paths:?}");
    }
    assert!(!paths.iter().any(|path| path.starts_with("target/")));
}
