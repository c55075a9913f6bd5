//! The CUDA backend. Without a GPU: the kernels on the CPU through a shim against references in
//! double precision (`tests/cuda/kernels.cpp`), and the whole backend on a mock of the driver and of
//! cublasLt (`tests/cuda/{driver,cublaslt}.cpp`), built here with g++. The tests of the module
//! `device` are ignored by name: they run in a process of their own that finds the mock, or, on a
//! GPU, as they are: `cuda-tests --ignored device::`.

#[path = "cuda/device.rs"]
mod device;
#[path = "cuda/mock.rs"]
mod mock;
#[path = "common/prompts.rs"]
mod prompts;

use std::process::Output;

use mock::{Mock, run_device_test};

/// What a device test printed, if it passed.
fn passed(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("1 passed"), "no such test: {text}");
    text
}

#[test]
fn kernels_match_their_references() {
    let Some(mock) = Mock::build() else { return };
    let output = mock.run_kernel_checks();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    println!("{text}");
}

#[test]
fn probabilities_are_those_of_transformers() {
    let Some(mock) = Mock::build() else { return };
    println!("{}", passed(&run_device_test("probabilities_are_those_of_transformers", &mock.found())));
}

#[test]
fn the_same_pair_has_the_same_bits() {
    let Some(mock) = Mock::build() else { return };
    println!("{}", passed(&run_device_test("the_same_pair_has_the_same_bits", &mock.found())));
}

#[test]
fn caches_and_reasons_change_nothing() {
    let Some(mock) = Mock::build() else { return };
    println!("{}", passed(&run_device_test("caches_and_reasons_change_nothing", &mock.found())));
}

#[test]
fn a_refused_batch_leaves_the_next_one_well() {
    let Some(mock) = Mock::build() else { return };
    passed(&run_device_test("a_refused_batch_leaves_the_next_one_well", &mock.found()));
}

/// What `--device cuda` says in an environment, and that `auto` then takes the CPU.
fn refusal(environment: &[(&str, String)]) -> String {
    let text = passed(&run_device_test("says_what_it_opens", environment));
    assert!(text.contains("auto: cpu ("), "{text}");
    let line = text.lines().find_map(|line| line.strip_prefix("cuda: refused: "));
    line.unwrap_or_else(|| panic!("it was opened: {text}")).to_owned()
}

#[test]
fn without_a_driver_it_says_so() {
    // The system's own driver is out of sight only where there is none.
    let text = passed(&run_device_test("says_what_it_opens", &[]));
    if text.contains("cuda: refused: ") {
        assert!(text.contains("auto: cpu ("), "{text}");
        assert!(text.contains("cuda: refused: device: cuda: "), "{text}");
    }
    if !mock::has_driver() {
        let line = "cuda: refused: device: cuda: there is no NVIDIA driver (libcuda.so.1 was not found)\n";
        assert!(text.contains(line), "{text}");
    }
}

#[test]
fn each_way_to_have_no_gpu_is_one_line() {
    let Some(mock) = Mock::build() else { return };
    let with = |name: &'static str, value: &str| {
        let mut environment = mock.found();
        environment.push((name, value.to_owned()));
        refusal(&environment)
    };
    let none = "device: cuda: the NVIDIA driver is there, but it sees no GPU";
    assert_eq!(with("MOCK_CUDA_DEVICES", "0"), none);
    assert_eq!(with("MOCK_CUDA_INIT", "100"), none);
    let broken = with("MOCK_CUDA_INIT", "999");
    assert_eq!(broken, "device: cuda: the NVIDIA driver does not start: an error of the mock");
    let old = "device: cuda: Mock GPU has compute capability 7.5; 8.0 or newer is needed";
    assert_eq!(with("MOCK_CUDA_CAPABILITY", "75"), old);
    let kernels = "device: cuda: the kernels are refused by the driver: device kernel image is invalid";
    assert_eq!(with("MOCK_CUDA_REFUSES_KERNELS", "1"), kernels);
    let memory = with("MOCK_CUDA_MEMORY_MIB", "0");
    assert!(
        memory.starts_with("device: cuda: 0 MiB for the weights (0 MiB are free): out of memory"),
        "{memory}"
    );
    let library = with("VERDICT_CUBLASLT_DIR", "/nowhere");
    let expected = "device: cuda: libcublasLt.so.13 was not found; set VERDICT_CUBLASLT_DIR to its directory; \
                    tried /nowhere/libcublasLt.so.13";
    assert_eq!(library, expected);
    let other = with("VERDICT_CUDA_KERNELS", "/nowhere/k.fatbin");
    assert!(other.starts_with("device: cuda: VERDICT_CUDA_KERNELS: /nowhere/k.fatbin: "), "{other}");
}

#[test]
fn with_a_gpu_auto_takes_it() {
    let Some(mock) = Mock::build() else { return };
    let text = passed(&run_device_test("says_what_it_opens", &mock.found()));
    assert!(text.contains("cuda: cuda (Mock GPU, compute capability 9.0)"), "{text}");
    assert!(text.contains("auto: cuda (Mock GPU, compute capability 9.0)"), "{text}");
}
