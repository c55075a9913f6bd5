//! What a request is answered with, whatever the transport.

use std::{cmp::Ordering, sync::Arc, time::Duration};

use crate::{
    engine::job::{FinishReason, TokenCounts},
    error::{Error, Result},
    grade::GradeDistribution,
    model::Model,
};

/// The answer to a request.
#[derive(Clone, Debug)]
pub struct ScoreResponse {
    /// The model that scored; names its grades.
    pub model: Arc<Model>,
    /// In input order, or ranked if that was asked for.
    pub results: Vec<ScoreResult>,
    /// Tokens of the request.
    pub usage: Usage,
    /// Where the time went.
    pub timing: Timing,
}

/// One pair of a response.
#[derive(Clone, Debug)]
pub struct ScoreResult {
    /// Position in the request.
    pub index: usize,
    /// The document's id.
    pub id: Option<String>,
    /// The document as it was rendered, if it was asked for.
    pub document: Option<String>,
    /// What was read, or why not.
    pub score: Result<PairScore>,
}

/// What was read for one pair.
#[derive(Clone, Debug, PartialEq)]
pub struct PairScore {
    /// Probabilities, expected grade, score.
    pub distribution: GradeDistribution,
    /// The grades' logits, if they were asked for.
    pub logits: Option<Vec<f32>>,
    /// Tokens of the prompt.
    pub tokens: usize,
    /// The document was cut to fit.
    pub truncated: bool,
}

/// Tokens of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Prompt tokens by how they were had.
    pub prompt: TokenCounts,
    /// Tokens decoded for reasons.
    pub reason: usize,
}

impl Usage {
    /// All prompt tokens.
    pub fn prompt_tokens(&self) -> usize {
        self.prompt.computed + self.prompt.shared + self.prompt.cached
    }

    pub(super) fn add(&mut self, tokens: TokenCounts) {
        self.prompt.computed += tokens.computed;
        self.prompt.shared += tokens.shared;
        self.prompt.cached += tokens.cached;
    }
}

/// Where the time of a request went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// From arrival to answer.
    pub total: Duration,
    /// Rendering and tokenizing.
    pub tokenize: Duration,
    /// Until the first batch with a pair of it started.
    pub queue: Duration,
    /// From there to the end of the last batch with a pair of it.
    pub compute: Duration,
    /// Decoding reasons.
    pub explain: Duration,
}

/// A whole reason, as the JSON form returns it.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// Position in the request.
    pub index: usize,
    /// The reason.
    pub text: String,
    /// Name and text of each section, if the profile names them and all are there.
    pub sections: Option<Vec<(String, String)>>,
    /// Why it ended.
    pub finish: FinishReason,
    /// Tokens decoded.
    pub tokens: usize,
    /// What went wrong, if something did.
    pub error: Option<Error>,
}

/// Best first; equal scores in input order; failed pairs last.
pub(super) fn rank(results: &mut [ScoreResult]) {
    results.sort_by(order);
}

/// As [`rank`], leaving the results where they are.
pub(super) fn rank_refs(results: &mut [&ScoreResult]) {
    results.sort_by(|left, right| order(left, right).then(left.index.cmp(&right.index)));
}

fn order(left: &ScoreResult, right: &ScoreResult) -> Ordering {
    match (&left.score, &right.score) {
        (Ok(left), Ok(right)) => right.distribution.score.cmp(&left.distribution.score),
        (Ok(_), Err(_)) => Ordering::Less,
        (Err(_), Ok(_)) => Ordering::Greater,
        (Err(_), Err(_)) => Ordering::Equal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grade::Score;

    fn result(index: usize, score: Option<f64>) -> ScoreResult {
        let score = score.map(|score| PairScore {
            distribution: GradeDistribution {
                probabilities: vec![1.0 - score, score],
                expected_grade: score,
                best: 0,
                confidence: score,
                score: Score::new(score).expect("a score"),
                label_mass: None,
            },
            logits: None,
            tokens: 1,
            truncated: false,
        });
        let score = score.ok_or_else(|| Error::internal("failed"));
        ScoreResult { index, id: None, document: None, score }
    }

    #[test]
    fn ties_keep_input_order_and_failures_come_last() {
        let scores = [Some(0.5), None, Some(0.9), Some(0.5), None, Some(0.1), Some(0.9)];
        let mut results: Vec<ScoreResult> =
            scores.into_iter().enumerate().map(|(index, score)| result(index, score)).collect();
        rank(&mut results);
        let order: Vec<usize> = results.iter().map(|result| result.index).collect();
        assert_eq!(order, [2, 6, 0, 3, 5, 1, 4]);
    }
}
