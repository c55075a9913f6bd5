//! A server for tests that answers what it is told to.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
};

/// Gives each request, by its path and its number from 0 on, a status and a body.
type Answers = dyn Fn(&str, usize) -> (u16, String) + Send + Sync;

/// A server; it ends with the test's runtime.
pub(crate) struct Fake {
    pub(crate) url: String,
    bodies: Arc<Mutex<Vec<String>>>,
}

impl Fake {
    pub(crate) async fn start(
        answers: impl Fn(&str, usize) -> (u16, String) + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let (answers, bodies): (Arc<Answers>, Arc<Mutex<Vec<String>>>) = (Arc::new(answers), Arc::default());
        let seen = Arc::clone(&bodies);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&answers), Arc::clone(&seen)));
            }
        });
        Self { url, bodies }
    }

    /// What was sent to it until now.
    pub(crate) fn bodies(&self) -> Vec<String> {
        self.bodies.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// An answer that has one result.
pub(crate) fn scored() -> (u16, String) {
    (200, r#"{"results": [{"index": 0}]}"#.into())
}

async fn serve(stream: TcpStream, answers: Arc<Answers>, seen: Arc<Mutex<Vec<String>>>) {
    let mut stream = BufReader::new(stream);
    loop {
        let (mut path, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await.is_ok_and(|read| read == 0) {
                return;
            }
            let line = line.trim_end().to_ascii_lowercase();
            if path.is_empty() {
                path = line.split(' ').nth(1).unwrap_or_default().to_owned();
            } else if let Some(value) = line.strip_prefix("content-length: ") {
                length = value.parse().expect("a length");
            } else if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.expect("a body");
        let number = {
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.push(String::from_utf8(body).expect("text"));
            seen.len() - 1
        };
        let (status, text) = answers(&path, number);
        let (retry, length) = (!text.contains("\"retryable\": false"), text.len());
        let head = format!(
            "HTTP/1.1 {status} So\r\nretry-after: 1\r\nx-should-retry: {retry}\r\ncontent-length: {length}\r\n\r\n"
        );
        // Who asked may have gone.
        let _ = stream.write_all(format!("{head}{text}").as_bytes()).await;
    }
}
