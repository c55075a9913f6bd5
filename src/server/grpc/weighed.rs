//! What a message would become in memory, counted before it is made: a document of two bytes on the wire is a hundred
//! where it is kept.

use std::{marker::PhantomData, mem::size_of};

use bytes::Buf as _;
use prost::{
    Message,
    encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field},
};
use prost_types::{Value, value::Kind};
use tonic::{
    Status,
    codec::{Codec, DecodeBuf, Decoder},
};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

use crate::error::Error;

use super::{pb, status, tei::pb as tei};

/// A message may take so many times its bytes in memory, and [`ALWAYS`] whatever they are.
const TIMES: usize = 8;
/// More than a request of as many small documents takes as any server is asked for at once.
const ALWAYS: usize = 16 << 20;
/// What a text takes beside its bytes: its place in a list, which grows by doubling, and where it is allocated.
const TEXT: usize = 2 * size_of::<String>() + 32;
/// An entry of fields, and room for eleven, which the first one makes.
const ENTRY: usize = size_of::<String>() + size_of::<Value>();
/// Nesting past which prost reads no message.
const DEPTH: usize = 400;

/// prost's codec, for messages that are not read if they would take too much memory.
#[derive(Debug)]
pub(crate) struct WeighedCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for WeighedCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for WeighedCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Weighed + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = WeighedDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> Self::Decoder {
        WeighedDecoder(ProstCodec::<T, U>::default().decoder())
    }
}

/// Weighs, then decodes.
#[derive(Debug)]
pub(crate) struct WeighedDecoder<U>(ProstDecoder<U>);

impl<U: Message + Default + Weighed> Decoder for WeighedDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, source: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        if let Some(layout) = U::LAYOUT {
            // tonic gathers a message before it is decoded: it lies together.
            check(layout, source.chunk()).map_err(|error| status(&error))?;
        }
        self.0.decode(source)
    }
}

fn check(layout: &Layout, message: &[u8]) -> Result<(), Error> {
    let (weight, most) = (weigh(layout, message, DEPTH), message.len() * TIMES + ALWAYS);
    if weight > most {
        let unit = format!("bytes in memory, {} as sent", message.len());
        return Err(Error::too_large("message", &unit, most, weight));
    }
    Ok(())
}

/// Where the messages are in a message; what else it has are numbers and texts.
pub(crate) struct Layout {
    /// Bytes of one in its place, without what its own fields allocate.
    bytes: usize,
    fields: &'static [(u32, &'static Layout)],
}

/// A message that may be read with a [`WeighedCodec`].
pub(crate) trait Weighed {
    /// Of what clients send; what they are answered is their own matter.
    const LAYOUT: Option<&'static Layout> = None;
}

impl Weighed for pb::ScoreRequest {
    const LAYOUT: Option<&'static Layout> = Some(&SCORE_REQUEST);
}
impl Weighed for tei::RerankRequest {
    const LAYOUT: Option<&'static Layout> = Some(&TEXTS);
}
impl Weighed for tei::RerankStreamRequest {
    const LAYOUT: Option<&'static Layout> = Some(&TEXTS);
}
impl Weighed for pb::InfoRequest {}
impl Weighed for tei::InfoRequest {}
impl Weighed for pb::ScoreResponse {}
impl Weighed for pb::ExplainEvent {}
impl Weighed for pb::InfoResponse {}
impl Weighed for tei::RerankResponse {}
impl Weighed for tei::InfoResponse {}

static SCORE_REQUEST: Layout = Layout { bytes: 0, fields: &[(2, &DOCUMENT), (3, &PAIR)] };
static TEXTS: Layout = Layout { bytes: 0, fields: &[] };
static PAIR: Layout = Layout { bytes: 2 * size_of::<pb::Pair>(), fields: &[(2, &DOCUMENT)] };
static DOCUMENT: Layout = Layout { bytes: 2 * size_of::<pb::Document>(), fields: &[(3, &STRUCT)] };
static STRUCT: Layout = Layout { bytes: 11 * ENTRY, fields: &[(1, &FIELD)] };
static FIELD: Layout = Layout { bytes: 2 * ENTRY, fields: &[(2, &VALUE)] };
static VALUE: Layout = Layout { bytes: 2 * size_of::<Option<Kind>>(), fields: &[(5, &STRUCT), (6, &LIST)] };
static LIST: Layout = Layout { bytes: 4 * size_of::<Value>(), fields: &[(1, &VALUE)] };

