//! Every metric: name, unit, buckets, help, in one struct. The one place that counts.

/// All metrics.
#[derive(Debug, Default)]
pub struct Metrics {}
