//! Builds the mock libraries, and runs tests in a process that finds them.

use std::{
    fmt,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::OnceLock,
};

/// Where the mock's libraries are.
#[derive(Clone)]
pub(super) struct Mock {
    directory: PathBuf,
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda")
}

fn compile(source: &str, to: &Path, arguments: &[&str]) {
    let output = compiler(source, to, arguments);
    assert!(output.status.success(), "{source}: {}", String::from_utf8_lossy(&output.stderr));
}

fn compiler(source: &str, to: &Path, arguments: &[&str]) -> Output {
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/backend/cuda/kernels");
    Command::new("g++")
        .args([
            "-std=c++17",
            "-O2",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-Wno-unknown-pragmas",
            // Of no consequence: nothing here was built by another compiler.
            "-Wno-psabi",
            "-U_FORTIFY_SOURCE",
        ])
        .arg("-I")
        .arg(sources())
        .arg("-I")
        .arg(kernels)
        .arg(sources().join(source))
        .args(arguments)
        .arg("-o")
        .arg(to)
        .output()
        .expect("g++ runs")
}

/// Past the test's capture: what is not tested should be seen.
fn skipped(why: fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}

impl Mock {
    /// Builds them once a process; `None`, said in a line, where there is no g++.
    pub(super) fn build() -> Option<Self> {
        static BUILT: OnceLock<Option<Mock>> = OnceLock::new();
        BUILT.get_or_init(Self::compile).clone()
    }

    fn compile() -> Option<Self> {
        if !Command::new("g++").arg("--version").output().is_ok_and(|output| output.status.success()) {
            skipped(format_args!("there is no g++ to build the mock GPU with"));
            return None;
        }
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("cuda-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory in target");
        let (driver, products) = (directory.join("libcuda.so.1"), directory.join("libcublasLt.so.13"));
        // Each has every kernel in it, and takes a quarter of a minute.
        std::thread::scope(|scope| {
            scope.spawn(|| compile("kernels.cpp", &directory.join("kernels"), &[]));
            let library = ["-fPIC", "-shared", "-Wl,-soname,libcuda.so.1"];
            compile("driver.cpp", &driver, &library);
            let driver = driver.to_string_lossy();
            let library = ["-fPIC", "-shared", &*driver, "-Wl,-soname,libcublasLt.so.13"];
            compile("cublaslt.cpp", &products, &library);
        });
        // cudarc asks for this name first, which the system may have, too.
        let _ = std::fs::remove_file(directory.join("libcublasLt.so"));
        std::os::unix::fs::symlink(&products, directory.join("libcublasLt.so")).expect("a link");
        Some(Self { directory })
    }

    /// Variables with which a process finds them.
    pub(super) fn found(&self) -> Vec<(&'static str, String)> {
        // On the shim what is fastest means nothing, and takes long to find.
        let library = ("VERDICT_CUDA_PRODUCTS", "library".to_owned());
        vec![("LD_LIBRARY_PATH", self.directory.to_string_lossy().into_owned()), library]
    }

    /// A directory with a cublasLt of so old a version, as another CUDA on the same machine has it.
    pub(super) fn older_cublaslt(&self) -> String {
        let directory = self.directory.join("older");
        std::fs::create_dir_all(&directory).expect("a directory in target");
        let source = directory.join("cublaslt.c");
        std::fs::write(&source, "unsigned long cublasLtGetVersion() { return 120900; }").expect("a source");
        let library = directory.join("libcublasLt.so");
        let built = Command::new("g++")
            .args(["-x", "c", "-shared", "-fPIC", "-o"])
            .args([&library, &source])
            .status();
        assert!(built.is_ok_and(|status| status.success()), "{} is not built", source.display());
        directory.to_string_lossy().into_owned()
    }

    /// Some of the same checks under a sanitizer; `None`, said in a line, where there is none.
    pub(super) fn run_sanitized(&self, sanitizer: &str) -> Option<Output> {
        let program = self.directory.join(format!("kernels-{sanitizer}"));
        let flag = format!("-fsanitize={sanitizer}");
        // The fibres' stacks are not what it takes them for.
        let arguments = [&flag, "-g", "-Wno-error=tsan", "--param", "asan-stack=0"];
        let built = compiler("kernels.cpp", &program, &arguments);
        let text = String::from_utf8_lossy(&built.stderr).into_owned();
        if text.contains("cannot find") {
            skipped(format_args!("g++ has no sanitizer for {sanitizer}"));
            return None;
        }
        assert!(built.status.success(), "kernels.cpp: {text}");
        let run = Command::new(program)
            .arg("few")
            .env("ASAN_OPTIONS", "detect_leaks=0")
            .env("TSAN_OPTIONS", "halt_on_error=1")
            .output()
            .expect("the checks run");
        if String::from_utf8_lossy(&run.stderr).contains("unexpected memory mapping") {
            skipped(format_args!("the sanitizer for {sanitizer} does not start on this kernel"));
            return None;
        }
        Some(run)
    }

    /// The kernels against their references.
    pub(super) fn run_kernel_checks(&self) -> Output {
        Command::new(self.directory.join("kernels")).output().expect("the checks run")
    }
}

/// Runs one test in a process of its own.
pub(super) fn run(name: &str, environment: &[(&str, String)]) -> Output {
    let program = std::env::current_exe().expect("this test's own path");
    Command::new(program)
        .args(["--ignored", "--exact", name, "--nocapture"])
        .envs(environment.iter().map(|(name, value)| (*name, value)))
        .output()
        .expect("this test runs again")
}

/// Whether this machine has a driver of its own.
pub(super) fn has_driver() -> bool {
    let listed = Command::new("ldconfig").arg("-p").output();
    let listed =
        listed.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    listed.contains("libcuda.so") || std::env::var_os("LD_LIBRARY_PATH").is_some()
}
