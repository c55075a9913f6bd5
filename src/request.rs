//! Validated domain input: what every dialect is turned into.
