//! What a body would become in memory, counted before any of it is made: a few bytes of JSON, such as `{"a":0}`, can
//! be hundreds where they are kept.

use std::{fmt, mem::size_of};

use serde::{
    Deserializer,
    de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor},
};
use serde_json::Value;

use crate::{
    error::{Error, Result},
    request::{Limits, VALUE_BYTES},
};

use super::parse;

/// A place in a list, which grows by doubling; the first makes room for four.
const PLACE: usize = 2 * size_of::<Value>();
const FIRST_PLACE: usize = 4 * size_of::<Value>();
/// What a text takes beside its bytes: where it is allocated.
const TEXT: usize = 32;
/// An object's first entry makes room for eleven, and eleven sorted ones leave it half full.
const NODE: usize = 11 * ENTRY;
const ENTRY: usize = size_of::<String>() + size_of::<Value>();
/// Lists past a limit that are remembered of one body.
const LONG: usize = 16;
/// Fields of a body itself: their names are read, and remembered, before it is known whose body it is.
const FIELDS: usize = 1 << 16;

/// What was counted of a body.
#[derive(Debug, Default)]
pub(in crate::server) struct Weight {
    /// Bytes of memory, about.
    pub(super) memory: usize,
    /// Of the outermost object.
    fields: usize,
    /// Lists of the outermost object that are too long for documents, or have an item that is too large for one.
    long: Vec<Long>,
}

#[derive(Debug)]
struct Long {
    name: String,
    items: usize,
    /// Items that are no texts.
    composed: usize,
    /// The first that is too large, and its bytes as a document's are counted.
    large: Option<(usize, usize)>,
}

/// Which of a body's lists are its documents or pairs.
#[derive(Clone, Copy, Debug)]
pub(in crate::server) struct Lists {
    pub(in crate::server) documents: &'static str,
    pub(in crate::server) pairs: Option<&'static str>,
    /// Whether documents are read as they are sent, and no part of them.
    pub(in crate::server) whole: bool,
}

impl Weight {
    /// Counts what is in a body.
    ///
    /// # Errors
    ///
    /// `Invalid` for what is no JSON object, as [`parse::parse`] tells it: of what cannot be counted to its end nothing
    /// is made. `TooLarge` for one of more than [`FIELDS`].
    pub(in crate::server) fn of(body: &[u8], limits: &Limits) -> Result<Self> {
        let text = parse::text(body)?;
        let mut weight = Self::default();
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let counted = Outermost { weight: &mut weight, limits }.deserialize(&mut deserializer);
        match counted.and_then(|()| deserializer.end()) {
            Ok(()) if weight.fields > FIELDS => {
                Err(Error::too_large("body", "fields", FIELDS, weight.fields))
            }
            Ok(()) => Ok(weight),
            Err(_) => Err(fault(text, limits)),
        }
    }

    /// What [`Limits::check`] would say of the documents.
    ///
    /// # Errors
    ///
    /// `TooLarge`, naming `documents` or `pairs`, the limit and the value.
    pub(in crate::server) fn check(&self, lists: Lists, limits: &Limits) -> Result<()> {
        for long in &self.long {
            if lists.pairs == Some(&long.name) {
                limits.check_count("pairs", long.composed)?;
            }
            if lists.documents != long.name {
                continue;
            }
            limits.check_count("documents", long.items)?;
            if let Some((index, bytes)) = long.large.filter(|_| lists.whole) {
                let field = format!("documents[{index}]");
                return Err(Error::too_large(&field, "bytes", limits.document_bytes, bytes));
            }
        }
        Ok(())
    }

    /// Of a body that is nothing but heavy.
    #[cfg(test)]
    pub(super) fn heavy(memory: usize) -> Self {
        Self { memory, ..Self::default() }
    }

    fn add(&mut self, bytes: usize) {
        self.memory = self.memory.saturating_add(bytes);
    }
}

/// Counts again to say where in the body the fault is.
fn fault(text: &str, limits: &Limits) -> Error {
    let (mut weight, mut track) = (Weight::default(), serde_path_to_error::Track::new());
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let tracked = serde_path_to_error::Deserializer::new(&mut deserializer, &mut track);
    match (Outermost { weight: &mut weight, limits }).deserialize(tracked) {
        Err(cause) => parse::fault(&track.path(), &cause),
        Ok(()) => parse::not_ended(&mut deserializer),
    }
}

