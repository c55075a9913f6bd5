//! `POST /v1/systemone`: free questions about one state, each with levels of its own.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    error::{Code, Error, Result, shown},
    request::{Document, Items, Limits, Pair, ScoreOptions, ScoreRequest},
    server::{
        call::RequestId,
        http::{object::Object, write::bytes},
    },
    service::ScoreResponse,
};

use super::{Arrived, Dialect, Fields, Shape, in_order, lenient, rows::rows};

#[derive(Deserialize)]
pub(super) struct Body {
    #[serde(deserialize_with = "lenient::value")]
    state: Value,
    #[serde(deserialize_with = "lenient::object")]
    questions: Map<String, Value>,
}

#[derive(Deserialize)]
struct Question {
    r#type: String,
    instructions: Value,
    #[serde(default)]
    criteria: Vec<Value>,
}

#[derive(Serialize)]
struct Answers<'a> {
    model: &'a str,
    answers: Map<String, Value>,
    usage: Usage,
}

#[derive(Serialize)]
struct Usage {
    input_tokens: usize,
    output_tokens: usize,
}

/// Name and levels of each question.
type Asked = Vec<(String, Vec<Value>)>;

impl Dialect for Body {
    const SHAPE: Shape = Shape::OpenAi;
    const FIELDS: Fields = Fields::about("questions", "state");
    type Kept = Asked;

    /// Each question is a pair: what is asked is the query, the state the document.
    fn read(self, arrived: &Arrived<'_>) -> Result<(ScoreRequest, Asked)> {
        let profile = arrived.profile;
        if !profile.free_questions {
            let message = format!("the model {:?} does not take free questions; use /score", profile.name);
            return Err(Error::new(Code::Unimplemented, message));
        }
        let state = text(&self.state);
        check(&state, self.questions.len(), arrived.limits)?;
        let (mut pairs, mut asked) = (Vec::new(), Vec::new());
        for (name, question) in self.questions {
            let field = format!("questions.{name}");
            let Object(question): Object<Question> =
                serde_json::from_value(question).map_err(|cause| Error::invalid(&field, cause))?;
            if question.r#type != "score" {
                let message = format!("{field}.type: {} is not offered; score is", shown(&question.r#type));
                return Err(Error::new(Code::Unimplemented, message));
            }
            let (levels, grades) = (question.criteria.len(), profile.grades.len());
            if levels != grades {
                let message = format!("{levels} levels, but this model has {grades} grades");
                return Err(Error::invalid(&format!("{field}.criteria"), message));
            }
            let levels = question.criteria.iter().enumerate();
            let levels: String = levels.map(|(level, means)| format!("\n{level}: {}", text(means))).collect();
            let query = text(&question.instructions) + &levels;
            pairs.push(Pair { query, document: Document::text(state.clone()) });
            asked.push((name, question.criteria));
        }
        if pairs.is_empty() {
            return Err(Error::invalid("questions", "is empty; at least one question is needed"));
        }
        // A blank state is a mistake, and not one document among others.
        let options = ScoreOptions { blank: false, ..in_order() };
        Ok((ScoreRequest::new(Items::Pairs(pairs), options)?, asked))
    }

    fn write(asked: Asked, response: &ScoreResponse, _: &RequestId) -> Result<Vec<u8>> {
        let grades = &response.model.profile.grades;
        let mut lowest_first: Vec<usize> = (0..grades.len()).collect();
        lowest_first.sort_by(|&left, &right| grades[left].value.total_cmp(&grades[right].value));
        let answer = |(row, (name, levels)): (super::rows::Row<'_>, (String, Vec<Value>))| {
            let read = &row.pair.distribution.probabilities;
            (name, answer(lowest_first.iter().map(|&grade| read[grade]).collect(), levels))
        };
        let answers = rows(response)?.into_iter().zip(asked).map(answer).collect();
        let usage = Usage { input_tokens: response.usage.prompt_tokens(), output_tokens: 0 };
        Ok(bytes(&Answers { model: &response.model.name, answers, usage }))
    }
}

/// The state becomes the document of every question. Before it is copied so often, all of it has to fit
/// where a request that holds the copies has to fit.
fn check(state: &str, questions: usize, limits: &Limits) -> Result<()> {
    if questions > limits.documents {
        return Err(Error::too_large("questions", "questions", limits.documents, questions));
    }
    if state.len() > limits.document_bytes {
        return Err(Error::too_large("state", "bytes", limits.document_bytes, state.len()));
    }
    let all = state.len().saturating_mul(questions);
    if all > limits.body_bytes {
        let unit = format!("bytes, once for each of {questions} questions");
        return Err(Error::too_large("state", &unit, limits.body_bytes, all));
    }
    Ok(())
}

/// `score` is the expected level, from 0 to the last; `confidence` 0 where all are as likely.
fn answer(probabilities: Vec<f64>, levels: Vec<Value>) -> Value {
    let flat = 1.0 / probabilities.len() as f64;
    let most = probabilities.iter().copied().fold(0.0, f64::max);
    let score: f64 = probabilities.iter().enumerate().map(|(level, p)| level as f64 * p).sum();
    let numbered = |values: Vec<Value>| -> Map<String, Value> {
        values.into_iter().enumerate().map(|(level, value)| (level.to_string(), value)).collect()
    };
    serde_json::json!({
        "type": "score",
        "score": score,
        "confidence": ((most - flat) / (1.0 - flat)).clamp(0.0, 1.0),
        "legend": numbered(levels),
        "probabilities": numbered(probabilities.into_iter().map(Value::from).collect()),
    })
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_not_copied_past_what_a_body_may_hold() {
        let limits = Limits { documents: 4, document_bytes: 10, body_bytes: 25, ..Limits::default() };
        let check =
            |state: &str, questions| check(state, questions, &limits).map_err(|error| error.to_string());
        assert_eq!(check("1234567890", 2), Ok(()));
        assert_eq!(check("s", 5), Err("questions: 5 questions, over the limit of 4".into()));
        assert_eq!(check("12345678901", 1), Err("state: 11 bytes, over the limit of 10".into()));
        let all = "state: 30 bytes, once for each of 3 questions, over the limit of 25";
        assert_eq!(check("1234567890", 3), Err(all.into()));
    }
}
