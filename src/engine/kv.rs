//! KV memory for explanations and shared prefixes.

/// A scored sequence's KV, held until it is dropped.
#[derive(Debug)]
pub struct KeptSequence {}
