//! The `verdict` binary.

fn main() {}
