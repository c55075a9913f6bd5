//! The rising map of scores that fits judgments best. Pure.

/// Blocks of scores that are averaged before fitting: knots are few and none rests on a few pairs.
const BLOCKS: usize = 20;

/// Knots of a map from scores to relevance, from (score, target, weight): isotonic regression by
/// pooling adjacent violators (Ayer et al., 1955) over blocks of equal weight.
///
/// Knots lie at the pools' means and at both ends, so the map rises strictly and keeps the order
/// of scores.
pub(super) fn fit(mut samples: Vec<(f64, f64, f64)>) -> Vec<[f64; 2]> {
    samples.sort_by(|a, b| a.0.total_cmp(&b.0));
    let total: f64 = samples.iter().map(|sample| sample.2).sum();
    let mut pools: Vec<Pool> = Vec::new();
    let mut block = Pool::default();
    for (index, (score, target, weight)) in samples.iter().enumerate() {
        block.add(&Pool { score: score * weight, target: target * weight, weight: *weight });
        let full = block.weight * BLOCKS as f64 >= total;
        let tied = samples.get(index + 1).is_some_and(|next| next.0 <= *score);
        if (full && !tied) || index + 1 == samples.len() {
            pools.push(std::mem::take(&mut block));
            while let [.., before, last] = &pools[..]
                && before.mean() >= last.mean()
            {
                let last = pools.pop().unwrap_or_default();
                if let Some(before) = pools.last_mut() {
                    before.add(&last);
                }
            }
        }
    }
    // A pool that is never or always relevant is nudged: the map has to rise on either side of it.
    let round = |x: f64| ((x * 1e4).round() / 1e4).clamp(1e-4, 1.0 - 1e-4);
    let mut points = vec![[0.0, 0.0]];
    for pool in pools {
        let point = [round(pool.score / pool.weight), round(pool.mean())];
        let last = points[points.len() - 1];
        if point[0] > last[0] && point[1] > last[1] {
            points.push(point);
        }
    }
    points.push([1.0, 1.0]);
    points
}

/// Weighted sums.
#[derive(Clone, Copy, Debug, Default)]
struct Pool {
    score: f64,
    target: f64,
    weight: f64,
}

impl Pool {
    fn add(&mut self, other: &Pool) {
        self.score += other.score;
        self.target += other.target;
        self.weight += other.weight;
    }

    fn mean(&self) -> f64 {
        self.target / self.weight
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Calibration;

    #[test]
    fn a_bent_scale_is_straightened_and_the_order_kept() {
        // What is scored s is relevant with s².
        let samples: Vec<_> = (0..1000).map(|i| f64::from(i) / 1000.0).map(|s| (s, s * s, 1.0)).collect();
        let points = fit(samples);
        assert!(
            points.windows(2).all(|pair| pair[0][0] < pair[1][0] && pair[0][1] < pair[1][1]),
            "{points:?}"
        );
        let map = Calibration { temperature: 1.0, points };
        for score in [0.1, 0.35, 0.5, 0.77, 0.95] {
            assert!((map.apply(score) - score * score).abs() < 0.01, "{score}: {}", map.apply(score));
        }
    }

    #[test]
    fn what_is_never_or_always_relevant_is_kept() {
        let points = fit(vec![(0.3, 0.0, 1.0), (0.5, 0.5, 1.0), (0.7, 1.0, 1.0)]);
        assert_eq!(points, [[0.0, 0.0], [0.3, 0.0001], [0.5, 0.5], [0.7, 0.9999], [1.0, 1.0]]);
        assert_eq!(fit(vec![(0.0, 0.5, 1.0), (1.0, 1.0, 1.0)])[1..3], [[0.0001, 0.5], [0.9999, 0.9999]]);
    }

    #[test]
    fn what_falls_is_pooled() {
        let points = fit(vec![(0.2, 0.6, 1.0), (0.4, 0.2, 1.0), (0.8, 0.7, 1.0)]);
        assert_eq!(points, [[0.0, 0.0], [0.3, 0.4], [0.8, 0.7], [1.0, 1.0]]);
    }
}
