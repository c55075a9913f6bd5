//! Whole-request admission in pairs and tokens.
//!
//! A request is taken whole or refused at once, *before* it is tokenized, on an
//! upper bound of its tokens; tokenizing corrects the bound. What it holds is
//! split into one [`Permit`] per pair that travels in the job, so that the queue
//! gets its room back when the pair is answered or dropped, and a client that
//! leaves cannot overfill it.

mod ledger;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    engine::pace::Pace,
    error::{Code, Error, Result},
    metrics::{Metrics, Rejection},
};
use ledger::{Asked, Ledger, Refusal};

/// How much may be admitted and unanswered at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Pairs to score.
    pub pairs: usize,
    /// Their prompt tokens.
    pub tokens: usize,
    /// Sequences to explain.
    pub explanations: usize,
}

/// What is known of the engine, to predict how long a new request would wait.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Load {
    /// What passes take; `None` until there was one, and then no wait is predicted.
    pub pace: Option<Pace>,
    /// How long the running pass has taken so far: the next one is not expected sooner than that.
    pub stalled: Duration,
}

/// How long a request may take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Patience {
    /// From its arrival.
    pub whole: Duration,
    /// From now: some of it may have passed while it was sent.
    pub left: Duration,
}

#[cfg(test)]
impl Patience {
    /// For a request that came at once.
    fn whole(whole: Duration) -> Self {
        Self { whole, left: whole }
    }
}

/// The queue's gate. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Admission {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    ledger: Mutex<Ledger>,
    metrics: Arc<Metrics>,
}

impl Shared {
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        // Every update of the ledger is complete before anything can panic.
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn report(&self, ledger: &Ledger) {
        self.metrics.admitted(ledger.pairs(), ledger.tokens(), ledger.explanations());
    }
}

impl Admission {
    /// A gate that lets `capacity` through.
    pub fn new(capacity: Capacity, metrics: Arc<Metrics>) -> Self {
        Self { shared: Arc::new(Shared { ledger: Mutex::new(Ledger::new(capacity)), metrics }) }
    }

    /// Takes a request of `pairs` pairs and at most `tokens` tokens, or refuses it.
    ///
    /// # Errors
    ///
    /// `Overloaded` with when to try again if the queue has no room for all of
    /// it, or if its last pair is predicted to end after what is left of its
    /// `patience` because of what is ahead. `DeadlineExceeded` if it would end too
    /// late on an idle server, and `TooLarge` if it is larger than an idle queue:
    /// then no retry could succeed, but of one that was slow to come.
    pub fn admit(
        &self,
        pairs: usize,
        tokens: usize,
        patience: Option<Patience>,
        load: Load,
    ) -> Result<Grant> {
        let asked = Asked { pairs, bound: tokens, patience, now: Instant::now() };
        let mut ledger = self.shared.ledger();
        match ledger.admit(asked, load) {
            Ok(request) => {
                self.shared.report(&ledger);
                drop(ledger);
                Ok(Grant { shared: Arc::clone(&self.shared), request, pairs, tokens })
            }
            Err(refusal) => {
                drop(ledger);
                Err(self.refused(refusal))
            }
        }
    }

    /// Refuses a request whose deadline had gone by when all of it had come; no retry helps one that had none.
    pub fn gone_by(&self, deadline: Duration) -> Error {
        if deadline < Duration::from_millis(1) {
            self.shared.metrics.rejected(Rejection::Hopeless);
            return Error::new(Code::DeadlineExceeded, "the deadline was over when the request began")
                .without_retry();
        }
        self.shared.metrics.rejected(Rejection::Late);
        let message =
            format!("the deadline of {} ms had gone by when all of the request had come", whole_ms(deadline));
        Error::new(Code::DeadlineExceeded, message)
    }

    /// Takes one sequence to explain, or `None` if the explain lane is full.
    pub fn explain(&self) -> Option<Permit> {
        let mut ledger = self.shared.ledger();
        if ledger.admit_explanation() {
            self.shared.report(&ledger);
            return Some(Permit { shared: Arc::clone(&self.shared), held: Held::Explanation });
        }
        self.shared.metrics.rejected(Rejection::Explain);
        None
    }

    /// Pairs, tokens and explanations held now.
    pub fn held(&self) -> (usize, usize, usize) {
        let ledger = self.shared.ledger();
        (ledger.pairs(), ledger.tokens(), ledger.explanations())
    }

