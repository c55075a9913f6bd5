//! What serde reads for a struct or a number, told without Rust's names, and objects only.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, Unexpected, Visitor, value::MapAccessDeserializer},
};

/// A `T` from an object, and not from a list of its fields' values, which serde takes as well.
pub(in crate::server) struct Object<T>(pub(in crate::server) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
            type Value = Object<T>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }

        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}

/// A whole number, 0 or more, written in digits alone.
#[derive(Clone, Copy)]
pub(in crate::server) struct Whole(pub(in crate::server) u64);

impl Whole {
    /// As a size; one that is past all sizes is the largest.
    pub(in crate::server) fn size(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct WholeVisitor;

        impl Visitor<'_> for WholeVisitor {
            type Value = Whole;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(formatter, "a whole number from 0 to {}, in digits alone", u64::MAX)
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Whole, E> {
                Ok(Whole(value))
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Whole, E> {
                u64::try_from(value)
                    .map(Whole)
                    .map_err(|_| E::invalid_value(Unexpected::Signed(value), &self))
            }
        }

        deserializer.deserialize_u64(WholeVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Pair {
        a: Option<u8>,
        b: Option<u8>,
    }

    #[test]
    fn a_list_is_no_object() {
        let read = |text: &str| serde_json::from_str::<Object<Pair>>(text).map(|Object(pair)| pair);
        assert_eq!(read(r#"{"b": 2}"#).expect("an object"), Pair { a: None, b: Some(2) });
        for (text, message) in [
            ("[1, 2]", "invalid type: sequence, expected an object"),
            ("null", "invalid type: null, expected an object"),
            (r#"{"c": 1}"#, "unknown field `c`, expected `a` or `b`"),
            (r#"{"a": 1, "a": 2}"#, "duplicate field `a`"),
        ] {
            let error = read(text).expect_err("refused").to_string();
            assert!(error.starts_with(message), "{error}");
        }
    }

    #[test]
    fn whole_numbers_are_digits() {
        let read = |text: &str| serde_json::from_str::<Whole>(text).map(|Whole(number)| number);
        assert_eq!(read("0").expect("whole"), 0);
        assert_eq!(read("18446744073709551615").expect("whole"), u64::MAX);
        for wrong in ["-1", "1.5", "1e18", "18446744073709551616", "\"3\"", "null", "[1]"] {
            let error = read(wrong).expect_err("refused").to_string();
            let message = "expected a whole number from 0 to 18446744073709551615, in digits alone";
            assert!(error.contains(message), "{error}");
        }
    }
}
