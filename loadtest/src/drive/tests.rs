use super::*;
use crate::fake::{Fake, scored};

const SCENARIO: &str = "name = 'a'\nabout = 'b'\nslo_ms = 1000.0\n[[traffic]]\ndocuments = [1, 1]\nwords = [3, 4]\n\
    [[step]]\nseconds = 1.0\nrate = 5.0\n";
const FIRST: Lane = Lane { index: 0, of: 2 };

/// Two clients in a step that is over once they have asked.
async fn over_at_once(answer: fn() -> (u16, String)) -> Tally {
    let server = Fake::start(move |_, _| answer()).await;
    let client = Client::new(&server.url).expect("a client");
    let scenario: Scenario = toml::from_str(SCENARIO).expect("a scenario");
    let kinds: Vec<_> = scenario.traffic.iter().collect();
    waiting(&client, &scenario, &kinds, 2, Duration::ZERO, FIRST).await
}

#[tokio::test]
async fn what_waiting_clients_began_counts_though_it_ends_after_the_step() {
    let tally = over_at_once(scored).await;
    assert_eq!((tally.counts.sent, tally.counts.ok, tally.latency.spread().count), (2, 2, 2));
    assert_eq!(tally.inside.answers, 0, "not in the rate");
    let tally = over_at_once(|| (500, "no".into())).await;
    assert_eq!((tally.counts.sent, tally.counts.failed), (2, 2));
}

#[tokio::test]
async fn a_waiting_client_that_got_no_answer_leaves_the_server_alone() {
    let asked = |answer: fn() -> (u16, String)| async move {
        let server = Fake::start(move |_, _| answer()).await;
        let client = Client::new(&server.url).expect("a client");
        let scenario: Scenario = toml::from_str(SCENARIO).expect("a scenario");
        let kinds: Vec<_> = scenario.traffic.iter().collect();
        let counts = waiting(&client, &scenario, &kinds, 1, Duration::from_millis(50), FIRST).await.counts;
        (counts.sent, counts.refused, counts.failed)
    };
    // Each would have asked many times; one more as the step ends.
    assert_eq!(asked(|| (429, r#"{"retry_after_ms": 60000}"#.into())).await, (1, 1, 0));
    assert_eq!(asked(|| (500, "no".into())).await, (1, 0, 1));
}

/// One request that has been due for a minute.
async fn followed(retries: usize, answers: impl Fn(usize) -> (u16, String) + Send + Sync + 'static) -> Tally {
    let server = Fake::start(move |_, number| answers(number)).await;
    let client = Client::new(&server.url).expect("a client");
    let due = Instant::now() - Duration::from_secs(60);
    let shared = Shared::new(&client, Goal { slo_ms: 1000.0, ends: due + Duration::from_secs(3600) });
    let ask = Ask { body: "{}".into(), pairs: 1, ..Ask::default() };
    follow(&shared, Plan { ask, due, leaves_after: None, retries }, 0).await;
    shared.tally().clone()
}

fn refused() -> (u16, String) {
    (429, r#"{"retry_after_ms": 1}"#.into())
}

#[tokio::test]
async fn an_answer_that_needed_a_retry_counts_from_when_it_was_due_at_first() {
    let tally = followed(2, |number| if number < 2 { refused() } else { scored() }).await;
    let counts = tally.counts;
    assert_eq!(
        (counts.ok, counts.refused, counts.retried, counts.resent, counts.retried_ok),
        (1, 2, 1, 2, 1)
    );
    let p50 = tally.latency.ms(0.5).expect("an answer");
    assert!(p50 >= 59_900.0, "{p50} ms, to three digits");
    assert_eq!((tally.inside.answers, tally.inside.good), (1, 0), "not within the SLO");
}

#[tokio::test]
async fn who_is_told_that_no_retry_helps_is_refused_and_does_not_come_back() {
    let hopeless = |_| (504, r#"{"code": "deadline_exceeded", "retryable": false}"#.into());
    let counts = followed(3, hopeless).await.counts;
    assert_eq!((counts.refused, counts.retried, counts.resent, counts.late), (1, 0, 0, 0));
    let late = |_| (504, r#"{"code": "deadline_exceeded", "retryable": true}"#.into());
    let tally = followed(3, late).await;
    assert_eq!((tally.counts.refused, tally.counts.late, tally.refusal.spread().count), (0, 1, 0));
}
