use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;
use crate::model::bundled;

/// Qwen's way of cutting text up, with a small vocabulary.
static TINY: LazyLock<Tokenizer> = LazyLock::new(|| {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/qwen3/tokenizer.json");
    Tokenizer::from_bytes(&std::fs::read(path).expect("read"), "tiny").expect("loads")
});

/// The bundled model's: lower case, and a space before every text.
static MINI: LazyLock<Tokenizer> =
    LazyLock::new(|| Tokenizer::from_bytes(bundled::TOKENIZER, "mini").expect("loads"));

fn tiny() -> Tokenizer {
    TINY.clone()
}

fn mini() -> Tokenizer {
    MINI.clone()
}

fn hostile() -> impl Strategy<Value = String> {
    let controls = prop::sample::select(vec![
        "<|im_start|>",
        "<|im_end|>",
        "<think>",
        "</think>",
        "<|0|>",
        "<|answer|>",
        "<|query|>",
        "<|end|>",
        " <|im_end|> ",
        "<|IM_END|>",
        "<|",
        "|>",
    ]);
    prop::collection::vec(prop_oneof![controls.prop_map(str::to_owned), "\\PC{0,6}", "[ \n\t]{0,3}"], 0..8)
        .prop_map(|parts| parts.concat())
}

proptest! {
    /// What makes the memory of words sound, on texts full of edges between words.
    #[test]
    fn word_by_word_is_the_same_as_whole(
        pieces in prop::collection::vec(prop_oneof![
            "[ -~]{0,5}",
            "[ \\t\n\r\u{b}\u{c}\u{1c}\u{85}\u{a0}\u{3000}]{0,3}",
            prop::sample::select(vec![
                "'s", "'LL", " 12", "3.5", "e\u{301}", "\u{301}", "Σ", "ς", "İ", "北京 a", "…", " .\n", " ", "é", " ёж",
                "한", " \u{1112}", "\u{1161}", " \u{93f}", "\u{345}", "Ⅷ ", " ½", "\u{64b}", "ﷺ", "ab",
            ])
            .prop_map(str::to_owned),
            "\\PC{0,3}",
        ], 0..12),
    ) {
        let text = pieces.concat();
        for tokenizer in [tiny(), mini()] {
            prop_assert!(tokenizer.inner.words.is_some());
            let whole: Vec<u32> = tokenizer.encode_whole(&text).expect("encodes").into_iter().map(|t| t.0).collect();
            for _ in 0..2 {
                prop_assert_eq!(&tokenizer.encode(&text).expect("encodes"), &whole, "{:?}", text);
            }
        }
    }

    /// Where white space is left out before a text is tokenized, too.
    #[test]
    fn long_white_space_is_the_same_as_whole(
        pieces in prop::collection::vec(prop_oneof![
            "[ \\t\n\r\u{b}\u{c}]{0,90}",
            "[ \n\u{1c}\u{85}\u{a0}\u{2028}\u{3000}]{2,5}",
            prop::sample::select(vec![
                "a", "b, c", "É", "\u{301}", "Σ", "北", "ς.", "12", "\u{345}", "\u{93f}", "\u{180e}",
            ])
            .prop_map(str::to_owned),
        ], 0..10),
    ) {
        let text = pieces.concat();
        for tokenizer in [tiny(), mini()] {
            let whole: Vec<u32> = tokenizer.encode_whole(&text).expect("encodes").into_iter().map(|t| t.0).collect();
            prop_assert_eq!(&tokenizer.encode(&text).expect("encodes"), &whole, "{:?}", text);
            let offsets = tokenizer.encode_with_offsets(&text).expect("encodes");
            prop_assert_eq!(offsets.iter().map(|(id, _)| *id).collect::<Vec<_>>(), whole);
            prop_assert!(offsets.is_sorted_by_key(|(_, range)| range.start), "{:?}: {:?}", text, offsets);
            prop_assert!(offsets.iter().all(|(_, range)| text.get(range.clone()).is_some()), "{:?}: {:?}", text, offsets);
        }
    }

    #[test]
    fn no_text_becomes_a_control_token(text in hostile()) {
        for tokenizer in [tiny(), mini()] {
            let ids = tokenizer.encode(&text).expect("encodes");
            prop_assert!(ids.iter().all(|&id| !tokenizer.is_control(id)), "{text:?}: {ids:?}");
            prop_assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
            let offsets = tokenizer.encode_with_offsets(&text).expect("encodes");
            prop_assert_eq!(offsets.iter().map(|(id, _)| *id).collect::<Vec<_>>(), ids);
            for (_, range) in offsets {
                prop_assert!(text.get(range).is_some());
            }
        }
    }

    #[test]
    fn a_stream_gives_the_text_in_whole_characters(text in "[a-z é北🙂\u{301}\n]{0,24}") {
        let tokenizer = tiny();
        let ids = tokenizer.encode(&text).expect("encodes");
        let mut stream = tokenizer.decode_stream();
        let mut streamed = String::new();
        for &id in &ids {
            if let Some(piece) = stream.push(id).expect("decodes") {
                prop_assert!(!piece.is_empty() && !piece.contains(char::REPLACEMENT_CHARACTER));
                streamed += &piece;
            }
        }
        prop_assert_eq!(stream.finish().expect("decodes"), None);
        let whole = tokenizer.decode(&ids).expect("decodes");
        prop_assert_eq!(streamed, whole.trim_start());
    }
}

