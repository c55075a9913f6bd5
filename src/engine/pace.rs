//! How long a forward pass takes, learned from those that ran. Pure: no clock.
//!
//! A pass of x tokens takes about `overhead + x * per_token` seconds: a least-squares
//! line over the passes so far, newer ones counting more. Where all passes were of
//! one size there is no line to fit, and all of their time is taken to be per token.

use std::time::Duration;

/// How much a pass counts for less with each later one.
const DECAY: f64 = 0.95;
/// A pass that took so many times what was expected counts as no more: one stall is no trend.
const OUTLIER: f64 = 4.0;
/// Passes before one may count as an outlier.
const TRUSTED: f64 = 3.0;
/// Sizes that differ by less, relative to their mean square, are of one size.
const SPREAD: f64 = 1e-3;
/// Waits are predicted so many times as long as passes say: an answer that comes late was computed in vain.
const CAUTION: f64 = 1.1;
/// A pass is not cut below so many tokens: shorter ones gain little and cost their overhead.
const LEAST_TOKENS: usize = 256;

/// Decayed sums over passes: their number, tokens x, seconds y, and products.
#[derive(Clone, Copy, Debug, Default)]
struct Passes {
    n: f64,
    x: f64,
    y: f64,
    xx: f64,
    xy: f64,
}

impl Passes {
    /// A pass of `tokens` took so long.
    fn saw(&mut self, tokens: usize, took: Duration) {
        let x = tokens as f64;
        let mut y = took.as_secs_f64().max(1e-9);
        if self.n >= TRUSTED
            && let Some(pace) = self.pace(usize::MAX)
        {
            y = y.min(OUTLIER * pace.seconds(tokens));
        }
        for (sum, value) in [
            (&mut self.n, 1.0),
            (&mut self.x, x),
            (&mut self.y, y),
            (&mut self.xx, x * x),
            (&mut self.xy, x * y),
        ] {
            *sum = *sum * DECAY + value;
        }
    }

    /// What they say of passes of at most `pass_tokens`; `None` before the first.
    fn pace(&self, pass_tokens: usize) -> Option<Pace> {
        if self.x <= 0.0 {
            return None;
        }
        let mean = self.y / self.x;
        let spread = self.n * self.xx - self.x * self.x;
        let per_token = if spread > SPREAD * self.n * self.xx {
            ((self.n * self.xy - self.x * self.y) / spread).clamp(0.0, mean)
        } else {
            mean
        };
        let overhead = ((self.y - per_token * self.x) / self.n).max(0.0);
        let pass_tokens = pass_tokens.max(1);
        Some(Pace { overhead, per_token, pass_tokens, turn_tokens: pass_tokens })
    }
}

/// What the score lane's passes took.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Paces {
    /// By the prompt tokens that were answered, shared and cached ones included.
    answered: Passes,
    /// By the tokens that were computed.
    computed: Passes,
}

impl Paces {
    /// A pass answered and computed so many tokens.
    pub(super) fn saw(&mut self, answered: usize, computed: usize, took: Duration) {
        self.answered.saw(answered, took);
        self.computed.saw(computed, took);
    }

    /// Tokens that the next pass may compute: what takes about `time` (zero: no matter), and at most `most`.
    pub(super) fn cut(&self, most: usize, time: Duration) -> usize {
        self.computed.pace(most).map_or(most, |pace| pace.cut_to(time, LEAST_TOKENS).pass_tokens)
    }

    /// What a pass that computes so many tokens should take; `None` before the first.
    pub(super) fn expected(&self, tokens: usize) -> Option<Duration> {
        self.computed.pace(usize::MAX).map(|pace| Duration::from_secs_f64(pace.seconds(tokens)))
    }

    /// How long a new request will wait, by prompt tokens, with passes cut as [`Self::cut`] says; `None`
    /// before the first pass.
    pub(super) fn pace(&self, most: usize, time: Duration) -> Option<Pace> {
        // A pass is limited by what it computes; waits are told by what that answers.
        let repeated = (self.answered.x / self.computed.x.max(1.0)).max(1.0);
        let answered = |computed: usize| (computed as f64 * repeated) as usize;
        let pace = self.answered.pace(answered(most))?.cut_to(time, answered(LEAST_TOKENS));
        let (overhead, per_token) = (CAUTION * pace.overhead, CAUTION * pace.per_token);
        Some(Pace { overhead, per_token, ..pace })
    }
}

/// What forward passes take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// Seconds of every pass.
    pub overhead: f64,
    /// Seconds of a prompt token more.
    pub per_token: f64,
    /// Most prompt tokens of one pass.
    pub pass_tokens: usize,
    /// About the most prompt tokens of one request before others have their turn.
    pub turn_tokens: usize,
}

impl Pace {
    /// The same with passes cut to about `time`, but not below `least` tokens; zero cuts nothing.
    fn cut_to(self, time: Duration, least: usize) -> Self {
        let left = (time.as_secs_f64() - self.overhead).max(0.0);
        if time.is_zero() || self.per_token * self.pass_tokens as f64 <= left {
            return self;
        }
        let fits = (left / self.per_token) as usize;
        Self { pass_tokens: fits.max(least).min(self.pass_tokens), ..self }
    }

