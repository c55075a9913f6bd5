//! The arithmetic of admission. Pure: no lock, no clock.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{Capacity, Load, Patience};

/// How much a pair counts for less, with each later one, in what bounds turn out to be.
const BOUND_DECAY: f64 = 0.99;
/// What an estimate that refuses while nothing is queued is taken to be too large by, a refusal.
const DOUBT: f64 = 1.25;
/// The estimate is doubted no more often: hopeless requests that come together are no more reason than one.
const DOUBT_EVERY: Duration = Duration::from_millis(500);
/// The most that a refused client is told to wait.
const LONGEST_RETRY: Duration = Duration::from_secs(60);
/// The least: refused clients that come back at once would only be refused again.
const SHORTEST_RETRY: Duration = Duration::from_secs(1);
/// A day is as good as for ever, and keeps the arithmetic in range.
const FOR_EVER: f64 = 86_400.0;

/// What is held, of how much there is.
#[derive(Clone, Debug)]
pub(super) struct Ledger {
    capacity: Capacity,
    pairs: usize,
    tokens: usize,
    explanations: usize,
    /// Every request that holds something.
    shares: BTreeMap<u64, Share>,
    requests: u64,
    /// Bounds and tokens of pairs that were tokenized: what a bound is worth.
    bounds: f64,
    actual: f64,
    /// How much too large the predicted waits seem to be, at least 1.
    doubt: f64,
    /// When one of them refused while nothing was queued and was last believed, or doubted; `None` while
    /// something was measured since.
    doubted: Option<Instant>,
    /// Until when the room to come is promised to clients that were refused.
    promised: Option<Instant>,
}

/// What one request holds.
#[derive(Clone, Copy, Debug, Default)]
struct Share {
    pairs: usize,
    /// Tokens of pairs that were tokenized.
    known: usize,
    /// Bounds of those that were not.
    bound: usize,
}

/// A request that asks to be taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) pairs: usize,
    /// At most so many tokens.
    pub(super) bound: usize,
    /// It is worth nothing after that.
    pub(super) patience: Option<Patience>,
    pub(super) now: Instant,
}

/// Why a request is not taken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Refusal {
    /// More pairs than an idle queue takes.
    TooManyPairs { limit: usize, asked: usize },
    /// More tokens than an idle queue takes.
    TooManyTokens { limit: usize, asked: usize },
    /// No room for its pairs now.
    PairsFull { limit: usize, held: usize, retry: Duration },
    /// No room for its tokens now.
    TokensFull { limit: usize, held: usize, retry: Duration },
    /// It would end too late.
    TooSlow { wait: Duration, patience: Patience, retry: Duration },
    /// It would end too late if it were alone, as its client took long to send it.
    TooLate { alone: Duration, patience: Patience },
    /// It would end too late if it were alone and had come at once.
    Hopeless { alone: Duration, patience: Patience },
}

impl Ledger {
    pub(super) fn new(capacity: Capacity) -> Self {
        Self {
            capacity,
            pairs: 0,
            tokens: 0,
            explanations: 0,
            shares: BTreeMap::new(),
            requests: 0,
            bounds: 0.0,
            actual: 0.0,
            doubt: 1.0,
            doubted: None,
            promised: None,
        }
    }

    /// Takes all of a request, and numbers it, or takes nothing of it.
    pub(super) fn admit(&mut self, asked: Asked, load: Load) -> Result<u64, Refusal> {
        let Capacity { pairs: most_pairs, tokens: most_tokens, .. } = self.capacity;
        let Asked { pairs, bound, patience, now } = asked;
        if pairs > most_pairs {
            return Err(Refusal::TooManyPairs { limit: most_pairs, asked: pairs });
        }
        if bound > most_tokens {
            return Err(Refusal::TooManyTokens { limit: most_tokens, asked: bound });
        }
        let (held_pairs, held_tokens) = (self.pairs, self.tokens);
        if pairs > most_pairs.saturating_sub(held_pairs) {
            let part = (held_pairs + pairs - most_pairs) as f64 / held_pairs.max(1) as f64;
            let retry = self.retry_when_worked_off(part, &asked, load);
            return Err(Refusal::PairsFull { limit: most_pairs, held: held_pairs, retry });
        }
        if bound > most_tokens.saturating_sub(held_tokens) {
            let part = (held_tokens + bound - most_tokens) as f64 / held_tokens.max(1) as f64;
            let retry = self.retry_when_worked_off(part, &asked, load);
            return Err(Refusal::TokensFull { limit: most_tokens, held: held_tokens, retry });
        }
        if let Some(patience) = patience {
            self.in_time(bound, patience, now, load)?;
        }
        self.pairs += pairs;
        self.tokens += bound;
        self.requests += 1;
        self.shares.insert(self.requests, Share { pairs, known: 0, bound });
        Ok(self.requests)
    }

