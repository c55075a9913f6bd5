//! The house rules: sizes, unsafe code, words, documents, commands.

use crate::{
    File,
    code::{block_end, code, is_word, line, without_tests, words},
    files, read, report, root, sources,
};

const MOST_LINES: usize = 500;
const MOST_FUNCTION_LINES: usize = 90;

/// Where `unsafe` may be, each with a SAFETY sentence.
const UNSAFE: [&str; 19] = [
    "src/backend/cpu/amx/mod.rs",
    "src/backend/cpu/amx/unit.rs",
    "src/backend/cpu/attention.rs",
    "src/backend/cpu/gemm.rs",
    "src/backend/cpu/isa.rs",
    "src/backend/cpu/peak.rs",
    "src/backend/cpu/shared.rs",
    "src/backend/cuda/choose.rs",
    "src/backend/cuda/gemm.rs",
    "src/backend/cuda/graph.rs",
    "src/backend/cuda/hopper.rs",
    "src/backend/cuda/lane.rs",
    "src/backend/cuda/memory.rs",
    "src/backend/cuda/mod.rs",
    "src/backend/cuda/start.rs",
    "src/backend/cuda/stream.rs",
    "src/backend/cuda/trial.rs",
    "src/main.rs",
    "src/model/weights.rs",
];

/// Names that say nothing.
const EMPTY_NAMES: [&str; 6] = ["Manager", "Helper", "Util", "Context", "Wrapper", "Base"];

/// Machine paths, registry hosts and the workshop: none of a reader's business. In
/// pieces, so that this file does not hold them.
const FORBIDDEN: [&str; 9] = [
    concat!("/wo", "rk/"),
    concat!("../", "shared"),
    concat!("/bash", "_jobs"),
    concat!(".lib", "rary/"),
    concat!("crates", ".io"),
    concat!("pypi", ".org"),
    concat!("pypi", ".io"),
    concat!("npmjs", "."),
    concat!("debian", ".org"),
];

const DOCUMENTS: [&str; 4] = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"];

fn long_file(file: &File) -> Option<String> {
    let lines = file.text.lines().count();
    (lines > MOST_LINES).then(|| format!("{}: {lines} lines, over {MOST_LINES}: split it", file.path))
}

fn long_functions(file: &File) -> Vec<String> {
    let bare = code(&file.text);
    let mut problems = Vec::new();
    for at in words(&bare, "fn") {
        let lines = bare[at..at + block_end(&bare[at..])].lines().count();
        if lines > MOST_FUNCTION_LINES {
            problems.push(format!(
                "{}:{}: a function of {lines} lines, over {MOST_FUNCTION_LINES}",
                file.path,
                line(&bare, at)
            ));
        }
    }
    problems
}

fn unsafe_code(file: &File) -> Vec<String> {
    let bare = code(&file.text);
    let lines: Vec<&str> = file.text.lines().collect();
    let mut problems = Vec::new();
    for at in words(&bare, "unsafe") {
        let number = line(&bare, at);
        // A declaration tells its callers what to promise; a block or an impl says why it holds.
        let declared = bare[at..].trim_start_matches("unsafe").trim_start().starts_with("fn");
        let word = if declared { "# Safety" } else { "SAFETY: " };
        let near = &lines[number.saturating_sub(8)..number];
        if !UNSAFE.contains(&file.path.as_str()) {
            problems.push(format!("{}:{number}: unsafe is not for this file", file.path));
        } else if !near.iter().any(|line| line.contains(word)) {
            problems.push(format!("{}:{number}: unsafe without a {word:?} sentence", file.path));
        }
    }
    problems
}

fn unwraps(file: &File) -> Vec<String> {
    if file.path.ends_with("/tests.rs") {
        return Vec::new();
    }
    let bare = without_tests(&code(&file.text));
    let at = bare.match_indices(".unwrap()").map(|(at, _)| line(&bare, at));
    at.map(|line| format!("{}:{line}: .unwrap(): return an error, or state the invariant", file.path))
        .collect()
}

