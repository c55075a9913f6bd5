//! The transformer, once, over [`Ops`].

use crate::{
    backend::{Norm, Ops},
    error::Result,
};

/// One prefill (or decode step) over the packed rows that `ops` was given.
///
/// In the last layer every row still gives its key and value, but only the
/// answers' rows have queries, attention, MLP and head.
pub fn forward<O: Ops>(ops: &mut O) -> Result<O::Answers> {
    let layers = ops.config().layers;
    ops.embed()?;
    for layer in 0..layers {
        ops.norm(Norm::Attention(layer))?;
        ops.keys_values(layer)?;
        if layer + 1 == layers {
            ops.select_answers()?;
        }
        ops.queries(layer)?;
        ops.attention(layer)?;
        ops.norm(Norm::Mlp(layer))?;
        ops.mlp(layer)?;
    }
    ops.norm(Norm::Final)?;
    ops.head()
}
