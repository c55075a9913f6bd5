//! Whole-request admission in pairs and tokens.
//!
//! A [`Permit`] travels in the job, so a client that leaves cannot overfill the queue.

/// A share of the queue; gives it back when dropped.
#[derive(Debug)]
pub struct Permit {}
