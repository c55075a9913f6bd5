//! How what a client sent is shown in a message: short, and on one line.

/// Bytes of one value.
const VALUE: usize = 64;
/// Names of a list.
const NAMES: usize = 8;
/// Bytes of a whole message: of a longer one the middle is left out.
const MESSAGE: usize = 1000;
/// Bytes of its end that stay then: what is expected is there.
const END: usize = 300;

/// A value in quotes, cut if it is long.
pub(crate) fn shown(value: &str) -> String {
    if value.len() <= VALUE {
        return format!("{value:?}");
    }
    format!("{:?}", format!("{}…", &value[..value.floor_char_boundary(VALUE)]))
}

/// The first of `names`, each as [`shown`], and how many more there are.
pub(crate) fn listed<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let mut names = names.into_iter();
    let first: Vec<String> = names.by_ref().take(NAMES).map(shown).collect();
    match names.count() {
        0 => format!("[{}]", first.join(", ")),
        more => format!("[{}, and {more} more]", first.join(", ")),
    }
}

/// A message that is neither long nor more than one line: a name in it that has the end of a line could
/// otherwise begin a line of the log.
pub(crate) fn bounded(message: String) -> String {
    let message = if message.len() <= MESSAGE {
        message
    } else {
        let (start, end) = (MESSAGE - END, message.len() - END);
        let start = &message[..message.floor_char_boundary(start)];
        format!("{start} … {}", &message[message.ceil_char_boundary(end)..])
    };
    if !message.contains(unfit) {
        return message;
    }
    let mut escaped = String::with_capacity(message.len() + 16);
    for letter in message.chars() {
        if unfit(letter) { escaped.extend(letter.escape_debug()) } else { escaped.push(letter) }
    }
    escaped
}

/// Ends lines, controls a terminal, or turns the direction of what follows.
fn unfit(letter: char) -> bool {
    letter.is_control() || matches!(letter, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_cut_and_quoted() {
        assert_eq!(shown("a\n\"b\""), r#""a\n\"b\"""#);
        assert_eq!(shown(&"é".repeat(32)), format!("\"{}\"", "é".repeat(32)));
        assert_eq!(shown(&"x".repeat(65)), format!("\"{}…\"", "x".repeat(64)));
        assert_eq!(shown(&("x".to_owned() + &"é".repeat(40))), format!("\"x{}…\"", "é".repeat(31)));
    }

    #[test]
    fn lists_say_how_many_more() {
        let names: Vec<String> = (0..60_000).map(|number| number.to_string()).collect();
        let listed = |count: usize| listed(names[..count].iter().map(String::as_str));
        assert_eq!(listed(0), "[]");
        assert_eq!(listed(2), r#"["0", "1"]"#);
        assert!(listed(8).ends_with(r#""7"]"#));
        assert!(listed(60_000).ends_with(r#""7", and 59992 more]"#));
    }

    #[test]
    fn messages_are_one_short_line() {
        let same = "documents: „naïve“ 文".to_owned();
        assert_eq!(bounded(same.clone()), same);
        assert_eq!(bounded("a\r\nb\u{1b}[31m\u{202e}\u{85}".into()), r"a\r\nb\u{1b}[31m\u{202e}\u{85}");
        let long = bounded(format!("field: {} is no such thing", "文".repeat(400_000)));
        assert!(long.len() <= MESSAGE + " … ".len(), "{} bytes", long.len());
        assert!(
            long.starts_with("field: 文") && long.contains(" … ") && long.ends_with("文 is no such thing")
        );
    }
}
