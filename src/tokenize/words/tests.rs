use std::{
    cell::Cell,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use proptest::prelude::*;

use super::*;

fn words(text: &str) -> Vec<&str> {
    ranges(text).map(|range| &text[range]).collect()
}

#[test]
fn words_begin_at_spaces_between_visible_characters() {
    assert_eq!(words("a b, c.\nd  e f"), ["a", " b,", " c.\nd  e", " f"]);
    assert_eq!(words("é x é\u{301} y "), ["é", " x", " é\u{301} y "]);
    assert_eq!(words("что это — ёж\u{a0} и"), ["что", " это — ёж\u{a0} и"]);
    assert_eq!(words(" a b "), [" a", " b "]);
    assert_eq!(words(""), [""; 0]);
}

proptest! {
    #[test]
    fn words_are_found_wherever_they_lie(text in "[aZ~! \0\n\u{7f}\u{a0}\u{301}é—語😀]{0,200}") {
        let characters: Vec<char> = text.chars().collect();
        let visible = |at: usize| characters.get(at).copied().is_some_and(is_visible);
        let mut expected = vec![String::new(); usize::from(!text.is_empty())];
        for (at, &character) in characters.iter().enumerate() {
            if character == ' ' && at > 0 && visible(at - 1) && visible(at + 1) {
                expected.push(String::new());
            }
            expected.last_mut().expect("a word").push(character);
        }
        prop_assert_eq!(words(&text), expected);
    }
}

/// What becomes of `work` on a thread of its own; a test that waits for ever fails.
fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    // A receiver that gave up has failed its test.
    thread::spawn(move || drop(sender.send(work())));
    receiver.recv_timeout(Duration::from_secs(30)).expect("it waits for ever")
}

/// A text's tokens, a word each, and how many were not known.
fn lengths(memory: &Words, text: &str) -> (Vec<usize>, usize) {
    let (mut found, asked) = (Vec::new(), Cell::new(0));
    let encode = |word: &str| {
        asked.set(asked.get() + 1);
        Ok::<_, ()>(vec![(word.len() as u32, 0..word.len())])
    };
    memory.tokens(text, |_, range| found.push(range.len()), encode).expect("encodes");
    (found, asked.get())
}

#[test]
fn others_read_and_learn_while_a_word_is_tokenized() {
    let memory = Arc::new(Words::default());
    let shared = Arc::clone(&memory);
    let found = apart(move || {
        let mut found = Vec::new();
        let encode = |word: &str| {
            let other = Arc::clone(&shared);
            apart(move || {
                lengths(&other, "some other words");
                assert_eq!(lengths(&other, "some other words"), (vec![4, 6, 6], 0));
            });
            Ok::<_, ()>(vec![(0, 0..word.len())])
        };
        shared.tokens("some long word", |_, range| found.push(range), encode).expect("encodes");
        found
    });
    assert_eq!(found, [0..4, 4..9, 9..14]);
    assert_eq!(lengths(&memory, "some long word"), (vec![4, 5, 5], 0));
}

#[test]
fn what_cannot_be_learned_at_once_is_not_waited_for() {
    let memory = Arc::new(Words::default());
    let reads = memory.known.read().expect("sound");
    let shared = Arc::clone(&memory);
    assert_eq!(apart(move || lengths(&shared, "new words")), (vec![3, 6], 2));
    drop(reads);
    assert_eq!(lengths(&memory, "new words"), (vec![3, 6], 2), "nothing was learned");
    assert_eq!(lengths(&memory, "new words"), (vec![3, 6], 0));
}

#[test]
fn words_are_remembered_and_forgotten() {
    let memory = Words::default();
    assert_eq!(lengths(&memory, "the same same"), (vec![3, 5, 5], 3));
    assert_eq!(lengths(&memory, "the same same"), (vec![3, 5, 5], 0));
    for _ in 0..2 {
        assert_eq!(lengths(&memory, &"x".repeat(LONGEST + 1)).1, 1, "long words are not remembered");
    }
    for index in 0..MOST {
        lengths(&memory, &index.to_string());
    }
    assert!(memory.known.read().expect("sound").len() <= MOST);
    assert_eq!(lengths(&memory, "the same same").0, [3, 5, 5]);
}
