//! A client that opens a call and does not send its request.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::body::{Body, Bytes};
use hyper::body::{Frame, Incoming, SizeHint};
use tokio::time::{Sleep, sleep};
use tonic::Status;

use crate::error::{Code, Error};

use super::status;

/// Calls whose clients send messages when they like.
const STREAMS: [&str; 3] = ["/ScoreStream", "/RerankStream", "/ServerReflectionInfo"];

/// A request's body that fails as `DEADLINE_EXCEEDED` where a part of it takes
/// longer than `limit`; those of calls that stay open are left as they are.
pub(in crate::server) fn sent_within(path: &str, body: Incoming, limit: Duration) -> Body {
    if STREAMS.iter().any(|stream| path.ends_with(stream)) {
        return Body::new(body);
    }
    Body::new(Sent { body, limit, waiting: None })
}

struct Sent {
    body: Incoming,
    limit: Duration,
    waiting: Option<Pin<Box<Sleep>>>,
}

impl hyper::body::Body for Sent {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            self.waiting = None;
            return Poll::Ready(frame.map(|frame| frame.map_err(|error| Status::from_error(error.into()))));
        }
        let limit = self.limit;
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(sleep(limit)));
        waiting.as_mut().poll(context).map(|()| {
            let message = format!("body: not sent within {} ms", limit.as_millis());
            Some(Err(status(&Error::new(Code::DeadlineExceeded, message))))
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
