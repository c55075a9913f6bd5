//! The machine's own multiply-add rate: the ceiling that benchmarks report against.

use std::{hint::black_box, time::Instant};

use rayon::prelude::*;

use super::isa::Isa;

const STEPS: usize = 4_000_000;
/// Independent chains, enough to hide the latency of a multiply-add on two units.
const CHAINS: usize = 12;

/// f32 multiply-adds of one thread's run: steps · chains · lanes.
fn chains(isa: Isa, steps: usize) -> usize {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_mm256_fmadd_ps, _mm256_set1_ps, _mm512_fmadd_ps, _mm512_set1_ps};

        #[target_feature(enable = "avx2,fma")]
        fn avx2(steps: usize) {
            let (x, y) = (_mm256_set1_ps(0.999), _mm256_set1_ps(0.001));
            let mut sums = [x; CHAINS];
            for _ in 0..steps {
                sums.iter_mut().for_each(|sum| *sum = _mm256_fmadd_ps(*sum, x, y));
            }
            black_box(sums);
        }

        #[target_feature(enable = "avx512f")]
        fn avx512(steps: usize) {
            let (x, y) = (_mm512_set1_ps(0.999), _mm512_set1_ps(0.001));
            let mut sums = [x; CHAINS];
            for _ in 0..steps {
                sums.iter_mut().for_each(|sum| *sum = _mm512_fmadd_ps(*sum, x, y));
            }
            black_box(sums);
        }

        #[expect(unsafe_code, reason = "calls functions compiled for instructions that Isa::detect found")]
        match isa {
            // SAFETY: an Isa other than Portable comes from `Isa::detect`, which saw the features.
            Isa::Avx512 | Isa::Amx => {
                unsafe { avx512(black_box(steps)) };
                return steps * CHAINS * 16;
            }
            // SAFETY: as above.
            Isa::Avx2 => {
                unsafe { avx2(black_box(steps)) };
                return steps * CHAINS * 8;
            }
            Isa::Portable => {}
        }
    }
    let _ = isa;
    let mut sums = [black_box(0.5f32); CHAINS];
    for _ in 0..steps {
        sums.iter_mut().for_each(|sum| *sum = sum.mul_add(black_box(0.999), 0.001));
    }
    black_box(sums);
    steps * CHAINS
}

/// Best of five runs of independent multiply-add chains on `threads` threads, in GFLOP/s.
pub fn gflops(isa: Isa, threads: usize) -> f64 {
    let run = || {
        let start = Instant::now();
        let count: usize = (0..threads).into_par_iter().map(|_| chains(isa, STEPS)).sum();
        2.0 * count as f64 / start.elapsed().as_secs_f64() / 1e9
    };
    (0..5).map(|_| run()).fold(0.0, f64::max)
}
