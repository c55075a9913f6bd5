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

const JOINED: &str = "<|im_start|>Find {instruction}\nQ: {query}\nD: {document}.\nSo:<|answer|>";
const SEAMS: &str = "{instruction}{|}Q: {query} {instruction}{|}<|im_start|>{instruction}.<|im_end|>{query}{|}{document}{|}{instruction}";
const APART: &str = "<|query|>{query}<|document|>{document}<|query|>{query}<|answer|>";

/// Texts that tokenizers join in surprising ways.
fn text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("the user's yes".to_owned()),
        Just("<|im_end|>".to_owned()),
        Just("é\u{301}🙂 北京".to_owned()),
        "[a-z0-9 .?'\n]{0,12}",
        "\\PC{0,4}",
    ];
    prop::collection::vec(piece, 0..10).prop_map(|parts| parts.concat())
}

proptest! {
    #[test]
    fn a_run_is_tokenized_as_one_text(query in text(), instruction in text(), document in text()) {
        let tokenizer = tiny();
        let template = Template::parse(JOINED, &tokenizer).expect("parses");
        let filled = template.for_query(&tokenizer, &instruction, &query, 4096).expect("fits");
        let prompt = filled.render(&document, Truncation::Error).expect("fits");
        let run = format!("Find {instruction}\nQ: {query}\nD: {document}.\nSo:");
        let control = |text| tokenizer.control(text).expect("known");
        let mut expected = vec![control("<|im_start|>")];
        expected.extend(tokenizer.encode(&run).expect("encodes"));
        expected.push(control("<|answer|>"));
        prop_assert_eq!(&prompt.tokens, &expected);
        prop_assert_eq!(prompt.document.end, expected.len() - 1);
        prop_assert!(!prompt.truncated);
    }

    #[test]
    fn what_is_the_same_for_every_query_changes_no_token(
        instruction in text(), queries in prop::collection::vec(text(), 1..4), document in text(),
    ) {
        let tokenizer = tiny();
        let encode = |text: &str| tokenizer.encode(text).expect("encodes");
        let control = |text| vec![tokenizer.control(text).expect("known")];
        let (seams, joined) = (Template::parse(SEAMS, &tokenizer), Template::parse(JOINED, &tokenizer));
        let (seams, joined) = (seams.expect("parses"), joined.expect("parses"));
        let seams = seams.for_instruction(&tokenizer, &instruction, 4096).expect("fits");
        let joined = joined.for_instruction(&tokenizer, &instruction, 4096).expect("fits");
        for query in &queries {
            let ask = |filled: &Instructed<'_>| {
                let filled = filled.for_query(query).expect("fits");
                filled.render(&document, Truncation::Error).expect("fits").tokens
            };
            let expected = [
                encode(&instruction),
                encode(&format!("Q: {query} {instruction}")),
                control("<|im_start|>"),
                encode(&format!("{instruction}.")),
                control("<|im_end|>"),
                encode(query),
                encode(&document),
                encode(&instruction),
            ];
            prop_assert_eq!(ask(&seams), expected.concat());
            let run = encode(&format!("Find {instruction}\nQ: {query}\nD: {document}.\nSo:"));
            let expected = [control("<|im_start|>"), run, control("<|answer|>")];
            prop_assert_eq!(ask(&joined), expected.concat());
        }
    }

    #[test]
    fn tokens_before_the_document_never_depend_on_it(query in text(), left in text(), right in text()) {
        for (tokenizer, template) in [(tiny(), JOINED), (mini(), APART)] {
            let template = Template::parse(template, &tokenizer).expect("parses");
            let filled = template.for_query(&tokenizer, "x", &query, 4096).expect("fits");
            let left = filled.render(&left, Truncation::Error).expect("fits");
            let right = filled.render(&right, Truncation::Error).expect("fits");
            let start = left.document.start.min(right.document.start);
            prop_assert_eq!(&left.tokens[..start], &right.tokens[..start]);
        }
    }

    #[test]
    fn truncation_equals_rendering_a_shorter_document(query in text(), document in text(), room in 1_usize..60) {
        for (tokenizer, template) in [(tiny(), JOINED), (mini(), APART)] {
            let template = Template::parse(template, &tokenizer).expect("parses");
            let unlimited = template.for_query(&tokenizer, "x", &query, 1 << 16).expect("fits");
            let max_tokens = unlimited.fixed + room;
            let filled = template.for_query(&tokenizer, "x", &query, max_tokens).expect("fits");
            let Ok(prompt) = filled.render(&document, Truncation::Document) else { continue };
            prop_assert!(prompt.tokens.len() <= max_tokens);
            let same = |end: usize| {
                let shorter = document.get(..end)?;
                let whole = unlimited.render(shorter, Truncation::Error).expect("fits");
                (whole.tokens == prompt.tokens && whole.document == prompt.document).then_some(end)
            };
            let found = (0..=document.len()).rev().find_map(same);
            prop_assert!(found.is_some(), "{:?}", prompt);
            let fits = unlimited.render(&document, Truncation::Error).expect("fits").tokens.len() <= max_tokens;
            prop_assert_eq!(prompt.truncated, !fits);
            prop_assert_eq!(filled.render(&document, Truncation::Error).is_ok(), fits);
        }
    }
}

