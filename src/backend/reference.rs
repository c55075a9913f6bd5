//! The reference backend: candle-transformers own models, for `verdict verify` and tests.
