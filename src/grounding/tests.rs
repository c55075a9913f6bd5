use std::sync::{Arc, LazyLock};

use proptest::prelude::*;

use super::*;
use crate::model::bundled;

/// Splits most words in pieces, and keeps white space.
static TINY: LazyLock<Tokenizer> = LazyLock::new(|| {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/qwen3/tokenizer.json");
    Tokenizer::from_bytes(&std::fs::read(path).expect("read"), "tiny").expect("loads")
});

/// Lower case, and its normalizer tidies white space.
static MINI: LazyLock<Tokenizer> =
    LazyLock::new(|| Tokenizer::from_bytes(bundled::TOKENIZER, "mini").expect("loads"));

const STOP: u32 = 1;

fn rule(tokenizer: &Tokenizer) -> Arc<Grounding> {
    let sections =
        [("intent", Says::Asked), ("match", Says::Found), ("gaps", Says::Missing), ("verdict", Says::Grade)];
    let rule = Rule {
        sections: sections.map(|(name, says)| (name.to_owned(), says)).to_vec(),
        grades: ["irrelevant", "exact match"].map(str::to_owned).to_vec(),
        none: "none".to_owned(),
        stop: STOP,
        skip: ["the", "for"].map(str::to_owned).to_vec(),
        most_words: 4,
    };
    Arc::new(Grounding::new(rule, tokenizer).expect("spells"))
}

/// What is written when a model wants these tokens, as text; at most `most` tokens.
fn written(
    tokenizer: &Tokenizer,
    pair: (&str, &str),
    grade: usize,
    wanted: impl Iterator<Item = u32>,
) -> String {
    let rule = rule(tokenizer);
    let facts = rule.facts(pair.0, pair.1).expect("known");
    let mut guard = Guard::new(Arc::clone(&rule), facts, grade);
    let mut tokens = Vec::new();
    for token in wanted.chain(std::iter::repeat(u32::MAX)) {
        let token = guard.take(token);
        if token == STOP {
            break;
        }
        tokens.push(token);
        assert!(tokens.len() < 400, "a reason ends");
    }
    tokenizer.decode(&tokens).expect("decodes")
}

const PAIR: (&str, &str) = ("The shoes for running, red none", "A shoe that RUNS well");

#[test]
fn what_the_model_says_stands_if_it_is_true() {
    for tokenizer in [&*TINY, &*MINI] {
        let speller = tokenizer.without_normalizer().expect("made");
        for text in [
            "intent: red running\nmatch: running shoes\ngaps: red\nverdict: exact match",
            "intent: shoes running red\nmatch: shoes\ngaps: red\nverdict: exact match",
        ] {
            let wanted = speller.encode(text).expect("encodes").into_iter().chain([STOP]);
            assert_eq!(written(tokenizer, PAIR, 1, wanted), text);
        }
    }
}

#[test]
fn what_is_false_gives_way_to_the_rules_own() {
    for tokenizer in [&*TINY, &*MINI] {
        let own = "intent: shoes running red\nmatch: shoes running\ngaps: red\nverdict: irrelevant";
        assert_eq!(written(tokenizer, PAIR, 0, std::iter::empty()), own);
        assert_eq!(
            written(tokenizer, ("garden", "A hose"), 0, std::iter::empty()),
            "intent: garden\nmatch: none\ngaps: garden\nverdict: irrelevant"
        );
        assert_eq!(
            written(tokenizer, ("?!", ""), 1, std::iter::empty()),
            "intent: none\nmatch: none\ngaps: none\nverdict: exact match"
        );
        assert_eq!(
            written(tokenizer, ("the none", "the"), 1, std::iter::empty()),
            "intent: the\nmatch: the\ngaps: none\nverdict: exact match"
        );
    }
}

#[test]
fn a_word_that_begins_a_longer_one_can_be_said() {
    let speller = MINI.without_normalizer().expect("made");
    for list in ["car carpet", "carpet car", "carpet", "car"] {
        let text = format!("intent: {list}\nmatch: {list}\ngaps: none\nverdict: exact match");
        let wanted = speller.encode(&text).expect("encodes").into_iter().chain([STOP]);
        assert_eq!(written(&MINI, ("car carpet", "carpets for cars"), 1, wanted), text);
    }
}

#[test]
fn only_the_first_words_count() {
    let text = written(&MINI, ("a1 b c d e f", "b f"), 0, std::iter::empty());
    assert_eq!(text, "intent: a1 b c d\nmatch: b\ngaps: a1 c d\nverdict: irrelevant");
}

proptest! {
    /// Whatever the model wants, every line is true, and control tokens have no way in.
    #[test]
    fn nothing_false_is_ever_written(
        query in "(shoes|red|<\\|0\\|>|É?[a-z]{0,9}|the|none|\\PC{0,3})( [a-z]{1,8}){0,4}",
        document in "(shoe|<\\|0\\|>|[a-z]{1,5}| ){0,9}",
        wanted in prop::collection::vec(0_u32..700, 0..60),
        copied in any::<bool>(),
        mini in any::<bool>(),
    ) {
        let tokenizer = if mini { &*MINI } else { &*TINY };
        let document = if copied { format!("{document} {query}") } else { document };
        let text = written(tokenizer, (&query, &document), 1, wanted.into_iter());
        let lines: Vec<(&str, &str)> = text.lines().filter_map(|line| line.split_once(": ")).collect();
        let names: Vec<&str> = lines.iter().map(|(name, _)| *name).collect();
        prop_assert_eq!(names, ["intent", "match", "gaps", "verdict"], "{}", text);
        prop_assert_eq!(lines[3].1, "exact match");
        let forms = |text: &str| words::words(text).map(|word| words::form(&word)).collect::<HashSet<_>>();
        let (asked, there) = (forms(&query), forms(&document));
        for (line, found) in [(0, None), (1, Some(true)), (2, Some(false))] {
            let listed: Vec<&str> = lines[line].1.split(' ').filter(|word| *word != "none").collect();
            for word in &listed {
                let form = words::form(word);
                prop_assert!(asked.contains(&form), "{word} in {text}");
                prop_assert!(found.is_none_or(|found| found == there.contains(&form)), "{word} in {text}");
            }
            prop_assert_eq!(listed.len(), listed.iter().collect::<HashSet<_>>().len());
        }
    }
}

#[test]
fn a_tokenizer_that_cannot_write_lines_is_refused() {
    // Without a token for it, nothing that is not in the vocabulary can be written.
    let json = r#"{"version": "1.0", "added_tokens": [], "model": {"type": "WordLevel", "vocab": {"a": 0, "?": 1}, "unk_token": "?"}}"#;
    let tokenizer = Tokenizer::from_bytes(json.as_bytes(), "words").expect("loads");
    let rule = Rule {
        sections: vec![("a".to_owned(), Says::Asked)],
        grades: Vec::new(),
        none: "none".to_owned(),
        stop: 0,
        skip: Vec::new(),
        most_words: 1,
    };
    let problem = Grounding::new(rule, &tokenizer).expect_err("refused");
    assert_eq!(problem, "the tokenizer cannot write \"a: none\" such that it reads the same");
}
