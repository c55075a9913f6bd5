//! The CUDA backend. Without a GPU: the kernels on the CPU through a shim against references in
//! double precision (`tests/cuda/kernels.cpp`), and the whole backend on a mock of the driver and of
//! cublasLt (`tests/cuda/{driver,cublaslt}.cpp`), built here with g++. The tests of the modules
//! `device`, `lanes` and `mocked` are ignored by name: they run in a process of their own that finds the
//! mock, or, but for `mocked`, on a GPU as they are: `cuda-tests --ignored device:: lanes::`.

#[path = "cuda/device.rs"]
mod device;
#[path = "cuda/lanes.rs"]
mod lanes;
#[path = "cuda/mock.rs"]
mod mock;
#[path = "cuda/mocked.rs"]
mod mocked;
#[path = "common/prompts.rs"]
mod prompts;

use std::{
    path::Path,
    process::{Command, Output},
};

use mock::{Mock, run};

/// What a device test printed, if it passed.
fn passed(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("1 passed"), "no such test: {text}");
    text
}

/// What a device test prints that only opens its backends.
fn only_opened(name: &str, environment: &[(&str, String)]) -> String {
    passed(&run(name, &[environment, &[("VERDICT_TEST_ONLY_OPENS", "1".to_owned())]].concat()))
}

#[test]
fn kernels_match_their_references() {
    let Some(mock) = Mock::build() else { return };
    println!("{}", right(&mock.run_kernel_checks()));
}

