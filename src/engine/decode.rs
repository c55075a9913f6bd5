//! A sequence on the explain lane: what it has, what it feeds next, when it ends.

use std::{sync::Arc, time::Instant};

use super::{
    job::{ExplainEvent, ExplainJob, FinishReason},
    kv::{KvRef, Span},
    prefix::PrefixCache,
};

/// Tokens of a prompt that one step feeds: a score that arrives waits for no more of each sequence.
pub const PORTION: usize = 64;

/// An explanation being decoded.
pub(super) struct ExplainSequence {
    job: ExplainJob,
    /// KV of everything before `pending`.
    past: Vec<KvRef>,
    /// Tokens to feed next, a portion a step; their KV goes to `room`.
    pending: Vec<u32>,
    /// Where this sequence's own KV goes; `None` until its first step.
    room: Option<Arc<Span>>,
    written: usize,
    sent: usize,
}

impl ExplainSequence {
    pub(super) fn new(mut job: ExplainJob) -> Self {
        let (past, pending) = match job.kept.take() {
            Some(kept) => (kept.past, vec![job.first_token]),
            None => (Vec::new(), [&job.prompt.tokens[..], &[job.first_token]].concat()),
        };
        Self { job, past, pending, room: None, written: 0, sent: 0 }
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.job.sink.is_closed()
    }

    /// Whether its deadline has passed.
    pub(super) fn is_late(&self, now: Instant) -> bool {
        self.job.deadline.is_some_and(|deadline| now >= deadline)
    }

    /// Whether what it feeds next has positions, of so many.
    pub(super) fn fits(&self, max_positions: usize) -> bool {
        self.position() + self.pending.len() <= max_positions
    }

    pub(super) fn has_room(&self) -> bool {
        self.room.is_some()
    }

    /// Tokens that the first step needs room for: its own and all it may decode.
    pub(super) fn room_needed(&self) -> usize {
        self.pending.len() + self.job.max_tokens
    }

    /// Gives the sequence its memory; a prompt that must be prefilled again starts from the prefix cache.
    pub(super) fn settle(&mut self, room: Arc<Span>, cache: &mut PrefixCache) {
        if self.past.is_empty() {
            let hit = cache.lookup(&self.pending[..self.pending.len() - 1]);
            self.pending.drain(..hit.len);
            self.past = hit.past;
        }
        self.room = Some(room);
    }

    pub(super) fn past(&self) -> &[KvRef] {
        &self.past
    }

    /// Tokens of the next step: a part of the prompt, or the last token alone. Alone, so that its
    /// row is computed as a decoded one, however the prompt before it was.
    pub(super) fn portion(&self) -> &[u32] {
        &self.pending[..(self.pending.len() - 1).clamp(1, PORTION)]
    }

    /// Whether the next step reads a token; one that feeds a part of the prompt does not.
    pub(super) fn reads(&self) -> bool {
        self.pending.len() == 1
    }

    /// Absolute position of the first pending token.
    pub(super) fn position(&self) -> usize {
        self.past.iter().map(|part| part.len).sum()
    }

    /// Where the next step's KV goes.
    pub(super) fn destination(&self) -> Option<KvRef> {
        let span = self.room.clone()?;
        Some(KvRef { span, start: self.written, len: self.portion().len() })
    }

    /// The step's KV was written.
    fn wrote(&mut self) {
        self.past.extend(self.destination());
        let len = self.portion().len();
        self.written += len;
        self.pending.drain(..len);
    }

    /// Takes the step's result, `None` if it read nothing. Returns the sequence if it goes on.
    pub(super) fn advance(mut self, token: Option<u32>, now: Instant, max_positions: usize) -> Option<Self> {
        let Some(token) = token else {
            self.wrote();
            return Some(self);
        };
        let token = self.job.guard.as_mut().map_or(token, |guard| guard.take(token));
        if self.job.stop_tokens.contains(&token) {
            self.finish(FinishReason::Stop);
            return None;
        }
        if self.sent >= self.job.max_tokens || self.job.sink.send(ExplainEvent::Token(token)).is_err() {
            self.finish(FinishReason::Length);
            return None;
        }
        self.sent += 1;
        self.wrote();
        self.pending.push(token);
        if self.sent == self.job.max_tokens || self.is_late(now) || !self.fits(max_positions) {
            self.finish(FinishReason::Length);
            return None;
        }
        Some(self)
    }

    pub(super) fn finish(self, reason: FinishReason) {
        self.end(ExplainEvent::Finished(reason));
    }

    pub(super) fn fail(self, error: crate::error::Error) {
        self.end(ExplainEvent::Failed(error));
    }

    /// Who is told of the end finds the memory and the room in the queue free.
    fn end(self, event: ExplainEvent) {
        let sink = self.job.sink.clone();
        drop(self);
        // The client may have left: then there is nobody to tell.
        let _ = sink.send(event);
    }
}
