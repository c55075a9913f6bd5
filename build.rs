//! Compiles the protobuf interface with a compiler written in Rust (no protoc
//! on the machine), and records which commit was built.

use std::{env, error::Error, fs, path::PathBuf, process::Command};

const PROTOS: [&str; 2] = ["proto/relevance/v1/relevance.proto", "proto/tei/v1/tei.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    compile_protos()?;
    record_commit();
    Ok(())
}

fn compile_protos() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).include_source_info(true).open_files(PROTOS)?;
    // What reflection serves.
    fs::write(out.join("services.fds"), compiler.encode_file_descriptor_set())?;
    tonic_prost_build::configure()
        .btree_map(".")
        .build_transport(true)
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}

/// `VERDICT_COMMIT` from the environment (an image built without `.git`), else
/// from git, else empty: building outside a repository is fine.
fn record_commit() {
    println!("cargo:rerun-if-env-changed=VERDICT_COMMIT");
    let commit = match env::var("VERDICT_COMMIT") {
        Ok(commit) => commit,
        Err(_) => {
            if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
                println!("cargo:rerun-if-changed={log}");
            }
            git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_default()
        }
    };
    println!("cargo:rustc-env=VERDICT_COMMIT={commit}");
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned()).filter(|text| !text.is_empty())
}
