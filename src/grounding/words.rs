//! When two words are the same word: in lower case, without English inflection.

/// Words that only look inflected.
const WHOLE: [&str; 9] =
    ["bedding", "canning", "earring", "evening", "herring", "inning", "morning", "outing", "wedding"];

/// The words of a text: its longest runs of letters and digits, in lower case.
pub(super) fn words(text: &str) -> impl Iterator<Item = String> {
    text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).map(str::to_lowercase)
}

/// What stays of a lower-case word without the endings -s, -es, -ed, -ing and a final e. Words
/// that are not plain English letters stay as they are. The first letter is always kept.
///
/// Inflection alone: unlike a stemmer's, "relate" and "relation" stay two words.
pub(super) fn form(word: &str) -> String {
    if !word.bytes().all(|byte| byte.is_ascii_lowercase()) {
        return word.to_owned();
    }
    let word = singular(word);
    let word = if WHOLE.contains(&word.as_str()) { word } else { present(word) };
    match word.strip_suffix('e') {
        Some(stem) if stem.len() >= 3 => stem.to_owned(),
        _ => word,
    }
}

fn singular(word: &str) -> String {
    let hissing = |stem: &str| ["s", "x", "z", "ch", "sh"].iter().any(|end| stem.ends_with(end));
    if let Some(stem) = word.strip_suffix("ies").filter(|stem| stem.len() >= 2) {
        return format!("{stem}y");
    }
    if let Some(stem) = word.strip_suffix("es").filter(|stem| hissing(stem)) {
        return stem.to_owned();
    }
    let bare = ["ss", "us", "is"].iter().any(|end| word.ends_with(end));
    match word.strip_suffix('s') {
        Some(stem) if !bare && stem.len() >= 3 => stem.to_owned(),
        _ => word.to_owned(),
    }
}

fn present(word: String) -> String {
    if let Some(stem) = word.strip_suffix("ied").filter(|stem| stem.len() >= 2) {
        return format!("{stem}y");
    }
    let Some(stem) = word.strip_suffix("ing").or_else(|| word.strip_suffix("ed")) else { return word };
    if stem.len() < 3 || stem.ends_with('e') || !stem.contains(['a', 'e', 'i', 'o', 'u', 'y']) {
        return word;
    }
    // run-ning, but fall-ing, miss-ing.
    let doubled = stem.as_bytes().windows(2).last().is_some_and(|pair| pair[0] == pair[1]);
    let once = doubled && !stem.ends_with(['a', 'e', 'i', 'o', 'u', 'l', 's', 'z']);
    stem[..stem.len() - usize::from(once)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inflected_words_are_one_word_and_others_are_not() {
        let same = [
            "shoe shoes",
            "box boxes",
            "house houses",
            "battery batteries",
            "try tries tried trying",
            "run runs running",
            "hike hikes hiking hiked",
            "fall falling",
            "boil boils boiling boiled",
            "glass glasses",
            "earring earrings",
        ];
        for group in same {
            let forms: Vec<String> = group.split(' ').map(form).collect();
            assert!(forms.iter().all(|other| *other == forms[0]), "{group}: {forms:?}");
        }
        for (one, other) in [("ear", "earring"), ("bed", "bedding"), ("relate", "relation"), ("bus", "busy")]
        {
            assert_ne!(form(one), form(other));
        }
        for word in ["string", "red", "seed", "bus", "tennis", "glass", "2s", "größes", "us", "is"] {
            assert_eq!(form(word), word);
        }
    }

    /// `training/tests/test_rules.py` reads the same table.
    #[test]
    fn words_are_those_that_training_knows() {
        let table = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/words.json"));
        let table: std::collections::BTreeMap<String, Vec<String>> =
            serde_json::from_str(table).expect("a table");
        for (text, expected) in table {
            assert_eq!(words(&text).collect::<Vec<_>>(), expected, "{text}");
        }
    }

    #[test]
    fn words_are_letters_and_digits() {
        let found: Vec<String> = words("The 5-inch_Tube, ÉTÉ's").collect();
        assert_eq!(found, ["the", "5", "inch", "tube", "été", "s"]);
    }
}
