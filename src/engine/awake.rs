//! A thread of the async runtime that is awake when answers are told.
//!
//! While a device computes, all who wait for it sleep, and the processor's cores with them; to wake one took 40 to 75
//! microseconds of each request's time (two cores of an AMD EPYC, November 2026). So a task is woken a little before a
//! pass should be over, and does nothing but give way until its answers are told: the thread that runs it looks for
//! other work all the time.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use tokio::sync::Notify;

/// How much sooner than expected, or later, a pass may be over: of what it should take, and besides.
const SHARE: f64 = 0.1;
const BESIDES: Duration = Duration::from_micros(150);

/// Cores that there must be: the engine's thread is awake, too, and so may those be who are to be told.
const CORES: usize = 4;

/// Whether this process may use as many cores as it takes to keep a thread awake.
pub(super) fn has_cores() -> bool {
    std::thread::available_parallelism().is_ok_and(|cores| cores.get() >= CORES)
}

/// Tells the task when to be awake.
#[derive(Debug)]
pub(super) struct Awake {
    started: Instant,
    /// Nanoseconds after `started`.
    until: AtomicU64,
    changed: Notify,
    over: AtomicBool,
}

impl Awake {
    pub(super) fn new(started: Instant) -> Self {
        Self { started, until: AtomicU64::new(0), changed: Notify::new(), over: AtomicBool::new(false) }
    }

    /// A pass that began at `since` should take so long. If it may soon be over at `now`, wakes the task, which is then
    /// awake for as long as that may last, and says so.
    pub(super) fn soon(&self, since: Instant, expected: Duration, now: Instant) -> bool {
        let (due, margin) = (since + expected, expected.mul_f64(SHARE) + BESIDES);
        let soon = now + margin >= due;
        if soon {
            let until = (due + margin).saturating_duration_since(self.started);
            self.until.store(until.as_nanos() as u64, Ordering::Relaxed);
            self.changed.notify_one();
        }
        soon
    }

    /// The answers are told: the task may sleep.
    pub(super) fn rest(&self) {
        self.until.store(0, Ordering::Relaxed);
    }

    /// Ends the task.
    pub(super) fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
        self.rest();
        self.changed.notify_one();
    }

    /// The task.
    pub(super) async fn stay(&self) {
        while !self.over.load(Ordering::Relaxed) {
            self.changed.notified().await;
            while (self.started.elapsed().as_nanos() as u64) < self.until.load(Ordering::Relaxed) {
                // The engine may have been given the same core, and looks whether the pass is over.
                std::thread::yield_now();
                tokio::task::yield_now().await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, pin::pin, sync::Arc};

    use super::*;

    #[test]
    fn it_is_woken_a_little_before_the_end() {
        let started = Instant::now();
        let awake = Awake::new(started);
        let since = started + Duration::from_secs(1);
        let ms = |ms: u64| Duration::from_millis(ms);
        assert!(!awake.soon(since, ms(10), since), "it has only begun");
        assert!(!awake.soon(since, ms(10), since + ms(8)), "earlier than a tenth");
        assert_eq!(awake.until.load(Ordering::Relaxed), 0);
        assert!(awake.soon(since, ms(10), since + ms(9)));
        assert_eq!(u128::from(awake.until.load(Ordering::Relaxed)), (ms(1011) + BESIDES).as_nanos());
        assert!(awake.soon(since, ms(10), since + ms(500)), "it is late");
        awake.rest();
        assert_eq!(awake.until.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn it_gives_way_until_answers_are_told_and_sleeps_then() {
        let awake = Arc::new(Awake::new(Instant::now()));
        let polls = Arc::new(AtomicU64::new(0));
        let (staying, counted) = (Arc::clone(&awake), Arc::clone(&polls));
        let task = tokio::spawn(async move {
            let mut stay = pin!(staying.stay());
            poll_fn(|context| {
                counted.fetch_add(1, Ordering::Relaxed);
                stay.as_mut().poll(context)
            })
            .await;
        });
        let polls_in_turns = async |turns: usize| {
            let before = polls.load(Ordering::Relaxed);
            for _ in 0..turns {
                tokio::task::yield_now().await;
            }
            polls.load(Ordering::Relaxed) - before
        };
        assert_eq!(polls_in_turns(20).await, 1, "asleep from the start");
        let now = Instant::now();
        assert!(awake.soon(now, Duration::from_secs(1000), now + Duration::from_secs(1000)));
        let busy = polls_in_turns(20).await;
        assert!(busy >= 10, "{busy} polls while awake");
        awake.rest();
        polls_in_turns(5).await;
        assert_eq!(polls_in_turns(20).await, 0, "asleep again");
        awake.end();
        task.await.expect("it ends");
    }
}
