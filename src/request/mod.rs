//! Validated domain input: what every transport and dialect is turned into.
//!
//! The constructors check what can be said without a model or a configuration
//! (nothing is empty, options make sense together); [`Limits`] checks sizes.

mod limits;

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use serde_json::{Map, Value};

use crate::error::{Error, Result};

pub use crate::prompt::Truncation;
pub use limits::Limits;
pub(crate) use limits::VALUE_BYTES;

/// What was found: a text, or fields that the profile renders.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    id: Option<String>,
    body: Body,
}

/// A document's content.
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// Plain text.
    Text(String),
    /// Named fields.
    Fields(Map<String, Value>),
}

impl Document {
    /// A plain text.
    pub fn text(text: impl Into<String>) -> Self {
        Self { id: None, body: Body::Text(text.into()) }
    }

    /// Named fields.
    pub fn fields(fields: Map<String, Value>) -> Self {
        Self { id: None, body: Body::Fields(fields) }
    }

    /// Adds the id that is returned with the result.
    #[must_use]
    pub fn with_id(mut self, id: Option<String>) -> Self {
        self.id = id;
        self
    }

    /// The id.
    pub fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// The content.
    pub fn body(&self) -> &Body {
        &self.body
    }

    /// Id and content.
    pub fn into_parts(self) -> (Option<String>, Body) {
        (self.id, self.body)
    }

    /// Whether it cannot be scored; where a text may be `blank`, an object without fields alone.
    fn is_empty(&self, blank: bool) -> bool {
        match &self.body {
            Body::Text(text) => !blank && text.trim().is_empty(),
            Body::Fields(fields) => fields.is_empty(),
        }
    }
}

/// A query with one document.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// What is looked for.
    pub query: String,
    /// What was found.
    pub document: Document,
}

/// What to score.
#[derive(Clone, Debug, PartialEq)]
pub enum Items {
    /// One query with many documents.
    Documents {
        /// What is looked for.
        query: String,
        /// What was found.
        documents: Vec<Document>,
    },
    /// Pairs with queries of their own.
    Pairs(Vec<Pair>),
}

impl Items {
    /// How many pairs there are.
    pub fn len(&self) -> usize {
        match self {
            Items::Documents { documents, .. } => documents.len(),
            Items::Pairs(pairs) => pairs.len(),
        }
    }

    /// Whether there is nothing to score.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn check(&self, blank: bool) -> Result<()> {
        match self {
            Items::Documents { query, documents } => {
                if query.trim().is_empty() {
                    return Err(Error::invalid("query", "is empty"));
                }
                if documents.is_empty() {
                    return Err(Error::invalid("documents", "is empty; at least one document is needed"));
                }
                for (index, document) in documents.iter().enumerate() {
                    if document.is_empty(blank) {
                        return Err(Error::invalid(&format!("documents[{index}]"), "is empty"));
                    }
                }
            }
            Items::Pairs(pairs) => {
                if pairs.is_empty() {
                    return Err(Error::invalid("pairs", "is empty; at least one pair is needed"));
                }
                for (index, pair) in pairs.iter().enumerate() {
                    if pair.query.trim().is_empty() {
                        return Err(Error::invalid(&format!("pairs[{index}].query"), "is empty"));
                    }
                    if pair.document.is_empty(blank) {
                        return Err(Error::invalid(&format!("pairs[{index}].document"), "is empty"));
                    }
                }
            }
        }
        Ok(())
    }
}

/// How a request is scored and answered.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ScoreOptions {
    /// Replaces the profile's default instruction.
    pub instruction: Option<String>,
    /// Rank, and return only the best so many.
    pub top_n: Option<usize>,
    /// Rank all results.
    pub sort: bool,
    /// How a document that does not fit is treated.
    pub truncation: Truncation,
    /// Give up after so long; capped by the server's own limit.
    pub deadline: Option<Duration>,
    /// Return each document's rendered text.
    pub return_documents: bool,
    /// Return the grades' logits.
    pub raw: bool,
    /// Must be the served model's name or an alias of it.
    pub model: Option<String>,
    /// Fail as a whole if any pair fails: for answers that have no place for a pair's error.
    pub whole: bool,
    /// Documents may be blank, and are scored as empty ones: for clients that send what they have.
    pub blank: bool,
}

/// A request to score pairs.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoreRequest {
    items: Items,
    options: ScoreOptions,
    arrived: Option<Instant>,
}

impl ScoreRequest {
    /// Checks the parts.
    ///
    /// # Errors
    ///
    /// `Invalid`, naming the field: an empty query, list, or document that may not be blank;
    /// a zero `top_n` or deadline.
    pub fn new(items: Items, options: ScoreOptions) -> Result<Self> {
        items.check(options.blank)?;
        if options.top_n == Some(0) {
            return Err(Error::invalid("top_n", "is 0; at least 1 is needed"));
        }
        if options.deadline == Some(Duration::ZERO) {
            return Err(Error::invalid("deadline_ms", "is 0; at least 1 is needed"));
        }
        Ok(Self { items, options, arrived: None })
    }

