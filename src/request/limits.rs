//! Sizes that a server accepts.

use std::time::Duration;

use crate::error::{Error, Result};

use super::{Body, Document, Items, ScoreRequest};

/// What a value counts that is no text: numbers and constants are a few characters each, and a list or an object is
/// work and memory even where there is nothing in it.
pub(crate) const VALUE_BYTES: usize = 8;

/// The largest request a server takes. Past any of these it is `TooLarge`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Documents or pairs in one request.
    pub documents: usize,
    /// UTF-8 bytes of a query.
    pub query_bytes: usize,
    /// UTF-8 bytes of an instruction.
    pub instruction_bytes: usize,
    /// UTF-8 bytes of one document's text, or of its fields' names and values; a value that is no text counts eight.
    pub document_bytes: usize,
    /// Bytes of a request's body.
    pub body_bytes: usize,
    /// Documents explained when a request does not say.
    pub explain_top_n: usize,
    /// Most documents explained in one request.
    pub explain_documents: usize,
    /// Most tokens of one reason.
    pub reason_tokens: usize,
    /// The longest deadline, and the one of requests that have none.
    pub deadline: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            documents: 1024,
            query_bytes: 16 << 10,
            instruction_bytes: 16 << 10,
            document_bytes: 1 << 20,
            body_bytes: 16 << 20,
            explain_top_n: 3,
            explain_documents: 16,
            reason_tokens: 256,
            deadline: Duration::from_secs(60),
        }
    }
}

impl Limits {
    /// Checks a request's sizes.
    ///
    /// # Errors
    ///
    /// `TooLarge`, naming the field, the limit and the value.
    pub fn check(&self, request: &ScoreRequest) -> Result<()> {
        let over = |field: &str, limit: usize, bytes: usize| {
            if bytes > limit { Err(Error::too_large(field, "bytes", limit, bytes)) } else { Ok(()) }
        };
        let count = request.items().len();
        if let Some(instruction) = &request.options().instruction {
            over("instruction", self.instruction_bytes, instruction.len())?;
        }
        match request.items() {
            Items::Documents { query, documents } => {
                self.check_count("documents", count)?;
                over("query", self.query_bytes, query.len())?;
                for (index, document) in documents.iter().enumerate() {
                    let bytes = bytes(document);
                    if bytes > self.document_bytes {
                        over(&format!("documents[{index}]"), self.document_bytes, bytes)?;
                    }
                }
            }
            Items::Pairs(pairs) => {
                self.check_count("pairs", count)?;
                for (index, pair) in pairs.iter().enumerate() {
                    if pair.query.len() > self.query_bytes {
                        over(&format!("pairs[{index}].query"), self.query_bytes, pair.query.len())?;
                    }
                    let bytes = bytes(&pair.document);
                    if bytes > self.document_bytes {
                        over(&format!("pairs[{index}].document"), self.document_bytes, bytes)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Checks how many there are of `what`, documents or pairs.
    ///
    /// # Errors
    ///
    /// `TooLarge`, naming them, the limit and the value.
    pub(crate) fn check_count(&self, what: &str, count: usize) -> Result<()> {
        if count > self.documents {
            return Err(Error::too_large(what, what, self.documents, count));
        }
        Ok(())
    }
}

fn bytes(document: &Document) -> usize {
    match document.body() {
        Body::Text(text) => text.len(),
        Body::Fields(fields) => fields_bytes(fields),
    }
}

fn fields_bytes(fields: &serde_json::Map<String, serde_json::Value>) -> usize {
    fields.iter().map(|(name, value)| name.len() + value_bytes(value)).sum()
}

fn value_bytes(value: &serde_json::Value) -> usize {
    use serde_json::Value;
    match value {
        Value::String(text) => text.len(),
        Value::Array(items) => VALUE_BYTES + items.iter().map(value_bytes).sum::<usize>(),
        Value::Object(fields) => VALUE_BYTES + fields_bytes(fields),
        Value::Null | Value::Bool(_) | Value::Number(_) => VALUE_BYTES,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        error::Code,
        request::{Pair, ScoreOptions},
    };

    fn limits() -> Limits {
        Limits { documents: 2, query_bytes: 4, instruction_bytes: 4, document_bytes: 8, ..Limits::default() }
    }

    fn refusal(items: Items, options: ScoreOptions) -> String {
        let request = ScoreRequest::new(items, options).expect("well formed");
        let error = limits().check(&request).expect_err("too large");
        assert_eq!(error.code(), Code::TooLarge);
        error.message().to_owned()
    }

    fn documents(query: &str, texts: &[&str]) -> Items {
        Items::Documents {
            query: query.into(),
            documents: texts.iter().copied().map(Document::text).collect(),
        }
    }

    #[test]
    fn each_limit_names_field_limit_and_value() {
        let plain = ScoreOptions::default;
        assert_eq!(
            refusal(documents("q", &["a", "b", "c"]), plain()),
            "documents: 3 documents, over the limit of 2"
        );
        assert_eq!(refusal(documents("queries", &["a"]), plain()), "query: 7 bytes, over the limit of 4");
        assert_eq!(
            refusal(documents("q", &["a", "123456789"]), plain()),
            "documents[1]: 9 bytes, over the limit of 8"
        );
        let pairs = |query: &str, text: &str| {
            Items::Pairs(vec![Pair { query: query.into(), document: Document::text(text) }])
        };
        assert_eq!(refusal(pairs("queries", "a"), plain()), "pairs[0].query: 7 bytes, over the limit of 4");
        assert_eq!(
            refusal(pairs("q", "123456789"), plain()),
            "pairs[0].document: 9 bytes, over the limit of 8"
        );
        let wordy = ScoreOptions { instruction: Some("judge!".into()), ..plain() };
        assert_eq!(refusal(documents("q", &["a"]), wordy), "instruction: 6 bytes, over the limit of 4");
    }

    #[test]
    fn fields_count_names_and_values() {
        let fields = serde_json::json!({"title": "12", "tags": ["3", {"a": "4"}]});
        let serde_json::Value::Object(fields) = fields else { unreachable!("an object") };
        let items = Items::Documents { query: "q".into(), documents: vec![Document::fields(fields)] };
        assert_eq!(refusal(items, ScoreOptions::default()), "documents[0]: 30 bytes, over the limit of 8");
    }

    #[test]
    fn what_just_fits_passes() {
        let request = ScoreRequest::new(documents("1234", &["12345678", "b"]), ScoreOptions::default())
            .expect("well formed");
        limits().check(&request).expect("fits");
    }
}