#[test]
fn white_space_that_is_left_out_is_not_tokenized() {
    let text = "a".to_owned() + &" \n".repeat(8000) + "b";
    assert_eq!(mini().short(&text).map(|short| short.text().to_owned()).as_deref(), Some("a b"));
    assert!(tiny().short(&text).is_none(), "what it makes tokens of is not left out");
}

#[test]
fn control_tokens_are_reached_by_name_alone() {
    let tokenizer = tiny();
    let end = tokenizer.control("<|im_end|>").expect("known");
    assert!(tokenizer.is_control(end));
    assert_eq!(tokenizer.control("<think>").map(|id| tokenizer.is_control(id)), Some(true));
    assert_eq!(tokenizer.control("yes"), None);
    assert!(!tokenizer.encode("<|im_end|>").expect("encodes").contains(&end));
}

#[test]
fn the_first_and_longest_control_token_is_found() {
    let tokenizer = tiny();
    let found = tokenizer.find_control("a<think><|im_end|>").expect("searches").expect("found");
    assert_eq!((found.range, Some(found.id)), (1..8, tokenizer.control("<think>")));
    assert_eq!(tokenizer.find_control("a < b").expect("searches"), None);
}

#[test]
fn unfinished_characters_are_held_back_until_the_end() {
    let tokenizer = tiny();
    let ids = tokenizer.encode("北").expect("encodes");
    assert_eq!(ids.len(), 3);
    let mut stream = tokenizer.decode_stream();
    assert_eq!(stream.push(ids[0]).expect("decodes"), None);
    assert_eq!(stream.push(ids[1]).expect("decodes"), None);
    assert_eq!(stream.finish().expect("decodes").as_deref(), Some("\u{fffd}"));
}

#[test]
fn control_tokens_have_no_text_and_the_first_space_is_dropped() {
    let tokenizer = mini();
    let end = tokenizer.control("<|end|>").expect("known");
    let mut stream = tokenizer.decode_stream();
    let mut text = String::new();
    for id in [tokenizer.encode("Intent: shoes").expect("encodes"), vec![end]].concat() {
        text.extend(stream.push(id).expect("decodes"));
    }
    assert_eq!(text, "intent: shoes");
    assert_eq!(tokenizer.decode(&[end]).expect("decodes"), "");
}

#[test]
fn a_forgeable_control_token_is_refused() {
    let json = std::str::from_utf8(FORGEABLE).expect("text");
    let error = Tokenizer::from_bytes(json.as_bytes(), "dir/tokenizer.json").expect_err("refused");
    assert_eq!(error.code(), crate::error::Code::Invalid);
    assert_eq!(
        error.message(),
        "dir/tokenizer.json: the plain text \"ab\" becomes the control token 2: a user's text could forge it"
    );
}

/// A BPE whose merge makes the text of an added token.
const FORGEABLE: &[u8] = br#"{
  "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
  "post_processor": null, "decoder": null,
  "added_tokens": [{"id": 2, "content": "ab", "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": true}],
  "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}
}"#;

/// A space, shown as ▁, before what begins a text; or `scheme`.
fn spaced(scheme: &str) -> String {
    r#"{
  "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null, "decoder": null,
  "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "SCHEME", "split": false},
  "added_tokens": [{"id": 4, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": true}],
  "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "vocab": {"▁": 0, "a": 1, "b": 2, "▁a": 3, "<s>": 4}, "merges": [["▁", "a"]]}
}"#
    .replace("SCHEME", scheme)
}

#[test]
fn a_space_before_the_first_word_alone_is_before_no_text_behind_a_control_token() {
    let json = spaced("first");
    let whole = tokenizers::Tokenizer::from_bytes(json.as_bytes()).expect("loads");
    let theirs = whole.encode("<s>a ba<s>ab", true).expect("encodes").get_ids().to_vec();
    let ours = Tokenizer::from_bytes(json.as_bytes(), "dir/tokenizer.json").expect("loads");
    let start = ours.control("<s>").expect("known");
    let encode = |text| ours.encode(text).expect("encodes");
    assert_eq!([vec![start], encode("a ba"), vec![start], encode("ab")].concat(), theirs);
    assert_eq!(ours.check_beginning(&[start]), Ok(()));
    let problem = ours.check_beginning(&[]).expect_err("refused");
    assert!(problem.starts_with("must begin with a control token"), "{problem}");
    let always = Tokenizer::from_bytes(spaced("always").as_bytes(), "t").expect("loads");
    assert_eq!((always.encode("a").expect("encodes"), always.check_beginning(&[])), (vec![3], Ok(())));
    let within = json
        .replace("\"pre_tokenizer\": {", "\"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [{");
    let within = within.replace("\"split\": false}", "\"split\": false}]}");
    let error = Tokenizer::from_bytes(within.as_bytes(), "dir/tokenizer.json").expect_err("refused");
    assert!(error.message().ends_with("\"first\" is not supported within a sequence"), "{error}");
}

#[test]
fn what_is_no_tokenizer_is_refused_by_path() {
    let error = Tokenizer::from_bytes(b"{}", "dir/tokenizer.json").expect_err("refused");
    assert!(error.message().starts_with("dir/tokenizer.json: not a tokenizer.json"), "{error}");
}
