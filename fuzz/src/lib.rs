//! What clients and files may send, as functions of bytes. None may panic, whatever
//! the bytes are, and what is accepted keeps the promises that are asserted here.

use std::{collections::VecDeque, sync::LazyLock, time::Instant};

use verdict::{
    engine::scheduler::{Budget, Fate, Schedulable, Scheduler},
    grade::GradeDistribution,
    model::{
        Model,
        config::ModelConfig,
        weights::{Checkpoint, Storage},
    },
    profile::Profile,
    prompt::{Template, Truncation},
    server,
};

static MODEL: LazyLock<Model> = LazyLock::new(|| Model::bundled().expect("the bundled model loads"));

/// Every route that takes a body.
pub const ROUTES: [&str; 12] = [
    "/score",
    "/score?explain=true",
    "/rerank",
    "/reranking",
    "/v1/rerank",
    "/v2/rerank",
    "/v1/reranking",
    "/v1/ranking",
    "/v1/score",
    "/v1/systemone",
    "/predict",
    "/v1/retrieval/nvidia/reranker/reranking",
];

/// A body, by every route.
pub fn requests(data: &[u8]) {
    for route in ROUTES {
        let read = server::read_body(route, data, &MODEL.profile).expect("a route with a body");
        match read {
            Ok(request) => assert!(!request.items().is_empty(), "{route} takes a request of nothing"),
            Err(error) => assert!(!error.message().is_empty()),
        }
    }
}

/// A message of `relevance.v1`.
pub fn messages(data: &[u8]) {
    if let Some(Ok(request)) = server::grpc::read_message(data) {
        assert!(!request.items().is_empty(), "a request of nothing");
    }
}

/// A template, a query and a document with lines of `\0` between them; the first byte is the room.
pub fn prompts(data: &[u8]) {
    let Some((room, rest)) = data.split_first() else { return };
    let text = String::from_utf8_lossy(rest);
    let mut parts = text.splitn(3, '\0');
    let [template, query, document] = [(); 3].map(|()| parts.next().unwrap_or_default());
    let tokenizer = &MODEL.tokenizer;
    let parsed = Template::parse(template, tokenizer);
    let template = parsed.as_ref().unwrap_or(&MODEL.profile.template);
    let max_tokens = usize::from(*room) + 8;
    let Ok(query) = template.for_query(tokenizer, "Judge.", query, max_tokens) else { return };
    let whole = query.render(document, Truncation::Error);
    if let Ok(prompt) = query.render(document, Truncation::Document) {
        assert!(prompt.tokens.len() <= max_tokens, "{} of {max_tokens} tokens", prompt.tokens.len());
        assert!(prompt.document.start <= prompt.document.end && prompt.document.end <= prompt.tokens.len());
        assert_eq!(prompt.truncated, whole.is_err(), "truncated, or it fits");
        if let Ok(whole) = whole {
            assert_eq!(whole.tokens, prompt.tokens);
        }
    }
}

/// A `relevance.toml`.
pub fn profiles(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Profile::from_toml(text, "relevance.toml", &MODEL.tokenizer, &MODEL.config) {
        // Any finite logits have a score: the grades likely in equal parts, or every other one.
        Ok(profile) => {
            for logit in [0.0, f32::MAX] {
                let sign = |index| if index % 2 == 0 { logit } else { -logit };
                let logits: Vec<f32> = (0..profile.grades.len()).map(sign).collect();
                GradeDistribution::read(&logits, None, &profile).expect("a score");
            }
        }
        Err(error) => assert!(error.message().starts_with("relevance.toml"), "{error}"),
    }
}

/// A `config.json`.
pub fn configs(data: &[u8]) {
    if let Ok(config) = ModelConfig::from_json(data, "config.json") {
        assert!(config.query_width() > 0 && config.kv_width() > 0 && config.rms_norm_eps > 0.0);
        let mut last = config.rotary_row(config.max_positions);
        assert!(last.all(|(cos, sin)| cos.is_finite() && sin.is_finite()));
    }
}

