//! The sections of a structured reason: lines `name: text`, in the profile's order.

/// Name and text of every section, or `None` unless all are there, in order,
/// each once, and with some text. A section's text may go on over lines.
pub(super) fn parse(names: &[String], reason: &str) -> Option<Vec<(String, String)>> {
    let mut sections: Vec<(String, String)> = Vec::with_capacity(names.len());
    for line in reason.trim().lines() {
        let opened =
            line.trim_start().split_once(':').filter(|(head, _)| names.iter().any(|name| name == head));
        match opened {
            Some((head, text)) => {
                if names.get(sections.len()).is_none_or(|expected| expected != head) {
                    return None;
                }
                sections.push((head.to_owned(), text.trim().to_owned()));
            }
            None => {
                let (_, text) = sections.last_mut()?;
                if !text.is_empty() {
                    text.push('\n');
                }
                text.push_str(line.trim());
            }
        }
    }
    let complete = !names.is_empty() && sections.len() == names.len();
    (complete && sections.iter().all(|(_, text)| !text.is_empty())).then_some(sections)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(reason: &str) -> Option<Vec<(String, String)>> {
        parse(&["intent".into(), "match".into(), "gaps".into()], reason)
    }

    #[test]
    fn complete_reasons_are_parsed() {
        let sections = read("intent: red shoe\nmatch: shoe: yes\nand more\ngaps: none\n").expect("complete");
        let expected = [("intent", "red shoe"), ("match", "shoe: yes\nand more"), ("gaps", "none")];
        assert_eq!(sections, expected.map(|(name, text)| (name.to_owned(), text.to_owned())));
    }

    #[test]
    fn anything_else_is_not() {
        for reason in [
            "",
            "intent: a\nmatch: b",
            "match: b\nintent: a\ngaps: c",
            "intent: a\nmatch: b\ngaps:",
            "intent: a\nintent: a\nmatch: b\ngaps: c",
            "so: intent: a\nmatch: b\ngaps: c",
        ] {
            assert_eq!(read(reason), None, "{reason:?}");
        }
        assert_eq!(parse(&[], "free text"), None);
    }
}