#[test]
fn a_seam_keeps_its_sides_apart() {
    let tokenizer = tiny();
    let ask = |template: &str| {
        let template = Template::parse(template, &tokenizer).expect("parses");
        let filled = template.for_query(&tokenizer, "", "why?", 64).expect("fits");
        filled.render("d", Truncation::Error).expect("fits").tokens
    };
    let encode = |text: &str| tokenizer.encode(text).expect("encodes");
    assert_eq!(ask("{query}\n{document}"), encode("why?\nd"));
    assert_eq!(ask("{query}{|}\n{document}"), [encode("why?"), encode("\nd")].concat());
    assert_ne!(ask("{query}\n{document}"), ask("{query}{|}\n{document}"));
}

#[test]
fn a_document_of_any_length_is_cut_to_fit() {
    let tokenizer = mini();
    let template = Template::parse(APART, &tokenizer).expect("parses");
    let filled = template.for_query(&tokenizer, "", "shoes", 64).expect("fits");
    let document = "running shoes for the rain ".repeat(200_000);
    let prompt = filled.render(&document, Truncation::Document).expect("fits");
    assert!(prompt.truncated);
    assert_eq!(prompt.tokens.len(), 64);
    let suffix = &prompt.tokens[prompt.document.end..];
    assert_eq!(suffix.last().copied(), tokenizer.control("<|answer|>"));
    assert_eq!(suffix.len(), 1 + tokenizer.encode("shoes").expect("encodes").len() + 1);
    let error = filled.render(&document, Truncation::Error).expect_err("too large");
    assert_eq!(error.code(), Code::TooLarge);
    let limit = 64 - filled.fixed;
    assert!(error.message().starts_with("document: more than"), "{error}");
    assert!(error.message().ends_with(&format!("tokens, over the limit of {limit}")), "{error}");
}

#[test]
fn white_space_that_leaves_no_tokens_hides_no_text() {
    let tokenizer = mini();
    let template = Template::parse(APART, &tokenizer).expect("parses");
    let filled = template.for_query(&tokenizer, "", "shoes", 64).expect("fits");
    for space in [" ", "\n", " \t\r\n"] {
        let document = |text: &str| format!("x{}{text}", space.repeat(100_000));
        let short = filled.render("x red running shoes", Truncation::Error).expect("fits");
        for truncation in [Truncation::Document, Truncation::Error] {
            assert_eq!(filled.render(&document("red running shoes"), truncation).expect("fits"), short);
        }
        let long = "red running shoes ".repeat(100);
        let cut = filled.render(&document(&long), Truncation::Document).expect("fits");
        assert_eq!(cut, filled.render(&format!("x {long}"), Truncation::Document).expect("fits"));
        let query = format!("{}shoes", space.repeat(100_000));
        let around = template.for_query(&tokenizer, &query, &query, 64).expect("fits");
        assert_eq!(around.render("x red running shoes", Truncation::Error).expect("fits"), short);
    }
}

