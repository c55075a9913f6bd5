//! Two systems on the same queries: the paired bootstrap. Pure.

use super::metrics::PerQuery;

/// Mean difference over queries, and the interval that holds it in 95 of 100 resamplings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::cli) struct Difference {
    pub(in crate::cli) queries: usize,
    pub(in crate::cli) mean: f64,
    pub(in crate::cli) low: f64,
    pub(in crate::cli) high: f64,
}

/// Resamplings of the queries (Efron and Tibshirani, An Introduction to the Bootstrap, 1993).
const ROUNDS: usize = 5000;

/// nDCG of `first` less that of `second`, on the queries that both have.
pub(in crate::cli) fn ndcg(first: &[PerQuery], second: &[PerQuery]) -> Option<Difference> {
    let other = |id: &str| second.iter().find(|query| query.id == id)?.ndcg;
    let differences: Vec<f64> =
        first.iter().filter_map(|query| Some(query.ndcg? - other(&query.id)?)).collect();
    bootstrap(&differences)
}

fn bootstrap(differences: &[f64]) -> Option<Difference> {
    let count = differences.len();
    if count == 0 {
        return None;
    }
    let mean = |sum: f64| sum / count as f64;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    // SplitMix64: the same intervals on every machine.
    let mut draw = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        differences[((mixed ^ (mixed >> 31)) % count as u64) as usize]
    };
    let mut means: Vec<f64> = (0..ROUNDS).map(|_| mean((0..count).map(|_| draw()).sum())).collect();
    means.sort_by(f64::total_cmp);
    let at = |share: f64| means[(share * (ROUNDS - 1) as f64).round() as usize];
    Some(Difference { queries: count, mean: mean(differences.iter().sum()), low: at(0.025), high: at(0.975) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_constant_difference_has_no_spread() {
        let found = bootstrap(&[0.25; 9]).expect("queries");
        assert_eq!(found, Difference { queries: 9, mean: 0.25, low: 0.25, high: 0.25 });
        assert_eq!(bootstrap(&[]), None);
    }

    #[test]
    fn the_interval_is_that_of_the_mean() {
        // Half 0, half 1: the mean's standard error is 0.5 / sqrt(400).
        let coins: Vec<f64> = (0..400).map(|i| f64::from(i % 2)).collect();
        let Difference { mean, low, high, .. } = bootstrap(&coins).expect("queries");
        assert!((mean - 0.5).abs() < 1e-12);
        assert!((low - (0.5 - 1.96 * 0.025)).abs() < 0.006 && (high - (0.5 + 1.96 * 0.025)).abs() < 0.006);
    }
}
