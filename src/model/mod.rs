//! The transformer: its configuration, its weights, and its one forward pass.

pub mod config;
pub mod forward;
pub mod weights;
