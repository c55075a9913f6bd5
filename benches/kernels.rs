//! Matrix products against the machine's own f32 multiply-add peak, measured in
//! the same run. Checks each product against a plain loop before timing it.
//!
//! `cargo bench --bench kernels`

use std::hint::black_box;

#[path = "common/clock.rs"]
mod clock;
use clock::median;

use verdict::{
    backend::cpu::{
        gemm::{PackedMatrix, PackedRows, product},
        isa::Isa,
        peak,
    },
    model::weights::Dtype,
};

fn noise(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        })
        .collect()
}

fn main() {
    let isa = Isa::detect();
    let threads = rayon::current_num_threads();
    let peak = peak::gflops(isa, threads);
    println!("{} threads, {}, multiply-add peak {peak:.0} GFLOP/s", threads, isa.name());
    println!(
        "{:>6} {:>6} {:>6} {:>5} {:>10} {:>8} {:>7} {:>7}",
        "rows", "out", "depth", "type", "ms", "GFLOP/s", "of peak", "by CPU"
    );
    for dtype in [Dtype::F32, Dtype::BF16] {
        for (m, n, k) in [
            (2200, 4096, 1024),
            (2200, 1024, 2048),
            (2200, 6144, 1024),
            (2200, 1024, 3072),
            (181, 4096, 1024),
            (181, 6144, 1024),
            (181, 1024, 3072),
            (2200, 512, 256),
            (181, 1536, 256),
            (8, 6144, 1024),
            (1, 6144, 1024),
        ] {
            let w = noise(n * k, 1);
            let bytes: Vec<u8> = match dtype {
                Dtype::F32 => w.iter().flat_map(|v| v.to_le_bytes()).collect(),
                _ => w.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect(),
            };
            let weights = PackedMatrix::pack(isa, dtype, k, &[&bytes], None);
            let x = noise(m * k, 2);
            let mut packed = PackedRows::default();
            let mut out = vec![0.0; m * n];
            let mut run = || {
                packed.pack(isa, &x, m, &weights);
                product(isa, &packed, &weights, &mut out, false);
                black_box(&out);
            };
            run();
            let clock::Time { wall: t, cpu } = median(if m > 1000 { 5 } else { 21 }, run);
            check(&x, &w, &out, n, k, dtype);
            let flop = 2.0 * (m * n * k) as f64 / 1e9;
            println!(
                "{m:>6} {n:>6} {k:>6} {:>5} {:>10.3} {:>8.1} {:>6.1}% {:>6.1}%",
                format!("{dtype:?}"),
                t * 1e3,
                flop / t,
                100.0 * flop / t / peak,
                100.0 * flop / cpu / (peak / threads as f64),
            );
        }
    }
}

fn check(x: &[f32], w: &[f32], out: &[f32], n: usize, k: usize, dtype: Dtype) {
    for (r, c) in [(0, 0), (x.len() / k - 1, n - 1), (x.len() / k / 2, n / 3)] {
        let sum: f64 = (0..k)
            .map(|i| {
                let w = w[c * k + i];
                let w = if dtype == Dtype::BF16 { half::bf16::from_f32(w).to_f32() } else { w };
                f64::from(x[r * k + i]) * f64::from(w)
            })
            .sum();
        assert!(
            (sum - f64::from(out[r * n + c])).abs() < 1e-3,
            "row {r} column {c}: {sum} against {}",
            out[r * n + c]
        );
    }
}
