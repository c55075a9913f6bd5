//! Random prompts for the tests of invariance, on every backend.

use proptest::prelude::*;

/// Prompts that share prefixes: a few stems, each with a few tails, and a place to cut each prompt.
pub(crate) fn prompts() -> impl Strategy<Value = Vec<(Vec<u32>, usize)>> {
    let stem = prop::collection::vec(10u32..250, 0..90);
    let tail = prop::collection::vec(10u32..250, 1..60);
    prop::collection::vec((stem, prop::collection::vec((tail, 0usize..99), 1..4)), 1..4).prop_map(|stems| {
        let grow = |(stem, tails): (Vec<u32>, Vec<(Vec<u32>, usize)>)| {
            tails.into_iter().map(move |(tail, cut)| {
                let tokens = [stem.clone(), tail].concat();
                let cut = cut % tokens.len();
                (tokens, cut)
            })
        };
        stems.into_iter().flat_map(grow).collect()
    })
}