    /// Refuses what is predicted to end after what is left of its `patience`.
    fn in_time(&mut self, bound: usize, patience: Patience, now: Instant, load: Load) -> Result<(), Refusal> {
        let Some(pace) = load.pace else { return Ok(()) };
        let own = self.expected(bound);
        let ahead = self.ahead(own.max(pace.turn_tokens));
        let alone = seconds(pace.seconds(own) / self.doubt);
        // Its answer comes with the end of its pass, which others join while those ahead run.
        let beside = ahead.min(pace.pass_tokens);
        let wait = seconds(pace.seconds(ahead + own + beside) / self.doubt).max(load.stalled);
        if alone > patience.whole {
            if self.pairs == 0 {
                self.doubt_more(now);
            }
            return Err(Refusal::Hopeless { alone, patience });
        }
        if alone > patience.left {
            return Err(Refusal::TooLate { alone, patience });
        }
        if wait > patience.left {
            let retry = self.promise(wait - patience.left, alone, now);
            return Err(Refusal::TooSlow { wait, patience, retry });
        }
        Ok(())
    }

    /// Nothing runs that could prove the estimate wrong: the longer it refuses, the less it is trusted.
    fn doubt_more(&mut self, now: Instant) {
        match self.doubted {
            Some(last) if now.saturating_duration_since(last) < DOUBT_EVERY => return,
            Some(_) => self.doubt *= DOUBT,
            // Passes were measured since it refused last: it is as good as it can be.
            None => {}
        }
        self.doubted = Some(now);
    }

    /// The tokens that run before or beside those of a new request: of each
    /// request no more than `most`, because none is served for ever at a stretch.
    fn ahead(&self, most: usize) -> usize {
        let worth = self.worth();
        let expected = |share: &Share| share.known + (share.bound as f64 * worth) as usize;
        self.shares.values().map(|share| expected(share).min(most)).sum()
    }

    /// How many tokens a bound turns out to be.
    fn expected(&self, bound: usize) -> usize {
        (bound as f64 * self.worth()).ceil() as usize
    }

    fn worth(&self) -> f64 {
        if self.bounds > 0.0 { (self.actual / self.bounds).clamp(0.01, 4.0) } else { 1.0 }
    }

    /// When `part` of what is held will have been worked off.
    fn retry_when_worked_off(&mut self, part: f64, asked: &Asked, load: Load) -> Duration {
        let Some(pace) = load.pace else { return SHORTEST_RETRY };
        let all = pace.seconds(self.ahead(usize::MAX)).max(load.stalled.as_secs_f64());
        let own = pace.seconds(self.expected(asked.bound));
        self.promise(seconds(part.min(1.0) * all), seconds(own), asked.now)
    }

    /// When to come back for room that is there after `wait`, for work that takes
    /// `cost`: behind those who were told to come back before.
    fn promise(&mut self, wait: Duration, cost: Duration, now: Instant) -> Duration {
        let latest = now + LONGEST_RETRY;
        let turn = self.promised.unwrap_or(now).max(now + wait).min(latest);
        self.promised = Some((turn + cost).min(latest));
        turn.saturating_duration_since(now).max(SHORTEST_RETRY)
    }

    /// Part of a request's share ends.
    pub(super) fn give_back(&mut self, request: u64, pairs: usize, known: usize, bound: usize) {
        debug_assert!(
            pairs <= self.pairs && known + bound <= self.tokens,
            "more is given back than was taken"
        );
        self.pairs = self.pairs.saturating_sub(pairs);
        self.tokens = self.tokens.saturating_sub(known + bound);
        if known > 0 {
            // Something was worked off: what is known of the pace is fresh.
            self.doubt = 1.0;
            self.doubted = None;
        }
        if let Some(share) = self.shares.get_mut(&request) {
            share.pairs = share.pairs.saturating_sub(pairs);
            share.known = share.known.saturating_sub(known);
            share.bound = share.bound.saturating_sub(bound);
            if share.pairs == 0 && share.known + share.bound == 0 {
                self.shares.remove(&request);
            }
        }
    }

    /// A pair's tokens turn out to be `actual`. They are rarely more than the
    /// bound; then the queue may be over its capacity for a moment.
    pub(super) fn correct(&mut self, request: u64, bound: usize, actual: usize) {
        debug_assert!(bound <= self.tokens, "more is corrected than was taken");
        self.tokens = self.tokens.saturating_sub(bound).saturating_add(actual);
        if let Some(share) = self.shares.get_mut(&request) {
            share.bound = share.bound.saturating_sub(bound);
            share.known += actual;
        }
        self.bounds = self.bounds * BOUND_DECAY + bound as f64;
        self.actual = self.actual * BOUND_DECAY + actual as f64;
    }

    /// Takes one explanation, if there is room.
    pub(super) fn admit_explanation(&mut self) -> bool {
        let room = self.explanations < self.capacity.explanations;
        self.explanations += usize::from(room);
        room
    }

    /// An explanation ends.
    pub(super) fn give_back_explanation(&mut self) {
        self.explanations = self.explanations.saturating_sub(1);
    }

    pub(super) fn pairs(&self) -> usize {
        self.pairs
    }

    pub(super) fn tokens(&self) -> usize {
        self.tokens
    }

    pub(super) fn explanations(&self) -> usize {
        self.explanations
    }
}

fn seconds(count: f64) -> Duration {
    Duration::from_secs_f64(count.clamp(0.0, FOR_EVER))
}

#[cfg(test)]
mod tests;
