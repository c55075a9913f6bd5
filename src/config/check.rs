//! How far settings may go, and what one says of another.

use std::{fmt, thread};

use crate::error::{Error, Result};

use super::{Config, filter};

/// Most tokens of a batch: far over what pays anywhere, and far under where sizes of buffers overflow.
const MOST_BATCH_TOKENS: usize = 1 << 20;
const MOST_BATCH_SEQUENCES: usize = 1 << 14;
const MOST_EXPLAIN_SEQUENCES: usize = 1 << 12;
/// So many compute threads are allowed on any machine.
const THREADS: usize = 64;
/// And so many for each of its cores.
const THREADS_PER_CORE: usize = 4;

/// Checks a number of compute threads: far more than cores only wait for each other, and a start
/// with many thousands does not end.
///
/// # Errors
///
/// Says the value and the limit.
pub(crate) fn threads(value: usize) -> Result<usize, String> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let most = THREADS.max(cores.saturating_mul(THREADS_PER_CORE));
    if value <= most {
        return Ok(value);
    }
    Err(format!("is {value}, over the limit of {most} ({THREADS_PER_CORE} for each core, or {THREADS})"))
}

impl Config {
    /// `Invalid`, naming the setting, the limit and the value.
    pub(super) fn check(&self) -> Result<()> {
        self.at_least()?;
        self.at_most()?;
        self.together()?;
        filter::check(&self.log)
    }

    fn at_least(&self) -> Result<()> {
        let positive: [(&str, usize); 13] = [
            ("max_connections", self.connections),
            ("batch_tokens", self.engine.batch_tokens),
            ("batch_sequences", self.engine.batch_sequences),
            ("explain_sequences", self.engine.explain_sequences),
            ("explain_every", self.engine.explain_every),
            ("queue_pairs", self.capacity.pairs),
            ("queue_tokens", self.capacity.tokens),
            ("max_documents", self.limits.documents),
            ("max_query_bytes", self.limits.query_bytes),
            ("max_document_bytes", self.limits.document_bytes),
            ("max_body_bytes", self.limits.body_bytes),
            ("explain_top_n", self.limits.explain_top_n),
            ("max_reason_tokens", self.limits.reason_tokens),
        ];
        for (name, value) in positive {
            if value == 0 {
                return Err(Error::invalid(name, "is 0; at least 1 is needed"));
            }
        }
        for (name, value) in [
            ("max_deadline", self.limits.deadline),
            ("stall", self.stall),
            ("read_timeout", self.read_timeout),
            ("keep_alive", self.keep_alive),
        ] {
            if value.is_zero() {
                return Err(Error::invalid(name, "is 0; more is needed"));
            }
        }
        Ok(())
    }

    fn at_most(&self) -> Result<()> {
        for (name, value, most) in [
            ("batch_tokens", self.engine.batch_tokens, MOST_BATCH_TOKENS),
            ("batch_sequences", self.engine.batch_sequences, MOST_BATCH_SEQUENCES),
            ("explain_sequences", self.engine.explain_sequences, MOST_EXPLAIN_SEQUENCES),
        ] {
            not_over(name, value, "the limit", most)?;
        }
        threads(self.threads).map(drop).map_err(|problem| Error::invalid("threads", problem))
    }

    fn together(&self) -> Result<()> {
        let (limits, bodies_mib) = (&self.limits, self.bodies >> 20);
        not_over("explain_top_n", limits.explain_top_n, "max_explained", limits.explain_documents)?;
        not_over("max_documents", limits.documents, "queue_pairs", self.capacity.pairs)?;
        if limits.body_bytes > self.bodies {
            return Err(over("max_body_bytes", limits.body_bytes, "queue_body_mib", bodies_mib));
        }
        Ok(())
    }
}

fn not_over(name: &str, value: usize, limit: &str, most: usize) -> Result<()> {
    if value > most { Err(over(name, value, limit, most)) } else { Ok(()) }
}

fn over(name: &str, value: impl fmt::Display, limit: &str, most: usize) -> Error {
    Error::invalid(name, format!("is {value}, over {limit} of {most}"))
}

#[cfg(test)]
mod tests {
    use super::super::Settings;
    use super::*;

    fn message(settings: Settings) -> String {
        Config::new(settings).expect_err("refused").message().to_owned()
    }

    #[test]
    fn senseless_values_are_named() {
        let settings = Settings { batch_tokens: Some(0), ..Settings::default() };
        assert_eq!(message(settings), "batch_tokens: is 0; at least 1 is needed");
        let settings = Settings { explain_top_n: Some(17), ..Settings::default() };
        assert_eq!(message(settings), "explain_top_n: is 17, over max_explained of 16");
        let settings = Settings { queue_pairs: Some(10), ..Settings::default() };
        assert_eq!(message(settings), "max_documents: is 1024, over queue_pairs of 10");
        let settings = Settings { queue_body_mib: Some(15), ..Settings::default() };
        assert_eq!(message(settings), "max_body_bytes: is 16777216, over queue_body_mib of 15");
    }

    #[test]
    fn batches_have_limits() {
        let settings = |tokens, sequences, explained| Settings {
            batch_tokens: Some(tokens),
            batch_sequences: Some(sequences),
            explain_sequences: Some(explained),
            ..Settings::default()
        };
        Config::new(settings(1_048_576, 16_384, 4096)).expect("at the limits");
        assert_eq!(message(settings(1_048_577, 1, 1)), "batch_tokens: is 1048577, over the limit of 1048576");
        assert_eq!(message(settings(1, 16_385, 1)), "batch_sequences: is 16385, over the limit of 16384");
        // Times 64 tokens a step this would wrap.
        let explained = usize::MAX / 64 + 1;
        let expected = format!("explain_sequences: is {explained}, over the limit of 4096");
        assert_eq!(message(settings(1, 1, explained)), expected);
    }

    #[test]
    fn threads_have_a_limit() {
        for fine in [0, 1, 64] {
            let config = Config::new(Settings { threads: Some(fine), ..Settings::default() });
            assert_eq!(config.expect("valid").threads, fine);
        }
        let said = message(Settings { threads: Some(1_000_000), ..Settings::default() });
        assert!(said.starts_with("threads: is 1000000, over the limit of "), "{said}");
    }
}
