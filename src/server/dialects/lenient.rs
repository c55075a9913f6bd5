//! What real clients write and serde alone would refuse: flags and counts as
//! strings, one text where many may be, documents that are objects.

use std::{collections::HashSet, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{self, IgnoredAny, MapAccess, Unexpected, Visitor},
};
use serde_json::{Map, Value};

use crate::{
    error::{Error, Result as Checked},
    request::{Body, Document},
    server::http::unique::Unique,
};

/// The names in a body's outermost object, and whether each has a value other than null.
#[derive(Default)]
pub(super) struct Keys {
    names: Vec<(String, bool)>,
    /// What is wrong with a body that its own type may not see.
    fault: Option<String>,
    /// The body is no object, or no JSON: whose it is cannot be told.
    unread: bool,
}

impl Keys {
    /// Those of a body; none if it is not an object, which its parser will tell better.
    pub(super) fn of(body: &[u8]) -> Self {
        serde_json::from_slice(body).unwrap_or_else(|_| Self {
            fault: Some("expected an object".to_owned()),
            unread: true,
            ..Self::default()
        })
    }

    /// Whether there was no object to read names from.
    pub(super) fn unread(&self) -> bool {
        self.unread
    }

    /// That the body is an object in which no name is repeated, be it one that is not read.
    ///
    /// # Errors
    ///
    /// `Invalid`, naming what is repeated.
    pub(super) fn check(&self) -> Checked<()> {
        self.fault.as_ref().map_or(Ok(()), |fault| Err(Error::invalid("body", fault)))
    }

    /// Whether the name is there. A client that knows a field may send it as null.
    pub(super) fn has(&self, name: &str) -> bool {
        self.names.iter().any(|(key, _)| key == name)
    }

    /// The names with a value.
    pub(super) fn given(&self) -> impl Iterator<Item = &str> {
        self.names.iter().filter(|(_, given)| *given).map(|(key, _)| key.as_str())
    }

    /// The first of these names that has a value.
    pub(super) fn first_given(&self, names: &[&'static str]) -> Option<&'static str> {
        names.iter().copied().find(|name| self.given().any(|key| key == *name))
    }
}

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct KeysVisitor;

        impl<'de> Visitor<'de> for KeysVisitor {
            type Value = Keys;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Keys, A::Error> {
                let (mut keys, mut seen) = (Keys::default(), HashSet::new());
                while let Some((key, value)) = map.next_entry::<String, Option<IgnoredAny>>()? {
                    if !seen.insert(key.clone()) {
                        keys.fault = Some(format!("duplicate field `{key}`"));
                    }
                    keys.names.push((key, value.is_some()));
                }
                Ok(keys)
            }
        }

        deserializer.deserialize_map(KeysVisitor)
    }
}

/// A flag: a boolean, `"true"`, `"False"`, 1 or 0; null is none.
pub(super) fn flag<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<bool>, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::Null => Ok(None),
        Value::Bool(flag) => Ok(Some(flag)),
        Value::String(text) => match text.trim().to_ascii_lowercase().as_str() {
            "true" | "1" => Ok(Some(true)),
            "false" | "0" => Ok(Some(false)),
            _ => Err(de::Error::invalid_value(Unexpected::Str(&text), &"true or false")),
        },
        Value::Number(number) => match number.as_f64() {
            Some(1.0) => Ok(Some(true)),
            Some(0.0) => Ok(Some(false)),
            _ => Err(de::Error::invalid_value(Unexpected::Other(&number.to_string()), &"true or false")),
        },
        _ => Err(de::Error::invalid_type(Unexpected::Other("a list or an object"), &"true or false")),
    }
}

/// A count: a whole number, or one in a string; null is none.
pub(super) fn count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
    /// No list is longer; and up to it a number with a fraction is told from one without.
    const MOST: u32 = u32::MAX;
    let value = Value::deserialize(deserializer)?;
    let number = match &value {
        Value::Null => return Ok(None),
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    };
    match number {
        Some(number) if (0.0..=f64::from(MOST)).contains(&number) && number.fract() == 0.0 => {
            Ok(Some(number as usize))
        }
        _ => {
            let expected = format!("a whole number from 0 to {MOST}");
            Err(de::Error::invalid_value(Unexpected::Other(&value.to_string()), &expected.as_str()))
        }
    }
}

/// A document: a string, or an object that the profile renders; no name in it is repeated.
pub(super) enum Text {
    /// As it is.
    Plain(String),
    /// `text` and what else there is.
    Fields(Map<String, Value>),
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Unique::deserialize(deserializer)?.0 {
            Value::String(text) => Ok(Self::Plain(text)),
            Value::Object(fields) => Ok(Self::Fields(fields)),
            _ => Err(de::Error::custom("expected a string or an object")),
        }
    }
}

/// Any value in which no object has a name twice.
pub(super) fn value<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Value, D::Error> {
    Ok(Unique::deserialize(deserializer)?.0)
}

/// An object of such values.
pub(super) fn object<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Map<String, Value>, D::Error> {
    match value(deserializer)? {
        Value::Object(entries) => Ok(entries),
        _ => Err(de::Error::custom("expected an object")),
    }
}

impl From<Text> for Document {
    fn from(text: Text) -> Self {
        match text {
            Text::Plain(text) => Document::text(text),
            Text::Fields(fields) => Document::fields(fields),
        }
    }
}

/// One string, or many.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a string or a list of strings")]
pub(super) enum OneOrMany {
    /// One.
    One(String),
    /// Many.
    Many(Vec<String>),
}

impl OneOrMany {
    /// As a list.
    pub(super) fn into_vec(self) -> Vec<String> {
        match self {
            OneOrMany::One(text) => vec![text],
            OneOrMany::Many(texts) => texts,
        }
    }
}

/// The documents of a list.
pub(super) fn documents(texts: Vec<Text>) -> Vec<Document> {
    texts.into_iter().map(Document::from).collect()
}

/// Different names in `rank_fields`. Each is looked for in every document, before documents are counted.
const RANK_FIELDS: usize = 32;

/// Documents of which only the named fields are read: one field is its value, more are
/// lines `name: value`. Plain texts stay, and so do objects if no field is named. A name that
/// repeats is read once: so what is joined is never more than what was sent.
///
/// # Errors
///
/// `TooLarge` past [`RANK_FIELDS`] different names.
pub(super) fn picked(texts: Vec<Text>, names: Option<&[String]>) -> Checked<Vec<Document>> {
    let names = once(names.unwrap_or_default());
    if names.len() > RANK_FIELDS {
        return Err(Error::too_large("rank_fields", "different names", RANK_FIELDS, names.len()));
    }
    let pick = |document: Document| match document.body() {
        Body::Fields(fields) if !names.is_empty() => {
            let found = names.iter().filter_map(|name| Some((name, fields.get(*name)?)));
            let line = |(name, value): (&&str, &Value)| {
                let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                if names.len() == 1 { value } else { format!("{name}: {value}") }
            };
            Document::text(found.map(line).collect::<Vec<_>>().join("\n"))
        }
        _ => document,
    };
    Ok(texts.into_iter().map(Document::from).map(pick).collect())
}

/// Names without those that were there before.
fn once(names: &[String]) -> Vec<&str> {
    let mut seen = HashSet::new();
    names.iter().map(String::as_str).filter(|name| seen.insert(*name)).collect()
}

#[cfg(test)]
mod tests;
