//! JSON to a type, with errors that say where in the body the fault is.

use serde::de::DeserializeOwned;
use serde_json::{Deserializer, de::StrRead};

use crate::error::{Error, Result};

/// Reads a whole body as `T`.
///
/// # Errors
///
/// `Invalid`, naming the field and what was expected there.
pub(in crate::server) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T> {
    let text = text(body)?;
    // Names of paths cost time: they are only looked for when something is wrong.
    serde_json::from_str(text).map_err(|_| explanation::<T>(text))
}

/// A body as text, which JSON is.
///
/// # Errors
///
/// `Invalid` with the place of the first byte that is none.
pub(super) fn text(body: &[u8]) -> Result<&str> {
    std::str::from_utf8(body).map_err(|cause| {
        Error::invalid("body", format!("not valid UTF-8 at byte {}", cause.valid_up_to())).with_cause(cause)
    })
}

/// Parses again to say where in the body the error is.
fn explanation<T: DeserializeOwned>(text: &str) -> Error {
    let mut deserializer = Deserializer::from_str(text);
    match serde_path_to_error::deserialize::<_, T>(&mut deserializer) {
        Err(cause) => fault(cause.path(), cause.inner()),
        Ok(_) => not_ended(&mut deserializer),
    }
}

/// An error with its place in the body.
pub(super) fn fault(path: &serde_path_to_error::Path, cause: &serde_json::Error) -> Error {
    let path = path.to_string();
    Error::invalid(if path == "." || path == "?" { "body" } else { &path }, cause)
}

/// The value was fine: then something follows it.
pub(super) fn not_ended(deserializer: &mut Deserializer<StrRead<'_>>) -> Error {
    match deserializer.end() {
        Err(cause) => Error::invalid("body", cause),
        Ok(()) => Error::invalid("body", "not a request"),
    }
}
