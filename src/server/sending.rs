//! An answer on its way: what a client has not taken of it is memory as its body was, and is not kept for one that
//! takes nothing.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::body::Body;
use bytes::{Buf as _, Bytes};
use hyper::{
    Response,
    body::{Body as _, Frame, SizeHint},
};
use tokio::{
    task::AbortHandle,
    time::{Instant, sleep_until},
};

use super::{
    bodies::{Bodies, Held},
    patience::Busy,
};

/// Bytes of an answer that are handed over at a time: no more than this is out of reach when a client takes
/// nothing more.
const PIECE: usize = 16 << 10;
/// What a client takes at least of a large answer, in bytes a second, where it keeps us waiting.
const SLOWEST: usize = 16 << 10;
/// What was handed over may lie in buffers and windows still, where no progress is seen: a large answer that was begun
/// may stand still longer by the time that takes at so many bytes a second.
const ON_ITS_WAY: usize = 256 << 10;

/// Lets a request count until its answer was taken, or until nothing of it was taken for `limit`; meanwhile its
/// memory is of `bodies`, if it is of a request that counts there. An answer of one piece is on its way already.
pub(super) fn until_sent(
    response: Response<Body>,
    busy: Busy,
    limit: Duration,
    bodies: Option<&Arc<Bodies>>,
) -> Response<Body> {
    let size = response.body().size_hint().exact().and_then(|size| usize::try_from(size).ok());
    if size.is_some_and(|size| size <= PIECE) {
        return response;
    }
    let mut held = bodies.map(Bodies::share);
    if let (Some(held), Some(size)) = (&mut held, size) {
        held.keep(size);
    }
    response.map(|body| {
        let due = Instant::now() + limit;
        let answer =
            Answer { body, rest: Bytes::new(), given: 0, whole: size.is_some(), held, due: Some(due), busy };
        let answer = Arc::new(Mutex::new(Some(answer)));
        let watch = tokio::spawn(watch(Arc::clone(&answer), limit)).abort_handle();
        Body::new(Sending { answer, limit, left: size, large: 0, ended: false, watch })
    })
}

/// What is to be sent, until it was or was given up.
type Shared = Arc<Mutex<Option<Answer>>>;

struct Answer {
    body: Body,
    /// What is left of a frame that is sent in pieces.
    rest: Bytes,
    /// Bytes of that frame that were given.
    given: usize,
    /// Whether all of it is held from the beginning; otherwise each large frame is.
    whole: bool,
    held: Option<Held>,
    /// When the client has to have taken what it was given; `None` while it waits for us.
    due: Option<Instant>,
    #[expect(dead_code, reason = "it is there to be dropped")]
    busy: Busy,
}

fn lock(answer: &Mutex<Option<Answer>>) -> MutexGuard<'_, Option<Answer>> {
    // What panicked had an answer in its hands that nobody will read again.
    answer.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives an answer up when the client is late.
async fn watch(answer: Shared, limit: Duration) {
    loop {
        let Some(due) = lock(&answer).as_ref().map(|answer| answer.due) else { return };
        sleep_until(due.unwrap_or_else(|| Instant::now() + limit)).await;
        let given_up = {
            let mut answer = lock(&answer);
            let due = answer.as_ref().and_then(|answer| answer.due);
            due.filter(|due| *due <= Instant::now()).and_then(|_| answer.take())
        };
        if given_up.is_some() {
            tracing::debug!("a client did not take its answer");
            return;
        }
    }
}

struct Sending {
    answer: Shared,
    limit: Duration,
    /// Bytes that are left, where all is there.
    left: Option<usize>,
    /// Bytes of a large frame that were given and may not be taken yet.
    large: usize,
    ended: bool,
    watch: AbortHandle,
}

/// When what is given `now` is to be taken: small frames each within `limit`; large ones, of which `given` bytes were
/// given in all, `large` of them when it was to be `before`, none of their pieces too slowly either.
fn due(now: Instant, limit: Duration, given: usize, large: usize, before: Option<Instant>) -> Instant {
    let time = |bytes: usize, rate: usize| Duration::from_secs_f64(bytes as f64 / rate as f64);
    let latest = now + limit + time(given, ON_ITS_WAY);
    match before {
        Some(before) if large > 0 => latest.min(before + time(large, SLOWEST)),
        _ => latest,
    }
}

impl hyper::body::Body for Sending {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        let shared = Arc::clone(&this.answer);
        let mut shared = lock(&shared);
        let Some(answer) = shared.as_mut() else {
            let late = || axum::Error::new("the client did not take its answer");
            return Poll::Ready((!this.ended).then(|| Err(late())));
        };
        // Who asks for more has handed over what it was given.
        let (before, large) = (answer.due.take(), std::mem::take(&mut this.large));
        if answer.rest.is_empty() {
            match ready!(Pin::new(&mut answer.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if data.len() > PIECE => answer.begin(data),
                    small => {
                        answer.due = Some(Instant::now() + this.limit);
                        let frame = small.map(Frame::data).unwrap_or_else(|trailers| trailers);
                        return Poll::Ready(Some(Ok(frame)));
                    }
                },
                end => {
                    this.ended = end.is_none();
                    *shared = None;
                    return Poll::Ready(end);
                }
            }
        }
        let piece = answer.piece();
        answer.due = Some(due(Instant::now(), this.limit, answer.given, large, before));
        this.large = piece.len();
        this.left = this.left.map(|left| left.saturating_sub(piece.len()));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        match &*lock(&self.answer) {
            Some(answer) => answer.rest.is_empty() && answer.body.is_end_stream(),
            None => self.ended,
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, |left| SizeHint::with_exact(left as u64))
    }
}

