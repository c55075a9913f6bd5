//! How long a connection may keep us waiting: for what it was going to ask, and
//! for it to take what it was sent; and how it is noticed that it has left.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf as _, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

/// After our side has ended, how long what the peer still sends is read.
const LINGER: Duration = Duration::from_secs(1);
/// Bytes read at a time then, and ahead.
const UNREAD: usize = 4096;
/// Bytes that are read ahead of who reads from the stream.
const AHEAD: usize = 16 << 10;
/// After the end of what a peer sends was seen ahead, how long who reads may take to come to it.
const MOMENT: Duration = Duration::from_millis(100);

/// A stream whose peer has to take something of what is written within `limit`, and is seen to leave while its
/// request is being answered.
///
/// Hyper reads nothing while it answers one request and has bytes of what follows, so it does not see the end of
/// the stream behind them, be they no more than an empty line. Whatever it leaves unread is then read here, up to
/// a limit, and kept for it.
pub(super) struct Taken<S> {
    stream: S,
    limit: Duration,
    activity: Activity,
    /// What was read ahead.
    ahead: BytesMut,
    /// Whether who reads waits for the peer: then it will see the end by itself.
    reading: bool,
    /// Set once the end was seen ahead.
    leaving: Option<Pin<Box<Sleep>>>,
    /// Set while the peer takes nothing.
    waiting: Option<Pin<Box<Sleep>>>,
    /// Whether our side has ended.
    ended: bool,
    /// Set once the peer was found to be sending after that.
    lingering: Option<Pin<Box<Sleep>>>,
}

impl<S> Taken<S> {
    pub(super) fn new(stream: S, limit: Duration, activity: Activity) -> Self {
        Self {
            stream,
            limit,
            activity,
            ahead: BytesMut::new(),
            reading: false,
            leaving: None,
            waiting: None,
            ended: false,
            lingering: None,
        }
    }

