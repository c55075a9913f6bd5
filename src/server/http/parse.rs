//! JSON to a type, with errors that say where in the body the fault is.

use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

/// Reads a whole body as `T`.
///
/// # Errors
///
/// `Invalid`, naming the field and what was expected there.
pub(in crate::server) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T> {
    let text = std::str::from_utf8(body).map_err(|cause| {
        Error::invalid("body", format!("not valid UTF-8 at byte {}", cause.valid_up_to())).with_cause(cause)
    })?;
    // Names of paths cost time: they are only looked for when something is wrong.
    serde_json::from_str(text).map_err(|_| explanation::<T>(text))
}

/// Parses again to say where in the body the error is.
fn explanation<T: DeserializeOwned>(text: &str) -> Error {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    match serde_path_to_error::deserialize::<_, T>(&mut deserializer) {
        Err(cause) => {
            let path = cause.path().to_string();
            let field = if path == "." || path == "?" { "body" } else { &path };
            Error::invalid(field, cause.inner())
        }
        // The value was fine: then something follows it.
        Ok(_) => match deserializer.end() {
            Err(cause) => Error::invalid("body", cause),
            Ok(()) => Error::invalid("body", "not a request"),
        },
    }
}
