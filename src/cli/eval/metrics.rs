//! Figures of merit of scored judgments. Pure.

use std::sync::Arc;

use serde_json::{Value, json};

/// The grades that a judgment could have been.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::cli) enum Scale {
    /// 0, 1, 2 and so on, up to the best.
    Whole(f64),
    /// Those of the model, as parts of the best in \[0, 1\], rising.
    Model(Arc<[f64]>),
}

impl Scale {
    /// The place of the grade nearest to a part of the best; of two as near the higher one.
    fn nearest(&self, part: f64) -> usize {
        match self {
            // Not negative by construction, and a longer scale than a table holds is not read.
            Self::Whole(best) => (part * best).round() as usize,
            Self::Model(grades) => {
                grades.windows(2).filter(|pair| part >= f64::midpoint(pair[0], pair[1])).count()
            }
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Whole(best) => best.round() as usize + 1,
            Self::Model(grades) => grades.len(),
        }
    }
}

/// A scored judgment.
#[derive(Clone, Debug)]
pub(in crate::cli) struct Scored {
    /// The document's id.
    pub(in crate::cli) id: String,
    /// The model's score, in \[0, 1\].
    pub(in crate::cli) score: f64,
    /// The judged grade as a part of the best, in \[0, 1\].
    pub(in crate::cli) target: f64,
    /// The grades that it is one of.
    pub(in crate::cli) scale: Scale,
    /// The grades' logits, if they were asked for.
    pub(in crate::cli) logits: Option<Vec<f32>>,
}

/// How well scores agree with judgments.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(in crate::cli) struct Figures {
    pub(in crate::cli) queries: usize,
    pub(in crate::cli) pairs: usize,
    /// Ranks that count for nDCG.
    pub(in crate::cli) depth: usize,
    /// nDCG at that depth with gains grade/max_grade; over queries with a relevant document, `None` without.
    pub(in crate::cli) ndcg: Option<f64>,
    /// How often the grade nearest to the score on the judgments' scale is the judged one.
    pub(in crate::cli) accuracy: f64,
    /// F1 of each grade that was judged or predicted, averaged over grades.
    pub(in crate::cli) macro_f1: f64,
    /// Cohen's kappa with quadratic weights (Cohen, 1968) of judged and predicted grades.
    pub(in crate::cli) kappa: f64,
    /// Reciprocal rank of the first document with the best grade; over queries that have one, `None`
    /// without.
    pub(in crate::cli) mrr: Option<f64>,
    /// Expected calibration error: mean distance of score and grade/max_grade over ten bins of the score.
    pub(in crate::cli) calibration_error: f64,
}

/// How one query is ranked; `None` where nothing relevant is judged.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::cli) struct PerQuery {
    pub(in crate::cli) id: String,
    pub(in crate::cli) documents: usize,
    pub(in crate::cli) ndcg: Option<f64>,
    pub(in crate::cli) mrr: Option<f64>,
}

impl PerQuery {
    /// Of a query's scored documents.
    pub(in crate::cli) fn new(id: &str, scored: &[Scored], depth: usize) -> Self {
        let ranked = rank(scored);
        Self {
            id: id.to_owned(),
            documents: scored.len(),
            ndcg: ndcg(&ranked, depth),
            mrr: reciprocal_rank(&ranked),
        }
    }
}

/// Bins of the calibration error.
const BINS: usize = 10;

impl Figures {
    /// The figures of queries with their scored documents.
    pub(in crate::cli) fn new(queries: &[Vec<Scored>], depth: usize) -> Self {
        let pairs: Vec<&Scored> = queries.iter().flatten().collect();
        let right = pairs.iter().filter(|pair| pair.is_right()).count();
        let ranked: Vec<Vec<&Scored>> = queries.iter().map(|query| rank(query)).collect();
        let counts = confusion(&pairs);
        Self {
            queries: queries.len(),
            pairs: pairs.len(),
            depth,
            macro_f1: macro_f1(&counts),
            kappa: kappa(&counts),
            ndcg: mean(ranked.iter().filter_map(|query| ndcg(query, depth))),
            accuracy: right as f64 / pairs.len().max(1) as f64,
            mrr: mean(ranked.iter().filter_map(|query| reciprocal_rank(query))),
            calibration_error: calibration_error(&pairs),
        }
    }