/// What checks of kernels printed, if nothing was wrong.
fn right(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// No thread reads or writes outside of a buffer.
#[test]
fn kernels_keep_to_their_buffers() {
    sanitized("address");
}

/// No thread reads or writes what another one may still write or read.
#[test]
fn kernels_wait_for_each_other() {
    sanitized("thread");
}

fn sanitized(by: &str) {
    let Some(mock) = Mock::build() else { return };
    if let Some(output) = mock.run_sanitized(by) {
        println!("{by}: {}", right(&output));
    }
}

#[test]
fn probabilities_are_those_of_transformers() {
    let Some(mock) = Mock::build() else { return };
    let close = passed(&run("device::probabilities_are_those_of_transformers", &mock.found()));
    assert!(told(&close, "attentions of warpgroups") > 0 && told(&close, "early kernels") > 0, "{close}");
    // Only Hopper has those.
    let other = [mock.found(), vec![("MOCK_CUDA_CAPABILITY", "80".to_owned())]].concat();
    let text = passed(&run("device::probabilities_are_those_of_transformers", &other));
    assert_eq!((told(&text, "attentions of warpgroups"), told(&text, "early kernels")), (0, 0), "{text}");
    println!("{close}");
}

#[test]
fn the_same_pair_has_the_same_bits() {
    let Some(mock) = Mock::build() else { return };
    println!("{}", passed(&run("device::the_same_pair_has_the_same_bits", &mock.found())));
}

#[test]
fn among_many_rows_as_alone() {
    let Some(mock) = Mock::build() else { return };
    let text = passed(&run("device::among_many_rows_as_alone", &mock.found()));
    assert!(told(&text, "graphs") > 0, "{text}");
}

#[test]
fn caches_and_reasons_change_nothing() {
    let Some(mock) = Mock::build() else { return };
    println!("{}", passed(&run("device::caches_and_reasons_change_nothing", &mock.found())));
}

#[test]
fn a_refused_batch_leaves_the_next_one_well() {
    let Some(mock) = Mock::build() else { return };
    passed(&run("device::a_refused_batch_leaves_the_next_one_well", &mock.found()));
}

/// With products by our own kernels wherever they have the right bits.
fn by_our_own(mock: &Mock, more: &[(&'static str, &str)]) -> Vec<(&'static str, String)> {
    let more = more.iter().map(|(name, value)| (*name, (*value).to_owned()));
    mock.found().into_iter().chain([("VERDICT_CUDA_PRODUCTS", "own".to_owned())]).chain(more).collect()
}

/// How many products of each kind were only tried, at start, and how many there were in all, with passes.
fn tried_and_all<const N: usize>(environment: &[(&str, String)], kinds: [&str; N]) -> [(usize, usize); N] {
    let test = "device::among_many_rows_as_alone";
    let (tried, all) = (only_opened(test, environment), passed(&run(test, environment)));
    kinds.map(|of| (told(&tried, of), told(&all, of)))
}

const PLAIN: [&str; 3] = ["products of few rows", "products of many rows", "tall products"];
const GATED: [&str; 3] = ["gated of few", "gated of many", "gated of tall"];
/// Of the two checkpoints the one whose heads are not turned as they are computed.
const ONE: (&str, &str) = ("VERDICT_TEST_MODEL", "qwen3");

/// A pair alone has the bits that it has among others.
#[test]
fn products_of_our_own_change_nothing() {
    let Some(mock) = Mock::build() else { return };
    for (kind, (tried, all)) in PLAIN
        .into_iter()
        .chain(GATED)
        .zip([PLAIN, GATED].into_iter().flat_map(|kinds| tried_and_all(&by_our_own(&mock, &[ONE]), kinds)))
    {
        assert!(0 < tried && tried < all, "{kind}: {tried} were tried, {all} in all");
    }
    // One checkpoint has heads that are turned as they are computed, in few rows and in many: then `rotate` is the other
    // one's alone.
    let test = "device::among_many_rows_as_alone";
    let rotations = |more: &[_]| told(&passed(&run(test, &by_our_own(&mock, more))), "rotations");
    assert_eq!(2 * rotations(&[]), rotations(&[("MOCK_CUDA_WRONG_PRODUCTS", "turned")]));
}

/// They are found out when they are tried: all of a kind; those that are wrong only where one tile is finished while the
/// next one is multiplied; and those that do not add to what is there.
#[test]
fn products_of_our_own_that_are_wrong_are_not_used() {
    let Some(mock) = Mock::build() else { return };
    for (knob, kinds) in [
        (("MOCK_CUDA_WRONG_PRODUCTS", "rows"), PLAIN),
        (("MOCK_CUDA_WRONG_PRODUCTS", "gated"), GATED),
        (("MOCK_CUDA_WRONG_IN_TURN", "1"), ["gated of many"; 3]),
    ] {
        for (kind, (tried, all)) in
            kinds.into_iter().zip(tried_and_all(&by_our_own(&mock, &[ONE, knob]), kinds))
        {
            assert!(0 < tried && tried == all, "{knob:?}, {kind}: {tried} were tried, {all} in all");
        }
    }
    let of_many = ["products of many rows"];
    let [(tried, all)] = tried_and_all(&by_our_own(&mock, &[ONE, ("MOCK_CUDA_FORGETS_SUMS", "1")]), of_many);
    let [(_, right)] = tried_and_all(&by_our_own(&mock, &[ONE]), of_many);
    assert!(
        0 < tried && all - tried < right - tried.min(right),
        "{tried} were tried, {all} in all, {right} if right"
    );
}

/// Tiles that only gates have are chosen like others.
#[test]
fn gates_by_tiles_of_192_are_as_alone() {
    let Some(mock) = Mock::build() else { return };
    let name = "device::gates_by_tiles_of_192_are_as_alone";
    let own = ("VERDICT_CUDA_PRODUCTS", "own".to_owned());
    let environment = [mock.found(), vec![own]].concat();
    let all = told(&passed(&run(name, &environment)), "gated of 192");
    let tried = told(&only_opened(name, &environment), "gated of 192");
    assert!(0 < tried && tried < all, "{tried} were tried, {all} in all");
}

/// Where the device has no memory for recorded passes they are launched kernel by kernel.
#[test]
fn without_graphs_all_is_as_with_them() {
    let Some(mock) = Mock::build() else { return };
    let refused = [mock.found(), vec![("MOCK_CUDA_REFUSES_GRAPHS", "1".to_owned())]].concat();
    let text = passed(&run("device::among_many_rows_as_alone", &refused));
    assert_eq!(told(&text, "graphs"), 0, "{text}");
}

/// Decoding, caches and probabilities are by our own products what they are without.
#[test]
fn by_products_of_our_own_all_is_as_without() {
    let Some(mock) = Mock::build() else { return };
    let mut environment = mock.found();
    environment.push(("VERDICT_CUDA_PRODUCTS", "own".to_owned()));
    let steps = passed(&run("lanes::a_sequence_is_decoded_alone_as_among_others", &environment));
    assert!(told(&steps, "products of few rows") > 0, "{steps}");
    passed(&run("device::caches_and_reasons_change_nothing", &environment));
    passed(&run("device::probabilities_are_those_of_transformers", &environment));
    // Only Hopper has them.
    environment.push(("MOCK_CUDA_CAPABILITY", "100".to_owned()));
    let text = passed(&run("device::a_refused_batch_leaves_the_next_one_well", &environment));
    assert_eq!(told(&text, "products of few rows"), 0, "{text}");
}

/// Where cublasLt has other results than our own products, these are not used.
#[test]
fn products_of_our_own_are_used_by_the_librarys_bits_or_not_at_all() {
    let Some(mock) = Mock::build() else { return };
    let mode = [("VERDICT_CUDA_PRODUCTS", "own".to_owned()), ("MOCK_CUBLASLT_TURNED", "1".to_owned())];
    let turned = [mock.found(), mode.to_vec()].concat();
    let opened = only_opened("device::among_many_rows_as_alone", &turned);
    let bits = passed(&run("device::among_many_rows_as_alone", &turned));
    for of in ["products of few rows", "products of many rows", "gated of many"] {
        let tried = told(&opened, of);
        assert!(told(&bits, of) <= tried, "{of}: {opened}\n{bits}");
    }
}

/// One of the counts that the mock tells at its end.
fn told(text: &str, of: &str) -> usize {
    let line = text.lines().find_map(|line| line.split_once("mock: ")).expect("the mock reports").1;
    let part = line.split(", ").find_map(|part| part.strip_suffix(of)).unwrap_or_else(|| panic!("{line}"));
    part.trim().parse().expect("a number")
}

#[test]
fn passes_are_under_way_together_and_keep_to_themselves() {
    let Some(mock) = Mock::build() else { return };
    let text = passed(&run("lanes::passes_are_under_way_together_and_keep_to_themselves", &mock.found()));
    assert!(told(&text, "events too early") > 0, "nothing was under way: {text}");
    println!("{text}");
}

#[test]
fn what_one_lane_writes_the_other_reads_when_it_is_there() {
    let Some(mock) = Mock::build() else { return };
    for seed in 0..4 {
        let mut environment = mock.found();
        environment.push(("MOCK_CUDA_SEED", seed.to_string()));
        let text = passed(&run("lanes::what_one_lane_writes_the_other_reads_when_it_is_there", &environment));
        assert_eq!(told(&text, "waits"), 16, "each pass after the first waits once: {text}");
    }
}

#[test]
fn a_sequence_is_decoded_alone_as_among_others() {
    let Some(mock) = Mock::build() else { return };
    let text = passed(&run("lanes::a_sequence_is_decoded_alone_as_among_others", &mock.found()));
    assert!(told(&text, "patient kernels") > 0 && told(&text, "urgent kernels") > 0, "{text}");
}

#[test]
fn reasons_beside_scores_are_what_they_are_alone() {
    let Some(mock) = Mock::build() else { return };
    for seed in 0..3 {
        let mut environment = mock.found();
        environment.push(("MOCK_CUDA_SEED", seed.to_string()));
        let text = passed(&run("lanes::reasons_beside_scores_are_what_they_are_alone", &environment));
        assert!(told(&text, "patient kernels") > 0 && told(&text, "graphs") > 0, "{text}");
    }
}

#[test]
fn a_number_that_is_none_stays_with_its_pair() {
    let Some(mock) = Mock::build() else { return };
    let mut environment = mock.found();
    environment.push(("MOCK_CUDA_NAN_TOKEN", mocked::BAD_TOKEN.to_string()));
    passed(&run("mocked::a_number_that_is_none_stays_with_its_pair", &environment));
    // The test can fail: without such a token there is no error to be had.
    let output = run("mocked::a_number_that_is_none_stays_with_its_pair", &mock.found());
    assert!(!output.status.success());
}

#[test]
fn a_fault_of_the_device_ends_the_engine() {
    let Some(mock) = Mock::build() else { return };
    let mut environment = mock.found();
    environment.push(("MOCK_CUDA_FAULT_TOKEN", mocked::BAD_TOKEN.to_string()));
    passed(&run("mocked::a_fault_of_the_device_ends_the_engine", &environment));
}

#[test]
fn the_vocabulary_is_read_only_where_it_is_asked_for() {
    let Some(mock) = Mock::build() else { return };
    passed(&run("lanes::the_vocabulary_is_read_only_where_it_is_asked_for", &mock.found()));
}

/// What `--device cuda` says in an environment, and that `auto` then takes the CPU.
fn refusal(environment: &[(&str, String)]) -> String {
    let text = passed(&run("device::says_what_it_opens", environment));
    assert!(text.contains("auto: cpu ("), "{text}");
    let line = text.lines().find_map(|line| line.strip_prefix("cuda: refused: "));
    line.unwrap_or_else(|| panic!("it was opened: {text}")).to_owned()
}

#[test]
fn without_a_driver_it_says_so() {
    // The system's own driver is out of sight only where there is none.
    let text = passed(&run("device::says_what_it_opens", &[]));
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
    let blocks = with("VERDICT_TEST_KV_MIB", "100000");
    assert!(blocks.starts_with("device: cuda: 100001 MiB for the KV blocks ("), "{blocks}");
    assert!(blocks.ends_with(" MiB are free): out of memory"), "{blocks}");
    let library = with("VERDICT_CUBLASLT_DIR", "/nowhere");
    let expected = "device: cuda: libcublasLt.so.13 was not found; set VERDICT_CUBLASLT_DIR to its directory; \
                    tried /nowhere/libcublasLt.so.13";
    assert_eq!(library, expected);
    // What another CUDA on the machine calls by the name that cudarc asks for first.
    let found = mock.found();
    let mine = found.iter().find_map(|(name, value)| (*name == "LD_LIBRARY_PATH").then_some(value));
    let mine = mine.expect("a directory");
    let both = format!("{}:{mine}", mock.older_cublaslt());
    let older = with("LD_LIBRARY_PATH", &both);
    let expected = "device: cuda: the system's libcublasLt.so has version 120900, 130000 or newer is needed; \
                    one that LD_LIBRARY_PATH leads to by that name comes before it";
    assert_eq!(older, expected);
    let named = [("LD_LIBRARY_PATH", both), ("VERDICT_CUBLASLT_DIR", mine.clone())];
    let named = refusal(&[found.clone(), named.to_vec()].concat());
    assert!(named.starts_with("device: cuda: VERDICT_CUBLASLT_DIR: "), "{named}");
    assert!(named.contains("libcublasLt.so.13 would not be used: the system has another"), "{named}");
    let products = with("VERDICT_CUDA_PRODUCTS", "mine");
    assert_eq!(products, "device: cuda: VERDICT_CUDA_PRODUCTS is fastest, own or library, not \"mine\"");
    let own =
        [("VERDICT_CUDA_PRODUCTS", "own".to_owned()), ("MOCK_CUDA_FAULT_KERNEL", "few_rows".to_owned())];
    let fault = refusal(&[mock.found(), own.to_vec()].concat());
    let expected = "device: cuda: a product: an error of the mock; \
                    VERDICT_CUDA_PRODUCTS=library leaves out products of our own";
    assert_eq!(fault, expected);
    // The thread that is stuck keeps the device: to free its memory would be to wait for it.
    let endless = [
        ("VERDICT_CUDA_PRODUCTS", "own".to_owned()),
        ("MOCK_CUDA_ENDLESS_KERNEL", "few_rows".to_owned()),
        ("VERDICT_TEST_STALL_SECONDS", "1".to_owned()),
    ];
    let endless = refusal(&[mock.found(), endless.to_vec()].concat());
    assert!(endless.starts_with("device: cuda: a product of "), "{endless}");
    let expected = "has not ended for 1s; VERDICT_CUDA_PRODUCTS=library leaves out products of our own";
    assert!(endless.ends_with(expected), "{endless}");
    let other = with("VERDICT_CUDA_KERNELS", "/nowhere/k.fatbin");
    assert!(other.starts_with("device: cuda: VERDICT_CUDA_KERNELS: /nowhere/k.fatbin: "), "{other}");
    // The driver would read on behind its end.
    let whole = concat!(env!("CARGO_MANIFEST_DIR"), "/src/backend/cuda/prebuilt/kernels.fatbin");
    let image = std::fs::read(whole).expect("the committed kernels");
    let cut = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cut.fatbin");
    for part in [&image[..image.len() - 1], &image[..9], &[]] {
        std::fs::write(&cut, part).expect("a file");
        let refused = with("VERDICT_CUDA_KERNELS", &cut.to_string_lossy());
        assert_eq!(refused, "device: cuda: VERDICT_CUDA_KERNELS: it names no whole fatbin");
    }
}

/// Also if the driver waits for it when the process ends.
#[test]
fn a_kernel_that_never_ends_does_not_hold_the_process() {
    let Some(mock) = Mock::build() else { return };
    let mut environment = mock.found();
    environment.extend([
        ("VERDICT_CUDA_PRODUCTS", "own".to_owned()),
        ("MOCK_CUDA_ENDLESS_KERNEL", "few_rows".to_owned()),
        ("MOCK_CUDA_WAITS_AT_EXIT", "1".to_owned()),
    ]);
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/qwen3");
    let output = Command::new("timeout")
        // It would not end by a signal that the program waits for.
        .args(["-s", "KILL", "60", env!("CARGO_BIN_EXE_verdict"), "serve"])
        .args(["--device", "cuda", "--stall", "1s"])
        .args(["--port", "0", "--admin-port", "0", "--model", model])
        .envs(environment)
        .output()
        .expect("runs");
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{told}");
    assert!(told.contains("has not ended for 1s; VERDICT_CUDA_PRODUCTS=library leaves out"), "{told}");
}

#[test]
fn with_a_gpu_auto_takes_it() {
    let Some(mock) = Mock::build() else { return };
    let text = passed(&run("device::says_what_it_opens", &mock.found()));
    assert!(text.contains("cuda: cuda (Mock GPU, compute capability 9.0)"), "{text}");
    assert!(text.contains("auto: cuda (Mock GPU, compute capability 9.0)"), "{text}");
}
