use proptest::prelude::*;

use super::*;
use crate::{
    error::Code,
    model::Model,
    profile::{Calibration, Grade},
};

/// The bundled model's profile with other grades.
fn profile(values: &[f64], read: ScoreRead, temperature: f64, points: Vec<[f64; 2]>) -> Profile {
    static BUNDLED: std::sync::LazyLock<Profile> =
        std::sync::LazyLock::new(|| Model::bundled().expect("loads").profile);
    let grade = |(index, &value): (usize, &f64)| Grade {
        name: format!("g{index}"),
        label: String::new(),
        value,
        token: index as u32,
        text: String::new(),
    };
    let mut profile = BUNDLED.clone();
    profile.grades = values.iter().enumerate().map(grade).collect();
    profile.read = read;
    profile.calibration = Calibration { temperature, points };
    profile
}

fn expected(values: &[f64]) -> Profile {
    profile(values, ScoreRead::Expected, 1.0, Vec::new())
}

fn close(left: f64, right: f64) -> bool {
    (left - right).abs() < 1e-9
}

proptest! {
    #[test]
    fn any_finite_logits_give_a_distribution(
        logits in prop::collection::vec(prop_oneof![-30.0_f32..30.0, prop::num::f32::NORMAL], 2..6),
        values in prop::collection::vec(-5.0_f64..5.0, 6),
        temperature in 0.05_f64..20.0,
        bend in 0.0_f64..1.0,
        softmax in any::<bool>(),
    ) {
        let mut values = values[..logits.len()].to_vec();
        values[0] = 6.0;
        let read = if softmax { ScoreRead::Softmax { positive: 1, negative: 0 } } else { ScoreRead::Expected };
        let points = vec![[0.0, 0.0], [0.5, bend], [1.0, 1.0]];
        let profile = profile(&values, read, temperature, points);
        let got = GradeDistribution::read(&logits, None, &profile).expect("finite");
        prop_assert!(close(got.probabilities.iter().sum(), 1.0));
        prop_assert!(got.probabilities.iter().all(|p| (0.0..=1.0).contains(p)));
        prop_assert!(got.probabilities.iter().all(|p| *p <= got.confidence));
        let low = values.iter().copied().fold(f64::INFINITY, f64::min);
        prop_assert!((low..=6.0).contains(&got.expected_grade));
        prop_assert!((0.0..=1.0).contains(&got.score.get()));
        let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        prop_assert_eq!(Some(got.best), logits.iter().position(|logit| *logit == most));
    }

    #[test]
    fn a_logit_that_is_not_finite_is_an_error(
        at in 0_usize..3,
        bad in prop::sample::select(vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY]),
    ) {
        let mut logits = [0.0, 1.0, 2.0];
        logits[at] = bad;
        let error = GradeDistribution::read(&logits, None, &expected(&[0.0, 1.0, 2.0])).expect_err("refused");
        prop_assert_eq!(error.code(), Code::Internal);
        prop_assert_eq!(error.message(), format!("the logit of grade \"g{at}\" is {bad}"));
    }

    #[test]
    fn a_higher_logit_of_the_best_grade_never_lowers_the_score(
        logits in prop::collection::vec(-8.0_f32..8.0, 4),
        more in 0.0_f32..4.0,
    ) {
        let profile = expected(&[0.0, 1.0, 2.0, 3.0]);
        let before = GradeDistribution::read(&logits, None, &profile).expect("finite").score;
        let mut raised = logits;
        raised[3] += more;
        let after = GradeDistribution::read(&raised, None, &profile).expect("finite").score;
        prop_assert!(after.get() >= before.get() - 1e-12);
    }
}

#[test]
fn the_expected_value_is_rescaled_by_the_scale() {
    let even = [0.0, 0.0];
    let got = GradeDistribution::read(&even, None, &expected(&[1.0, 3.0])).expect("finite");
    assert!(close(got.expected_grade, 2.0) && close(got.score.get(), 0.5) && close(got.confidence, 0.5));
    assert_eq!(got.best, 0);
    let quarter = [0.0, 3.0_f32.ln()];
    let got = GradeDistribution::read(&quarter, None, &expected(&[3.0, 1.0])).expect("finite");
    assert!((got.score.get() - 0.25).abs() < 1e-6 && (got.expected_grade - 1.5).abs() < 1e-6);
}

#[test]
fn softmax_reads_one_grade_against_another() {
    let read = ScoreRead::Softmax { positive: 2, negative: 0 };
    let profile = profile(&[0.0, 0.5, 1.0], read, 2.0, Vec::new());
    let got = GradeDistribution::read(&[1.0, 50.0, 3.0], None, &profile).expect("finite");
    assert!(close(got.score.get(), 1.0 / (1.0 + (-1.0_f64).exp())));
}

#[test]
fn the_score_is_calibrated_once_and_monotonically() {
    let points = vec![[0.0, 0.1], [0.5, 0.2], [1.0, 0.9]];
    let profile = profile(&[0.0, 1.0], ScoreRead::Expected, 1.0, points);
    let score =
        |logits: [f32; 2]| GradeDistribution::read(&logits, None, &profile).expect("finite").score.get();
    assert!(close(score([0.0, 0.0]), 0.2));
    assert!(close(score([100.0, -100.0]), 0.1) && close(score([-100.0, 100.0]), 0.9));
}

#[test]
fn label_mass_ignores_the_temperature() {
    let profile = profile(&[0.0, 1.0], ScoreRead::Expected, 5.0, Vec::new());
    // Two grades of logit 0 beside another two tokens of logit 0.
    let got = GradeDistribution::read(&[0.0, 0.0], Some(4.0_f32.ln()), &profile).expect("finite");
    assert!((got.label_mass.expect("known") - 0.5).abs() < 1e-6);
    let error = GradeDistribution::read(&[0.0, 0.0], Some(f32::NAN), &profile).expect_err("refused");
    assert_eq!(error.message(), "the log-sum-exp of the vocabulary's logits is NaN");
}

#[test]
fn scores_are_ordered_and_bounded() {
    assert_eq!(Score::new(f64::NAN), None);
    assert_eq!(Score::new(1.0 + f64::EPSILON), None);
    assert_eq!(Score::new(-0.0).map(f64::from), Some(0.0));
    assert_eq!(Score::new(-0.0).cmp(&Score::new(0.0)), std::cmp::Ordering::Equal);
    assert!(Score::new(0.1) < Score::new(0.2));
}

#[test]
fn a_wrong_number_of_logits_is_an_error() {
    let error = GradeDistribution::read(&[0.0; 3], None, &expected(&[0.0, 1.0])).expect_err("refused");
    assert_eq!(error.message(), "3 logits for 2 grades");
}

#[test]
fn a_logit_is_finite_and_its_logistic_is_the_score() {
    for score in [0.0, 1e-12, 0.1, 0.5, 0.75, 1.0 - 1e-12, 1.0] {
        let logit = Score::new(score).expect("a score").logit();
        assert!(logit.is_finite() && logit.abs() < 37.0, "{score} has {logit}");
        assert!(close(logistic(logit), score), "{score} became {logit}");
    }
    assert_eq!(Score::new(0.5).expect("a score").logit(), 0.0);
}
