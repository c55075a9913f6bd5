//! Sends a step's requests when they are due, whatever has become of those before.

use std::{
    io::Write as _,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{runtime::Handle, task::JoinHandle};

use crate::{
    arrivals,
    client::{Client, Outcome},
    scenario::{Scenario, Step, Traffic},
    tally::{Goal, Tally, shown},
    texts::{Ask, Lane, Texts},
};

/// Requests under way at once: past it the client is what is overloaded, and says so.
const MOST_OPEN: usize = 20_000;
/// How often the line of progress is written anew.
const PROGRESS: Duration = Duration::from_millis(500);
/// How long a waiting client that got no answer leaves a server alone that did not say.
const UNTOLD: Duration = Duration::from_millis(100);

/// What every request of a step needs.
#[derive(Clone)]
struct Shared {
    client: Client,
    tally: Arc<Mutex<Tally>>,
    open: Arc<AtomicUsize>,
    goal: Goal,
}

impl Shared {
    fn new(client: &Client, goal: Goal) -> Self {
        Self { client: client.clone(), tally: Arc::default(), open: Arc::default(), goal }
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request and what its client will do.
struct Plan {
    ask: Ask,
    due: Instant,
    leaves_after: Option<Duration>,
    retries: usize,
}

/// Runs one step at `rate` requests a second and waits for its last answer.
pub(crate) async fn step(
    client: &Client,
    scenario: &Scenario,
    step: &Step,
    rate: f64,
    texts: &mut Texts,
    random: &mut fastrand::Rng,
) -> Tally {
    let span = Duration::from_secs_f64(step.seconds);
    let kinds = scenario.kinds(step);
    // Made beforehand: making texts takes time that sending them has not.
    let times = arrivals::times(step.arrivals, rate, span, random);
    let mut plans: Vec<(Duration, Plan)> = Vec::with_capacity(times.len());
    for time in times {
        let traffic = choose(&kinds, random);
        let leaves = random.f64() < traffic.cancel;
        let after = Duration::from_secs_f64(random.f64() * traffic.cancel_within_ms / 1e3);
        let ask = texts.ask(traffic);
        let leaves_after = leaves.then_some(after);
        plans.push((time, Plan { ask, due: Instant::now(), leaves_after, retries: traffic.retries }));
    }
    let began = Instant::now();
    let shared = Shared::new(client, Goal { slo_ms: scenario.slo_ms, ends: began + span });
    let progress = tokio::spawn(report(shared.clone(), began, rate));
    let (sender, runtime) = (shared.clone(), Handle::current());
    let sent = tokio::task::spawn_blocking(move || send_when_due(&sender, plans, began, &runtime)).await;
    let running = sent.unwrap_or_else(|error| {
        shared.tally().failure(format!("the client's fault: {error}"));
        Vec::new()
    });
    for task in running {
        if let Err(error) = task.await {
            shared.tally().failure(format!("the client's fault: {error}"));
        }
    }
    progress.abort();
    eprint!("\r\x1b[K");
    shared.tally().clone()
}

/// Starts each request at its time, on a thread of its own: the runtime's timers count milliseconds, and what they are late
/// would be taken for the server's.
#[expect(clippy::disallowed_methods, reason = "the thread has nothing else to do")]
fn send_when_due(
    shared: &Shared,
    plans: Vec<(Duration, Plan)>,
    began: Instant,
    runtime: &Handle,
) -> Vec<JoinHandle<()>> {
    let mut running = Vec::with_capacity(plans.len());
    for (number, (time, mut plan)) in plans.into_iter().enumerate() {
        plan.due = began + time;
        std::thread::sleep(plan.due.saturating_duration_since(Instant::now()));
        shared.tally().counts.sent += 1;
        if shared.open.fetch_add(1, Ordering::Relaxed) >= MOST_OPEN {
            shared.open.fetch_sub(1, Ordering::Relaxed);
            shared.tally().failure(format!("not sent: {MOST_OPEN} requests are open"));
            continue;
        }
        let one = shared.clone();
        running.push(runtime.spawn(async move {
            follow(&one, plan, number).await;
            one.open.fetch_sub(1, Ordering::Relaxed);
        }));
    }
    running
}

/// Clients that wait for each answer before they ask again, for `span`, without deadlines: what a server does
/// at most, and how long each answer took. One that is refused waits as it is told. Each asks at least once, and what was begun is counted, however
/// late it ends. The first client is the `first` of all lanes of requests.
pub(crate) async fn waiting(
    client: &Client,
    scenario: &Scenario,
    kinds: &[&Traffic],
    clients: usize,
    span: Duration,
    first: Lane,
) -> Tally {
    let shared = Shared::new(client, Goal { slo_ms: scenario.slo_ms, ends: Instant::now() + span });
    let running: Vec<_> = (0..clients)
        .map(|number| {
            let kinds: Vec<Traffic> = kinds.iter().map(|kind| (*kind).clone()).collect();
            let lane = Lane { index: first.index + number as u64, ..first };
            tokio::spawn(ask_and_wait(shared.clone(), kinds, scenario.seed, lane, number))
        })
        .collect();
    for task in running {
        if let Err(error) = task.await {
            shared.tally().failure(format!("the client's fault: {error}"));
        }
    }
    shared.tally().clone()
}

/// One client that waits.
async fn ask_and_wait(shared: Shared, kinds: Vec<Traffic>, seed: u64, lane: Lane, number: usize) {
    let mut texts = Texts::new(seed, lane);
    let mut random = texts.random();
    let kinds: Vec<&Traffic> = kinds.iter().collect();
    loop {
        let mut ask = texts.ask(choose(&kinds, &mut random));
        ask.relax();
        let sent = Instant::now();
        shared.tally().counts.sent += 1;
        match shared.client.send(&ask, number).await {
            Outcome::Ok(answer) => shared.tally().answered(&answer, sent, sent, shared.goal, &ask),
            Outcome::Refused(told) => {
                shared.tally().refused(sent.elapsed(), false);
                pause(told.unwrap_or(UNTOLD), shared.goal.ends).await;
            }
            other => {
                shared.tally().ended(other);
                pause(UNTOLD, shared.goal.ends).await;
            }
        }
        if Instant::now() >= shared.goal.ends {
            return;
        }
    }
}

/// No longer than until the step ends.
async fn pause(wait: Duration, ends: Instant) {
    tokio::time::sleep(wait.min(ends.saturating_duration_since(Instant::now()))).await;
}

fn choose<'a>(traffic: &[&'a Traffic], random: &mut fastrand::Rng) -> &'a Traffic {
    let mut at = random.f64() * traffic.iter().map(|kind| kind.share).sum::<f64>();
    let found = traffic.iter().find(|kind| {
        at -= kind.share;
        at < 0.0
    });
    found.copied().unwrap_or(traffic[traffic.len() - 1])
}