fn empty_names(file: &File) -> Vec<String> {
    let bare = code(&file.text);
    let mut problems = Vec::new();
    for kind in ["struct", "enum", "trait", "type"] {
        for at in words(&bare, kind) {
            let name: String =
                bare[at + kind.len()..].trim_start().chars().take_while(|&c| is_word(c)).collect();
            if EMPTY_NAMES.iter().any(|empty| name.ends_with(empty) || name.starts_with(empty)) {
                problems.push(format!(
                    "{}:{}: {name} says nothing of what it is",
                    file.path,
                    line(&bare, at)
                ));
            }
        }
    }
    problems
}

fn forbidden(file: &File) -> Vec<String> {
    let at = FORBIDDEN.iter().flat_map(|word| file.text.match_indices(word));
    at.map(|(at, word)| format!("{}:{}: {word:?} has no place here", file.path, line(&file.text, at)))
        .collect()
}

/// The commands of the first fenced block.
fn first_commands(readme: &str) -> Vec<&str> {
    let block = readme.split("```").nth(1).unwrap_or_default();
    let lines = block.lines().skip(1).map(|line| line.split('#').next().unwrap_or_default().trim());
    lines.filter(|line| !line.is_empty()).collect()
}

/// The targets of a document's relative links.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let paths = targets.map(|target| target.split('#').next().unwrap_or_default());
    paths.filter(|path| !path.is_empty() && !path.contains("://") && !path.starts_with("mailto:"))
}

#[test]
fn files_and_functions_are_of_a_size_to_read() {
    let mut problems = Vec::new();
    for dir in ["src", "tests", "benches", "loadtest", "training", "scripts"] {
        let kinds = [".rs", ".py", ".sh", ".cu", ".cuh", ".cpp", ".h"];
        problems.extend(files(dir, &kinds).iter().filter_map(long_file));
    }
    // Not of tests, where a function may be a table of cases.
    for dir in ["src", "benches", "loadtest"] {
        problems.extend(files(dir, &[".rs"]).iter().flat_map(long_functions));
    }
    report(&problems);
}

#[test]
fn unsafe_is_rare_and_says_why() {
    report(&sources().iter().flat_map(unsafe_code).collect::<Vec<_>>());
}

#[test]
fn nothing_unwraps() {
    report(&sources().iter().flat_map(unwraps).collect::<Vec<_>>());
}

#[test]
fn names_say_what_things_are() {
    report(&sources().iter().flat_map(empty_names).collect::<Vec<_>>());
}

#[test]
fn no_machine_or_host_is_named() {
    let ends = [
        ".rs",
        ".toml",
        ".md",
        ".py",
        ".sh",
        ".proto",
        ".txt",
        ".yml",
        ".yaml",
        ".jsonl",
        "run",
        "justfile",
        "Dockerfile",
        ".dockerignore",
        "NOTICE",
        "CHANGELOG",
    ];
    report(&files("", &ends).iter().flat_map(forbidden).collect::<Vec<_>>());
}

#[test]
fn ci_runs_the_commands_of_the_readme() {
    let readme = read("README.md");
    let commands = first_commands(&readme);
    assert_eq!(
        commands,
        ["cargo run --release -- serve", "cargo test --release"],
        "the README's first block"
    );
    let ci = read("scripts/ci.sh");
    for command in commands {
        let run = ci.lines().any(|line| {
            line.trim().trim_end_matches('&').split("2>").next().unwrap_or_default().trim().ends_with(command)
        });
        assert!(run, "scripts/ci.sh does not run `{command}`");
    }
    assert!(read(".ci/run").contains("scripts/ci.sh") && read("justfile").contains("scripts/ci.sh"));
}

#[test]
fn documents_are_linked_and_their_links_lead_somewhere() {
    let linked: Vec<String> = ["README.md", "ARCHITECTURE.md"]
        .iter()
        .flat_map(|name| {
            let text = read(name);
            links(&text).map(str::to_owned).collect::<Vec<_>>()
        })
        .collect();
    let mut problems = Vec::new();
    for file in files("docs", &[".md"]) {
        if !linked.contains(&file.path) {
            problems.push(format!("{} is linked from neither README.md nor ARCHITECTURE.md", file.path));
        }
    }
    for file in files("", &[".md"]) {
        let folder = root().join(&file.path);
        let folder = folder.parent().unwrap_or(root());
        for link in links(&file.text).filter(|link| !folder.join(link).exists()) {
            problems.push(format!("{}: the link to {link} leads nowhere", file.path));
        }
    }
    for name in DOCUMENTS {
        assert!(read(name).len() > 200, "{name} says too little");
    }
    assert!(read("ARCHITECTURE.md").lines().count() < 150, "ARCHITECTURE.md is to be read in ten minutes");
    report(&problems);
}

