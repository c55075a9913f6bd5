//! The transformer, once, over `trait Ops`.
