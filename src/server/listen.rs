//! Accepting connections, and letting go of them.

use std::{convert::Infallible, io, sync::Arc, time::Duration};

use axum::http::{HeaderValue, Version, header::CONNECTION};
use futures::FutureExt as _;
use hyper::{Request, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use crate::metrics::Metrics;

use super::{
    front::Front,
    patience::{Activity, Taken},
    sending::until_sent,
};

/// After a failed accept (out of file descriptors, mostly) the next one waits a little.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How often, and how long, an HTTP/2 peer is pinged before it counts as gone.
const PING: Duration = Duration::from_secs(20);
/// Requests at once on one HTTP/2 connection.
const STREAMS: u32 = 256;
/// Bytes of a request's head: HTTP/1 refuses more with 431, HTTP/2 does not take more.
const HEAD_BYTES: u32 = 32 << 10;
/// Requests on one HTTP/2 connection that were reset before they were looked at; a peer that
/// resets more is parted with.
const RESETS: usize = 20;
/// After an idle connection was told to end, how long it may take, unless it was asked something meanwhile.
const PARTING: Duration = Duration::from_secs(5);
/// After the listener closed, how long connections that look idle are kept: what a client has sent by then
/// is answered, with a refusal, and not cut off.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// HTTP/2 flow control windows, in bytes: room for a request of usual size in one go.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;
/// How long the two sides may take to agree on TLS.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// What every connection of a port needs.
#[derive(Clone)]
pub(crate) struct Port {
    /// What answers requests.
    pub(crate) front: Arc<Front>,
    /// TLS, unless the port speaks in clear.
    pub(crate) tls: Option<TlsAcceptor>,
    /// How long a client may take to send a request's head, to send its next
    /// request, and to take something of what it is sent.
    pub(crate) read_timeout: Duration,
    /// Connections at once; more wait to be accepted.
    pub(crate) connections: usize,
    /// Where they are counted, if they are.
    pub(crate) metrics: Option<Arc<Metrics>>,
}

/// Serves `listener` until `stop` turns true; then takes those that have connected already, closes idle
/// connections, and returns when the others have answered what they were asked.
pub(crate) async fn serve(listener: TcpListener, port: Port, mut stop: watch::Receiver<bool>) {
    let builder = builder(port.read_timeout);
    let slots = Arc::new(Semaphore::new(port.connections.min(Semaphore::MAX_PERMITS)));
    let (mut connections, stopped) = (JoinSet::new(), stop.clone());
    let begin = |slot, stream, connections: &mut JoinSet<()>| {
        let open = port.metrics.as_ref().map(Open::new);
        let one = connection(stream, builder.clone(), port.clone(), stopped.clone());
        connections.spawn(async move {
            one.await;
            drop((open, slot));
        });
    };
    loop {
        tokio::select! {
            biased;
            () = told(&mut stop) => break,
            (slot, accepted) = accept(&listener, &slots) => match accepted {
                Ok(stream) => begin(slot, stream, &mut connections),
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    if !is_of_the_peer(&error) {
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
    while let Some((slot, Ok(stream))) = accept(&listener, &slots).now_or_never() {
        begin(slot, stream, &mut connections);
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// The next connection, once there is room for one more.
async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> (Option<OwnedSemaphorePermit>, io::Result<TcpStream>) {
    // The semaphore is never closed.
    let slot = Arc::clone(slots).acquire_owned().await.ok();
    (slot, listener.accept().await.map(|(stream, _)| stream))
}

fn builder(read_timeout: Duration) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(read_timeout)
        // Not `half_close`: a client that leaves while it waits could not be told from one that only ends its side
        // of the connection, and what it asked would be computed for nobody.
        .max_buf_size(HEAD_BYTES as usize);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING)
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEAD_BYTES)
        .max_pending_accept_reset_streams(RESETS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    builder
}

async fn connection(
    stream: TcpStream,
    builder: auto::Builder<TokioExecutor>,
    port: Port,
    mut stop: watch::Receiver<bool>,
) {
    // Answers are small and written whole: waiting to fill a packet only delays them.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY could not be set");
    }
    let (front, limit) = (port.front, port.read_timeout);
    let Some(tls) = port.tls else { return requests(stream, builder, front, limit, stop).await };
    let agreed = tokio::select! {
        biased;
        () = told(&mut stop) => return,
        agreed = tokio::time::timeout(HANDSHAKE, tls.accept(stream)) => agreed,
    };
    match agreed {
        // Apart, so that a connection in clear does not carry the size of one that is not.
        Ok(Ok(stream)) => Box::pin(requests(stream, builder, front, limit, stop)).await,
        Ok(Err(error)) => tracing::debug!(%error, "no TLS was agreed on"),
        Err(_) => tracing::debug!("no TLS was agreed on in time"),
    }
}

/// Answers a connection's requests until it ends, until it is idle for `limit`, or
/// until it is idle after the server was told to stop.
async fn requests(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    builder: auto::Builder<TokioExecutor>,
    front: Arc<Front>,
    limit: Duration,
    mut stop: watch::Receiver<bool>,
) {
    let activity = Activity::new();
    let (requests, stopped) = (activity.clone(), stop.clone());
    let service = service_fn(move |request: Request<Incoming>| {
        let one_by_one = request.version() < Version::HTTP_2;
        let bodies = front.memory(request.uri().path()).cloned();
        let (busy, answer, stopped) = (requests.begin(), Arc::clone(&front).call(request), stopped.clone());
        async move {
            let mut response = answer.await;
            if one_by_one && *stopped.borrow() {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(until_sent(response, busy, limit, bodies.as_ref()))
        }
    });
    let stream = Taken::new(stream, limit, activity.clone());
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let result = tokio::select! {
        biased;
        result = connection.as_mut() => result,
        () = told(&mut stop) => tokio::select! {
            biased;
            result = connection.as_mut() => result,
            () = tokio::time::sleep(LAST_WORDS) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        },
        // HTTP/1 looks after its own head; this is for HTTP/2, and for a connection that never says which it is.
        () = activity.idle(limit) => {
            connection.as_mut().graceful_shutdown();
            activity.touch();
            tokio::select! {
                biased;
                result = connection => result,
                () = activity.idle(limit.min(PARTING)) => Ok(()),
            }
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection ended with an error");
    }
}

/// Resolves when the server is told to stop.
async fn told(stop: &mut watch::Receiver<bool>) {
    // An error means that nobody is left to tell: that is a stop too.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Whether an accept failed because of the connection, not of us.
fn is_of_the_peer(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// Counts a connection as long as it lives.
struct Open(Arc<Metrics>);

impl Open {
    fn new(metrics: &Arc<Metrics>) -> Self {
        metrics.connection_opened();
        Self(Arc::clone(metrics))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.connection_closed();
    }
}
