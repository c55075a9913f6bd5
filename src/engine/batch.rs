//! A batch on its way: the token tree of its jobs, and what is to be done with each when it ends.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    decode::ExplainSequence,
    job::{ScoreJob, TokenCounts},
    kv::{KeptSequence, KvPool, KvRef},
    prefix::{Hit, PrefixCache},
    tree::{Read, Sequence, TokenTree},
};
use crate::{backend::Pass, error::Error};

/// Explain sequences' keys never meet a prefix cache's.
const EXPLAIN_KEY: usize = usize::MAX;

/// A batch that was submitted. It holds its jobs and every KV block that it reads or writes, so that
/// none is given to another before it ended.
pub(super) struct Flight {
    pub(super) pass: Pass,
    pub(super) score: Vec<ScoreJob>,
    pub(super) explain: Vec<ExplainSequence>,
    pub(super) batch: Batch,
    pub(super) start: Instant,
    pub(super) assembly: Duration,
    /// What it should take, until those who wait for it were woken; `None` if that is not known.
    pub(super) expected: Option<Duration>,
    /// Why what it reads was never written, if so.
    pub(super) doomed: Option<Error>,
}

/// A token tree with what the jobs need to know of it.
pub(super) struct Batch {
    pub(super) tree: TokenTree,
    pub(super) hits: Vec<Hit>,
    pub(super) counts: Vec<TokenCounts>,
    /// For each segment, the job whose document comes after it: its KV is worth keeping.
    prefix_of: Vec<Option<usize>>,
}

impl Batch {
    pub(super) fn assemble(
        score: &[ScoreJob],
        explain: &[ExplainSequence],
        cache: &mut PrefixCache,
        explain_pool: &Arc<KvPool>,
    ) -> Self {
        let since = cache.clock();
        // The last token is always computed: its row is the answer.
        let hits: Vec<Hit> =
            score.iter().map(|job| cache.lookup(&job.prompt.tokens[..job.prompt.tokens.len() - 1])).collect();
        let mut sequences: Vec<Sequence<'_>> = score
            .iter()
            .zip(&hits)
            .map(|(job, hit)| Sequence {
                past: &hit.past,
                key: hit.key,
                position: hit.len,
                tokens: &job.prompt.tokens[hit.len..],
                cut: job.prompt.document.start.saturating_sub(hit.len),
                read: Read::Grades,
            })
            .collect();
        sequences.extend(explain.iter().enumerate().map(|(i, sequence)| Sequence {
            past: sequence.past(),
            key: (EXPLAIN_KEY, i),
            position: sequence.position(),
            tokens: sequence.portion(),
            cut: 0,
            read: if sequence.reads() { Read::Next } else { Read::Nothing },
        }));
        let tree = TokenTree::build(&sequences);
        let segments = tree.segments.len();
        let mut batch = Self {
            tree,
            hits,
            counts: vec![TokenCounts::default(); score.len()],
            prefix_of: vec![None; segments],
        };
        batch.keep_scored(score, cache, since, explain_pool);
        for (i, sequence) in explain.iter().enumerate() {
            let segment = batch.tree.answers[batch.tree.answer_of[score.len() + i]].segment;
            batch.tree.segments[segment].keep = sequence.destination();
        }
        batch
    }

    /// Counts tokens by fate, and finds memory for prefixes and for sequences that may be explained.
    /// `since` is the cache's clock before the batch's first lookup.
    fn keep_scored(
        &mut self,
        score: &[ScoreJob],
        cache: &mut PrefixCache,
        since: u64,
        explain_pool: &Arc<KvPool>,
    ) {
        let segments = self.tree.segments.len();
        let (mut seen, mut wanted) = (vec![false; segments], vec![false; segments]);
        for (i, job) in score.iter().enumerate() {
            let counts = &mut self.counts[i];
            counts.cached = self.hits[i].len;
            for segment in self.tree.path(self.tree.answers[self.tree.answer_of[i]].segment) {
                let part = &self.tree.segments[segment];
                let fate = if seen[segment] { &mut counts.shared } else { &mut counts.computed };
                *fate += part.rows.len();
                seen[segment] = true;
                wanted[segment] |= job.keep_kv;
                if part.position + part.rows.len() <= job.prompt.document.start {
                    self.prefix_of[segment] = Some(i);
                }
            }
        }
        // What is kept only saves computing a prompt again; a reason that finds no room is shed. Most of
        // what is kept is never explained, so half of the memory is left to those that are.
        let spare = explain_pool.total().div_ceil(2);
        for (segment, part) in self.tree.segments.iter_mut().enumerate() {
            let len = part.rows.len();
            let cached = self.prefix_of[segment].and_then(|_| cache.allocate(len, since));
            if cached.is_none() {
                // What lies in the explain lane's memory is not the cache's to keep.
                self.prefix_of[segment] = None;
            }
            let span = cached
                .or_else(|| wanted[segment].then(|| explain_pool.allocate_leaving(spare, len)).flatten());
            part.keep = span.map(|span| KvRef { span, start: 0, len });
        }
    }

    /// Puts the prefixes that it computes into the cache, parents first: a batch that is submitted
    /// after it may read them.
    pub(super) fn remember(&self, score: &[ScoreJob], cache: &mut PrefixCache) {
        for (part, job) in self.tree.segments.iter().zip(&self.prefix_of) {
            if let (Some(job), Some(kv)) = (job, &part.keep) {
                cache.insert(&score[*job].prompt.tokens[..part.position + part.rows.len()], kv.clone());
            }
        }
    }

    /// The KV of job `i`'s whole prompt, if every part of it was kept.
    pub(super) fn kept(&self, i: usize) -> Option<KeptSequence> {
        let mut past = self.hits[i].past.clone();
        for segment in self.tree.path(self.tree.answers[self.tree.answer_of[i]].segment) {
            past.push(self.tree.segments[segment].keep.clone()?);
        }
        Some(KeptSequence { past })
    }
}