/// The body itself, whose lists may be of documents.
struct Outermost<'a> {
    weight: &'a mut Weight,
    limits: &'a Limits,
}

impl<'de> DeserializeSeed<'de> for Outermost<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Outermost<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<(), A::Error> {
        while let Some(name) = map.next_key::<String>()? {
            self.weight.fields += 1;
            self.weight.add(ENTRY + TEXT + name.len());
            let mut list = Long { name, items: 0, composed: 0, large: None };
            map.next_value_seed(Member { weight: self.weight, limits: self.limits, list: &mut list })?;
            if (list.items > self.limits.documents || list.large.is_some()) && self.weight.long.len() < LONG {
                self.weight.long.push(list);
            }
        }
        Ok(())
    }
}

/// A member of the body.
struct Member<'a> {
    weight: &'a mut Weight,
    limits: &'a Limits,
    list: &'a mut Long,
}

impl<'de> DeserializeSeed<'de> for Member<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        let list = Some((self.list, self.limits));
        deserializer.deserialize_any(Counter { weight: self.weight, list, named: false }).map(drop)
    }
}

/// Any value: what it takes is added to the weight, and its bytes as [`Limits`] count a document's are returned.
struct Counter<'a> {
    weight: &'a mut Weight,
    /// Where the items of a list are counted.
    list: Option<(&'a mut Long, &'a Limits)>,
    /// Whether it may be a document, whose `id` is none of its fields.
    named: bool,
}

/// What was counted of one value.
#[derive(Clone, Copy)]
struct Counted {
    bytes: usize,
    text: bool,
}

const SIMPLE: Counted = Counted { bytes: VALUE_BYTES, text: false };

impl<'de> DeserializeSeed<'de> for Counter<'_> {
    type Value = Counted;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Counted, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Counter<'_> {
    type Value = Counted;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("any JSON value")
    }

    fn visit_unit<E: de::Error>(self) -> std::result::Result<Counted, E> {
        Ok(SIMPLE)
    }

    fn visit_bool<E: de::Error>(self, _: bool) -> std::result::Result<Counted, E> {
        Ok(SIMPLE)
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> std::result::Result<Counted, E> {
        Ok(SIMPLE)
    }

    fn visit_u64<E: de::Error>(self, _: u64) -> std::result::Result<Counted, E> {
        Ok(SIMPLE)
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> std::result::Result<Counted, E> {
        Ok(SIMPLE)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> std::result::Result<Counted, E> {
        self.weight.add(TEXT + text.len());
        Ok(Counted { bytes: text.len(), text: true })
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> std::result::Result<Counted, A::Error> {
        let (mut bytes, named) = (VALUE_BYTES, self.list.is_some());
        let mut place = FIRST_PLACE;
        while let Some(item) = items.next_element_seed(Counter { weight: self.weight, list: None, named })? {
            self.weight.add(std::mem::replace(&mut place, PLACE));
            bytes += item.bytes;
            if let Some((list, limits)) = &mut self.list {
                if item.bytes > limits.document_bytes && list.large.is_none() {
                    list.large = Some((list.items, item.bytes));
                }
                list.items += 1;
                list.composed += usize::from(!item.text);
            }
        }
        Ok(Counted { bytes, text: false })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> std::result::Result<Counted, A::Error> {
        // A document's fields count, and not that they are its fields.
        let mut bytes = if self.named { 0 } else { VALUE_BYTES };
        let mut first = true;
        while let Some(name) = entries.next_key_seed(Name)? {
            self.weight.add(if first { NODE } else { 2 * ENTRY });
            self.weight.add(TEXT + name.bytes);
            first = false;
            let value = entries.next_value_seed(Counter { weight: self.weight, list: None, named: false })?;
            if !(self.named && name.id) {
                bytes += name.bytes + value.bytes;
            }
        }
        Ok(Counted { bytes, text: false })
    }
}

/// An entry's name, of which its length is enough.
struct Name;

struct Named {
    bytes: usize,
    id: bool,
}

impl<'de> DeserializeSeed<'de> for Name {
    type Value = Named;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Named, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Name {
    type Value = Named;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a name")
    }

    fn visit_str<E: de::Error>(self, name: &str) -> std::result::Result<Named, E> {
        Ok(Named { bytes: name.len(), id: name == "id" })
    }
}

#[cfg(test)]
mod tests;