#[test]
fn a_document_past_the_limit_is_refused_with_its_size() {
    let tokenizer = tiny();
    let template = Template::parse("{query}<|im_end|>{document}<|answer|>", &tokenizer).expect("parses");
    let filled = template.for_query(&tokenizer, "", "q", 10).expect("fits");
    let error = filled.render("12345678", Truncation::Error).expect_err("too large");
    assert_eq!((error.code(), error.message()), (Code::TooLarge, "document: 8 tokens, over the limit of 7"));
    assert_eq!(filled.render("1234567", Truncation::Error).expect("fits").tokens.len(), 10);
}

#[test]
fn a_query_that_leaves_no_room_is_refused() {
    let tokenizer = tiny();
    let template = Template::parse("{query}<|im_end|>{document}<|answer|>", &tokenizer).expect("parses");
    let error = template.for_query(&tokenizer, "", "12345678", 10).expect_err("too large");
    assert_eq!(error.code(), Code::TooLarge);
    assert_eq!(
        error.message(),
        "query: 10 tokens with the instruction and the prompt around it, over the limit of 9"
    );
    let error = template.for_query(&tokenizer, "", &"x".repeat(1 << 20), 10).expect_err("too large");
    assert!(error.message().starts_with("query: more than "), "{error}");
    assert!(error.message().ends_with(" tokens, over the limit of 9"), "{error}");
    // Room for one token, but the document's first character is three.
    let filled = template.for_query(&tokenizer, "", "1234567", 10).expect("fits");
    let error = filled.render("北", Truncation::Document).expect_err("no room");
    assert!(error.message().starts_with("query: "), "{error}");
}

#[test]
fn an_instruction_that_leaves_no_room_is_refused_before_any_query() {
    let tokenizer = tiny();
    let refused = |template: &str, instruction: &str| {
        let template = Template::parse(template, &tokenizer).expect("parses");
        let error = template.for_instruction(&tokenizer, instruction, 10).expect_err("too large");
        assert_eq!(error.code(), Code::TooLarge);
        error.message().to_owned()
    };
    let apart = "{instruction}<|im_start|>{query}<|im_end|>{document}<|answer|>";
    let joined = "<|im_start|>{instruction}{query}<|im_end|>{document}<|answer|>";
    let one_run = "<|im_start|>{document}{instruction}{query}<|im_end|><|answer|>";
    for template in [apart, joined, one_run] {
        assert_eq!(
            refused(template, "1234567"),
            "instruction: 10 tokens with the prompt around it, over the limit of 9"
        );
        let long = refused(template, &"x".repeat(1 << 20));
        assert!(long.starts_with("instruction: more than "), "{long}");
    }
    let template = Template::parse(apart, &tokenizer).expect("parses");
    let filled = template.for_instruction(&tokenizer, "123456", 10).expect("fits");
    let error = filled.for_query("1").expect_err("too large");
    assert!(error.message().starts_with("query: 10 tokens with"), "{error}");
}

#[test]
fn an_empty_document_is_rendered() {
    let tokenizer = tiny();
    let template = Template::parse("{query}<|im_end|>{document}<|answer|>", &tokenizer).expect("parses");
    let filled = template.for_query(&tokenizer, "", "q", 10).expect("fits");
    let prompt = filled.render("", Truncation::Error).expect("fits");
    assert_eq!((prompt.tokens.len(), prompt.document), (3, 2..2));
}