/// What a message's fields take, about; of one that is broken, those before the fault, where reading ends as well.
fn weigh(layout: &Layout, mut message: &[u8], depth: usize) -> usize {
    let mut weight = 0_usize;
    let Some(depth) = depth.checked_sub(1) else { return weight };
    while !message.is_empty() {
        let Ok((number, wire)) = decode_key(&mut message) else { break };
        if wire != WireType::LengthDelimited {
            if skip_field(wire, number, &mut message, DecodeContext::default()).is_err() {
                break;
            }
            continue;
        }
        let length = decode_varint(&mut message).ok().and_then(|length| usize::try_from(length).ok());
        let Some((field, rest)) = length.and_then(|length| message.split_at_checked(length)) else { break };
        message = rest;
        let known = layout.fields.iter().find(|(known, _)| *known == number);
        weight = weight.saturating_add(match known {
            Some((_, layout)) => layout.bytes + weigh(layout, field, depth),
            None => TEXT + field.len(),
        });
    }
    weight
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(text: &str) -> pb::Document {
        pb::Document { text: Some(text.to_owned()), ..pb::Document::default() }
    }

    fn weight(request: &pb::ScoreRequest) -> usize {
        weigh(&SCORE_REQUEST, &request.encode_to_vec(), DEPTH)
    }

    #[test]
    fn what_is_kept_is_counted() {
        let with = |documents| pb::ScoreRequest { documents, ..pb::ScoreRequest::default() };
        assert_eq!(weight(&with(vec![])), 0);
        let empty = weight(&with(vec![pb::Document::default(); 1000]));
        assert!(empty >= 1000 * size_of::<pb::Document>(), "{empty}");
        assert_eq!(weight(&with(vec![document("12345"); 1000])), empty + 1000 * (TEXT + 5));
        let value = |kind| Value { kind: Some(kind) };
        let fields = |value| prost_types::Struct { fields: [("a".to_owned(), value)].into() };
        let inner = value(Kind::StructValue(fields(value(Kind::NumberValue(1.0)))));
        let list = Kind::ListValue(prost_types::ListValue { values: vec![inner; 1000] });
        let nested = pb::Document { fields: Some(fields(value(list))), ..pb::Document::default() };
        let weight = weight(&with(vec![nested]));
        assert!(weight > 1000 * 11 * ENTRY && weight < 1000 * 20 * ENTRY, "{weight}");
    }

    #[test]
    fn what_would_take_too_much_is_refused_before_it_is_read() {
        let empty = [0x12, 0].repeat(1 << 20);
        let error = check(&SCORE_REQUEST, &empty).expect_err("too large");
        assert_eq!(error.code(), crate::error::Code::TooLarge);
        let most = (2 << 20) * TIMES + ALWAYS;
        let message = format!(
            "message: {} bytes in memory, 2097152 as sent, over the limit of {most}",
            (1 << 20) * DOCUMENT.bytes
        );
        assert_eq!(error.message(), message);
        let texts = vec![document(&"text ".repeat(1000)); 2000];
        let plain = pb::ScoreRequest { documents: texts, ..pb::ScoreRequest::default() };
        check(&SCORE_REQUEST, &plain.encode_to_vec()).expect("as large as it was sent");
        let small = vec![document("t"); 20_000];
        let small = pb::ScoreRequest { documents: small, ..pb::ScoreRequest::default() };
        check(&SCORE_REQUEST, &small.encode_to_vec()).expect("not much");
        check(&SCORE_REQUEST, b"\x12\xff\xff\xff\xff\xff").expect("left to the decoder");
    }
}