    /// What a write came to, or an error when it has waited for too long.
    fn written(
        &mut self,
        context: &mut Context<'_>,
        result: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if result.is_ready() {
            if self.waiting.take().is_some() {
                // It takes what it is sent, if slowly.
                self.activity.touch();
            }
            return result;
        }
        let limit = self.limit;
        ready!(self.waiting.get_or_insert_with(|| Box::pin(sleep(limit))).as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer does not take what it is sent")))
    }
}

impl<S: AsyncRead + Unpin> Taken<S> {
    /// Reads ahead; an error once the peer has left.
    fn poll_left(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let mut space = [0; UNREAD];
        while self.leaving.is_none() && self.ahead.len() < AHEAD {
            let mut buffer = ReadBuf::new(&mut space);
            let Poll::Ready(read) = Pin::new(&mut self.stream).poll_read(context, &mut buffer) else { break };
            read?;
            if buffer.filled().is_empty() {
                self.leaving = Some(Box::pin(sleep(MOMENT)));
            }
            self.ahead.extend_from_slice(buffer.filled());
            // Who reads may want it.
            context.waker().wake_by_ref();
        }
        if let Some(leaving) = &mut self.leaving
            && leaving.as_mut().poll(context).is_ready()
        {
            let message = "the peer left before it was answered";
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, message));
        }
        Ok(())
    }

    /// Reads what a peer sends that was answered before it had sent all. Closing over bytes that nobody read
    /// resets the connection, and takes the answer from a peer that has not read it.
    fn poll_unread(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let mut space = [0; UNREAD];
        loop {
            if let Some(lingering) = &mut self.lingering
                && lingering.as_mut().poll(context).is_ready()
            {
                return Poll::Ready(());
            }
            let mut buffer = ReadBuf::new(&mut space);
            match Pin::new(&mut self.stream).poll_read(context, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    self.lingering.get_or_insert_with(|| Box::pin(sleep(LINGER)));
                }
                Poll::Pending if self.lingering.is_some() => return Poll::Pending,
                _ => return Poll::Ready(()),
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Taken<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.leaving = None;
        if self.ahead.is_empty() {
            let result = Pin::new(&mut self.stream).poll_read(context, buffer);
            self.reading = result.is_pending();
            return result;
        }
        let length = self.ahead.len().min(buffer.remaining());
        buffer.put_slice(&self.ahead[..length]);
        self.ahead.advance(length);
        if self.ahead.is_empty() {
            self.ahead = BytesMut::new();
        }
        self.reading = false;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Taken<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(context, data);
        self.written(context, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(context, data);
        self.written(context, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A connection that was worked on is flushed last.
        if !self.reading && self.activity.is_busy() {
            self.poll_left(context)?;
        }
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.ended {
            ready!(Pin::new(&mut self.stream).poll_shutdown(context))?;
            self.ended = true;
        }
        self.poll_unread(context).map(Ok)
    }
}

/// Whether a connection has requests that are being answered. Cheap to clone.
#[derive(Clone)]
pub(super) struct Activity(Arc<Mutex<Seen>>);

struct Seen {
    requests: usize,
    last: Instant,
}

impl Activity {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Seen { requests: 0, last: Instant::now() })))
    }

    /// A request has arrived; it is being answered until the guard is dropped.
    pub(super) fn begin(&self) -> Busy {
        self.seen().requests += 1;
        Busy(self.clone())
    }

    /// Something has happened that is as good as a request.
    pub(super) fn touch(&self) {
        self.seen().last = Instant::now();
    }

    /// Whether there are requests.
    pub(super) fn is_busy(&self) -> bool {
        self.seen().requests > 0
    }

    /// Resolves when there was no request for `limit`.
    pub(super) async fn idle(&self, limit: Duration) {
        loop {
            let quiet = {
                let seen = self.seen();
                if seen.requests > 0 { Duration::ZERO } else { seen.last.elapsed() }
            };
            match limit.checked_sub(quiet).filter(|left| !left.is_zero()) {
                Some(left) => sleep(left).await,
                None => return,
            }
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        // A count and a time: as good after a panic as before.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that is being answered.
pub(super) struct Busy(Activity);

impl Drop for Busy {
    fn drop(&mut self) {
        let mut seen = self.0.seen();
        seen.requests -= 1;
        seen.last = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn a_peer_that_takes_nothing_is_given_up() {
        let limit = Duration::from_millis(50);
        let (ours, mut theirs) = tokio::io::duplex(4);
        let mut stream = Taken::new(ours, limit, Activity::new());
        stream.write_all(b"1234").await.expect("room");
        let began = Instant::now();
        let error = stream.write_all(b"5").await.expect_err("nothing is taken");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(began.elapsed() >= limit);
        let mut taken = [0; 4];
        theirs.read_exact(&mut taken).await.expect("there");
        assert_eq!(&taken, b"1234");
    }

    #[tokio::test]
    async fn what_a_peer_still_sends_is_read_before_it_is_parted_with() {
        let (ours, mut theirs) = tokio::io::duplex(4);
        let mut stream = Taken::new(ours, Duration::from_secs(60), Activity::new());
        theirs.write_all(b"1234").await.expect("room");
        let sending = tokio::spawn(async move {
            theirs.write_all(&[b'x'; 100]).await.expect("read");
            let mut end = Vec::new();
            theirs.read_to_end(&mut end).await.expect("ended");
            theirs.shutdown().await.expect("open");
        });
        stream.shutdown().await.expect("ended");
        sending.await.expect("all of it was read");
        // One that says nothing more is not waited for.
        let (ours, _theirs) = tokio::io::duplex(4);
        let began = Instant::now();
        Taken::new(ours, Duration::from_secs(60), Activity::new()).shutdown().await.expect("ended");
        assert!(began.elapsed() < LINGER);
    }

    #[tokio::test]
    async fn a_peer_that_takes_little_at_a_time_is_not() {
        // Far from each wait, under all of them together.
        let limit = Duration::from_secs(2);
        let (ours, mut theirs) = tokio::io::duplex(1);
        let mut stream = Taken::new(ours, limit, Activity::new());
        let slow = tokio::spawn(async move {
            for _ in 0..5 {
                sleep(limit / 4).await;
                theirs.read_u8().await.expect("there");
            }
            theirs
        });
        let began = Instant::now();
        stream.write_all(b"12345").await.expect("taken, in the end");
        stream.write_all(b"6").await.expect("room");
        assert!(began.elapsed() > limit);
        slow.await.expect("no panic");
    }

    #[tokio::test]
    async fn a_connection_is_idle_only_without_requests() {
        let limit = Duration::from_millis(50);
        let activity = Activity::new();
        let busy = activity.begin();
        let other = activity.clone();
        let idle = tokio::spawn(async move { other.idle(limit).await });
        sleep(3 * limit).await;
        assert!(!idle.is_finished());
        let dropped = Instant::now();
        drop(busy);
        idle.await.expect("no panic");
        assert!(dropped.elapsed() >= limit);
    }

    #[tokio::test]
    async fn a_peer_that_leaves_is_seen_behind_what_is_not_read_yet() {
        let activity = Activity::new();
        let (ours, mut theirs) = tokio::io::duplex(100);
        let mut stream = Taken::new(ours, Duration::from_secs(60), activity.clone());
        theirs.write_all(b"12").await.expect("room");
        drop(theirs);
        stream.flush().await.expect("without a request nobody looks");
        let busy = activity.begin();
        let left = std::future::poll_fn(|context| match Pin::new(&mut stream).poll_flush(context) {
            Poll::Ready(Err(error)) => Poll::Ready(error),
            _ => Poll::Pending,
        });
        assert_eq!(left.await.kind(), io::ErrorKind::ConnectionAborted);
        let mut read = Vec::new();
        stream.read_to_end(&mut read).await.expect("its end");
        assert_eq!(read, b"12");
        drop(busy);
    }

    #[tokio::test]
    async fn what_is_taken_slowly_is_activity() {
        let activity = Activity::new();
        let (ours, mut theirs) = tokio::io::duplex(1);
        let mut stream = Taken::new(ours, Duration::from_secs(60), activity.clone());
        let before = activity.seen().last;
        stream.write_all(b"1").await.expect("room");
        assert_eq!(activity.seen().last, before, "it may not be there yet");
        let (written, read) = tokio::join!(stream.write_all(b"2"), async {
            tokio::task::yield_now().await;
            theirs.read_u8().await
        });
        written.expect("taken");
        assert_eq!(read.expect("there"), b'1');
        assert!(activity.seen().last > before);
    }
}
