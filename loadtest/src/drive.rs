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
    tally::Tally,
    texts::{Ask, Texts},
};

/// Requests under way at once: past it the client is what is overloaded, and says so.
const MOST_OPEN: usize = 20_000;
/// How often the line of progress is written anew.
const PROGRESS: Duration = Duration::from_millis(500);

/// What every request of a step needs.
#[derive(Clone)]
struct Shared {
    client: Client,
    tally: Arc<Mutex<Tally>>,
    open: Arc<AtomicUsize>,
    slo_ms: f64,
}

impl Shared {
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
    let shared = Shared {
        client: client.clone(),
        tally: Arc::default(),
        open: Arc::default(),
        slo_ms: scenario.slo_ms,
    };
    let began = Instant::now();
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

/// Clients that wait for each answer before they ask again, for `span`, without
/// deadlines: what a server does at most, and how long each answer took.
pub(crate) async fn waiting(
    client: &Client,
    scenario: &Scenario,
    kinds: &[&Traffic],
    clients: usize,
    span: Duration,
) -> Tally {
    let end = Instant::now() + span;
    let shared = Shared {
        client: client.clone(),
        tally: Arc::default(),
        open: Arc::default(),
        slo_ms: scenario.slo_ms,
    };
    let running: Vec<_> = (0..clients)
        .map(|number| {
            let (one, kinds): (Shared, Vec<Traffic>) =
                (shared.clone(), kinds.iter().map(|kind| (*kind).clone()).collect());
            tokio::spawn(async move {
                let mut texts = Texts::new(1_000_003 * (number as u64 + 1));
                let mut random = fastrand::Rng::with_seed(number as u64);
                let kinds: Vec<&Traffic> = kinds.iter().collect();
                while Instant::now() < end {
                    let mut ask = texts.ask(choose(&kinds, &mut random));
                    ask.relax();
                    let due = Instant::now();
                    let outcome = one.client.send(&ask, number).await;
                    if Instant::now() >= end {
                        break;
                    }
                    one.tally().counts.sent += 1;
                    match outcome {
                        Outcome::Ok(answer) => {
                            one.tally().answered(&answer, Duration::ZERO, one.slo_ms, &ask);
                        }
                        Outcome::Refused(_) => one.tally().refused(due.elapsed(), false),
                        Outcome::Unavailable => one.tally().counts.unavailable += 1,
                        Outcome::Gone => one.tally().counts.gone += 1,
                        Outcome::Cut => one.tally().counts.cut += 1,
                        Outcome::Late => one.tally().counts.late += 1,
                        Outcome::Failed(why) => one.tally().failure(why),
                    }
                }
            })
        })
        .collect();
    for task in running {
        if let Err(error) = task.await {
            shared.tally().failure(format!("the client's fault: {error}"));
        }
    }
    shared.tally().clone()
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
        let (due, last) = (if attempt == 0 { due } else { sent }, attempt == retries);
        match outcome {
            Outcome::Ok(answer) => {
                let mut tally = shared.tally();
                tally.counts.retried_ok += u64::from(attempt > 0);
                return tally.answered(&answer, sent - due, shared.slo_ms, &ask);
            }
            Outcome::Refused(wait) => {
                // From its sending: what the client's own lateness adds is no refusal's time.
                shared.tally().refused(sent.elapsed(), attempt == 0 && !last);
                if !last {
                    tokio::time::sleep(wait).await;
                }
            }
            Outcome::Unavailable => return shared.tally().counts.unavailable += 1,
            Outcome::Gone => return shared.tally().counts.gone += 1,
            Outcome::Cut => return shared.tally().counts.cut += 1,
            Outcome::Late => return shared.tally().counts.late += 1,
            Outcome::Failed(why) => return shared.tally().failure(why),
        }
    }
}

async fn report(shared: Shared, began: Instant, rate: f64) {
    loop {
        tokio::time::sleep(PROGRESS).await;
        let (seconds, open) = (began.elapsed().as_secs_f64(), shared.open.load(Ordering::Relaxed));
        let tally = shared.tally().clone();
        eprint!(
            "\r\x1b[K{seconds:5.1} s  {rate:.1}/s  sent {}  ok {} ({:.1}/s)  p50 {:.0} p99 {:.0} ms  refused {}  late {}  left {}  failed {}  open {open}",
            tally.counts.sent,
            tally.counts.ok,
            tally.counts.ok as f64 / seconds,
            tally.latency.ms(0.5),
            tally.latency.ms(0.99),
            tally.counts.refused,
            tally.counts.late,
            tally.counts.left,
            tally.counts.failed,
        );
        // A line that cannot be written is only a line.
        let _ = std::io::stderr().flush();
    }
}
