//! A client that opens a call and does not send its request.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep};

use crate::{
    error::{Code, Error},
    server::bodies::Bodies,
};

/// Calls whose clients send messages when they like.
const STREAMS: [&str; 3] = ["/ScoreStream", "/RerankStream", "/ServerReflectionInfo"];

/// How long a client may still keep its call waiting: for its one message, or, on calls that stay open, for a
/// message from its first byte to its last. Only the time counts in which we wait.
pub(super) struct Late {
    limit: Duration,
    left: Duration,
    /// Set while we wait.
    waiting: Option<Pin<Box<Sleep>>>,
    /// Whether the call stays open.
    stream: bool,
    /// What counts those that are late.
    bodies: Arc<Bodies>,
}

impl Late {
    pub(super) fn of(path: &str, limit: Duration, bodies: Arc<Bodies>) -> Self {
        let stream = STREAMS.iter().any(|stream| path.ends_with(stream));
        Self { limit, left: limit, waiting: None, stream, bodies }
    }

    /// Something was sent; with the end of a message in it, or without.
    pub(super) fn sent(&mut self, end: bool) {
        if let Some(waiting) = self.waiting.take() {
            self.left = waiting.deadline().saturating_duration_since(Instant::now());
        }
        if end && self.stream {
            self.left = self.limit;
        }
    }

    /// Nothing is there, of a message that has begun or of none: resolves once that has lasted too long.
    pub(super) fn poll(&mut self, begun: bool, context: &mut Context<'_>) -> Poll<Error> {
        if self.stream && !begun {
            return Poll::Pending;
        }
        let left = self.left;
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(sleep(left)));
        waiting.as_mut().poll(context).map(|()| {
            self.bodies.late();
            let message = format!("body: not sent within {} ms", self.limit.as_millis());
            Error::new(Code::DeadlineExceeded, message)
        })
    }
}
