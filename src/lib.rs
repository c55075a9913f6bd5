//! Verdict scores how relevant documents are to a query with a causal language
//! model whose *first* token is the relevance grade and whose later tokens are
//! the reason. One prefill gives the score; nothing is decoded unless a reason
//! was asked for.
//!
//! The path of a request, and the module that holds each step:
//!
//! 1. [`server`] turns JSON or protobuf into one [`request::ScoreRequest`].
//! 2. [`service`] validates it, has [`admission`] take it whole or refuse it,
//!    renders and tokenizes each pair with [`prompt`] as the model's
//!    [`profile`] says, and submits one job per pair.
//! 3. [`engine`] runs on one thread: its scheduler picks jobs, its token tree
//!    merges their common prefixes, and a [`backend`] runs [`model`]'s one
//!    forward pass over what is left.
//! 4. [`grade`] turns the logits of the grade tokens into a distribution, an
//!    expected grade and a score in \[0, 1\].
//! 5. A sequence that is to be explained keeps its KV cache and is decoded on
//!    the explain lane, continuing from the reported grade; [`grounding`] keeps
//!    what it says true, if the profile asks for it.
//!
//! [`error`] is the one table of errors, [`metrics`] the one place that counts,
//! [`config`] what a user may set, [`cli`] the commands.

pub mod admission;
pub mod backend;
pub mod cli;
pub mod config;
pub mod engine;
pub mod error;
pub mod grade;
pub mod grounding;
pub mod metrics;
pub mod model;
pub mod profile;
pub mod prompt;
pub mod request;
pub mod server;
pub mod service;
pub mod telemetry;
pub mod tokenize;

/// The crate's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit that was built; empty when built outside a repository.
pub const COMMIT: &str = env!("VERDICT_COMMIT");
