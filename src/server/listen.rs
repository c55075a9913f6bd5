//! Accepting connections, and letting go of them.

use std::{io, sync::Arc, time::Duration};

use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use crate::metrics::Metrics;

use super::front::Front;

/// After a failed accept (out of file descriptors, mostly) the next one waits a little.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How often, and how long, an HTTP/2 peer is pinged before it counts as gone.
const PING: Duration = Duration::from_secs(20);
/// Requests at once on one HTTP/2 connection.
const STREAMS: u32 = 1024;
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
    /// How long a client may take to send a request's head.
    pub(crate) read_timeout: Duration,
}

/// Serves `listener` until `stop` turns true; then closes idle connections, and
/// returns when the others have answered what they were asked.
pub(crate) async fn serve(
    listener: TcpListener,
    port: Port,
    metrics: Arc<Metrics>,
    mut stop: watch::Receiver<bool>,
) {
    let builder = builder(port.read_timeout);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = told(&mut stop) => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let open = Open::new(&metrics);
                    let one = connection(stream, builder.clone(), port.clone(), stop.clone());
                    connections.spawn(async move {
                        one.await;
                        drop(open);
                    });
                }
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
    drop(listener);
    while connections.join_next().await.is_some() {}
}

fn builder(read_timeout: Duration) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(read_timeout).pipeline_flush(true);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING)
        .max_concurrent_streams(STREAMS)
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
    let Some(tls) = port.tls else { return requests(stream, builder, port.front, stop).await };
    let agreed = tokio::select! {
        biased;
        () = told(&mut stop) => return,
        agreed = tokio::time::timeout(HANDSHAKE, tls.accept(stream)) => agreed,
    };
    match agreed {
        // Apart, so that a connection in clear does not carry the size of one that is not.
        Ok(Ok(stream)) => Box::pin(requests(stream, builder, port.front, stop)).await,
        Ok(Err(error)) => tracing::debug!(%error, "no TLS was agreed on"),
        Err(_) => tracing::debug!("no TLS was agreed on in time"),
    }
}

/// Answers a connection's requests until it ends, or until it is idle after the server was told to stop.
async fn requests(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    builder: auto::Builder<TokioExecutor>,
    front: Arc<Front>,
    mut stop: watch::Receiver<bool>,
) {
    let service = service_fn(move |request| Arc::clone(&front).call(request));
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let result = tokio::select! {
        biased;
        result = connection.as_mut() => result,
        () = told(&mut stop) => {
            connection.as_mut().graceful_shutdown();
            connection.await
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