    fn refused(&self, refusal: Refusal) -> Error {
        let (reason, error) = match refusal {
            Refusal::TooManyPairs { limit, asked } => {
                (Rejection::Pairs, Error::too_large("documents", "pairs", limit, asked))
            }
            Refusal::TooManyTokens { limit, asked } => {
                (Rejection::Tokens, Error::too_large("documents", "tokens", limit, asked))
            }
            Refusal::PairsFull { limit, held, retry } => (
                Rejection::Pairs,
                overloaded(format!("the queue holds {held} of at most {limit} pairs"))
                    .with_retry_after(retry),
            ),
            Refusal::TokensFull { limit, held, retry } => (
                Rejection::Tokens,
                overloaded(format!("the queue holds {held} of at most {limit} tokens"))
                    .with_retry_after(retry),
            ),
            Refusal::TooSlow { wait, patience, retry } => (
                Rejection::Deadline,
                overloaded(format!(
                    "the predicted wait of {} ms is past the deadline of {} ms",
                    whole_ms(wait),
                    whole_ms(patience.left)
                ))
                .with_retry_after(retry),
            ),
            Refusal::TooLate { alone, patience } => {
                let message = format!(
                    "deadline_ms: {} ms, of which {} were left when all of the request had come; it is predicted to take {} ms",
                    whole_ms(patience.whole),
                    whole_ms(patience.left),
                    whole_ms(alone)
                );
                (Rejection::Late, Error::new(Code::DeadlineExceeded, message))
            }
            Refusal::Hopeless { alone, patience } => {
                let message = format!(
                    "deadline_ms: {} ms is too short: the request alone is predicted to take {} ms",
                    whole_ms(patience.whole),
                    whole_ms(alone)
                );
                (Rejection::Hopeless, Error::new(Code::DeadlineExceeded, message).without_retry())
            }
        };
        self.shared.metrics.rejected(reason);
        error
    }
}

/// Rounded up: what is just too long must not look as if it fitted.
fn whole_ms(time: Duration) -> u128 {
    time.as_micros().div_ceil(1000)
}

fn overloaded(message: String) -> Error {
    Error::new(Code::Overloaded, message)
}

/// An admitted request's share, before it is split into its pairs' permits.
/// What was not split off goes back when it is dropped.
#[derive(Debug)]
pub struct Grant {
    shared: Arc<Shared>,
    request: u64,
    pairs: usize,
    tokens: usize,
}

impl Grant {
    /// The request's number; no other of this gate has it.
    pub fn request(&self) -> u64 {
        self.request
    }

    /// One pair's permit, which holds `bound` of the grant's tokens.
    ///
    /// Takes no more than the grant has left, so that nothing is given back twice.
    pub fn split(&mut self, bound: usize) -> Permit {
        let pairs = self.pairs.min(1);
        let tokens = bound.min(self.tokens);
        self.pairs -= pairs;
        self.tokens -= tokens;
        let request = self.request;
        Permit {
            shared: Arc::clone(&self.shared),
            held: Held::Pair { request, pairs, tokens, tokenized: false },
        }
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        if self.pairs > 0 || self.tokens > 0 {
            let mut ledger = self.shared.ledger();
            ledger.give_back(self.request, self.pairs, 0, self.tokens);
            self.shared.report(&ledger);
        }
    }
}

/// A share of the queue; gives it back when dropped.
#[derive(Debug)]
pub struct Permit {
    shared: Arc<Shared>,
    held: Held,
}

#[derive(Clone, Copy, Debug)]
enum Held {
    Pair { request: u64, pairs: usize, tokens: usize, tokenized: bool },
    Explanation,
}