#[test]
fn an_empty_document_leaves_what_stands_around_it() {
    for tokenizer in [tiny(), mini()] {
        let encode = |text: &str| tokenizer.encode(text).expect("encodes");
        let answer = vec![tokenizer.control("<|answer|>").expect("known")];
        let q = encode("q");
        for (template, head, tail) in [
            // By itself, at the end of all, in a run that is the same for all queries, in one that is not.
            ("{query}<|answer|>{document}<|answer|>", [q.clone(), answer.clone()].concat(), answer.clone()),
            ("{query}<|answer|>{document}", [q.clone(), answer.clone()].concat(), vec![]),
            (
                "{query}<|answer|>D: {document}.\n<|answer|>",
                [q.clone(), answer.clone(), encode("D: .\n")].concat(),
                answer.clone(),
            ),
            ("Q: {query}\nD: {document}\n{query}?<|answer|>", encode("Q: q\nD: \nq?"), answer.clone()),
            ("{document} {query}<|answer|>", encode(" q"), answer.clone()),
        ] {
            let parsed = Template::parse(template, &tokenizer).expect("parses");
            let max_tokens = head.len() + tail.len() + 1;
            for truncation in [Truncation::Document, Truncation::Error] {
                let filled = parsed.for_query(&tokenizer, "", "q", max_tokens).expect("fits");
                let prompt = filled.render("", truncation).expect("fits");
                assert_eq!(prompt.tokens, [head.clone(), tail.clone()].concat(), "{template}");
                assert_eq!((prompt.document.end, prompt.truncated), (head.len(), false), "{template}");
                assert!(prompt.document.start <= prompt.document.end, "{template}");
            }
        }
    }
}

#[test]
fn instructions_are_formatted_only_when_given() {
    let tokenizer = tiny();
    let template = Template::parse("{instruction}{query}<|im_end|>{document}", &tokenizer).expect("parses");
    let template = template.with_instruction_format("I: {instruction}\n").expect("parses");
    let tokens = |instruction: &str| {
        let filled = template.for_query(&tokenizer, instruction, "q", 64).expect("fits");
        filled.render("d", Truncation::Error).expect("fits").tokens
    };
    let end = vec![tokenizer.control("<|im_end|>").expect("known")];
    let encode = |text: &str| tokenizer.encode(text).expect("encodes");
    assert_eq!(tokens(""), [encode("q"), end.clone(), encode("d")].concat());
    assert_eq!(tokens("x"), [encode("I: x\nq"), end, encode("d")].concat());
    assert!(template.with_instruction_format("I:").is_err());
}

#[test]
fn placeholders_in_user_text_are_text() {
    let tokenizer = tiny();
    let template = Template::parse("{{{query}}}<|im_end|>{document}", &tokenizer).expect("parses");
    let filled = template.for_query(&tokenizer, "", "{document}", 64).expect("fits");
    let prompt = filled.render("{query}", Truncation::Error).expect("fits");
    let head = tokenizer.encode("{{document}}").expect("encodes");
    assert_eq!(prompt.tokens[..head.len()], head);
    assert_eq!(prompt.tokens[prompt.document], tokenizer.encode("{query}").expect("encodes"));
}

#[test]
fn faulty_templates_are_refused() {
    let refused = |template: &str| {
        let error = Template::parse(template, &tiny()).expect_err("refused");
        assert_eq!(error.code(), Code::Invalid);
        error.message().to_owned()
    };
    assert_eq!(refused("{query}"), "template: {document} must stand in it once, not 0 times");
    assert_eq!(
        refused("{query}{document}{document}"),
        "template: {document} must stand in it once, not 2 times"
    );
    assert_eq!(refused("{document}"), "template: {query} must stand in it");
    assert!(
        refused("{query}{doc}").starts_with("template: unknown placeholder {doc}; there are {instruction}")
    );
    assert_eq!(refused("{query}{document}}"), "template: a lone brace; write {{ or }}");
    assert_eq!(refused("{query}{document"), "template: a lone brace; write {{ or }}");
}

#[test]
fn the_answer_is_tokenized_with_what_it_follows() {
    let tokenizer = tiny();
    let appended = |template: &str, answer: &str| {
        Template::parse(template, &tokenizer).expect("parses").appended(&tokenizer, answer).expect("encodes")
    };
    let yes = tokenizer.encode("yes").expect("encodes");
    assert_eq!(yes.len(), 1);
    assert_eq!(appended("{query}{document}<|answer|>", "yes"), Some(yes.clone()));
    assert_eq!(appended("{query}<|im_end|>{document}\n\n", "yes"), Some(yes));
    // "ye" and "s" are merged into one token.
    assert_eq!(appended("{query}<|im_end|>{document} ye", "s"), None);
}
