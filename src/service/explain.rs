//! Scores first, then reasons as they are decoded.

use std::{
    collections::VecDeque,
    future::poll_fn,
    mem::take,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use tokio::sync::mpsc;

use crate::{
    admission::Permit,
    engine::{
        job::{ExplainEvent, ExplainJob, FinishReason},
        kv::KeptSequence,
    },
    error::{Code, Error, Result},
    grounding::Guard,
    metrics::Metrics,
    profile::ExplainProfile,
    prompt::Prompt,
    request::{ExplainRequest, Explained, Limits},
    telemetry::{Stage, Trace},
    tokenize::DecodeStream,
};

use super::{Explanation, Keep, ScoreResponse, Sequence, Service, Timing, Usage, response, sections, stages};

/// One thing that happens in an explanation.
#[derive(Clone, Debug)]
pub enum ExplainItem {
    /// All scores; always first.
    Scores(ScoreResponse),
    /// A piece of a reason's text.
    Delta {
        /// Position in the request.
        index: usize,
        /// Appends to what came before for this index.
        text: String,
    },
    /// A reason ended.
    ReasonDone(ReasonDone),
    /// Everything ended; always last.
    Done {
        /// Tokens of the request, reasons included.
        usage: Usage,
        /// Where the time went, reasons included.
        timing: Timing,
    },
}

/// The end of one reason; the same as a whole [`Explanation`], whose text was sent in pieces.
pub type ReasonDone = Explanation;

/// What happens in an explanation, in order. Dropping it cancels what is left
/// and frees its KV.
pub struct ExplainStream {
    ready: VecDeque<ExplainItem>,
    reasons: Vec<Reason>,
    sections: Vec<String>,
    usage: Usage,
    timing: Timing,
    arrived: Instant,
    scored: Instant,
    first_token_seen: bool,
    ended: bool,
    metrics: Arc<Metrics>,
    trace: Option<Trace>,
}

/// A reason that is being decoded.
struct Reason {
    index: usize,
    events: mpsc::UnboundedReceiver<ExplainEvent>,
    decoder: Option<DecodeStream>,
    text: String,
    tokens: usize,
    ended: bool,
    stage: Option<Stage>,
}

/// See [`Service::explain`].
pub(super) async fn explain(
    service: &Service,
    request: ExplainRequest,
    trace: Option<&Trace>,
) -> Result<ExplainStream> {
    let model = Arc::clone(service.model());
    let profile = model.profile.explain.as_ref().ok_or_else(|| {
        let message = format!("the model {:?} does not explain its grades", model.name);
        Error::new(Code::Unimplemented, message)
    })?;
    let (request, explained, max_tokens) = request.into_parts();
    let max_tokens = check(service.limits(), profile, &explained, max_tokens)?;
    let keep = match &explained {
        Explained::Indices(indices) => {
            let mut indices = indices.clone();
            indices.sort_unstable();
            Keep::Only(indices)
        }
        Explained::Default | Explained::Best(_) => Keep::Everything,
    };
    let scores = service.run(request, keep, trace).await?;
    let (arrived, deadline) = (scores.arrived, scores.deadline);
    let (response, mut sequences) = service.respond(scores);
    let mut stream = ExplainStream {
        ready: VecDeque::new(),
        reasons: Vec::new(),
        sections: profile.sections.clone(),
        usage: response.usage,
        timing: response.timing,
        arrived,
        scored: Instant::now(),
        first_token_seen: false,
        ended: false,
        metrics: Arc::clone(&service.inner.metrics),
        trace: trace.cloned(),
    };
    let chosen = choose(&explained, service.limits(), &response);
    stream.ready.push_back(ExplainItem::Scores(response));
    // The lane's room is taken before any of them runs, so that what is shed depends on others alone.
    let chosen: Vec<_> = chosen
        .into_iter()
        .map(|(index, best)| (index, best, service.inner.admission.explain(), take(&mut sequences[index])))
        .collect();
    // The KV of what is not explained goes back before anything is decoded.
    drop(sequences);
    for (index, best, permit, Sequence { prompt, facts, kept }) in chosen {
        let first_token = model.profile.grades[best].token;
        let rule = profile.grounding.as_ref().map(Arc::clone);
        let guard = rule.zip(facts).map(|(rule, facts)| Guard::new(rule, facts, best));
        match (permit, prompt) {
            (Some(permit), Some(prompt)) => {
                stream.start(
                    service,
                    profile,
                    Start { index, first_token, guard, permit, prompt, kept, max_tokens, deadline },
                );
            }
            _ => stream.shed(index),
        }
    }
    Ok(stream)
}

/// Checks the options against the limits; returns the most tokens of one reason.
fn check(
    limits: &Limits,
    profile: &ExplainProfile,
    explained: &Explained,
    max_tokens: Option<usize>,
) -> Result<usize> {
    let (field, count) = match explained {
        Explained::Default => ("explain_top_n", limits.explain_top_n),
        Explained::Best(count) => ("explain_top_n", *count),
        Explained::Indices(indices) => ("explain_indices", indices.len()),
    };
    if count > limits.explain_documents {
        return Err(Error::too_large(field, "documents", limits.explain_documents, count));
    }
    let most = profile.max_tokens.min(limits.reason_tokens);
    match max_tokens {
        Some(tokens) if tokens > most => Err(Error::too_large("max_reason_tokens", "tokens", most, tokens)),
        Some(tokens) => Ok(tokens),
        None => Ok(most),
    }
}

/// Positions to explain and the reported grade of each, best first or as named.
/// A pair that was not scored has nothing to explain.
fn choose(explained: &Explained, limits: &Limits, response: &ScoreResponse) -> Vec<(usize, usize)> {
    let grade =
        |result: &super::ScoreResult| Some((result.index, result.score.as_ref().ok()?.distribution.best));
    match explained {
        Explained::Indices(indices) => {
            let named = |index: &usize| response.results.iter().find(|result| result.index == *index);
            indices.iter().filter_map(named).filter_map(grade).collect()
        }
        Explained::Default | Explained::Best(_) => {
            let count = if let Explained::Best(count) = explained { *count } else { limits.explain_top_n };
            let mut ranked: Vec<&super::ScoreResult> = response.results.iter().collect();
            response::rank_refs(&mut ranked);
            ranked.into_iter().filter_map(grade).take(count).collect()
        }
    }
}

/// What one explanation starts from.
struct Start {
    index: usize,
    first_token: u32,
    guard: Option<Guard>,
    permit: Permit,
    prompt: Arc<Prompt>,
    kept: Option<KeptSequence>,
    max_tokens: usize,
    deadline: Instant,
}

impl ExplainStream {
    fn start(&mut self, service: &Service, profile: &ExplainProfile, start: Start) {
        let Start { index, first_token, guard, permit, prompt, kept, max_tokens, deadline } = start;
        let (sink, events) = mpsc::unbounded_channel();
        let decoder = Some(service.model().tokenizer.decode_stream());
        let stage = self.trace.as_ref().map(|trace| stages::decoding(trace, index));
        let text = String::new();
        self.reasons.push(Reason { index, events, decoder, text, tokens: 0, ended: false, stage });
        service.inner.engine.explain(ExplainJob {
            prompt,
            kept,
            first_token,
            guard,
            stop_tokens: Arc::clone(&profile.stop_tokens),
            max_tokens,
            deadline: Some(deadline),
            permit: Some(permit),
            sink,
        });
    }

    /// The lane is full: the reason ends before it began.
    fn shed(&mut self, index: usize) {
        self.ready.push_back(ExplainItem::ReasonDone(Explanation {
            index,
            text: String::new(),
            sections: None,
            finish: FinishReason::Shed,
            tokens: 0,
            error: None,
        }));
    }

    /// The next item; `None` after [`ExplainItem::Done`]. Nothing is lost when
    /// the future is dropped.
    pub async fn next(&mut self) -> Option<ExplainItem> {
        poll_fn(|context| self.poll_item(context)).await
    }

    /// As [`ExplainStream::next`], for hand-written streams.
    pub fn poll_item(&mut self, context: &mut Context<'_>) -> Poll<Option<ExplainItem>> {
        loop {
            if let Some(item) = self.ready.pop_front() {
                return Poll::Ready(Some(item));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            if self.reasons.iter().all(|reason| reason.ended) {
                self.end();
                continue;
            }
            let mut progress = false;
            for reason in self.reasons.iter_mut().filter(|reason| !reason.ended) {
                while let Poll::Ready(event) = reason.events.poll_recv(context) {
                    progress = true;
                    if matches!(event, Some(ExplainEvent::Token(_))) && !self.first_token_seen {
                        self.first_token_seen = true;
                        self.metrics.first_reason_token(self.arrived.elapsed());
                    }
                    self.ready.extend(reason.take(event, &self.sections));
                    if reason.ended {
                        log_fault(self.ready.back(), self.trace.as_ref());
                        break;
                    }
                }
            }
            if !progress {
                return Poll::Pending;
            }
        }
    }

    fn end(&mut self) {
        self.ended = true;
        self.usage.reason = self.reasons.iter().map(|reason| reason.tokens).sum();
        self.timing.explain = self.scored.elapsed();
        self.timing.total = self.arrived.elapsed();
        let (usage, timing) = (self.usage, self.timing);
        self.ready.push_back(ExplainItem::Done { usage, timing });
        // Their permits and channels have nothing left to do.
        self.reasons = Vec::new();
    }

    /// Where the time went until the scores were there.
    pub fn timing(&self) -> Timing {
        self.timing
    }

    /// Waits for everything: scores with the whole request's usage and timing, and all reasons.
    ///
    /// # Errors
    ///
    /// `Internal` if the stream was read before.
    pub async fn collect(mut self) -> Result<(ScoreResponse, Vec<Explanation>)> {
        let mut scores = None;
        let mut reasons = Vec::new();
        while let Some(item) = self.next().await {
            match item {
                ExplainItem::Scores(response) => scores = Some(response),
                ExplainItem::Delta { .. } => {}
                ExplainItem::ReasonDone(reason) => reasons.push(reason),
                ExplainItem::Done { usage, timing } => {
                    if let Some(scores) = &mut scores {
                        (scores.usage, scores.timing) = (usage, timing);
                    }
                }
            }
        }
        let scores = scores.ok_or_else(|| Error::internal("an explanation's scores were taken before"))?;
        Ok((scores, reasons))
    }
}

/// The cause of a reason that failed is in the log alone.
fn log_fault(last: Option<&ExplainItem>, trace: Option<&Trace>) {
    if let Some(ExplainItem::ReasonDone(ReasonDone { index, error: Some(error), .. })) = last
        && error.code() == Code::Internal
    {
        let (trace, cause) = (trace.map(Trace::id), error.causes());
        tracing::error!(trace, index, cause, "a reason failed: {error}");
    }
}

impl Reason {
    /// What an event of the engine adds to the stream; `None` is a closed channel.
    fn take(&mut self, event: Option<ExplainEvent>, names: &[String]) -> Vec<ExplainItem> {
        match event {
            Some(ExplainEvent::Token(token)) => {
                self.tokens += 1;
                if let (1, Some(stage)) = (self.tokens, &mut self.stage) {
                    stage.event("first token");
                }
                match self.decoder.as_mut().map(|decoder| decoder.push(token)) {
                    Some(Ok(text)) => self.delta(text).into_iter().collect(),
                    Some(Err(error)) => self.finish(FinishReason::Cancelled, Some(error), names),
                    None => Vec::new(),
                }
            }
            Some(ExplainEvent::Finished(finish)) => self.finish(finish, None, names),
            Some(ExplainEvent::Failed(error)) => self.finish(FinishReason::Cancelled, Some(error), names),
            None => {
                let error = Error::internal("a reason ended without saying so");
                self.finish(FinishReason::Cancelled, Some(error), names)
            }
        }
    }

    fn delta(&mut self, text: Option<String>) -> Option<ExplainItem> {
        let text = text?;
        self.text.push_str(&text);
        Some(ExplainItem::Delta { index: self.index, text })
    }

    fn finish(&mut self, finish: FinishReason, error: Option<Error>, names: &[String]) -> Vec<ExplainItem> {
        self.ended = true;
        if let Some(stage) = self.stage.take() {
            stages::decoded(stage, finish, self.tokens, error.as_ref());
        }
        let held_back = self.decoder.take().and_then(|decoder| decoder.finish().ok().flatten());
        let mut items: Vec<ExplainItem> = self.delta(held_back).into_iter().collect();
        let complete = finish == FinishReason::Stop && error.is_none();
        items.push(ExplainItem::ReasonDone(Explanation {
            index: self.index,
            sections: if complete { sections::parse(names, &self.text) } else { None },
            text: std::mem::take(&mut self.text),
            finish,
            tokens: self.tokens,
            error,
        }));
        items
    }
}
