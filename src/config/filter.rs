//! What may be logged: levels, and levels of modules.
//!
//! The filter's own syntax takes a word that it does not know for the name of a module, and then
//! logs nothing of all others, faults among it. So words are looked at first.

use crate::error::{Error, Result};

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Crates that write to the log, by the names of their targets.
const CRATES: [&str; 10] = [
    "verdict",
    "candle_transformers",
    "h2",
    "hyper_util",
    "opentelemetry",
    "opentelemetry-otlp",
    "opentelemetry_sdk",
    "tokenizers",
    "tonic",
    "tower",
];

/// Takes a level, or levels of modules (`verdict::engine=debug`), with commas between them.
///
/// # Errors
///
/// `Invalid`, with the part that is neither.
pub(super) fn check(filter: &str) -> Result<()> {
    let parts = || filter.split(',').map(str::trim).filter(|part| !part.is_empty());
    if parts().next().is_none() {
        return Err(Error::invalid("log", format!("is empty; it is a level: {}", LEVELS.join(", "))));
    }
    for part in parts() {
        let (module, level) =
            part.split_once('=').map_or((None, part), |(module, level)| (Some(module), level));
        let is_level = LEVELS.iter().any(|known| known.eq_ignore_ascii_case(level));
        if !is_level || !module.is_none_or(is_path) {
            let message = format!(
                "{part:?} is neither a level ({}) nor a module with its level, such as verdict=debug",
                LEVELS.join(", ")
            );
            return Err(Error::invalid("log", message));
        }
        if let Some(module) = module {
            let name = module.split("::").next().unwrap_or_default();
            if !CRATES.contains(&name) {
                let message =
                    format!("{part:?}: nothing of {name:?} is logged here, but of {}", CRATES.join(", "));
                return Err(Error::invalid("log", message));
            }
        }
    }
    Ok(())
}

/// Of letters that the name of a module has; others are the filter's own, such as those of spans.
fn is_path(module: &str) -> bool {
    module.chars().all(|letter| letter.is_ascii_alphanumeric() || "_-:".contains(letter))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_taken_alone_and_of_modules() {
        for filter in
            ["off", "error", "WARN", "info,verdict::backend=debug", "debug, h2=off", "verdict=trace", "info,"]
        {
            check(filter).unwrap_or_else(|error| panic!("{filter}: {error}"));
        }
    }

    #[test]
    fn words_that_would_log_nothing_are_refused_with_the_word() {
        let refusal = |filter: &str| check(filter).expect_err("refused").message().to_owned();
        for filter in
            ["warning", "nonsense", "verdict", "verdict=loud", "verdict=", "a=b=c", "verdict::[x]=info"]
        {
            let said = refusal(filter);
            assert!(said.starts_with(&format!("log: {filter:?} is neither a level (off, error, ")), "{said}");
        }
        assert!(refusal("info,verdct=debug").starts_with("log: \"verdct=debug\": nothing of \"verdct\" is"));
        assert!(refusal("=info").starts_with("log: \"=info\": nothing of \"\" is logged here"));
        assert!(refusal("").starts_with("log: is empty; it is a level: off, error"));
        assert!(refusal(" , ").starts_with("log: is empty"));
    }
}
