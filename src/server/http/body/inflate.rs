//! Bodies that were sent compressed.

use std::io::{self, Read};

use axum::http::HeaderValue;
use bytes::Bytes;
use flate2::bufread::MultiGzDecoder;

use crate::{
    error::{Code, Error, Result},
    server::bodies::Held,
};

/// What `accept-encoding` says with a refusal.
pub(in crate::server::http) const ENCODINGS: &str = "gzip, zstd";

/// The largest window of zstd in bits: what RFC 9659 lets a content encoding use.
const WINDOW_BITS: u32 = 23;
/// Inflated at a time, so that the limit is passed by no more than this.
const PIECE: usize = 64 << 10;

/// How a body was compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Gzip,
    Zstd,
}

impl Encoding {
    /// Reads `content-encoding`; `None` is plain.
    ///
    /// # Errors
    ///
    /// `UnsupportedMedia` for any other encoding, or more than one.
    pub(super) fn of(value: Option<&HeaderValue>) -> Result<Option<Self>> {
        let Some(value) = value else { return Ok(None) };
        let name = value.to_str().unwrap_or_default().trim().to_ascii_lowercase();
        match name.as_str() {
            "" | "identity" => Ok(None),
            "gzip" | "x-gzip" => Ok(Some(Self::Gzip)),
            "zstd" => Ok(Some(Self::Zstd)),
            _ => {
                let message = format!("content-encoding: {value:?}, expected one of {ENCODINGS}");
                Err(Error::new(Code::UnsupportedMedia, message))
            }
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }
}

/// Inflates a body off the async threads: few bytes can be much work.
///
/// # Errors
///
/// `TooLarge` as soon as it is past `limit`, `Overloaded` where there is no memory for it, `Invalid` for
/// what does not inflate.
pub(super) async fn inflate(
    encoding: Encoding,
    body: Bytes,
    limit: usize,
    mut held: Held,
) -> Result<(Bytes, Held)> {
    let inflated = tokio::task::spawn_blocking(move || {
        let inflated = inflate_now(encoding, &body, limit, |bytes| held.grow(bytes))?;
        held.shrink(body.len());
        Ok((inflated, held))
    })
    .await;
    inflated.map_err(|cause| Error::internal("inflating a body failed").with_cause(cause))?
}

fn inflate_now(
    encoding: Encoding,
    body: &[u8],
    limit: usize,
    grow: impl FnMut(usize) -> Result<()>,
) -> Result<Bytes> {
    let broken = |cause: io::Error| {
        let message = format!("is not valid {}: {cause}", encoding.name());
        Error::invalid("body", message).with_cause(cause)
    };
    match encoding {
        Encoding::Gzip => up_to(limit, MultiGzDecoder::new(body), grow, broken),
        Encoding::Zstd => {
            let mut decoder = zstd::Decoder::with_buffer(body).map_err(broken)?;
            decoder.window_log_max(WINDOW_BITS).map_err(broken)?;
            up_to(limit, decoder, grow, broken)
        }
    }
}

/// Everything that `reader` has, if that is no more than `limit`; `grow` is asked for the memory.
fn up_to(
    limit: usize,
    mut reader: impl Read,
    mut grow: impl FnMut(usize) -> Result<()>,
    broken: impl Fn(io::Error) -> Error,
) -> Result<Bytes> {
    let mut whole = Vec::new();
    loop {
        let filled = whole.len();
        whole.resize(filled + PIECE, 0);
        let read = reader.read(&mut whole[filled..]).map_err(&broken)?;
        whole.truncate(filled + read);
        if whole.len() > limit {
            return Err(Error::too_large("body", "bytes or more once inflated", limit, whole.len()));
        }
        grow(read)?;
        if read == 0 {
            return Ok(whole.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn inflate_now(encoding: Encoding, body: &[u8], limit: usize) -> Result<Bytes> {
        super::inflate_now(encoding, body, limit, |_| Ok(()))
    }

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(text).expect("written");
        encoder.finish().expect("whole")
    }

    fn zstd(text: &[u8]) -> Vec<u8> {
        zstd::encode_all(text, 19).expect("whole")
    }

    #[test]
    fn encodings_are_known_by_name() {
        let of = |name: &'static str| Encoding::of(Some(&HeaderValue::from_static(name)));
        assert_eq!(Encoding::of(None).expect("plain"), None);
        assert_eq!(of("identity").expect("plain"), None);
        assert_eq!(of("GZIP").expect("known"), Some(Encoding::Gzip));
        assert_eq!(of(" zstd ").expect("known"), Some(Encoding::Zstd));
        for wrong in ["br", "gzip, gzip", "deflate", "\"gzip\""] {
            let error = of(wrong).expect_err("refused");
            assert_eq!(error.code(), Code::UnsupportedMedia);
            assert!(error.message().ends_with("expected one of gzip, zstd"), "{error}");
        }
    }

    #[test]
    fn what_fits_comes_out_as_it_went_in() {
        let text: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
        for (encoding, sent) in [(Encoding::Gzip, gzip(&text)), (Encoding::Zstd, zstd(&text))] {
            assert_eq!(inflate_now(encoding, &sent, text.len()).expect("fits"), text);
            inflate_now(encoding, &sent, text.len() - 1).expect_err("one byte too many");
        }
    }

    #[test]
    fn a_bomb_is_left_after_the_limit() {
        let zeros = vec![0; 64 << 20];
        for (encoding, sent) in [(Encoding::Gzip, gzip(&zeros)), (Encoding::Zstd, zstd(&zeros))] {
            assert!(sent.len() < 1 << 17, "{} bytes", sent.len());
            let error = inflate_now(encoding, &sent, 1000).expect_err("too large");
            assert_eq!(error.code(), Code::TooLarge);
            let limit = error.limit().expect("told");
            assert!(limit.limit == 1000 && limit.value <= 1000 + PIECE, "{limit:?}");
        }
    }

    #[test]
    fn what_does_not_inflate_is_invalid() {
        for (encoding, whole) in [(Encoding::Gzip, gzip(b"{}")), (Encoding::Zstd, zstd(b"{}"))] {
            for sent in [&b"{}"[..], &whole[..whole.len() - 1], &[&whole[..], b"x"].concat(), b""] {
                let Err(error) = inflate_now(encoding, sent, 1000) else { continue };
                assert_eq!(error.code(), Code::Invalid);
                let start = format!("body: is not valid {}: ", encoding.name());
                assert!(error.message().starts_with(&start), "{error}");
            }
            inflate_now(encoding, &whole[..whole.len() - 1], 1000).expect_err("cut short");
            inflate_now(encoding, b"{}", 1000).expect_err("not compressed");
        }
    }

    #[test]
    fn a_window_past_what_is_allowed_is_refused() {
        let mut encoder = zstd::Encoder::new(Vec::new(), 3).expect("an encoder");
        encoder.window_log(27).expect("set");
        encoder.long_distance_matching(true).expect("set");
        encoder.write_all(&vec![7; 1 << 20]).expect("written");
        let sent = encoder.finish().expect("whole");
        let error = inflate_now(Encoding::Zstd, &sent, 2 << 20).expect_err("refused");
        assert_eq!(error.code(), Code::Invalid);
    }
}