    /// The mean over sets, whatever their sizes; of a figure that some have not, over the others.
    pub(in crate::cli) fn mean(sets: &[Figures]) -> Self {
        let of = |figure: fn(&Figures) -> f64| mean(sets.iter().map(figure)).unwrap_or(0.0);
        Self {
            queries: sets.iter().map(|set| set.queries).sum(),
            pairs: sets.iter().map(|set| set.pairs).sum(),
            depth: sets.first().map_or(0, |set| set.depth),
            macro_f1: of(|set| set.macro_f1),
            kappa: of(|set| set.kappa),
            ndcg: mean(sets.iter().filter_map(|set| set.ndcg)),
            accuracy: of(|set| set.accuracy),
            mrr: mean(sets.iter().filter_map(|set| set.mrr)),
            calibration_error: of(|set| set.calibration_error),
        }
    }

    /// As a JSON object.
    pub(in crate::cli) fn json(&self) -> Value {
        let ndcg = format!("ndcg_{}", self.depth);
        json!({
            "queries": self.queries,
            "pairs": self.pairs,
            ndcg: self.ndcg,
            "macro_f1": self.macro_f1,
            "kappa": self.kappa,
            "accuracy": self.accuracy,
            "mrr": self.mrr,
            "calibration_error": self.calibration_error,
        })
    }
}

impl Scored {
    /// The judged grade and the one nearest to the score.
    fn grades(&self) -> (usize, usize) {
        (self.scale.nearest(self.target), self.scale.nearest(self.score))
    }

    fn is_right(&self) -> bool {
        let (judged, predicted) = self.grades();
        judged == predicted
    }

    /// A fixed order of equal scores that has nothing to do with the file's: FNV-1a of the id.
    fn tie_key(&self) -> u64 {
        let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        self.id.bytes().fold(0xcbf2_9ce4_8422_2325, step)
    }
}

pub(super) fn rank(query: &[Scored]) -> Vec<&Scored> {
    let mut ranked: Vec<&Scored> = query.iter().collect();
    ranked.sort_by(|a, b| b.score.total_cmp(&a.score).then_with(|| a.tie_key().cmp(&b.tie_key())));
    ranked
}

/// `None` of nothing.
fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0_usize), |(sum, count), value| (sum + value, count + 1));
    (count > 0).then(|| sum / count as f64)
}

/// How often each judged grade (row) was predicted as each grade (column).
pub(in crate::cli) fn confusion(pairs: &[&Scored]) -> Vec<Vec<usize>> {
    let size = pairs.iter().map(|pair| pair.scale.len()).max().unwrap_or_default();
    let mut counts = vec![vec![0; size]; size];
    for pair in pairs {
        let (judged, predicted) = pair.grades();
        counts[judged][predicted] += 1;
    }
    counts
}

fn column(counts: &[Vec<usize>], grade: usize) -> usize {
    counts.iter().map(|row| row[grade]).sum()
}

fn macro_f1(counts: &[Vec<usize>]) -> f64 {
    let of = |grade: usize| {
        let all = counts[grade].iter().sum::<usize>() + column(counts, grade);
        (all > 0).then(|| 2.0 * counts[grade][grade] as f64 / all as f64)
    };
    mean((0..counts.len()).filter_map(of)).unwrap_or(0.0)
}

/// 0 where chance alone agrees as well, 1 where all agree.
fn kappa(counts: &[Vec<usize>]) -> f64 {
    let total: usize = counts.iter().flatten().sum();
    let columns: Vec<usize> = (0..counts.len()).map(|grade| column(counts, grade)).collect();
    let (mut seen, mut chance) = (0.0, 0.0);
    for (judged, row) in counts.iter().enumerate() {
        let of_row = row.iter().sum::<usize>() as f64;
        for (predicted, count) in row.iter().enumerate() {
            let weight = (judged as f64 - predicted as f64).powi(2);
            seen += weight * *count as f64;
            let expected = of_row * columns[predicted] as f64;
            chance += weight * expected / total.max(1) as f64;
        }
    }
    if chance > 0.0 { 1.0 - seen / chance } else { 1.0 }
}

pub(super) fn discounted(gains: impl Iterator<Item = f64>, depth: usize) -> f64 {
    gains.take(depth).enumerate().map(|(rank, gain)| gain / ((rank + 2) as f64).log2()).sum()
}

/// `None` where nothing is relevant.
fn ndcg(ranked: &[&Scored], depth: usize) -> Option<f64> {
    let mut ideal: Vec<f64> = ranked.iter().map(|pair| pair.target).collect();
    ideal.sort_by(|a, b| b.total_cmp(a));
    let best = discounted(ideal.into_iter(), depth);
    (best > 0.0).then(|| discounted(ranked.iter().map(|pair| pair.target), depth) / best)
}

