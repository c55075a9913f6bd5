//! When requests are meant to be sent. Open loop: nothing waits for an answer, so a
//! server that stalls is asked all the same, and its answers count from when they were due.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How requests are spread over time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Arrivals {
    /// Independent of each other, as those of many users are: gaps are exponential.
    #[default]
    Poisson,
    /// Evenly.
    Constant,
    /// All at the start.
    Burst,
}

/// The times of one step's requests after its start, in order.
pub(crate) fn times(
    arrivals: Arrivals,
    rate: f64,
    span: Duration,
    random: &mut fastrand::Rng,
) -> Vec<Duration> {
    let seconds = span.as_secs_f64();
    let mut at = 0.0;
    let mut times = Vec::with_capacity((rate * seconds * 1.2) as usize);
    match arrivals {
        Arrivals::Burst => times.resize((rate * seconds).round() as usize, Duration::ZERO),
        Arrivals::Constant | Arrivals::Poisson => loop {
            // 1 - [0, 1) is never 0.
            let gap = if arrivals == Arrivals::Poisson { -(1.0 - random.f64()).ln() } else { 1.0 };
            at += gap / rate;
            if at >= seconds {
                break;
            }
            times.push(Duration::from_secs_f64(at));
        },
    }
    times
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPAN: Duration = Duration::from_secs(100);

    #[test]
    fn constant_arrivals_are_even() {
        let times = times(Arrivals::Constant, 2.0, SPAN, &mut fastrand::Rng::with_seed(1));
        assert_eq!(
            (times.len(), times[0], times[1]),
            (199, Duration::from_millis(500), Duration::from_secs(1))
        );
    }

    #[test]
    fn poisson_arrivals_have_the_mean_and_the_spread_of_poisson() {
        let times = times(Arrivals::Poisson, 50.0, SPAN, &mut fastrand::Rng::with_seed(1));
        // 5000 expected, with a standard deviation of 71.
        assert!((4700..5300).contains(&times.len()), "{}", times.len());
        assert!(times.is_sorted() && times.iter().all(|time| *time < SPAN));
        let gaps: Vec<f64> = times.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        // An exponential's standard deviation is its mean.
        assert!((0.9..1.1).contains(&(variance.sqrt() / mean)), "{}", variance.sqrt() / mean);
    }

    #[test]
    fn a_burst_comes_at_once() {
        let times = times(Arrivals::Burst, 3.0, SPAN, &mut fastrand::Rng::with_seed(1));
        assert_eq!((times.len(), times.last()), (300, Some(&Duration::ZERO)));
    }
}