/// Tests that a document names as `some_test` in a list of promises: those with four words or more.
fn named_tests(text: &str) -> Vec<&str> {
    let ticked = text.split('`').skip(1).step_by(2);
    ticked
        .filter(|name| {
            name.matches('_').count() >= 3 && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
        })
        .collect()
}

#[test]
fn what_security_promises_is_tested() {
    let tests: String = files("", &[".rs"]).into_iter().map(|file| file.text).collect();
    let text = read("docs/security.md");
    let names = named_tests(&text);
    assert!(names.len() > 20, "docs/security.md names {} tests", names.len());
    let missing = names.into_iter().filter(|name| !tests.contains(&format!("fn {name}(")));
    report(&missing.map(|name| format!("docs/security.md: there is no test {name}")).collect::<Vec<_>>());
}

#[test]
fn nothing_depends_on_the_wall_clock() {
    let wall = |file: &File| {
        let bare = without_tests(&code(&file.text));
        words(&bare, "SystemTime").map(|at| line(&bare, at)).collect::<Vec<_>>()
    };
    // An answer's date, which other servers' clients expect, and the start's may be of any clock; a span's
    // times are dates too, whose lengths are measured on the clock that never jumps.
    let dated = |file: &File| {
        ["src/server/dialects/rows.rs", "src/metrics/register.rs"].contains(&&*file.path)
            || file.path.starts_with("src/telemetry/")
    };
    let found = sources().into_iter().filter(|file| !dated(file)).flat_map(|file| {
        wall(&file).into_iter().map(move |line| format!("{}:{line}: a clock that may jump", file.path))
    });
    report(&found.collect::<Vec<_>>());
}

#[test]
fn what_breaks_a_rule_is_found() {
    let file = |path: &str, text: String| File { path: path.into(), text };
    assert!(long_file(&file("a.rs", "x\n".repeat(501))).is_some());
    assert!(long_file(&file("a.rs", "x\n".repeat(500))).is_none());
    let long = format!("fn short() {{}}\nfn long() {{\n{}}}\n", "    x();\n".repeat(90));
    assert_eq!(long_functions(&file("a.rs", long)), ["a.rs:2: a function of 92 lines, over 90"]);
    let block = "fn f() { unsafe { g() } }";
    assert!(unsafe_code(&file("src/grade.rs", block.into()))[0].contains("not for this file"));
    assert!(unsafe_code(&file(UNSAFE[0], block.into()))[0].contains("without a \"SAFETY: \""));
    assert!(unsafe_code(&file(UNSAFE[0], format!("// SAFETY: fine.\n{block}"))).is_empty());
    assert!(unsafe_code(&file("src/grade.rs", "#![deny(unsafe_code)] // unsafe".into())).is_empty());
    assert_eq!(unwraps(&file("src/a.rs", "fn f() { g().unwrap() }".into())).len(), 1);
    let tested = "#[cfg(test)]\nmod tests { fn f() { g().unwrap() } }";
    assert!(unwraps(&file("src/a.rs", tested.into())).is_empty());
    assert_eq!(empty_names(&file("a.rs", "struct QueueManager;\nenum Kind {}".into())).len(), 1);
    for word in FORBIDDEN {
        assert_eq!(forbidden(&file("a.md", format!("see {word}x"))).len(), 1, "{word}");
    }
    assert_eq!(first_commands("# A\n```sh\na b  # why\n\nc\n```\n```\nd\n```"), ["a b", "c"]);
    assert_eq!(named_tests("`a_b` `of_four_words_each` `A_b_c_d` x"), ["of_four_words_each"]);
    assert_eq!(links("[a](b.md#c) [d](https://e) [f](#g)").collect::<Vec<_>>(), ["b.md"]);
}
