//! `relevance.toml` and the built-in profiles: how a checkpoint is prompted and read.
