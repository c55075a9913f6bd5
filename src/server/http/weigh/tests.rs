use super::*;

const LISTS: Lists = Lists { documents: "documents", pairs: Some("pairs"), whole: true };

fn limits() -> Limits {
    Limits { documents: 2, document_bytes: 30, ..Limits::default() }
}

fn refusal(body: &str, lists: Lists) -> Option<String> {
    let checked = Weight::of(body.as_bytes(), &limits()).and_then(|weight| weight.check(lists, &limits()));
    checked.err().map(|error| error.message().to_owned())
}

#[test]
fn documents_are_counted_as_their_limits_count_them() {
    for (body, message) in [
        (r#"{"query": "q", "documents": ["a", {"t": [1, null]}]}"#, None),
        (r#"{"documents": ["a", "b", {}, 7]}"#, Some("documents: 4 documents, over the limit of 2")),
        (r#"{"pairs": [{}, {}, {}]}"#, Some("pairs: 3 pairs, over the limit of 2")),
        (r#"{"pairs": ["q", "a", "is no list of pairs"]}"#, None),
        (
            r#"{"documents": ["a", {"t": [1, null, {}], "u": "1234"}]}"#,
            Some("documents[1]: 38 bytes, over the limit of 30"),
        ),
        (r#"{"documents": [{"id": "an id of more than thirty bytes", "t": 1}]}"#, None),
        (r#"{"others": ["a", "b", "c"]}"#, None),
    ] {
        assert_eq!(refusal(body, LISTS).as_deref(), message, "{body}");
    }
    let picked = Lists { whole: false, ..LISTS };
    assert_eq!(refusal(r#"{"documents": ["a text of more than thirty bytes"]}"#, picked), None);
}

#[test]
fn what_is_counted_is_what_limits_count() {
    let fields = serde_json::json!({"t": ["a", {"u": 1, "v": [null, true, []]}], "w": {"x": {}}});
    let body = serde_json::json!({"query": "q", "documents": [fields, "b"]}).to_string();
    let request = crate::server::http::wire::score(body.as_bytes()).expect("valid");
    let limits = Limits { document_bytes: 1, ..Limits::default() };
    let weighed =
        Weight::of(body.as_bytes(), &limits).expect("JSON").check(LISTS, &limits).expect_err("too large");
    let checked = limits.check(&request).expect_err("too large");
    assert_eq!((weighed.code(), weighed.message()), (checked.code(), checked.message()));
}

#[test]
fn what_is_broken_is_told_as_its_parser_does() {
    for body in [
        r#"{"query": "q", "documents": ["a", {"t": [1, }]}"#,
        r#"{"query": "q", "documents": ["a"]} x"#,
        r#"{"query": "q", "documents": [{"t": 1e999}]}"#,
        r#"{"query": "q", "documents": [{"t": "\ud800"}]}"#,
        r#"{"query": "q", "documents": ["#,
        r#"["q"]"#,
        "",
    ] {
        let told = crate::server::http::wire::score(body.as_bytes()).expect_err("broken");
        let error = Weight::of(body.as_bytes(), &limits()).expect_err("broken");
        assert_eq!((error.code(), error.message()), (told.code(), told.message()));
    }
    let error = Weight::of(b"{\"query\": \"\xff\"}", &limits()).expect_err("broken");
    assert_eq!(error.message(), "body: not valid UTF-8 at byte 11");
}

#[test]
fn a_body_of_any_number_of_fields_is_not_taken() {
    let body =
        |fields| format!("{{{}}}", (0..fields).map(|i| format!("\"{i}\":0")).collect::<Vec<_>>().join(","));
    Weight::of(body(FIELDS).as_bytes(), &limits()).expect("not too many");
    let error = Weight::of(body(FIELDS + 1).as_bytes(), &limits()).expect_err("too many");
    assert_eq!(error.message(), "body: 65537 fields, over the limit of 65536");
}

/// Bytes that a value has allocated, told by what its parts have to have.
fn allocated(value: &Value) -> usize {
    match value {
        Value::String(text) => text.capacity(),
        Value::Array(items) => {
            items.capacity() * size_of::<Value>() + items.iter().map(allocated).sum::<usize>()
        }
        Value::Object(entries) => {
            let nodes = entries.len().div_ceil(6).max(usize::from(!entries.is_empty()));
            let texts: usize = entries.iter().map(|(name, value)| name.capacity() + allocated(value)).sum();
            nodes * NODE + texts
        }
        _ => 0,
    }
}

#[test]
fn no_value_takes_more_than_was_counted() {
    for value in [
        format!("[{}0]", r#"{"a":0},"#.repeat(1000)),
        format!("[{}0]", "0,".repeat(1025)),
        format!("[{}0]", "[],".repeat(1000)),
        format!("[{}0]", "[[[0]]],".repeat(1000)),
        format!("[{}0]", r#""","#.repeat(1000)),
        format!("{{{}}}", (0..1000).map(|i| format!("\"{i}\":0")).collect::<Vec<_>>().join(",")),
        format!("\"{}\"", "long".repeat(1000)),
    ] {
        let read: Value = serde_json::from_str(&value).expect("valid");
        let body = format!("{{\"x\": {value}}}");
        let counted = Weight::of(body.as_bytes(), &Limits::default()).expect("JSON").memory;
        assert!(counted >= allocated(&read), "{counted} of {} {value:.20}", allocated(&read));
        assert!(counted < 8 * allocated(&read) + 1000, "{counted} of {} {value:.20}", allocated(&read));
    }
}