impl Answer {
    /// A frame that is too large for one piece.
    fn begin(&mut self, data: Bytes) {
        if let Some(held) = self.held.as_mut().filter(|_| !self.whole) {
            held.keep(data.len());
        }
        self.rest = data;
        self.given = 0;
    }

    /// Its next piece, with memory of its own: the last that somebody has would keep all of it.
    fn piece(&mut self) -> Bytes {
        let piece = Bytes::copy_from_slice(&self.rest[..self.rest.len().min(PIECE)]);
        self.rest.advance(piece.len());
        self.given += piece.len();
        if self.rest.is_empty() {
            self.rest = Bytes::new();
            if let Some(held) = &mut self.held {
                held.shrink(usize::MAX);
            }
        }
        piece
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.watch.abort();
        lock(&self.answer).take();
    }
}

#[cfg(test)]
mod tests {
    use futures::{StreamExt as _, stream};
    use http_body_util::BodyExt as _;
    use tokio::time::sleep;

    use super::*;
    use crate::server::patience::Activity;

    const LONG: Duration = Duration::from_secs(60);

    fn stream_of(pieces: Vec<Vec<u8>>) -> Body {
        Body::from_stream(stream::iter(pieces).map(Ok::<_, std::io::Error>))
    }

    #[tokio::test]
    async fn a_stream_counts_until_its_end() {
        let activity = Activity::new();
        let whole = until_sent(Response::new(Body::from("whole")), activity.begin(), LONG, None);
        assert!(!activity.is_busy());
        let body = stream_of(vec![b"a piece".to_vec()]);
        let mut stream = until_sent(Response::new(body), activity.begin(), LONG, None);
        assert!(activity.is_busy());
        assert_eq!(&*stream.body_mut().collect().await.expect("whole").to_bytes(), b"a piece");
        assert!(!activity.is_busy());
        drop(whole);
    }

    #[tokio::test]
    async fn a_large_answer_is_held_until_it_was_given() {
        let bodies = Bodies::new(1000, Arc::default());
        let bytes: Vec<u8> = (0..3 * PIECE + 5).map(|at| at as u8).collect();
        let length = bytes.len();
        for (body, before) in [(Body::from(bytes.clone()), length), (stream_of(vec![bytes.clone()]), 0)] {
            let activity = Activity::new();
            let exact = body.size_hint().exact();
            let mut sent = until_sent(Response::new(body), activity.begin(), LONG, Some(&bodies)).into_body();
            assert_eq!((bodies.held(), sent.size_hint().exact()), (before, exact));
            let mut taken = Vec::new();
            for piece in [PIECE, PIECE, PIECE, 5] {
                assert!(activity.is_busy() && !sent.is_end_stream());
                let frame = sent.frame().await.expect("more").expect("whole").into_data().expect("data");
                assert_eq!(frame.len(), piece);
                taken.extend_from_slice(&frame);
                assert_eq!(bodies.held(), if piece == 5 { 0 } else { length });
            }
            assert!(sent.frame().await.is_none() && sent.is_end_stream());
            assert!(taken == bytes && !activity.is_busy());
        }
        let dropped =
            until_sent(Response::new(Body::from(bytes)), Activity::new().begin(), LONG, Some(&bodies));
        assert_eq!(bodies.held(), length);
        drop(dropped);
        assert_eq!(bodies.held(), 0);
    }

    #[tokio::test]
    async fn an_answer_that_is_not_taken_is_given_up() {
        let limit = Duration::from_millis(50);
        let bodies = Bodies::new(1000, Arc::default());
        for pieces in [0, 1, 2] {
            let activity = Activity::new();
            let body = Body::from(vec![b'x'; 3 * PIECE]);
            let mut sent =
                until_sent(Response::new(body), activity.begin(), limit, Some(&bodies)).into_body();
            for _ in 0..pieces {
                sent.frame().await.expect("more").expect("in time");
            }
            while activity.is_busy() {
                sleep(limit / 10).await;
            }
            assert_eq!(bodies.held(), 0);
            let error = sent.frame().await.expect("not its end").expect_err("given up");
            assert_eq!(error.to_string(), "the client did not take its answer");
        }
    }

    #[tokio::test]
    async fn a_client_that_waits_is_not_late() {
        let limit = Duration::from_millis(50);
        let pieces = stream::iter([b"one", b"two"]).then(move |piece| async move {
            sleep(3 * limit).await;
            Ok::<_, std::io::Error>(&piece[..])
        });
        let body = Response::new(Body::from_stream(pieces));
        let sent = until_sent(body, Activity::new().begin(), limit, None).into_body();
        assert_eq!(&*sent.collect().await.expect("whole").to_bytes(), b"onetwo");
    }

    #[test]
    fn large_frames_are_not_taken_too_slowly() {
        let now = Instant::now();
        let due = |given, large, before| due(now, Duration::from_secs(60), given, large, before);
        let second = Duration::from_secs(1);
        assert_eq!(due(0, 0, None), now + 60 * second);
        assert_eq!(due(0, 0, Some(now + second)), now + 60 * second, "the first");
        assert_eq!(due(SLOWEST, SLOWEST, Some(now + second)), now + 2 * second);
        assert_eq!(due(40 * ON_ITS_WAY, SLOWEST, Some(now + 200 * second)), now + 100 * second);
    }
}
