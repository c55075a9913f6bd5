//! The memory of a call's messages while they are read.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::{
    BoxError,
    body::{Body, Bytes, HttpBody},
};
use hyper::body::{Frame, SizeHint};
use tonic::Status;

use crate::{
    error::Error,
    server::bodies::{Bodies, Held},
};

use super::{late::Late, status};

/// Bytes before each message: a flag, and its length in four.
const HEAD: usize = 5;

/// What the messages of a call may take.
pub(in crate::server) struct Measure {
    /// What counts those that are late.
    pub(in crate::server) bodies: Arc<Bodies>,
    /// Memory while they are read; `None` where `most` is next to nothing.
    pub(in crate::server) held: Option<Held>,
    /// Bytes of one.
    pub(in crate::server) most: usize,
    /// Time to send one.
    pub(in crate::server) limit: std::time::Duration,
}

/// The body of a call of `path` that takes its share of the memory of all bodies, and fails as
/// `RESOURCE_EXHAUSTED` where there is none; as `DEADLINE_EXCEEDED` where a message is not sent in time; and as
/// `INVALID_ARGUMENT` where one is too long, once those before it were taken. What was read of a message is held
/// until the message is whole and was taken; who takes it answers for it from then on.
pub(in crate::server) fn measured<B>(body: B, path: &str, measure: Measure) -> Body
where
    B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
{
    let Measure { bodies, held, most, limit } = measure;
    let (framing, late) = (Framing::default(), Late::of(path, limit, bodies));
    Body::new(Measured { body, held, most, framing, late, whole: 0, failed: None })
}

struct Measured<B> {
    body: B,
    held: Option<Held>,
    most: usize,
    framing: Framing,
    late: Late,
    /// Bytes of messages that are whole.
    whole: usize,
    /// What is said next, and last.
    failed: Option<Error>,
}

