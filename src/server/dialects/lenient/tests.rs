use serde_json::json;

use super::*;

#[derive(Deserialize)]
struct Body_ {
    #[serde(default, deserialize_with = "flag")]
    flag: Option<bool>,
    #[serde(default, deserialize_with = "count")]
    count: Option<usize>,
}

fn read(body: Value) -> Result<(Option<bool>, Option<usize>), String> {
    let body: Body_ = serde_json::from_value(body).map_err(|error| error.to_string())?;
    Ok((body.flag, body.count))
}

#[test]
fn flags_are_read_as_clients_write_them() {
    for (value, flag) in [
        (json!(true), Some(true)),
        (json!("true"), Some(true)),
        (json!("False"), Some(false)),
        (json!(1), Some(true)),
        (json!("0"), Some(false)),
        (json!(null), None),
    ] {
        assert_eq!(read(json!({"flag": value})), Ok((flag, None)), "{value}");
    }
    assert_eq!(read(json!({})), Ok((None, None)));
    for wrong in [json!("maybe"), json!(2), json!([true]), json!("")] {
        let message = read(json!({"flag": wrong})).expect_err("refused");
        assert!(message.ends_with("expected true or false"), "{message}");
    }
}

#[test]
fn counts_are_read_as_clients_write_them() {
    for (value, count) in
        [(json!(3), Some(3)), (json!("3"), Some(3)), (json!(3.0), Some(3)), (json!(null), None)]
    {
        assert_eq!(read(json!({"count": value})), Ok((None, count)), "{value}");
    }
    for wrong in [
        json!(-1),
        json!(1.5),
        json!(1e18),
        json!(4_294_967_296_u64),
        json!("many"),
        json!(1e300),
        json!("NaN"),
        json!(true),
    ] {
        let message = read(json!({"count": wrong})).expect_err("refused");
        assert!(message.ends_with("expected a whole number from 0 to 4294967295"), "{message}");
    }
}

#[test]
fn keys_are_seen_without_their_values() {
    let keys = Keys::of(br#"{"a": [1, {"b": 2}], "c": null}"#);
    assert!(keys.has("a") && keys.has("c") && !keys.has("b"));
    assert_eq!(keys.given().collect::<Vec<_>>(), ["a"]);
    assert_eq!((keys.first_given(&["c", "a"]), keys.first_given(&["c", "d"])), (Some("a"), None));
    assert!(!keys.unread() && !Keys::of(br#"{"a": 1, "a": 2}"#).unread());
    assert!(Keys::of(br#"{"a": 1"#).unread() && Keys::of(b"[1]").unread());
    assert!(!Keys::of(b"[1]").has("a"));
    assert!(!Keys::of(b"{\"a\": \xff}").has("a"));
}

#[test]
fn a_name_twice_and_what_is_no_object_are_refused() {
    let check = |body: &[u8]| Keys::of(body).check().map_err(|error| error.message().to_owned());
    assert_eq!(check(br#"{"a": 1, "b": {"a": 2}}"#), Ok(()));
    assert_eq!(check(br#"{"a": 1, "b": 2, "a": 3}"#), Err("body: duplicate field `a`".into()));
    assert_eq!(check(br#"["query", ["text"], null]"#), Err("body: expected an object".into()));
    let text = |body: &str| serde_json::from_str::<Text>(body).err().map(|error| error.to_string());
    assert_eq!(text(r#"{"text": "x"}"#), None);
    let message = text(r#"{"text": {"u": 1, "u": 2}}"#).expect("refused");
    assert!(message.starts_with("duplicate field `u`"), "{message}");
    assert!(text("5").expect("refused").starts_with("expected a string or an object"));
}

#[test]
fn named_fields_alone_are_read() {
    let texts = || -> Vec<Text> {
        let body = json!(["plain", {"title": "t", "text": "x", "n": 5}]);
        serde_json::from_value(body).expect("documents")
    };
    let named = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        picked(texts(), Some(&names)).expect("few names").pop().expect("two")
    };
    assert_eq!(named(&["text"]), Document::text("x"));
    assert_eq!(named(&["n", "title", "none"]), Document::text("n: 5\ntitle: t"));
    assert!(matches!(named(&[]).body(), Body::Fields(_)));
    assert_eq!(named(&["n", "title", "n", "title"]), Document::text("n: 5\ntitle: t"));
    assert_eq!(named(&["text"; 5000]), Document::text("x"), "one name, however often");
    assert_eq!(picked(texts(), None).expect("no names")[0], Document::text("plain"));
}

#[test]
fn names_to_read_are_bounded() {
    let names = |count: usize| (0..count).map(|number| number.to_string()).collect::<Vec<_>>();
    picked(Vec::new(), Some(&names(32))).expect("as many as are taken");
    let error = picked(Vec::new(), Some(&names(33))).expect_err("too many");
    assert_eq!(error.message(), "rank_fields: 33 different names, over the limit of 32");
}
