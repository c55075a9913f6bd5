//! Compiles the protobuf interface with a compiler written in Rust (no protoc
//! on the machine), provides the CUDA kernels as one fatbin, and records which commit was built.

use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const PROTOS: [&str; 2] = ["proto/relevance/v1/relevance.proto", "proto/tei/v1/tei.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    compile_protos()?;
    provide_kernels()?;
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
        .codec_path("crate::server::grpc::weighed::WeighedCodec")
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}

const KERNELS: &str = "src/backend/cuda/kernels";
const PREBUILT: &str = "src/backend/cuda/prebuilt";

/// The committed fatbin, if it was made from these sources; else one made now by
/// `scripts/kernels.py`, which needs nvcc.
fn provide_kernels() -> Result<(), Box<dyn Error>> {
    for path in [KERNELS, PREBUILT, "scripts/kernels.py"] {
        println!("cargo:rerun-if-changed={path}");
    }
    for variable in ["NVCC", "CUDA_HOME"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    let out = PathBuf::from(env::var("OUT_DIR")?).join("kernels.fatbin");
    let prebuilt = Path::new(PREBUILT);
    let made_from = fs::read_to_string(prebuilt.join("kernels.hash")).unwrap_or_default();
    if made_from.trim() == format!("{:016x}", kernels_hash()?) {
        fs::copy(prebuilt.join("kernels.fatbin"), out)?;
        return Ok(());
    }
    let built = Command::new("python3").arg("scripts/kernels.py").arg("build").arg(&out).status();
    if built.is_ok_and(|status| status.success()) {
        return Ok(());
    }
    Err(format!("{KERNELS} is not what {PREBUILT} was made from, and scripts/kernels.py could not build it")
        .into())
}

/// FNV-1a over the sources' names and contents, in order of name; `scripts/kernels.py` has the same.
fn kernels_hash() -> Result<u64, Box<dyn Error>> {
    let mut paths =
        fs::read_dir(KERNELS)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>, Box<dyn Error>>>()?;
    paths.sort();
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        for byte in name.into_bytes().into_iter().chain(fs::read(&path)?) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
    Ok(hash)
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
