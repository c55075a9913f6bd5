//! Grade logits to a distribution, an expected grade and a score. Pure.
