//! JSON responses.

use std::time::Duration;

use serde::{Serialize, Serializer, ser::SerializeMap as _};

use crate::{
    error::Error,
    profile::Grade,
    service::{Explanation, ScoreResponse, ScoreResult, Service, Timing, Usage},
};

/// A whole response; each reason goes to its result.
pub(crate) fn scores(response: &ScoreResponse, reasons: &[Explanation]) -> Vec<u8> {
    bytes(&Scores { response, reasons })
}

/// The data of a `reason` event.
pub(crate) fn delta(index: usize, delta: &str) -> Vec<u8> {
    #[derive(Serialize)]
    struct Delta<'a> {
        index: usize,
        delta: &'a str,
    }
    bytes(&Delta { index, delta })
}

/// The data of a `reason_done` event.
pub(crate) fn reason_done(reason: &Explanation) -> Vec<u8> {
    bytes(&ReasonDone { index: reason.index, end: End(reason) })
}

/// The data of a `done` event.
pub(crate) fn done(usage: &Usage, timing: &Timing) -> Vec<u8> {
    #[derive(Serialize)]
    struct Done {
        usage: UsageView,
        timing_ms: TimingView,
    }
    bytes(&Done { usage: usage.into(), timing_ms: timing.into() })
}

/// What clients of text-embeddings-inference read in `/info`.
#[derive(Serialize)]
pub(crate) struct Tei {
    pub(crate) model_dtype: &'static str,
    pub(crate) max_concurrent_requests: usize,
    pub(crate) max_input_length: usize,
    pub(crate) max_batch_tokens: usize,
    pub(crate) max_client_batch_size: usize,
    pub(crate) tokenization_workers: usize,
    auto_truncate: bool,
}

impl Tei {
    pub(crate) fn of(service: &Service) -> Self {
        let capacity = service.capacity();
        Self {
            // Whatever the weights are stored in, all arithmetic is of this type.
            model_dtype: "float32",
            max_concurrent_requests: capacity.pairs,
            max_input_length: service.profile().max_tokens,
            max_batch_tokens: capacity.tokens,
            max_client_batch_size: service.limits().documents,
            tokenization_workers: service.tokenizing_threads(),
            auto_truncate: true,
        }
    }
}

/// `GET /info`: our own names first, then those of text-embeddings-inference.
pub(crate) fn info(service: &Service) -> Vec<u8> {
    let (profile, limits) = (service.profile(), service.limits());
    let grades: Vec<_> = profile
        .grades
        .iter()
        .map(|grade| serde_json::json!({"name": grade.name, "label": grade.label, "value": grade.value}))
        .collect();
    let explain = service.max_reason_tokens().map(|tokens| {
        serde_json::json!({
            "default_top_n": limits.explain_top_n,
            "max_documents": limits.explain_documents,
            "max_reason_tokens": tokens,
        })
    });
    let ids = || profile.grades.iter().map(|grade| &grade.label).enumerate();
    let id2label: serde_json::Map<_, _> =
        ids().map(|(id, label)| (id.to_string(), label.as_str().into())).collect();
    let label2id: serde_json::Map<_, _> = ids().map(|(id, label)| (label.clone(), id.into())).collect();
    let native = serde_json::json!({
        "model": service.model().name,
        "aliases": profile.aliases,
        "grades": grades,
        "instruction": profile.instruction,
        "profile_hash": profile.hash,
        "limits": {
            "max_documents": limits.documents,
            "max_tokens": profile.max_tokens,
            "max_query_bytes": limits.query_bytes,
            "max_instruction_bytes": limits.instruction_bytes,
            "max_document_bytes": limits.document_bytes,
            "max_body_bytes": limits.body_bytes,
            "max_deadline_ms": u64::try_from(limits.deadline.as_millis()).unwrap_or(u64::MAX),
        },
        "explain": explain,
        "version": crate::VERSION,
        "commit": crate::COMMIT,
        "device": service.device(),
        "model_id": service.model().name,
        "model_sha": profile.hash,
        "model_type": {"reranker": {"id2label": id2label, "label2id": label2id}},
        "max_batch_requests": null,
        "sha": crate::COMMIT,
        "docker_label": null,
    });
    #[derive(Serialize)]
    struct Info {
        #[serde(flatten)]
        native: serde_json::Value,
        #[serde(flatten)]
        tei: Tei,
    }
    bytes(&Info { native, tei: Tei::of(service) })
}

/// `GET /v1/models`.
pub(crate) fn models(service: &Service) -> Vec<u8> {
    let names = std::iter::once(&service.model().name).chain(&service.profile().aliases);
    let data: Vec<_> = names
        .map(|name| serde_json::json!({"id": name, "object": "model", "created": 0, "owned_by": "verdict"}))
        .collect();
    bytes(&serde_json::json!({"object": "list", "data": data}))
}

/// A value as JSON.
pub(in crate::server) fn bytes(value: &impl Serialize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(512);
    // Text, numbers and maps with text keys always have a JSON form.
    serde_json::to_writer(&mut bytes, value).unwrap_or_default();
    bytes
}

struct Scores<'a> {
    response: &'a ScoreResponse,
    reasons: &'a [Explanation],
}

