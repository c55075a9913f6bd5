//! The one error type, and the one table from its codes to HTTP and gRPC.

mod shown;

use std::{fmt, sync::Arc, time::Duration};

pub(crate) use shown::{bounded, listed, shown};

/// What went wrong, as a caller may act on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// The request is malformed; the message names the field, limit and value.
    Invalid,
    /// No or a wrong API key.
    Unauthenticated,
    /// No such route or model.
    NotFound,
    /// The route takes another HTTP method.
    MethodNotAllowed,
    /// The request is well formed but past a size limit.
    TooLarge,
    /// The body is of a kind or an encoding that is not read here.
    UnsupportedMedia,
    /// The queue is full or the predicted wait is past the deadline.
    Overloaded,
    /// A fault of ours. The cause is logged once and never sent.
    Internal,
    /// This model or build does not offer what was asked.
    Unimplemented,
    /// Starting or draining.
    Unavailable,
    /// The deadline passed before the work was done.
    DeadlineExceeded,
}

/// How one [`Code`] appears on each transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The code.
    pub code: Code,
    /// Its stable name, used in JSON bodies and metric labels.
    pub name: &'static str,
    /// HTTP status.
    pub http: u16,
    /// gRPC status number.
    pub grpc: i32,
    /// Whether the same request may succeed later, unless the error says that it will not.
    pub retryable: bool,
}

/// Every code once: HTTP status, gRPC status, and whether a retry makes sense.
pub const TABLE: [Row; 11] = [
    row(Code::Invalid, "invalid", 400, 3, false),
    row(Code::Unauthenticated, "unauthenticated", 401, 16, false),
    row(Code::NotFound, "not_found", 404, 5, false),
    row(Code::MethodNotAllowed, "method_not_allowed", 405, 12, false),
    row(Code::TooLarge, "too_large", 413, 3, false),
    row(Code::UnsupportedMedia, "unsupported_media_type", 415, 3, false),
    row(Code::Overloaded, "overloaded", 429, 8, true),
    row(Code::Internal, "internal", 500, 13, false),
    row(Code::Unimplemented, "unimplemented", 501, 12, false),
    row(Code::Unavailable, "unavailable", 503, 14, true),
    row(Code::DeadlineExceeded, "deadline_exceeded", 504, 4, true),
];

const fn row(code: Code, name: &'static str, http: u16, grpc: i32, retryable: bool) -> Row {
    Row { code, name, http, grpc, retryable }
}

impl Code {
    /// This code's row of [`TABLE`].
    pub fn row(self) -> Row {
        TABLE[self as usize]
    }
}

/// An error with a code, a message fit for the caller, and a private cause.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    code: Code,
    message: String,
    retry_after: Option<Duration>,
    limit: Option<Limit>,
    in_vain: bool,
    #[source]
    cause: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

/// The size limit that a request passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// The most that is accepted.
    pub limit: usize,
    /// What was sent.
    pub value: usize,
}

/// Shorthand for results with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of any code. Its message becomes one line, without the middle if it is long: what clients
    /// sent may be in it.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self::with_lines(code, shown::bounded(message.into()))
    }

    /// An error whose message may have many lines: of a file of the operator's, never of what clients sent.
    pub(crate) fn with_lines(code: Code, message: String) -> Self {
        Self { code, message, retry_after: None, limit: None, in_vain: false, cause: None }
    }

    /// A malformed field: the message is prefixed with the field's name.
    pub fn invalid(field: &str, message: impl fmt::Display) -> Self {
        Self::new(Code::Invalid, format!("{field}: {message}"))
    }

    /// A field past its limit, naming the limit and the value.
    pub fn too_large(field: &str, unit: &str, limit: usize, value: usize) -> Self {
        let message = format!("{field}: {value} {unit}, over the limit of {limit}");
        Self { limit: Some(Limit { limit, value }), ..Self::new(Code::TooLarge, message) }
    }

    /// A fault of ours; `cause` is for the log only.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, message)
    }

    /// The same with the field at the message's start called as a peer calls it.
    #[must_use]
    pub fn rename_field(mut self, ours: &str, theirs: &str) -> Self {
        if let Some(rest) = self.message.strip_prefix(ours)
            && rest.starts_with([':', '['])
        {
            self.message = format!("{theirs}{rest}");
        }
        self
    }

    /// The same in other words.
    #[must_use]
    pub(crate) fn with_message(self, message: String) -> Self {
        Self { message, ..self }
    }

    /// Adds when to try again.
    #[must_use]
    pub fn with_retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// Says that no retry of the same request could succeed, whatever the code's row says.
    #[must_use]
    pub fn without_retry(mut self) -> Self {
        self.in_vain = true;
        self
    }

    /// Adds the private cause.
    #[must_use]
    pub fn with_cause(mut self, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.cause = Some(Arc::from(cause.into()));
        self
    }

    /// The code.
    pub fn code(&self) -> Code {
        self.code
    }

    /// The message as logged and, except for `Internal`, as sent.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// When to try again, for `Overloaded` and `Unavailable`.
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// Whether the same request may succeed later.
    pub fn retryable(&self) -> bool {
        self.code.row().retryable && !self.in_vain
    }

    /// The limit that was passed, for `TooLarge`.
    pub fn limit(&self) -> Option<Limit> {
        self.limit
    }

    /// What the caller may read: an internal error's message stays with us.
    pub fn public_message(&self) -> &str {
        if self.code == Code::Internal { "internal error; see the server's log" } else { &self.message }
    }

    /// The private causes for the log, outermost first, as one short line.
    pub(crate) fn causes(&self) -> String {
        let mut text = String::new();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&error.to_string());
            cause = error.source();
        }
        bounded(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_indexed_by_code() {
        for row in TABLE {
            assert_eq!(row.code.row(), row);
        }
    }

    #[test]
    fn a_field_is_called_as_the_peer_calls_it() {
        let renamed = |message: &str| {
            let error = Error::new(Code::Invalid, message).rename_field("documents", "texts");
            error.message().to_owned()
        };
        assert_eq!(renamed("documents[3]: is empty"), "texts[3]: is empty");
        assert_eq!(renamed("documents: is empty"), "texts: is empty");
        assert_eq!(renamed("documents of yours"), "documents of yours");
        assert_eq!(renamed("query: is empty"), "query: is empty");
    }

    #[test]
    fn causes_are_told_outermost_first() {
        let inner = Error::internal("inner").with_cause(std::io::Error::other("disk"));
        assert_eq!(Error::internal("outer").with_cause(inner).causes(), "inner: disk");
    }

    #[test]
    fn internal_messages_are_not_public() {
        let error = Error::internal("secret path").with_cause(std::io::Error::other("disk"));
        assert!(!error.public_message().contains("secret"));
        assert!(
            Error::too_large("documents", "documents", 10, 11)
                .message()
                .contains("11 documents, over the limit of 10")
        );
    }
}