impl<B> HttpBody for Measured<B>
where
    B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        // A reader that asks for more has taken every whole message.
        let whole = std::mem::take(&mut this.whole);
        if let Some(held) = &mut this.held {
            held.shrink(whole);
        }
        if let Some(error) = this.failed.take() {
            return Poll::Ready(Some(Err(status(&error))));
        }
        let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) else {
            return this.late.poll(this.framing.part > 0, context).map(|error| Some(Err(status(&error))));
        };
        if let Some(data) = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()) {
            if let Some(Err(error)) = this.held.as_mut().map(|held| held.grow(data.len())) {
                return Poll::Ready(Some(Err(status(&error))));
            }
            let fed = this.framing.feed(data, this.most);
            this.whole = fed.whole;
            this.late.sent(fed.whole > 0);
            if let Some((start, length)) = fed.over {
                this.failed = Some(Error::too_large("message", "bytes", this.most, length));
                return Poll::Ready(Some(Ok(Frame::data(data.slice(..start)))));
            }
        }
        Poll::Ready(frame.map(|frame| frame.map_err(|error| Status::from_error(error.into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.failed.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Where messages end.
#[derive(Default)]
struct Framing {
    head: [u8; HEAD],
    /// Bytes of the head that are there.
    filled: usize,
    /// Bytes of the message that are missing, once its head is there.
    left: usize,
    /// Bytes of the message that are there, its head included.
    part: usize,
}

/// What came with a piece of a body.
#[derive(Debug, Default, PartialEq)]
struct Fed {
    /// Bytes of all messages that end in it, from their beginnings on.
    whole: usize,
    /// Where in it a message begins that is too long, and how long that is. What follows was not looked at.
    over: Option<(usize, usize)>,
}

impl Framing {
    /// Looks at the next piece, of messages of at most `most` bytes.
    fn feed(&mut self, mut data: &[u8], most: usize) -> Fed {
        let (all, mut whole, mut start) = (data.len(), 0, 0);
        while !data.is_empty() {
            if self.filled < HEAD {
                let (head, rest) = data.split_at(data.len().min(HEAD - self.filled));
                self.head[self.filled..self.filled + head.len()].copy_from_slice(head);
                self.filled += head.len();
                self.part += head.len();
                data = rest;
                if self.filled < HEAD {
                    break;
                }
                let [_, length @ ..] = self.head;
                self.left = u32::from_be_bytes(length) as usize;
                if self.left > most {
                    return Fed { whole, over: Some((start, self.left)) };
                }
            }
            let taken = data.len().min(self.left);
            self.left -= taken;
            self.part += taken;
            data = &data[taken..];
            if self.left == 0 {
                whole += std::mem::take(&mut self.part);
                self.filled = 0;
                start = all - data.len();
            }
        }
        Fed { whole, over: None }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::StreamExt as _;
    use http_body_util::BodyExt as _;
    use proptest::prelude::*;
    use tokio::time::{Instant, sleep};

    use super::*;

    fn message(length: usize) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend((length as u32).to_be_bytes());
        bytes.resize(HEAD + length, 7);
        bytes
    }

    fn measure(bodies: &Arc<Bodies>, most: usize) -> Measure {
        let (bodies, held) = (Arc::clone(bodies), Some(bodies.share()));
        Measure { bodies, held, most, limit: Duration::from_secs(10) }
    }

    proptest! {
        #[test]
        fn ends_are_found_however_the_bytes_come(
            lengths in prop::collection::vec(0usize..40, 0..10), cut in 0usize..40, piece in 1usize..50,
        ) {
            let mut bytes: Vec<u8> = lengths.iter().flat_map(|length| message(*length)).collect();
            let whole = bytes.len();
            bytes.extend(&message(100)[..cut]);
            let mut framing = Framing::default();
            let found: usize = bytes.chunks(piece).map(|piece| framing.feed(piece, 100).whole).sum();
            prop_assert_eq!((found, framing.part), (whole, cut));
        }
    }

    #[tokio::test]
    async fn a_message_is_held_until_it_was_taken() {
        let bodies = Bodies::new(30, std::sync::Arc::default());
        // A whole one of 15 bytes; then 25 of one of 105, of which 10 come with it.
        let bytes = [message(10), message(100)].concat();
        let pieces = [bytes[..25].to_vec(), bytes[25..40].to_vec(), bytes[40..].to_vec()];
        let pieces = futures::stream::iter(pieces.map(Ok::<_, std::io::Error>));
        let mut body = measured(Body::from_stream(pieces), "/Score", measure(&bodies, 1000));
        body.frame().await.expect("a frame").expect("room");
        assert_eq!(bodies.held(), 25);
        body.frame().await.expect("a frame").expect("room");
        assert_eq!(bodies.held(), 25, "the first message was taken");
        body.frame().await.expect("a frame").expect_err("80 bytes more than there are");
        drop(body);
        assert_eq!(bodies.held(), 0);
    }

    #[tokio::test]
    async fn a_message_that_is_too_long_is_told_after_those_before_it() {
        let bodies = Bodies::new(1000, std::sync::Arc::default());
        let bytes = [message(10), message(11)].concat();
        for piece in [bytes.len(), 16, 15, 3] {
            let pieces = bytes.chunks(piece).map(|piece| Ok::<_, BoxError>(Bytes::copy_from_slice(piece)));
            let pieces: Vec<_> = pieces.collect();
            let pieces = Body::from_stream(futures::stream::iter(pieces));
            let mut body = measured(pieces, "/Score", measure(&bodies, 10));
            let mut taken = 0;
            let failed = loop {
                match body.frame().await.expect("it does not end well") {
                    Ok(frame) => taken += frame.into_data().expect("data").len(),
                    Err(failed) => break failed,
                }
            };
            assert!((15..20).contains(&taken), "{taken} of pieces of {piece}");
            assert!(format!("{failed:?}").contains("message: 11 bytes, over the limit of 10"), "{failed:?}");
        }
        assert_eq!(bodies.held(), 0);
    }

    const LIMIT: Duration = Duration::from_millis(500);

    /// What comes of pieces that are sent after so many milliseconds each, of a body that does not end: the bytes
    /// that are taken until it fails, with when and why that is.
    async fn failure(path: &str, pieces: Vec<(u64, Vec<u8>)>) -> (usize, Duration, String) {
        let pieces = futures::stream::iter(pieces).then(|(ms, piece)| async move {
            sleep(Duration::from_millis(ms)).await;
            Ok::<_, BoxError>(piece)
        });
        let body = Body::from_stream(pieces.chain(futures::stream::pending()));
        let (bodies, began, mut taken) = (Bodies::new(1000, Arc::default()), Instant::now(), 0);
        let mut body = measured(body, path, Measure { limit: LIMIT, ..measure(&bodies, 1000) });
        loop {
            match body.frame().await.expect("it does not end") {
                Ok(frame) => taken += frame.into_data().expect("data").len(),
                Err(error) => return (taken, began.elapsed(), format!("{error:?}")),
            }
        }
    }

    #[tokio::test]
    async fn a_message_that_trickles_is_not_waited_for() {
        let trickle: Vec<_> = message(100).into_iter().map(|byte| (100, vec![byte])).collect();
        let (taken, took, error) = failure("/Score", trickle.clone()).await;
        assert!(taken < 10 && took >= LIMIT, "{taken} bytes in {took:?}");
        assert!(error.contains("body: not sent within 500 ms"), "{error}");
        // On a stream messages may be far apart, and each has its time from its first byte on.
        let mut pieces = vec![(800, message(5)), (0, message(5)), (800, message(5))];
        pieces.extend(trickle);
        let (taken, took, error) = failure("/ScoreStream", pieces).await;
        assert!(
            (31..40).contains(&taken) && took >= Duration::from_millis(1700) + LIMIT,
            "{taken}, {took:?}"
        );
        assert!(error.contains("body: not sent within 500 ms"), "{error}");
        // The end of one may come with the beginning of the next.
        let beginning = [&message(5)[5..], &[0]].concat();
        let (taken, ..) =
            failure("/ScoreStream", vec![(800, message(5)[..5].to_vec()), (0, beginning)]).await;
        assert_eq!(taken, 11);
    }

    #[tokio::test]
    async fn the_time_of_a_reader_is_not_the_clients() {
        let bodies = Bodies::new(1000, Arc::default());
        let bytes = message(100);
        let pieces =
            futures::stream::iter([Ok::<_, BoxError>(bytes[..50].to_vec()), Ok(bytes[50..].to_vec())]);
        let body = Body::from_stream(pieces.then(async |piece| {
            tokio::task::yield_now().await;
            piece
        }));
        let limit = Duration::from_millis(300);
        let mut body = measured(body, "/ScoreStream", Measure { limit, ..measure(&bodies, 1000) });
        body.frame().await.expect("a frame").expect("in time");
        sleep(2 * limit).await;
        body.frame().await.expect("a frame").expect("in time, for it was not asked for before");
    }
}
