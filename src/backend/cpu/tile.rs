//! The register block of matrix products and attention: a few packed rows against a few panels.

use half::bf16;

use super::isa::prefetch;

/// Outputs in one weight panel.
pub(super) const PANEL: usize = 16;
/// Rows in one register block.
pub(super) const ROWS: usize = 6;
/// Panels that are run side by side where there are registers for them: each input value that is
/// read then serves two multiply-adds, so that loads are not what bounds the kernel.
pub(super) const PAIR: usize = 2;
/// How many steps of depth ahead of the multiply-adds a weight is fetched from the second-level cache.
const AHEAD: usize = 16;

/// One register's worth of values, aligned so that it never straddles two cache lines.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Lanes(pub(super) [f32; PANEL]);

impl Lanes {
    pub(super) const ZERO: Self = Self([0.0; PANEL]);
}

/// Sixteen values that lie together.
pub(super) trait Sixteen {
    /// The `i`-th value.
    fn value(&self, i: usize) -> f32;
}

impl Sixteen for Lanes {
    #[inline(always)]
    fn value(&self, i: usize) -> f32 {
        self.0[i]
    }
}

impl Sixteen for [f32; PANEL] {
    #[inline(always)]
    fn value(&self, i: usize) -> f32 {
        self[i]
    }
}

impl Sixteen for [bf16; PANEL] {
    #[inline(always)]
    fn value(&self, i: usize) -> f32 {
        widen(self[i])
    }
}

/// The f32 of which a bf16 is the upper half.
#[inline(always)]
pub(super) fn widen(value: bf16) -> f32 {
    f32::from_bits(u32::from(value.to_bits()) << 16)
}

pub(super) fn align(values: &[f32]) -> Vec<Lanes> {
    values.as_chunks::<PANEL>().0.iter().map(|values| Lanes(*values)).collect()
}

/// The register block: `G` groups of `R` packed rows against `P` panel blocks, in order of depth.
/// `a` are `[len][R]`, `b` are `[len][PANEL]`; the result is by group, row, panel.
#[inline(always)]
pub(super) fn tiles<const R: usize, const G: usize, const P: usize>(
    a: [&[f32]; G],
    b: [&[impl Sixteen]; P],
) -> [[[Lanes; P]; R]; G] {
    let mut sums = [[[Lanes::ZERO; P]; R]; G];
    let a = a.map(|a| a.as_chunks::<R>().0);
    let len = b.iter().map(|b| b.len()).chain(a.iter().map(|a| a.len())).min().unwrap_or(0);
    let (a, b) = (a.map(|a| &a[..len]), b.map(|b| &b[..len]));
    for k in 0..len {
        if P == PAIR {
            b.iter().for_each(|b| prefetch(b.as_ptr().wrapping_add(k + AHEAD)));
        }
        for g in 0..G {
            for i in 0..R {
                for p in 0..P {
                    for j in 0..PANEL {
                        sums[g][i][p].0[j] = a[g][k][i].mul_add(b[p][k].value(j), sums[g][i][p].0[j]);
                    }
                }
            }
        }
    }
    sums
}
