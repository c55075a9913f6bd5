//! The arithmetic of admission. Pure: no lock, no clock.

use std::time::Duration;

use super::Capacity;

/// What is held, of how much there is.
#[derive(Clone, Debug)]
pub(super) struct Ledger {
    capacity: Capacity,
    pairs: usize,
    tokens: usize,
    explanations: usize,
}

/// Why a request is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// More pairs than an idle queue takes.
    TooManyPairs { limit: usize, asked: usize },
    /// More tokens than an idle queue takes.
    TooManyTokens { limit: usize, asked: usize },
    /// No room for its pairs now.
    PairsFull { limit: usize, held: usize },
    /// No room for its tokens now.
    TokensFull { limit: usize, held: usize },
    /// It would end too late.
    TooSlow { wait: Duration, patience: Duration },
}

impl Ledger {
    pub(super) fn new(capacity: Capacity) -> Self {
        Self { capacity, pairs: 0, tokens: 0, explanations: 0 }
    }

    /// Takes all of a request or nothing of it.
    pub(super) fn admit(
        &mut self,
        pairs: usize,
        tokens: usize,
        patience: Option<Duration>,
        wait: Option<Duration>,
    ) -> Result<(), Refusal> {
        let Capacity { pairs: most_pairs, tokens: most_tokens, .. } = self.capacity;
        if pairs > most_pairs {
            return Err(Refusal::TooManyPairs { limit: most_pairs, asked: pairs });
        }
        if tokens > most_tokens {
            return Err(Refusal::TooManyTokens { limit: most_tokens, asked: tokens });
        }
        if pairs > most_pairs.saturating_sub(self.pairs) {
            return Err(Refusal::PairsFull { limit: most_pairs, held: self.pairs });
        }
        if tokens > most_tokens.saturating_sub(self.tokens) {
            return Err(Refusal::TokensFull { limit: most_tokens, held: self.tokens });
        }
        if let (Some(wait), Some(patience)) = (wait, patience)
            && wait > patience
        {
            return Err(Refusal::TooSlow { wait, patience });
        }
        self.pairs += pairs;
        self.tokens += tokens;
        Ok(())
    }

    /// A share ends.
    pub(super) fn give_back(&mut self, pairs: usize, tokens: usize) {
        debug_assert!(pairs <= self.pairs && tokens <= self.tokens, "more is given back than was taken");
        self.pairs = self.pairs.saturating_sub(pairs);
        self.tokens = self.tokens.saturating_sub(tokens);
    }

    /// A share's tokens turn out to be `actual`. They are rarely more than the
    /// bound; then the queue may be over its capacity for a moment.
    pub(super) fn correct(&mut self, bound: usize, actual: usize) {
        debug_assert!(bound <= self.tokens, "more is corrected than was taken");
        self.tokens = self.tokens.saturating_sub(bound).saturating_add(actual);
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Admit { pairs: usize, tokens: usize },
        GiveBack { which: usize },
        Correct { which: usize, actual: usize },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (1..12_usize, 1..300_usize).prop_map(|(pairs, tokens)| Step::Admit { pairs, tokens }),
            (0..16_usize).prop_map(|which| Step::GiveBack { which }),
            (0..16_usize, 0..300_usize).prop_map(|(which, actual)| Step::Correct { which, actual }),
        ]
    }

    proptest! {
        /// The ledger is always the sum of what is outstanding; an admission
        /// takes all or nothing, never passes the capacity, and is refused only
        /// when it would.
        #[test]
        fn the_ledger_is_the_sum_of_its_shares(
            steps in prop::collection::vec(step(), 1..200),
            pairs in 1..20_usize,
            tokens in 1..1000_usize,
        ) {
            let mut ledger = Ledger::new(Capacity { pairs, tokens, explanations: 0 });
            let mut shares: Vec<(usize, usize)> = Vec::new();
            for step in steps {
                let held: (usize, usize) =
                    shares.iter().fold((0, 0), |sum, share| (sum.0 + share.0, sum.1 + share.1));
                match step {
                    Step::Admit { pairs: more_pairs, tokens: more_tokens } => {
                        let fits = held.0 + more_pairs <= pairs && held.1 + more_tokens <= tokens;
                        let taken = ledger.admit(more_pairs, more_tokens, None, None);
                        prop_assert_eq!(taken.is_ok(), fits);
                        if fits {
                            shares.push((more_pairs, more_tokens));
                        }
                    }
                    Step::GiveBack { which } if which < shares.len() => {
                        let share = shares.swap_remove(which);
                        ledger.give_back(share.0, share.1);
                    }
                    Step::Correct { which, actual } if which < shares.len() => {
                        ledger.correct(shares[which].1, actual);
                        shares[which].1 = actual;
                    }
                    Step::GiveBack { .. } | Step::Correct { .. } => {}
                }
                prop_assert_eq!(ledger.pairs(), shares.iter().map(|share| share.0).sum::<usize>());
                prop_assert_eq!(ledger.tokens(), shares.iter().map(|share| share.1).sum::<usize>());
            }
        }

        /// A predicted wait refuses exactly when it is past the patience.
        #[test]
        fn patience_decides(wait in 0..5000_u64, patience in 0..5000_u64) {
            let mut ledger = Ledger::new(Capacity { pairs: 1, tokens: 1, explanations: 0 });
            let taken = ledger.admit(
                1, 1, Some(Duration::from_millis(patience)), Some(Duration::from_millis(wait)),
            );
            prop_assert_eq!(taken.is_ok(), wait <= patience);
        }

        /// The explain lane never holds more than its capacity.
        #[test]
        fn explanations_are_bounded(steps in prop::collection::vec(any::<bool>(), 1..100), room in 0..5_usize) {
            let mut ledger = Ledger::new(Capacity { pairs: 0, tokens: 0, explanations: room });
            let mut held = 0;
            for take in steps {
                if take {
                    prop_assert_eq!(ledger.admit_explanation(), held < room);
                    held = (held + 1).min(room);
                } else if held > 0 {
                    ledger.give_back_explanation();
                    held -= 1;
                }
                prop_assert_eq!(ledger.explanations(), held);
            }
        }
    }
}
