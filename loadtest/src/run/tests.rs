use super::*;
use crate::fake::{Fake, scored};

fn scenario(step: &str, expect: &str) -> Scenario {
    let text = format!(
        "name = 'a'\nabout = 'b'\nslo_ms = 100.0\n[[traffic]]\ndocuments = [1, 1]\nwords = [3, 4]\n{step}\n[expect]\n{expect}"
    );
    toml::from_str(&text).expect("a scenario")
}

const BURST: &str = "[[step]]\nseconds = 0.01\nrate = 400.0\narrivals = 'burst'\n";

async fn broken(answers: impl Fn(&str, usize) -> (u16, String) + Send + Sync + 'static) -> Vec<String> {
    let server = Fake::start(answers).await;
    let target = Target::at(server.url.clone(), None);
    run(&scenario(BURST, "failed = 0"), &target).await.expect("a run").broken
}

#[tokio::test]
async fn a_server_that_answers_nothing_is_not_as_expected() {
    assert!(broken(|_, _| scored()).await.is_empty());
    let silent = broken(|_, _| (503, String::new())).await;
    let nothing = "reported step 1 (400.0/s): nothing was answered";
    assert_eq!(silent, [nothing, "failed, 4 of them unavailable: 4, more than 0"]);
    for (status, body) in [(429, r#"{"retry_after_ms": 1}"#), (504, "")] {
        assert_eq!(broken(move |_, _| (status, body.into())).await, [nothing]);
    }
}

#[tokio::test]
async fn a_server_that_ends_midway_is_not_as_expected() {
    // Its page and one answer; the rest finds it shutting down.
    let some = |_: &str, number: usize| if number < 2 { scored() } else { (503, String::new()) };
    assert_eq!(broken(some).await, ["failed, 3 of them unavailable: 3, more than 0"]);
}

#[tokio::test]
async fn what_cannot_be_measured_here_is_refused_before_it_runs() {
    let target = Target::at("http://127.0.0.1:1".into(), None);
    let twice = BURST.repeat(2);
    for (step, expect, refusal) in [
        (
            &*twice,
            "growth_mib = 1.0",
            "growth_mib: only of a server that --serve started the memory can be read",
        ),
        (&*twice, "wasted = 0.1", "wasted: the server counts it; --admin says where"),
        (
            &*format!("{BURST}stop_after = 1.0\n"),
            "",
            "stop_after: only a server that --serve started can be told to stop",
        ),
    ] {
        let error = run(&scenario(step, expect), &target).await.expect_err("refused");
        assert_eq!(error.to_string(), refusal);
    }
}

#[tokio::test]
async fn an_admin_port_without_metrics_is_refused_before_it_runs() {
    let server = Fake::start(|_, _| (404, String::new())).await;
    let target = Target::at(server.url.clone(), Some(server.url.clone()));
    let error = run(&scenario(BURST, "wasted = 0.1"), &target).await.expect_err("refused");
    let expected = format!("{}/metrics: answered with 404 Not Found, expected 200 OK", server.url);
    assert_eq!(error.to_string(), expected);
    assert_eq!(server.bodies(), [""], "nothing was sent but that");
}

#[tokio::test]
async fn clients_that_wait_ask_nothing_twice_from_step_to_step_and_seed_to_seed() {
    let mut queries = Vec::new();
    for seed in [1, 2] {
        let server = Fake::start(|_, _| scored()).await;
        let target = Target::at(server.url.clone(), None);
        let step = "[[step]]\nseconds = 0.000001\nclients = 3\n";
        let mut scenario = scenario(&step.repeat(2), "");
        scenario.seed = seed;
        run(&scenario, &target).await.expect("a run");
        let asked = server.bodies().into_iter().filter(|body| !body.is_empty());
        queries.extend(asked.map(|body| {
            let body: serde_json::Value = serde_json::from_str(&body).expect("JSON");
            body["documents"].to_string()
        }));
    }
    let all = queries.len();
    queries.sort_unstable();
    queries.dedup();
    assert_eq!((queries.len(), all), (12, 12));
}
