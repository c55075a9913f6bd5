//! The machine's own multiply-add rate: the ceiling that benchmarks report against.

use std::{hint::black_box, time::Instant};

use rayon::prelude::*;

use super::isa::{Isa, kernel};

const CHAINS: usize = 6;
const LANES: usize = 16;
const STEPS: usize = 4_000_000;

kernel! {
    fn chains(x: f32, y: f32) -> f32 {
        let mut sums = [[0.1f32; LANES]; CHAINS];
        for _ in 0..STEPS {
            for chain in 0..CHAINS {
                for lane in 0..LANES {
                    sums[chain][lane] = sums[chain][lane].mul_add(x, y);
                }
            }
        }
        sums.as_flattened().iter().sum()
    }
}

/// Best of five runs of independent multiply-add chains on `threads` threads, in GFLOP/s.
pub fn gflops(isa: Isa, threads: usize) -> f64 {
    let run = || {
        let start = Instant::now();
        (0..threads).into_par_iter().for_each(|_| {
            black_box(chains(isa, black_box(0.999), black_box(0.001)));
        });
        start.elapsed().as_secs_f64()
    };
    let best = (0..5).map(|_| run()).fold(f64::MAX, f64::min);
    (2 * STEPS * CHAINS * LANES * threads) as f64 / best / 1e9
}