impl Serialize for Scores<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let grades = &self.response.model.profile.grades;
        let results: Vec<Result_<'_>> = self
            .response
            .results
            .iter()
            .map(|result| {
                let reason = self.reasons.iter().find(|reason| reason.index == result.index);
                Result_ { result, grades, reason }
            })
            .collect();
        let mut map = serializer.serialize_map(Some(4))?;
        map.serialize_entry("model", &self.response.model.name)?;
        map.serialize_entry("results", &results)?;
        map.serialize_entry("usage", &UsageView::from(&self.response.usage))?;
        map.serialize_entry("timing_ms", &TimingView::from(&self.response.timing))?;
        map.end()
    }
}

struct Result_<'a> {
    result: &'a ScoreResult,
    grades: &'a [Grade],
    reason: Option<&'a Explanation>,
}

impl Serialize for Result_<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("index", &self.result.index)?;
        if let Some(id) = &self.result.id {
            map.serialize_entry("id", id)?;
        }
        match &self.result.score {
            Ok(score) => {
                let read = &score.distribution;
                let best = &self.grades[read.best];
                map.serialize_entry("relevance_score", &read.score.get())?;
                map.serialize_entry("expected_grade", &read.expected_grade)?;
                map.serialize_entry("grade", &best.name)?;
                map.serialize_entry("label", &best.label)?;
                map.serialize_entry("confidence", &read.confidence)?;
                map.serialize_entry("probabilities", &ByGrade(self.grades, &read.probabilities))?;
                if let Some(mass) = read.label_mass {
                    map.serialize_entry("label_mass", &mass)?;
                }
                map.serialize_entry("tokens", &score.tokens)?;
                map.serialize_entry("truncated", &score.truncated)?;
                if let Some(logits) = &score.logits {
                    // As f64 they are written with all their digits: the same numbers as in protobuf.
                    let logits: Vec<f64> = logits.iter().copied().map(f64::from).collect();
                    map.serialize_entry("logits", &ByGrade(self.grades, &logits))?;
                }
            }
            Err(error) => map.serialize_entry("error", &ErrorView::from(error))?,
        }
        if let Some(document) = &self.result.document {
            map.serialize_entry("document", document)?;
        }
        if let Some(reason) = self.reason {
            map.serialize_entry("reason", &Reason { text: &reason.text, end: End(reason) })?;
        }
        map.end()
    }
}

/// Numbers by the names of their grades, in the profile's order.
struct ByGrade<'a, T>(&'a [Grade], &'a [T]);

impl<T: Serialize> Serialize for ByGrade<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|grade| &grade.name).zip(self.1))
    }
}

#[derive(Serialize)]
struct ErrorView<'a> {
    code: &'static str,
    message: &'a str,
    retryable: bool,
}

impl<'a> From<&'a Error> for ErrorView<'a> {
    fn from(error: &'a Error) -> Self {
        let row = error.code().row();
        Self { code: row.name, message: error.public_message(), retryable: error.retryable() }
    }
}

#[derive(Serialize)]
struct Reason<'a> {
    text: &'a str,
    #[serde(flatten)]
    end: End<'a>,
}

#[derive(Serialize)]
struct ReasonDone<'a> {
    index: usize,
    #[serde(flatten)]
    end: End<'a>,
}

/// How a reason ended.
struct End<'a>(&'a Explanation);

impl Serialize for End<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        struct Sections<'a>(&'a [(String, String)]);
        impl Serialize for Sections<'_> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_map(self.0.iter().map(|(name, text)| (name, text)))
            }
        }
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("finish_reason", self.0.finish.as_str())?;
        map.serialize_entry("tokens", &self.0.tokens)?;
        if let Some(sections) = &self.0.sections {
            map.serialize_entry("sections", &Sections(sections))?;
        }
        if let Some(error) = &self.0.error {
            map.serialize_entry("error", &ErrorView::from(error))?;
        }
        map.end()
    }
}

#[derive(Serialize)]
struct UsageView {
    prompt_tokens: usize,
    computed_tokens: usize,
    shared_tokens: usize,
    cached_tokens: usize,
    #[serde(skip_serializing_if = "is_zero")]
    reason_tokens: usize,
}

impl From<&Usage> for UsageView {
    fn from(usage: &Usage) -> Self {
        Self {
            prompt_tokens: usage.prompt_tokens(),
            computed_tokens: usage.prompt.computed,
            shared_tokens: usage.prompt.shared,
            cached_tokens: usage.prompt.cached,
            reason_tokens: usage.reason,
        }
    }
}

fn is_zero(tokens: &usize) -> bool {
    *tokens == 0
}

#[derive(Serialize)]
struct TimingView {
    total: f64,
    tokenize: f64,
    queue: f64,
    compute: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    explain: Option<f64>,
}

impl From<&Timing> for TimingView {
    fn from(timing: &Timing) -> Self {
        Self {
            total: ms(timing.total),
            tokenize: ms(timing.tokenize),
            queue: ms(timing.queue),
            compute: ms(timing.compute),
            explain: (!timing.explain.is_zero()).then(|| ms(timing.explain)),
        }
    }
}

/// Milliseconds, to the microsecond.
pub(crate) fn ms(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e3
}