    /// Shortens the deadline to `timeout`, where it is shorter.
    pub fn limit_deadline(&mut self, timeout: Duration) {
        self.options.deadline = Some(self.options.deadline.map_or(timeout, |deadline| deadline.min(timeout)));
    }

    /// Its deadline counts from `arrived`: it was sent before it was read.
    #[must_use]
    pub fn arrived_at(self, arrived: Instant) -> Self {
        Self { arrived: Some(arrived), ..self }
    }

    /// When its deadline began, if that was before it is scored.
    pub fn arrived(&self) -> Option<Instant> {
        self.arrived
    }

    /// With other documents, each made of the one in its place.
    ///
    /// # Errors
    ///
    /// The first of `make`.
    pub(crate) fn with_documents(
        mut self,
        make: impl Fn(usize, Document) -> Result<Document>,
    ) -> Result<Self> {
        let made = |(index, document)| make(index, document);
        self.items = match self.items {
            Items::Documents { query, documents } => {
                let documents = documents.into_iter().enumerate().map(made).collect::<Result<_>>()?;
                Items::Documents { query, documents }
            }
            Items::Pairs(pairs) => {
                let pairs = pairs.into_iter().enumerate().map(|(index, Pair { query, document })| {
                    Ok(Pair { query, document: make(index, document)? })
                });
                Items::Pairs(pairs.collect::<Result<_>>()?)
            }
        };
        Ok(self)
    }

    /// What to score; never empty.
    pub fn items(&self) -> &Items {
        &self.items
    }

    /// How.
    pub fn options(&self) -> &ScoreOptions {
        &self.options
    }

    /// Both parts.
    pub fn into_parts(self) -> (Items, ScoreOptions) {
        (self.items, self.options)
    }
}

/// Which documents are explained.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Explained {
    /// The best so many, as the server is configured.
    #[default]
    Default,
    /// The best so many.
    Best(usize),
    /// These positions of the request.
    Indices(Vec<usize>),
}

/// A request to score pairs and explain some of the scores.
#[derive(Clone, Debug, PartialEq)]
pub struct ExplainRequest {
    score: ScoreRequest,
    explained: Explained,
    max_reason_tokens: Option<usize>,
}

impl ExplainRequest {
    /// Checks the parts.
    ///
    /// # Errors
    ///
    /// `Invalid`, naming the field: a zero `explain_top_n` or
    /// `max_reason_tokens`; an index past the last document or given twice;
    /// indices together with `top_n`, which may cut the named document.
    pub fn new(score: ScoreRequest, explained: Explained, max_reason_tokens: Option<usize>) -> Result<Self> {
        if explained == Explained::Best(0) {
            return Err(Error::invalid("explain_top_n", "is 0; at least 1 is needed"));
        }
        if max_reason_tokens == Some(0) {
            return Err(Error::invalid("max_reason_tokens", "is 0; at least 1 is needed"));
        }
        if let Explained::Indices(indices) = &explained {
            check_indices(indices, &score)?;
        }
        Ok(Self { score, explained, max_reason_tokens })
    }

    /// What is scored.
    pub fn score(&self) -> &ScoreRequest {
        &self.score
    }

    /// Shortens the deadline to `timeout`, where it is shorter.
    pub fn limit_deadline(&mut self, timeout: Duration) {
        self.score.limit_deadline(timeout);
    }

    /// Its deadline counts from `arrived`: it was sent before it was read.
    #[must_use]
    pub fn arrived_at(self, arrived: Instant) -> Self {
        Self { score: self.score.arrived_at(arrived), ..self }
    }

    /// With what `make` makes of what is scored.
    ///
    /// # Errors
    ///
    /// Those of `make`.
    pub(crate) fn with_score(self, make: impl FnOnce(ScoreRequest) -> Result<ScoreRequest>) -> Result<Self> {
        Ok(Self { score: make(self.score)?, ..self })
    }

    /// Which documents are explained.
    pub fn explained(&self) -> &Explained {
        &self.explained
    }

    /// Most tokens of one reason.
    pub fn max_reason_tokens(&self) -> Option<usize> {
        self.max_reason_tokens
    }

    /// All three parts.
    pub fn into_parts(self) -> (ScoreRequest, Explained, Option<usize>) {
        (self.score, self.explained, self.max_reason_tokens)
    }
}