/// A safetensors file.
pub fn tensors(data: &[u8]) {
    let Ok(checkpoint) = Checkpoint::from_storage(Storage::Owned(data.to_vec()), "model.safetensors") else {
        return;
    };
    assert!(checkpoint.byte_size() <= data.len());
    for name in checkpoint.names() {
        // Of any shape but its own it is an error; none may read past the file.
        for shape in [&[][..], &[1], &[4, 4], &[usize::MAX, 2]] {
            if let Ok(tensor) = checkpoint.tensor(name, shape) {
                assert!(tensor.bytes().len() <= data.len());
            }
        }
    }
}

struct Job {
    id: usize,
    request: u64,
    tokens: Vec<u32>,
    fate: Fate,
}

impl Schedulable for Job {
    fn tokens(&self) -> &[u32] {
        &self.tokens
    }
    fn request(&self) -> u64 {
        self.request
    }
    fn fate(&self, _: Instant) -> Fate {
        self.fate
    }
}

/// Operations on the scheduler, a byte each, against a model of what it promises.
pub fn scheduling(data: &[u8]) {
    let budget = Budget { tokens: 32, sequences: 5, explain_sequences: 2, explain_every: 3 };
    let mut scheduler = Scheduler::new(budget);
    let (mut pushed, mut out, mut score_batches) = (0, vec![0u8; data.len()], 0);
    // What each request has queued, in its own order.
    let mut queued: [VecDeque<usize>; 4] = Default::default();
    let mut explaining = 0usize;
    for byte in data {
        match byte % 4 {
            0 | 1 => {
                let request = u64::from(byte >> 2 & 3);
                let fate = if byte >> 4 == 15 { Fate::Abandoned } else { Fate::Live };
                let tokens = vec![u32::from(*byte); usize::from(byte >> 3) + 1];
                scheduler.push(Job { id: pushed, request, tokens, fate });
                queued[request as usize].push_back(pushed);
                pushed += 1;
            }
            2 => {
                scheduler.requeue(*byte);
                explaining += 1;
            }
            _ => {
                scheduler.cut_batches(usize::from(byte >> 2));
                let plan = scheduler.next_batch(Instant::now());
                assert!(
                    plan.score.len() <= budget.sequences && plan.explain.len() <= budget.explain_sequences
                );
                let (mut cost, mut last) = (0, None);
                for job in &plan.score {
                    assert_eq!(job.fate, Fate::Live);
                    cost += if last == Some(&job.tokens) { 0 } else { job.tokens.len() };
                    last = Some(&job.tokens);
                }
                assert!(plan.score.len() == 1 || cost <= budget.tokens + 32, "{cost} tokens");
                for job in plan.score.iter().chain(plan.dropped.iter().map(|(job, _)| job)) {
                    out[job.id] += 1;
                    let queue = &mut queued[job.request as usize];
                    let at = queue.iter().position(|id| *id == job.id).expect("it was queued");
                    queue.remove(at);
                }
                explaining -= plan.explain.len();
                score_batches =
                    if plan.explain.is_empty() && !plan.score.is_empty() { score_batches + 1 } else { 0 };
                assert!(explaining == 0 || score_batches <= budget.explain_every, "the explain lane starves");
                if explaining == 0 {
                    score_batches = 0;
                }
                plan.explain.into_iter().for_each(|sequence| scheduler.requeue(sequence));
                explaining = scheduler.waiting().1;
            }
        }
    }
    while !scheduler.is_idle() {
        let plan = scheduler.next_batch(Instant::now());
        plan.score.iter().chain(plan.dropped.iter().map(|(job, _)| job)).for_each(|job| out[job.id] += 1);
    }
    assert!(out[..pushed].iter().all(|count| *count == 1), "each job comes out once");
    assert!(scheduler.is_idle());
}
