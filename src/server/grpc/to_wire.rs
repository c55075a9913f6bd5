//! Responses as protobuf.

use crate::{
    error::Error,
    profile::Grade,
    service::{ExplainItem, Explanation, PairScore, ScoreResponse, ScoreResult, Service, Timing, Usage},
};

use super::{super::http::write::ms, pb};

/// A whole response.
pub(super) fn scores(response: ScoreResponse) -> pb::ScoreResponse {
    let ScoreResponse { model, results, usage: tokens, timing: time } = response;
    let grades = &model.profile.grades;
    pb::ScoreResponse {
        model: model.name.clone(),
        results: results.into_iter().map(|scored| result(scored, grades)).collect(),
        usage: Some(usage(&tokens)),
        timing_ms: Some(timing(&time)),
        request_id: String::new(),
        error: None,
    }
}

fn result(scored: ScoreResult, grades: &[Grade]) -> pb::ScoreResult {
    let ScoreResult { index, id, document, score } = scored;
    let blank = pb::ScoreResult { index: small(index), id, document, ..pb::ScoreResult::default() };
    match score {
        Ok(score) => filled(blank, score, grades),
        Err(failed) => pb::ScoreResult { error: Some(error(&failed)), ..blank },
    }
}

fn filled(blank: pb::ScoreResult, score: PairScore, grades: &[Grade]) -> pb::ScoreResult {
    let read = score.distribution;
    let names = || grades.iter().map(|grade| grade.name.clone());
    let best = &grades[read.best];
    pb::ScoreResult {
        relevance_score: read.score.get(),
        expected_grade: read.expected_grade,
        grade: best.name.clone(),
        label: best.label.clone(),
        confidence: read.confidence,
        probabilities: names().zip(read.probabilities).collect(),
        label_mass: read.label_mass,
        tokens: small(score.tokens),
        truncated: score.truncated,
        logits: score.logits.map(|logits| names().zip(logits).collect()).unwrap_or_default(),
        ..blank
    }
}

/// A failure inside a response.
pub(super) fn error(error: &Error) -> pb::Error {
    let row = error.code().row();
    pb::Error {
        code: row.name.to_owned(),
        message: error.public_message().to_owned(),
        retryable: error.retryable(),
        retry_after_ms: error.retry_after().map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)),
    }
}

/// One event of an explanation.
pub(super) fn event(item: ExplainItem) -> pb::ExplainEvent {
    use pb::explain_event::Event;
    let event = match item {
        ExplainItem::Scores(response) => Event::Scores(scores(response)),
        ExplainItem::Delta { index, text } => {
            Event::Reason(pb::ReasonDelta { index: small(index), delta: text })
        }
        ExplainItem::ReasonDone(reason) => Event::ReasonDone(reason_done(reason)),
        ExplainItem::Done { usage: tokens, timing: time } => {
            Event::Done(pb::ExplainDone { usage: Some(usage(&tokens)), timing_ms: Some(timing(&time)) })
        }
    };
    pb::ExplainEvent { event: Some(event) }
}

fn reason_done(reason: Explanation) -> pb::ReasonDone {
    pb::ReasonDone {
        index: small(reason.index),
        finish_reason: reason.finish.as_str().to_owned(),
        tokens: small(reason.tokens),
        sections: reason.sections.unwrap_or_default().into_iter().collect(),
        error: reason.error.as_ref().map(error),
    }
}

fn usage(usage: &Usage) -> pb::Usage {
    pb::Usage {
        prompt_tokens: usage.prompt_tokens() as u64,
        computed_tokens: usage.prompt.computed as u64,
        shared_tokens: usage.prompt.shared as u64,
        cached_tokens: usage.prompt.cached as u64,
        reason_tokens: usage.reason as u64,
    }
}

fn timing(timing: &Timing) -> pb::Timing {
    pb::Timing {
        total: ms(timing.total),
        tokenize: ms(timing.tokenize),
        queue: ms(timing.queue),
        compute: ms(timing.compute),
        explain: ms(timing.explain),
    }
}

/// The served model and its limits.
pub(super) fn info(service: &Service) -> pb::InfoResponse {
    let (profile, limits) = (service.profile(), service.limits());
    let grade = |grade: &Grade| pb::Grade {
        name: grade.name.clone(),
        label: grade.label.clone(),
        value: grade.value,
    };
    pb::InfoResponse {
        model: service.model().name.clone(),
        aliases: profile.aliases.clone(),
        grades: profile.grades.iter().map(grade).collect(),
        instruction: profile.instruction.clone(),
        profile_hash: profile.hash.clone(),
        limits: Some(pb::Limits {
            max_documents: limits.documents as u64,
            max_tokens: profile.max_tokens as u64,
            max_query_bytes: limits.query_bytes as u64,
            max_instruction_bytes: limits.instruction_bytes as u64,
            max_document_bytes: limits.document_bytes as u64,
            max_body_bytes: limits.body_bytes as u64,
            max_deadline_ms: u64::try_from(limits.deadline.as_millis()).unwrap_or(u64::MAX),
        }),
        explain: service.max_reason_tokens().map(|tokens| pb::ExplainLimits {
            default_top_n: limits.explain_top_n as u64,
            max_documents: limits.explain_documents as u64,
            max_reason_tokens: tokens as u64,
        }),
        version: crate::VERSION.to_owned(),
        commit: crate::COMMIT.to_owned(),
        device: service.device().to_owned(),
    }
}

/// Limits keep these far below 2^32.
fn small(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}
