//! The unit of queueing, and the ticket that answers exactly once.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{mpsc, oneshot};

use crate::{
    admission::Permit,
    error::{Error, Result},
    grounding::Guard,
    prompt::Prompt,
};

use super::kv::KeptSequence;

/// One pair to score.
pub struct ScoreJob {
    /// Rendered prompt.
    pub prompt: Arc<Prompt>,
    /// The request that it is part of: jobs of one request share its turn.
    pub request: u64,
    /// Keep the sequence's KV if memory allows, because it may be explained.
    pub keep_kv: bool,
    /// Past this instant the job is dropped before any compute.
    pub deadline: Option<Instant>,
    /// When it entered the queue.
    pub enqueued: Instant,
    /// The share of the queue it holds until it is answered or dropped.
    pub permit: Option<Permit>,
    /// Where the answer goes.
    pub ticket: Ticket<Scored>,
}

/// What the forward pass read for one pair.
#[derive(Debug)]
pub struct Scored {
    /// Logits of the profile's grades, in their order; all finite.
    pub grade_logits: Vec<f32>,
    /// log-sum-exp of the whole vocabulary's logits, if it is read.
    pub log_sum_exp: Option<f32>,
    /// Where its tokens came from.
    pub tokens: TokenCounts,
    /// Time from entering the queue to the start of its batch.
    pub queued: Duration,
    /// Time its batch took.
    pub compute: Duration,
    /// The batch it was in.
    pub batch: BatchRun,
    /// The sequence's KV, when it was asked for and there was room.
    pub kept: Option<KeptSequence>,
}

/// One forward pass, as every pair in it knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchRun {
    /// When it began to be put together.
    pub start: Instant,
    /// How long that took; the rest of its time is the backend's.
    pub assembly: Duration,
    /// Tokens that were computed.
    pub tokens: usize,
    /// Pairs and explain steps in it.
    pub sequences: usize,
}

/// One pair's prompt tokens by fate; they add up to the prompt's length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenCounts {
    /// Computed for this pair (each shared segment is counted with the first pair that uses it).
    pub computed: usize,
    /// Computed in the same batch for another pair.
    pub shared: usize,
    /// Taken from the prefix cache.
    pub cached: usize,
}

/// One sequence to explain: continue from `first_token` after the prompt.
pub struct ExplainJob {
    /// The prompt, to be prefilled again when `kept` is `None`.
    pub prompt: Arc<Prompt>,
    /// The KV that scoring left behind.
    pub kept: Option<KeptSequence>,
    /// The token of the reported grade.
    pub first_token: u32,
    /// Keeps what is written true, if the profile asks for it.
    pub guard: Option<Guard>,
    /// Decoding stops at any of these; they are not sent.
    pub stop_tokens: Arc<[u32]>,
    /// At most this many tokens are sent.
    pub max_tokens: usize,
    /// Past this instant the sequence ends with `Length`.
    pub deadline: Option<Instant>,
    /// The explain lane's share it holds.
    pub permit: Option<Permit>,
    /// Where tokens go; a closed receiver cancels the job and frees its KV.
    pub sink: mpsc::UnboundedSender<ExplainEvent>,
}

/// What an explain job sends.
#[derive(Debug)]
pub enum ExplainEvent {
    /// The next token of the reason.
    Token(u32),
    /// The end; nothing follows.
    Finished(FinishReason),
    /// A fault; nothing follows.
    Failed(Error),
}

/// Why a reason ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token.
    Stop,
    /// The token limit, the context or the deadline.
    Length,
    /// The client left.
    Cancelled,
    /// The explain lane was full or out of KV.
    Shed,
}

impl FinishReason {
    /// The wire name.
    pub fn as_str(self) -> &'static str {
        match self {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::Cancelled => "cancelled",
            FinishReason::Shed => "shed",
        }
    }
}

/// A promise of exactly one answer: consumed by answering, and answering
/// `Internal` by itself when dropped.
#[derive(Debug)]
pub struct Ticket<T> {
    sender: Option<oneshot::Sender<Result<T>>>,
}

impl<T> Ticket<T> {
    /// A ticket and the place where its answer arrives.
    pub fn new() -> (Self, oneshot::Receiver<Result<T>>) {
        let (sender, receiver) = oneshot::channel();
        (Self { sender: Some(sender) }, receiver)
    }

    /// Whether nobody waits for the answer any more.
    pub fn is_abandoned(&self) -> bool {
        self.sender.as_ref().is_none_or(oneshot::Sender::is_closed)
    }

    /// Sends the answer.
    pub fn answer(self, value: T) {
        self.send(Ok(value));
    }

    /// Sends an error.
    pub fn fail(self, error: Error) {
        self.send(Err(error));
    }

    fn send(mut self, result: Result<T>) {
        if let Some(sender) = self.sender.take() {
            // The receiver may have left: then there is nobody to tell.
            let _ = sender.send(result);
        }
    }
}

impl<T> Drop for Ticket<T> {
    fn drop(&mut self) {
        if let Some(sender) = self.sender.take() {
            let _ = sender.send(Err(Error::internal("a job was dropped without an answer")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    #[test]
    fn a_dropped_ticket_answers_internal() {
        let (ticket, mut answer) = Ticket::<u32>::new();
        drop(ticket);
        assert_eq!(answer.try_recv().expect("sent").expect_err("failed").code(), Code::Internal);
    }

    #[test]
    fn an_answered_ticket_answers_once() {
        let (ticket, mut answer) = Ticket::new();
        assert!(!ticket.is_abandoned());
        ticket.answer(7);
        assert_eq!(answer.try_recv().expect("sent").expect("ok"), 7);
    }

    #[test]
    fn a_left_receiver_shows() {
        let (ticket, answer) = Ticket::<u32>::new();
        drop(answer);
        assert!(ticket.is_abandoned());
    }
}
