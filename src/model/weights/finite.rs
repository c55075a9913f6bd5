//! Finding a value that is not finite, fast: a float is finite exactly when its
//! exponent's bits are not all ones, so a tensor is scanned as integers.

use rayon::prelude::*;

use super::Dtype;

/// Bytes per parallel task: large enough to hide its cost, small enough to stop early.
const CHUNK: usize = 1 << 20;

/// Index and value of the first element that is NaN or infinite.
pub(super) fn first_not_finite(bytes: &[u8], dtype: Dtype) -> Option<(usize, f32)> {
    let size = dtype.size();
    let chunk = bytes.par_chunks(CHUNK).position_first(|chunk| match dtype {
        Dtype::F32 => any_f32(chunk),
        Dtype::F16 => any_u16(chunk, 0x7c00),
        Dtype::BF16 => any_u16(chunk, 0x7f80),
    })?;
    let first = chunk * CHUNK / size;
    let values = bytes[chunk * CHUNK..].chunks_exact(size).map(|element| value(element, dtype));
    values.enumerate().find(|(_, value)| !value.is_finite()).map(|(index, value)| (first + index, value))
}

/// No early exit inside, so that the loop is vectorised.
fn any_f32(chunk: &[u8]) -> bool {
    chunk
        .as_chunks::<4>()
        .0
        .iter()
        .fold(false, |found, &element| found | (u32::from_le_bytes(element) & 0x7f80_0000 == 0x7f80_0000))
}

fn any_u16(chunk: &[u8], exponent: u16) -> bool {
    chunk
        .as_chunks::<2>()
        .0
        .iter()
        .fold(false, |found, &element| found | (u16::from_le_bytes(element) & exponent == exponent))
}

fn value(element: &[u8], dtype: Dtype) -> f32 {
    match (dtype, element) {
        (Dtype::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
        (Dtype::F16, &[a, b]) => half::f16::from_le_bytes([a, b]).to_f32(),
        (Dtype::BF16, &[a, b]) => half::bf16::from_le_bytes([a, b]).to_f32(),
        _ => 0.0,
    }
}