impl Permit {
    /// Replaces the bound of this pair's tokens by their number, as tokenized.
    pub fn correct(&mut self, actual: usize) {
        if let Held::Pair { request, tokens, tokenized: tokenized @ false, .. } = &mut self.held {
            let mut ledger = self.shared.ledger();
            ledger.correct(*request, *tokens, actual);
            self.shared.report(&ledger);
            (*tokens, *tokenized) = (actual, true);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut ledger = self.shared.ledger();
        match self.held {
            Held::Pair { request, pairs, tokens, tokenized } => {
                let (known, bound) = if tokenized { (tokens, 0) } else { (0, tokens) };
                ledger.give_back(request, pairs, known, bound);
            }
            Held::Explanation => ledger.give_back_explanation(),
        }
        self.shared.report(&ledger);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(pairs: usize, tokens: usize, explanations: usize) -> Admission {
        Admission::new(Capacity { pairs, tokens, explanations }, Arc::default())
    }

    #[test]
    fn who_came_with_no_time_need_not_come_again_and_who_came_late_may() {
        let metrics: Arc<Metrics> = Arc::default();
        let gate = Admission::new(Capacity { pairs: 1, tokens: 1, explanations: 1 }, Arc::clone(&metrics));
        let over = gate.gone_by(Duration::from_micros(999));
        assert_eq!((over.code(), over.retryable()), (Code::DeadlineExceeded, false));
        assert_eq!(over.message(), "the deadline was over when the request began");
        let late = gate.gone_by(Duration::from_millis(7));
        assert_eq!((late.code(), late.retryable()), (Code::DeadlineExceeded, true));
        assert_eq!(late.message(), "the deadline of 7 ms had gone by when all of the request had come");
        let text = metrics.text().expect("text");
        let text = String::from_utf8_lossy(&text);
        for reason in ["hopeless", "late"] {
            assert!(text.contains(&format!("verdict_rejections_total{{reason=\"{reason}\"}} 1\n")), "{text}");
        }
    }

    #[test]
    fn permits_give_back_what_the_grant_took() {
        let gate = gate(10, 1000, 1);
        let mut grant = gate.admit(3, 300, None, Load::default()).expect("room");
        assert_eq!(gate.held(), (3, 300, 0));
        let mut first = grant.split(100);
        let second = grant.split(100);
        first.correct(20);
        assert_eq!(gate.held(), (3, 220, 0));
        drop(grant);
        assert_eq!(gate.held(), (2, 120, 0));
        drop((first, second));
        assert_eq!(gate.held(), (0, 0, 0));
    }

    #[test]
    fn a_full_queue_refuses_with_a_retry() {
        let gate = gate(4, 1000, 1);
        let held = gate.admit(3, 10, None, Load::default()).expect("room");
        let error = gate.admit(2, 10, None, Load::default()).expect_err("full");
        assert_eq!(error.code(), Code::Overloaded);
        assert_eq!(error.message(), "the queue holds 3 of at most 4 pairs");
        assert_eq!(error.retry_after(), Some(Duration::from_secs(1)));
        assert_eq!(gate.held(), (3, 10, 0), "a refusal takes nothing");
        drop(held);
        gate.admit(2, 10, None, Load::default()).expect("room again");
    }

    #[test]
    fn what_never_fits_is_too_large() {
        let error = gate(4, 1000, 1).admit(5, 10, None, Load::default()).expect_err("never fits");
        assert_eq!(error.code(), Code::TooLarge);
        let error = gate(4, 1000, 1).admit(1, 1001, None, Load::default()).expect_err("never fits");
        assert_eq!(error.message(), "documents: 1001 tokens, over the limit of 1000");
    }

    #[test]
    fn a_wait_past_the_deadline_is_refused() {
        let gate = gate(100, 100_000, 1);
        let pace = Pace { overhead: 0.0, per_token: 0.001, pass_tokens: 1000, turn_tokens: 1000 };
        let load = Load { pace: Some(pace), stalled: Duration::ZERO };
        let _held = gate.admit(1, 9000, None, load).expect("room");
        let error = gate
            .admit(1, 1000, Some(Patience::whole(Duration::from_millis(2500))), load)
            .expect_err("too slow");
        assert_eq!(error.code(), Code::Overloaded);
        // Of the one ahead as much as it is long itself, its own, and the rest of its pass.
        assert_eq!(error.message(), "the predicted wait of 3000 ms is past the deadline of 2500 ms");
        assert_eq!(error.retry_after(), Some(Duration::from_secs(1)));
        let error = gate
            .admit(1, 5000, Some(Patience::whole(Duration::from_secs(4))), load)
            .expect_err("too slow alone");
        assert_eq!(error.code(), Code::DeadlineExceeded);
        let message = "deadline_ms: 4000 ms is too short: the request alone is predicted to take 5000 ms";
        assert_eq!(error.message(), message);
        assert!(error.retry_after().is_none() && !error.retryable(), "no retry could succeed");
        assert!(
            Error::new(Code::DeadlineExceeded, "late").retryable(),
            "one that was only late may try again"
        );
        gate.admit(1, 1000, Some(Patience::whole(Duration::from_secs(3))), load).expect("in time");
        gate.admit(1, 1000, Some(Patience::whole(Duration::from_secs(4))), Load::default())
            .expect("nothing is known yet");
    }

    #[test]
    fn the_explain_lane_has_its_own_limit() {
        let gate = gate(1, 10, 1);
        let held = gate.explain().expect("room");
        assert!(gate.explain().is_none());
        drop(held);
        assert!(gate.explain().is_some());
    }
}