/// `None` where nothing has the best grade.
fn reciprocal_rank(ranked: &[&Scored]) -> Option<f64> {
    let first = ranked.iter().position(|pair| pair.target >= 1.0)?;
    Some(1.0 / (first + 1) as f64)
}

fn calibration_error(pairs: &[&Scored]) -> f64 {
    expected_error(pairs.iter().map(|pair| (pair.score, pair.target, 1.0)))
}

/// Mean distance of score and target over ten bins of the score, of (score, target, weight).
pub(in crate::cli) fn expected_error(samples: impl Iterator<Item = (f64, f64, f64)>) -> f64 {
    let (mut bins, mut total) = ([(0.0, 0.0); BINS], 0.0);
    for (score, target, weight) in samples {
        let bin = &mut bins[((score * BINS as f64) as usize).min(BINS - 1)];
        bin.0 += weight * score;
        bin.1 += weight * target;
        total += weight;
    }
    bins.iter().map(|(score, target)| f64::abs(score - target)).sum::<f64>()
        / f64::max(total, f64::MIN_POSITIVE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(id: &str, score: f64, target: f64) -> Scored {
        Scored { id: id.to_owned(), score, target, scale: Scale::Whole(2.0), logits: None }
    }

    #[test]
    fn figures_are_those_worked_out_by_hand() {
        // Ranked: b (1), c (0), a (1/2).
        let query = vec![pair("a", 0.2, 0.5), pair("b", 0.9, 1.0), pair("c", 0.45, 0.0)];
        let figures = Figures::new(&[query, vec![pair("d", 0.1, 0.0)]], 10);
        let log3 = 3_f64.log2();
        let expected = (1.0 + 0.5 / 2.0) / (1.0 + 0.5 / log3);
        assert!((figures.ndcg.expect("relevant") - expected).abs() < 1e-12);
        assert_eq!(figures.mrr, Some(1.0));
        // Rounded on 0 to 2: a 0 (judged 1), b 2 (2), c 1 (0), d 0 (0).
        assert!((figures.accuracy - 0.5).abs() < 1e-12);
        // F1: grade 0 is 2*1/(2+2), 1 is 0, 2 is 1. Kappa: seen 1 + 1, by chance 22/4.
        assert!((figures.macro_f1 - 0.5).abs() < 1e-12);
        assert!((figures.kappa - (1.0 - 2.0 / 5.5)).abs() < 1e-12, "{}", figures.kappa);
        // Bins: d 0.1, a 0.3, c 0.45, b 0.1.
        assert!((figures.calibration_error - (0.1 + 0.3 + 0.45 + 0.1) / 4.0).abs() < 1e-12);
        assert_eq!((figures.queries, figures.pairs), (2, 4));
    }

    #[test]
    fn the_order_of_the_file_does_not_break_ties() {
        let pairs = [pair("a", 0.5, 1.0), pair("b", 0.5, 0.0), pair("c", 0.5, 0.5)];
        let forward = Figures::new(&[pairs.to_vec()], 10);
        let backward = Figures::new(&[pairs.iter().rev().cloned().collect()], 10);
        assert_eq!(forward, backward);
    }

    #[test]
    fn the_macro_average_weighs_sets_alike() {
        let one = Figures { queries: 1, pairs: 1, ndcg: Some(1.0), ..Figures::default() };
        let many = Figures { queries: 99, pairs: 99, ndcg: Some(0.5), ..Figures::default() };
        let mean = Figures::mean(&[one, many]);
        assert_eq!((mean.queries, mean.ndcg), (100, Some(0.75)));
        let nothing_relevant = Figures::new(&[vec![pair("a", 0.2, 0.0)]], 10);
        assert_eq!((nothing_relevant.ndcg, nothing_relevant.mrr), (None, None));
        assert_eq!(Figures::mean(&[one, nothing_relevant]).ndcg, Some(1.0));
    }

    #[test]
    fn the_nearest_grade_is_one_of_the_scale() {
        let model = Scale::Model([0.0, 0.1, 1.0].into());
        assert_eq!([0.0, 0.04, 0.06, 0.5, 0.56, 1.0].map(|part| model.nearest(part)), [0, 0, 1, 1, 2, 2]);
        // As on the whole numbers, where grades are as far apart as those.
        let thirds = Scale::Model([0.0, 1.0 / 3.0, 2.0 / 3.0, 1.0].into());
        for part in (0..=1000).map(|i| f64::from(i) / 1000.0) {
            assert_eq!(thirds.nearest(part), Scale::Whole(3.0).nearest(part), "{part}");
        }
        assert_eq!((model.len(), thirds.len(), Scale::Whole(3.0).len()), (3, 4, 4));
    }
}