/// One request to its end, with its client's leaving or coming back.
async fn follow(shared: &Shared, plan: Plan, number: usize) {
    let Plan { ask, due, leaves_after, retries } = plan;
    for attempt in 0..=retries {
        let sent = Instant::now();
        shared.tally().counts.resent += u64::from(attempt > 0);
        let answer = shared.client.send(&ask, number);
        let outcome = match leaves_after {
            None => answer.await,
            Some(after) => match tokio::time::timeout_at((due + after).into(), answer).await {
                Ok(outcome) => outcome,
                Err(_) => {
                    shared.tally().counts.left += 1;
                    return;
                }
            },
        };
        match outcome {
            Outcome::Ok(answer) => {
                let mut tally = shared.tally();
                tally.counts.retried_ok += u64::from(attempt > 0);
                // From when it was due at first: refusals and waits are a part of what its client waits.
                return tally.answered(&answer, due, sent, shared.goal, &ask);
            }
            Outcome::Refused(wait) => {
                let wait = wait.filter(|_| attempt < retries);
                // From its sending: what the client's own lateness adds is no refusal's time.
                shared.tally().refused(sent.elapsed(), attempt == 0 && wait.is_some());
                let Some(wait) = wait else { return };
                tokio::time::sleep(wait).await;
            }
            other => return shared.tally().ended(other),
        }
    }
}

async fn report(shared: Shared, began: Instant, rate: f64) {
    loop {
        tokio::time::sleep(PROGRESS).await;
        let (seconds, open) = (began.elapsed().as_secs_f64(), shared.open.load(Ordering::Relaxed));
        let tally = shared.tally().clone();
        eprint!(
            "\r\x1b[K{seconds:5.1} s  {rate:.1}/s  sent {}  ok {} ({:.1}/s)  p50 {} p99 {} ms  refused {}  late {}  left {}  failed {}  open {open}",
            tally.counts.sent,
            tally.counts.ok,
            tally.counts.ok as f64 / seconds,
            shown(tally.latency.ms(0.5)),
            shown(tally.latency.ms(0.99)),
            tally.counts.refused,
            tally.counts.late,
            tally.counts.left,
            tally.counts.failed,
        );
        // A line that cannot be written is only a line.
        let _ = std::io::stderr().flush();
    }
}

#[cfg(test)]
mod tests;
