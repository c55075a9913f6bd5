//! Tests that need the mock: it does what no GPU does when asked.

use tokio::sync::oneshot;
use verdict::error::Result;

use super::device::*;

/// A token whose embedding is no number, on a mock that is told so.
pub(super) const BAD_TOKEN: u32 = 99;

type Answer = oneshot::Receiver<Result<Scored>>;

/// After a fault of the device nothing is computed any more: the engine ends, and says why.
#[test]
#[ignore = "needs the mock that tests/cuda.rs builds"]
fn a_fault_of_the_device_ends_the_engine() {
    let model = model("qwen3");
    let (engine, guard) =
        Engine::start(on(Device::Cuda, &model), engine_config(), Arc::default()).expect("starts");
    let score = |tokens: &[u32]| {
        let (job, answer) = job(tokens, 0);
        engine.score_all(vec![job]);
        answer.blocking_recv().map_err(|_| "dropped")
    };
    score(&[20, 21, 22]).expect("answered").expect("scored");
    let error = score(&[20, BAD_TOKEN, 22]).expect("answered").expect_err("the device fails");
    assert_eq!(error.message(), "device: cuda: a pass: an error of the mock");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(guard.ended());
    assert!(!engine.is_alive(std::time::Duration::from_secs(3600)));
    let error = guard.stop().expect_err("it was lost");
    assert_eq!(error.message(), "device: cuda: it is lost: an error of the mock");
}

/// A number that is none stays with the prompts that hold the token that brings it.
#[test]
#[ignore = "needs the mock that tests/cuda.rs builds"]
fn a_number_that_is_none_stays_with_its_pair() {
    let model = model("qwen3");
    let config = engine_config();
    let metrics = Arc::default();
    let (engine, guard) = Engine::start(on(Device::Cuda, &model), config, metrics).expect("starts");
    let good: Vec<Vec<u32>> = (0..6).map(|i| vec![20, 21, 22, 23, 40 + i, 50, 60]).collect();
    let bad: Vec<Vec<u32>> = (0..3).map(|i| vec![20, 21, 22, BAD_TOKEN, 40 + i, 50, 60]).collect();
    let score = |prompts: &[&Vec<u32>]| {
        // Before and behind the bad one; the cache keeps the first four tokens.
        let (jobs, answers): (Vec<_>, Vec<_>) = prompts.iter().map(|tokens| job(tokens, 4)).unzip();
        engine.score_all(jobs);
        answers
            .into_iter()
            .map(|answer: Answer| answer.blocking_recv().expect("answered"))
            .collect::<Vec<_>>()
    };
    let expected = score(&good.iter().collect::<Vec<_>>());
    // Alone, so that the good ones' first tokens are computed beside the bad one.
    score(&[&bad[0]])[0].as_ref().expect_err("none of its numbers is finite");
    let mixed: Vec<_> = bad.iter().chain(&good).collect();
    for _ in 0..2 {
        for (i, result) in score(&mixed).into_iter().enumerate() {
            match result {
                Ok(score) => {
                    assert!(i >= bad.len(), "prompt {i} is finite");
                    let right = expected[i - bad.len()].as_ref().expect("finite");
                    assert_eq!(score.grade_logits, right.grade_logits);
                    assert_eq!(score.log_sum_exp, right.log_sum_exp);
                }
                Err(error) => {
                    assert!(i < bad.len(), "prompt {i}");
                    assert_eq!(error.message(), "the model gave a number that is not finite");
                }
            }
        }
    }
    guard.stop().expect("the engine stops");
}