    /// Seconds that `tokens` prompt tokens take, in as many passes as they need.
    pub fn seconds(&self, tokens: usize) -> f64 {
        let passes = tokens.div_ceil(self.pass_tokens).max(1);
        self.overhead * passes as f64 + self.per_token * tokens as f64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ms(count: f64) -> Duration {
        Duration::from_secs_f64(count / 1e3)
    }

    #[test]
    fn overhead_and_rate_are_told_apart() {
        let mut passes = Passes::default();
        assert_eq!(passes.pace(4096), None);
        for tokens in [100, 200, 1000, 4000, 50, 800] {
            passes.saw(tokens, ms(2.0 + 0.01 * tokens as f64));
        }
        let pace = passes.pace(4096).expect("seen");
        assert!((pace.overhead - 0.002).abs() < 1e-6 && (pace.per_token - 1e-5).abs() < 1e-8, "{pace:?}");
        // Three passes of the largest size, and their overheads.
        assert!((pace.seconds(10_000) - (3.0 * 0.002 + 0.1)).abs() < 1e-4, "{}", pace.seconds(10_000));
    }

    #[test]
    fn passes_of_one_size_give_a_rate() {
        let mut passes = Passes::default();
        for _ in 0..5 {
            passes.saw(100, ms(10.0));
        }
        let pace = passes.pace(4096).expect("seen");
        assert!(pace.overhead < 1e-9 && (pace.seconds(100) - 0.01).abs() < 1e-9, "{pace:?}");
    }

    #[test]
    fn one_stall_is_no_trend_and_a_trend_is_followed() {
        let mut passes = Passes::default();
        for _ in 0..20 {
            passes.saw(100, ms(10.0));
        }
        passes.saw(100, ms(60_000.0));
        let seconds = passes.pace(4096).expect("seen").seconds(100);
        assert!(seconds < 0.015, "{seconds}");
        for _ in 0..60 {
            passes.saw(100, ms(500.0));
        }
        let seconds = passes.pace(4096).expect("seen").seconds(100);
        assert!((0.4..=0.5).contains(&seconds), "{seconds}");
    }

    #[test]
    fn a_pass_is_cut_to_its_time() {
        let pace = Pace { overhead: 0.01, per_token: 1e-5, pass_tokens: 4096, turn_tokens: 4096 };
        assert!((2999..=3000).contains(&pace.cut_to(ms(40.0), LEAST_TOKENS).pass_tokens));
        assert_eq!(pace.cut_to(ms(60.0), LEAST_TOKENS), pace, "it is shorter anyway");
        assert_eq!(pace.cut_to(ms(1.0), LEAST_TOKENS).pass_tokens, LEAST_TOKENS);
        assert_eq!(pace.cut_to(Duration::ZERO, LEAST_TOKENS), pace, "it is turned off");
        let small = Pace { pass_tokens: 100, ..pace };
        assert_eq!(small.cut_to(ms(1.0), LEAST_TOKENS), small, "the budget is the most in any case");
        assert_eq!(pace.cut_to(ms(40.0), LEAST_TOKENS).turn_tokens, 4096);
    }

    /// Prompt tokens of a pass that is cut to so many milliseconds.
    fn pace_of(paces: &Paces, time_ms: f64) -> u32 {
        paces.pace(4096, ms(time_ms)).expect("seen").pass_tokens as u32
    }

    #[test]
    fn waits_are_told_in_prompt_tokens_and_with_caution() {
        let mut paces = Paces::default();
        assert_eq!((paces.cut(4096, ms(40.0)), paces.pace(4096, ms(40.0))), (4096, None));
        for tokens in [100, 200, 400, 100, 200] {
            // Each token is answered twice: half of a prompt is shared.
            paces.saw(2 * tokens, tokens, ms(0.1 * tokens as f64));
        }
        assert!((395..=405).contains(&paces.cut(4096, ms(40.0))), "{}", paces.cut(4096, ms(40.0)));
        assert_eq!(paces.cut(300, ms(40.0)), 300);
        let expected = paces.expected(300).expect("seen").as_secs_f64();
        assert!((expected - 0.03).abs() < 1e-3, "{expected}: a pass is told without caution");
        let pace = paces.pace(4096, ms(40.0)).expect("seen");
        assert!((795..=805).contains(&pace.pass_tokens), "{pace:?}");
        assert_eq!(pace.turn_tokens, 2 * 4096);
        assert!(
            (2.0 * 256.0 - f64::from(pace_of(&paces, 1.0))).abs() <= 1.0,
            "the least is of computed ones, too"
        );
        assert_eq!(pace_of(&paces, 0.0), 2 * 4096, "a pass that is not cut answers as much");
        assert!((pace.seconds(800) - 1.1 * 0.04).abs() < 1e-3, "{pace:?}");
    }

    proptest! {
        #[test]
        fn what_is_said_is_finite_positive_and_grows(
            seen in prop::collection::vec((1..100_000_usize, 0..100_000_u64), 1..50), asked in 0..10_000_000_usize,
        ) {
            let mut passes = Passes::default();
            for (tokens, micros) in seen {
                passes.saw(tokens, Duration::from_micros(micros));
            }
            let pace = passes.pace(4096).expect("seen");
            let (some, more) = (pace.seconds(asked), pace.seconds(asked + 5000));
            prop_assert!(some.is_finite() && some >= 0.0 && more >= some, "{pace:?}");
        }
    }
}
