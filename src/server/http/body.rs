//! Reading a request's body, within bounds of size and time.

mod inflate;

use std::time::Duration;

use axum::{
    body::Body,
    http::{
        HeaderMap,
        header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE},
    },
};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;

use crate::{
    error::{Code, Error, Result},
    server::{bodies::Held, state::State},
};

pub(super) use inflate::ENCODINGS;
use inflate::Encoding;

/// How long a server that stops waits for bodies that were begun.
const UNSENT: Duration = Duration::from_secs(1);

/// The whole body of a JSON request, inflated if it was sent compressed, and its share of the memory
/// of all bodies: keep it as long as what the body says is kept.
///
/// # Errors
///
/// `UnsupportedMedia` for another content type or encoding, `Invalid` for a
/// connection that breaks or a body that does not inflate, `TooLarge` past the
/// limit as sent or as inflated, `Overloaded` where other bodies leave no memory for it, `DeadlineExceeded` if the client takes too long
/// to send it, `Unavailable` if the server stops before.
pub(in crate::server) async fn read(headers: &HeaderMap, body: Body, state: &State) -> Result<(Bytes, Held)> {
    check_type(headers)?;
    let encoding = Encoding::of(headers.get(CONTENT_ENCODING))?;
    let announced = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if let Some(length) = announced
        && length > state.body_bytes
    {
        return Err(Error::too_large("body", "bytes", state.body_bytes, length));
    }
    let mut held = state.bodies.share();
    let collected = tokio::time::timeout(state.read_timeout, collect(body, state.body_bytes, &mut held));
    let collected = tokio::select! {
        // Most bodies are there already, and ask nothing of the server's life.
        biased;
        collected = collected => collected,
        stopped = state.draining_for(UNSENT) => return Err(stopped),
    };
    let body = collected.map_err(|_| {
        state.bodies.late();
        let message = format!("body: not sent within {} ms", state.read_timeout.as_millis());
        Error::new(Code::DeadlineExceeded, message)
    })??;
    match encoding {
        None => Ok((body, held)),
        Some(encoding) => inflate::inflate(encoding, body, state.body_bytes, held).await,
    }
}

/// JSON by its name, or no name at all.
fn check_type(headers: &HeaderMap) -> Result<()> {
    let Some(value) = headers.get(CONTENT_TYPE) else { return Ok(()) };
    let text = value.to_str().unwrap_or_default();
    let kind = text.split(';').next().unwrap_or_default().trim();
    let json = kind.eq_ignore_ascii_case("application/json")
        || kind.get(kind.len().saturating_sub(5)..).is_some_and(|end| end.eq_ignore_ascii_case("+json"));
    if json {
        Ok(())
    } else {
        let message = format!("content-type: {value:?}, expected application/json");
        Err(Error::new(Code::UnsupportedMedia, message))
    }
}

async fn collect(mut body: Body, limit: usize, held: &mut Held) -> Result<Bytes> {
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|cause| Error::invalid("body", "could not be read").with_cause(cause))?;
        let Ok(data) = frame.into_data() else { continue };
        let size = first.len() + rest.len() + data.len();
        if size > limit {
            return Err(Error::too_large("body", "bytes", limit, size));
        }
        held.grow(data.len())?;
        // Most bodies come in one piece, which is then not copied.
        if first.is_empty() && rest.is_empty() {
            first = data;
        } else {
            if rest.is_empty() {
                rest.extend_from_slice(&std::mem::take(&mut first));
            }
            rest.extend_from_slice(&data);
        }
    }
    Ok(if rest.is_empty() { first } else { rest.freeze() })
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use futures::stream;

    use super::*;
    use crate::server::bodies::Bodies;

    async fn collect(body: Body, limit: usize) -> Result<Bytes> {
        super::collect(body, limit, &mut Bodies::new(15, Default::default()).share()).await
    }

    fn kind(value: &'static str) -> Result<()> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(value));
        check_type(&headers)
    }

    #[test]
    fn only_json_is_taken() {
        kind("application/json").expect("json");
        kind("Application/JSON; charset=utf-8").expect("json");
        kind("application/vnd.api+json").expect("json");
        check_type(&HeaderMap::new()).expect("nothing said");
        let error = kind("text/plain").expect_err("refused");
        assert_eq!(error.message(), "content-type: \"text/plain\", expected application/json");
        kind("json").expect_err("refused");
        kind("").expect_err("refused");
    }

    #[tokio::test]
    async fn pieces_are_joined_up_to_the_limit() {
        let pieces = |sizes: &[usize]| {
            let pieces: Vec<std::io::Result<Vec<u8>>> =
                sizes.iter().map(|&size| Ok(vec![b'x'; size])).collect();
            Body::from_stream(stream::iter(pieces))
        };
        assert_eq!(collect(pieces(&[3, 4, 3]), 10).await.expect("fits").len(), 10);
        assert_eq!(collect(pieces(&[]), 10).await.expect("fits").len(), 0);
        let error = collect(pieces(&[6, 5]), 10).await.expect_err("too large");
        assert_eq!((error.code(), error.message()), (Code::TooLarge, "body: 11 bytes, over the limit of 10"));
        let error = collect(pieces(&[10, 6]), 20).await.expect_err("no memory");
        let message = "body: 6 bytes more; bodies hold 10 of at most 15 bytes";
        assert_eq!((error.code(), error.message()), (Code::Overloaded, message));
    }

    #[tokio::test]
    async fn a_broken_body_is_invalid() {
        let pieces: Vec<std::io::Result<Vec<u8>>> = vec![Ok(vec![b'{']), Err(std::io::Error::other("gone"))];
        let error = collect(Body::from_stream(stream::iter(pieces)), 10).await.expect_err("broken");
        assert_eq!((error.code(), error.message()), (Code::Invalid, "body: could not be read"));
    }
}