fn check_indices(indices: &[usize], score: &ScoreRequest) -> Result<()> {
    let count = score.items.len();
    if indices.is_empty() {
        return Err(Error::invalid("explain_indices", "is empty; at least one index is needed"));
    }
    if score.options.top_n.is_some() {
        return Err(Error::invalid("explain_indices", "cannot be combined with top_n; use explain_top_n"));
    }
    let mut seen = HashSet::new();
    for (position, &index) in indices.iter().enumerate() {
        if index >= count {
            let message = format!("is {index}, but the last document is {}", count - 1);
            return Err(Error::invalid(&format!("explain_indices[{position}]"), message));
        }
        if !seen.insert(index) {
            return Err(Error::invalid(&format!("explain_indices[{position}]"), format!("repeats {index}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(query: &str, documents: &[&str]) -> Items {
        Items::Documents {
            query: query.to_owned(),
            documents: documents.iter().copied().map(Document::text).collect(),
        }
    }

    fn message<T: std::fmt::Debug>(result: Result<T>) -> String {
        result.expect_err("refused").message().to_owned()
    }

    #[test]
    fn empty_parts_are_named() {
        let new = |items| ScoreRequest::new(items, ScoreOptions::default());
        assert_eq!(message(new(items(" ", &["a"]))), "query: is empty");
        assert_eq!(message(new(items("q", &[]))), "documents: is empty; at least one document is needed");
        assert_eq!(message(new(items("q", &["a", "\n"]))), "documents[1]: is empty");
        assert_eq!(message(new(Items::Pairs(Vec::new()))), "pairs: is empty; at least one pair is needed");
        let pair =
            |query: &str, document: &str| Pair { query: query.into(), document: Document::text(document) };
        assert_eq!(message(new(Items::Pairs(vec![pair("", "d")]))), "pairs[0].query: is empty");
        assert_eq!(
            message(new(Items::Pairs(vec![pair("q", "d"), pair("q", "")]))),
            "pairs[1].document: is empty"
        );
        let fields = Items::Documents { query: "q".into(), documents: vec![Document::fields(Map::new())] };
        assert_eq!(message(new(fields)), "documents[0]: is empty");
    }

    #[test]
    fn documents_may_be_blank_where_it_is_said_and_queries_never() {
        let options = || ScoreOptions { blank: true, ..ScoreOptions::default() };
        let new = |items| ScoreRequest::new(items, options());
        let pair = |query: &str| Pair { query: query.into(), document: Document::text("") };
        new(items("q", &["", " \n"])).expect("taken");
        new(Items::Pairs(vec![pair("q")])).expect("taken");
        assert_eq!(message(new(items(" ", &[""]))), "query: is empty");
        assert_eq!(message(new(items("q", &[]))), "documents: is empty; at least one document is needed");
        assert_eq!(message(new(Items::Pairs(vec![pair("")]))), "pairs[0].query: is empty");
        let fields = Items::Documents { query: "q".into(), documents: vec![Document::fields(Map::new())] };
        assert_eq!(message(new(fields)), "documents[0]: is empty");
    }

    #[test]
    fn zero_options_are_named() {
        let with = |options| ScoreRequest::new(items("q", &["a"]), options);
        let zero = ScoreOptions { top_n: Some(0), ..ScoreOptions::default() };
        assert_eq!(message(with(zero)), "top_n: is 0; at least 1 is needed");
        let zero = ScoreOptions { deadline: Some(Duration::ZERO), ..ScoreOptions::default() };
        assert_eq!(message(with(zero)), "deadline_ms: is 0; at least 1 is needed");
    }

    #[test]
    fn explain_indices_are_checked() {
        let score = |options| ScoreRequest::new(items("q", &["a", "b"]), options).expect("valid");
        let explain = |indices: &[usize], options| {
            ExplainRequest::new(score(options), Explained::Indices(indices.to_vec()), None)
        };
        explain(&[1, 0], ScoreOptions::default()).expect("valid");
        assert_eq!(
            message(explain(&[2], ScoreOptions::default())),
            "explain_indices[0]: is 2, but the last document is 1"
        );
        assert_eq!(message(explain(&[0, 0], ScoreOptions::default())), "explain_indices[1]: repeats 0");
        let ranked = ScoreOptions { top_n: Some(1), ..ScoreOptions::default() };
        assert_eq!(
            message(explain(&[0], ranked)),
            "explain_indices: cannot be combined with top_n; use explain_top_n"
        );
    }

    #[test]
    fn many_explain_indices_are_checked_in_one_go() {
        let documents = vec![Document::text("d"); 300_000];
        let items = Items::Documents { query: "q".to_owned(), documents };
        let score = ScoreRequest::new(items, ScoreOptions::default()).expect("valid");
        let mut indices: Vec<usize> = (0..300_000).collect();
        indices.push(7);
        // Were each looked for among all before it, this would take ten seconds and more.
        let error = ExplainRequest::new(score, Explained::Indices(indices), None).expect_err("one twice");
        assert_eq!(error.message(), "explain_indices[300000]: repeats 7");
    }

    #[test]
    fn the_shorter_deadline_holds() {
        let mut request = ScoreRequest::new(items("q", &["a"]), ScoreOptions::default()).expect("valid");
        request.limit_deadline(Duration::from_millis(50));
        request.limit_deadline(Duration::from_millis(80));
        assert_eq!(request.options().deadline, Some(Duration::from_millis(50)));
    }
}
