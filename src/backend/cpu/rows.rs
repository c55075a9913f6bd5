//! Operations on rows: norms, rotary embedding, gated activation, softmax.
//!
//! Every sum over a row runs in sixteen fixed lanes that are added in a fixed
//! order, so a row's result depends on the row alone.

use super::isa::kernel;

const LANES: usize = 16;

/// Sum of the lanes, in halves: the order is part of the result.
#[inline(always)]
pub(super) fn add_lanes<const N: usize>(lanes: [f32; N]) -> f32 {
    halve(lanes, |a, b| a + b)
}

#[inline(always)]
fn halve<const N: usize>(mut lanes: [f32; N], join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = N / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = join(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// e^x in f32 to about one unit in the last place: range reduction by ln 2 and a polynomial of
/// degree six (the coefficients of Cephes' expf). 0 below -87.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0;
    let clamped = x.clamp(-87.0, 88.0);
    let shifted = clamped.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(2.121_944_4e-4, n.mul_add(-0.693_359_4, clamped));
    let mut p = 1.987_569_1e-4_f32;
    p = p.mul_add(r, 1.398_2e-3);
    p = p.mul_add(r, 8.333_452e-3);
    p = p.mul_add(r, 4.166_579_6e-2);
    p = p.mul_add(r, 0.166_666_66);
    p = p.mul_add(r, 0.5);
    let y = p.mul_add(r * r, r) + 1.0;
    // The lowest bits of `shifted` are n, and the bits above fall off: no conversion, which would check its range.
    let scale = f32::from_bits((shifted.to_bits().wrapping_add(127)) << 23);
    if x < -87.0 { 0.0 } else { y * scale }
}

kernel! {
    /// to = x / rms(x) · weight, for one row.
    pub(super) fn rms_norm(x: &[f32], weight: &[f32], epsilon: f32, to: &mut [f32]) {
        let scale = inverse_rms(x, epsilon);
        for ((to, x), weight) in to.iter_mut().zip(x).zip(weight) {
            *to = x * scale * weight;
        }
    }
}

#[inline(always)]
fn inverse_rms(x: &[f32], epsilon: f32) -> f32 {
    let (chunks, tail) = x.as_chunks::<LANES>();
    let mut lanes = [0.0f32; LANES];
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = chunk[i].mul_add(chunk[i], lanes[i]);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(tail) {
        *lane = x.mul_add(*x, *lane);
    }
    1.0 / (add_lanes(lanes) / x.len() as f32 + epsilon).sqrt()
}

kernel! {
    /// One head in place: RMS norm where `weight` is given, then the rotary embedding of
    /// Su et al. (2021) in the half-split layout of Hugging Face, then a factor.
    pub(super) fn norm_rope(head: &mut [f32], weight: Option<&[f32]>, epsilon: f32, cos: &[f32], sin: &[f32], factor: f32) {
        if let Some(weight) = weight {
            let scale = inverse_rms(head, epsilon);
            for (x, weight) in head.iter_mut().zip(weight) {
                *x = *x * scale * weight;
            }
        }
        let (low, high) = head.split_at_mut(cos.len());
        for ((low, high), (cos, sin)) in low.iter_mut().zip(high).zip(cos.iter().zip(sin)) {
            let (a, b) = (*low, *high);
            *low = (a * cos - b * sin) * factor;
            *high = (b * cos + a * sin) * factor;
        }
    }
}

/// x · sigmoid(x)
#[inline(always)]
pub(super) fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

kernel! {
    /// to = silu(gate) · up, element by element.
    pub(super) fn silu_mul(gate: &[f32], up: &[f32], to: &mut [f32]) {
        for ((to, gate), up) in to.iter_mut().zip(gate).zip(up) {
            *to = silu(*gate) * up;
        }
    }
}

kernel! {
    /// In place over `scores[..valid]`: e^(x - max); the rest becomes 0. Returns the sum.
    pub(super) fn exponentials(scores: &mut [f32], valid: usize) -> f32 {
        scores[valid..].fill(f32::NEG_INFINITY);
        let mut max = [f32::NEG_INFINITY; LANES];
        let (chunks, tail) = scores.as_chunks::<LANES>();
        for chunk in chunks {
            for i in 0..LANES {
                max[i] = if chunk[i] > max[i] { chunk[i] } else { max[i] };
            }
        }
        for (max, x) in max.iter_mut().zip(tail) {
            *max = if *x > *max { *x } else { *max };
        }
        let max = halve(max, |a, b| if b > a { b } else { a });
        let mut lanes = [0.0f32; LANES];
        let (chunks, tail) = scores.as_chunks_mut::<LANES>();
        for chunk in chunks {
            for i in 0..LANES {
                chunk[i] = exp(chunk[i] - max);
                lanes[i] += chunk[i];
            }
        }
        for (lane, x) in lanes.iter_mut().zip(tail) {
            *x = exp(*x - max);
            *lane += *x;
        }
        add_lanes(lanes)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::isa::Isa, *};

    #[test]
    fn exp_is_within_two_units_of_the_last_place() {
        for i in -8_700..=8_800 {
            let x = i as f32 / 100.0;
            let exact = f64::from(x).exp();
            assert!((f64::from(exp(x)) - exact).abs() <= exact * 2.4e-7, "exp({x}) = {} not {exact}", exp(x));
        }
        assert_eq!(exp(-1e30), 0.0);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let x: Vec<f32> = (0..133).map(|i| ((i * 37 % 101) as f32 - 50.0) / 9.0).collect();
        let run = |isa| {
            let mut normed = vec![0.0; x.len()];
            rms_norm(isa, &x, &x, 1e-6, &mut normed);
            let mut gated = vec![0.0; x.len()];
            silu_mul(isa, &x, &normed, &mut gated);
            let mut scores = x.clone();
            let sum = exponentials(isa, &mut scores, 121);
            assert!(scores[121..].iter().all(|s| *s == 0.0));
            (normed, gated, scores, sum)
        };
        assert_eq!(run(Isa::Portable), run(Isa::detect()));
    }

    #[test]
    fn a_not_finite_score_shows_in_the_sum() {
        let mut scores = [1.0, f32::NAN, 2.0];
        assert!(exponentials(Isa::detect(), &mut scores, 3).is_nan());
    }
}
