//! Tile products against f64 and against plain Rust. On a machine without the unit the plain loops run
//! under the same layouts, so that these hold everywhere.

use super::{super::isa::Isa, unit::Sums, unit::TileUnit, *};
use crate::{
    backend::cpu::gemm::{PackedMatrix, PackedRows, product},
    model::weights::Dtype,
};

fn noise(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..n).map(|_| next()).collect()
}

fn bf16_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect()
}

fn rounded(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| half::bf16::from_f32(*v).to_f64()).collect()
}

fn run(w: &PackedMatrix, x: &[f32], outputs: usize, bias: f32) -> Vec<f32> {
    let rows = x.len() / w.depth();
    // Weights tell how they lie; other kernels are those that this machine runs.
    let isa = Isa::detect();
    let mut packed = PackedRows::default();
    packed.pack(isa, x, rows, w);
    let mut out = vec![bias; rows * outputs];
    product(isa, &packed, w, &mut out, bias != 0.0);
    out
}

#[test]
fn the_three_parts_add_up_exactly() {
    for value in noise(1000, 3).into_iter().chain([1.0, -3.4e38, 1.0e-20, 0.0]) {
        let mut tiles = vec![Tile::ZERO; PARTS];
        cut(Isa::detect(), &[value], 1, &mut tiles);
        let parts: f64 =
            tiles.iter().map(|tile| f64::from(f32::from_bits(u32::from(tile.0[0][0]) << 16))).sum();
        assert_eq!(parts, f64::from(value));
    }
}

#[test]
fn products_have_the_accuracy_of_f32() {
    for (rows, outputs, depth) in [(1, 16, 32), (5, 40, 64), (33, 31, 100), (50, 48, 1100), (16, 16, 8)] {
        let (w, x, bias) = (noise(outputs * depth, 1), noise(rows * depth, 2), noise(outputs, 5));
        let packed = PackedMatrix::pack(Isa::Amx, Dtype::BF16, depth, &[&bf16_bytes(&w)], Some(bias.clone()));
        assert!(packed.is_tiled());
        let out = run(&packed, &x, outputs, 2.0);
        let exact = rounded(&w);
        for (i, got) in out.iter().enumerate() {
            let (row, output) = (i / outputs, i % outputs);
            let terms = (0..depth).map(|k| f64::from(x[row * depth + k]) * exact[output * depth + k]);
            let size: f64 = terms.clone().map(f64::abs).sum();
            let wanted = 2.0 + f64::from(bias[output]) + terms.sum::<f64>();
            assert!(
                (wanted - f64::from(*got)).abs() < 3e-7 * (size + 2.0),
                "{rows}x{outputs}x{depth} at {i}"
            );
        }
    }
}

#[test]
fn a_rows_result_does_not_depend_on_its_batch_mates() {
    let (outputs, depth) = (80, 1056);
    let (w, x) = (noise(outputs * depth, 1), noise(70 * depth, 2));
    let packed = PackedMatrix::pack(Isa::Amx, Dtype::BF16, depth, &[&bf16_bytes(&w)], None);
    let all = run(&packed, &x, outputs, 0.0);
    for (from, to) in [(0, 1), (3, 36), (17, 70), (69, 70)] {
        let some = run(&packed, &x[from * depth..to * depth], outputs, 0.0);
        assert_eq!(some, all[from * outputs..to * outputs]);
    }
}

#[test]
fn a_gated_product_is_the_product_of_both_halves() {
    let (inner, depth) = (48, 96);
    let (gate, up, x) = (noise(inner * depth, 1), noise(inner * depth, 2), noise(19 * depth, 3));
    let (gate, up, bias) = (bf16_bytes(&gate), bf16_bytes(&up), noise(2 * inner, 4));
    let apart = PackedMatrix::pack(Isa::Amx, Dtype::BF16, depth, &[&gate, &up], Some(bias.clone()));
    let gated = PackedMatrix::pack_gated(Isa::Amx, Dtype::BF16, depth, [&gate, &up], Some(bias));
    assert!(gated.is_gated());
    let both = run(&apart, &x, 2 * inner, 0.0);
    let activated = run(&gated, &x, inner, 0.0);
    for (to, both) in activated.chunks(inner).zip(both.chunks(2 * inner)) {
        let wanted = both[..inner].iter().zip(&both[inner..]).map(|(g, u)| super::super::rows::silu(*g) * u);
        assert!(to.iter().copied().eq(wanted));
    }
}

#[test]
fn the_unit_and_plain_rust_give_the_same_bits() {
    let blocks = 3;
    let (x, w) = (noise(32 * blocks * BLOCK, 1), noise(32 * blocks * BLOCK, 2));
    let mut tiles = vec![Tile::ZERO; parts_len(32, blocks * BLOCK)];
    cut(Isa::detect(), &x, blocks * BLOCK, &mut tiles);
    let bytes = bf16_bytes(&w);
    let rows: Vec<&[u8]> = bytes.chunks(blocks * BLOCK * 2).collect();
    let weights = weight_tiles(&rows, blocks * BLOCK);
    let (x_pair, w_pair) = (tiles.split_at(blocks * PARTS), weights.split_at(blocks));
    let (mut real, mut plain) = (Sums::ZERO, Sums::ZERO);
    let flat = |sums: &Sums| sums.0.as_flattened().as_flattened().iter().map(|r| r[0].0).collect::<Vec<_>>();

    TileUnit::claim().multiply([x_pair.0, x_pair.1], [w_pair.0, w_pair.1], [x_pair.0.as_ptr(); 2], &mut real);
    plain::multiply([x_pair.0, x_pair.1], [w_pair.0, w_pair.1], &mut plain.0);
    assert_eq!(flat(&real), flat(&plain));

    let answers = Answers::new(&x, blocks * BLOCK);
    let mut logits_out = vec![0.0; 32 * 32];
    logits(&bytes, &answers, &mut logits_out, 32);
    let whole = PackedMatrix::pack(Isa::Amx, Dtype::BF16, blocks * BLOCK, &[&bytes], None);
    assert_eq!(logits_out, run(&whole, &x, 32, 0.0), "the head adds as the products do");
}

#[test]
fn what_is_not_finite_stays_so() {
    for bad in [f32::NAN, f32::from_bits(0x7f80_0001), f32::INFINITY, f32::NEG_INFINITY] {
        let w = PackedMatrix::pack(Isa::Amx, Dtype::BF16, 32, &[&bf16_bytes(&[1.0; 16 * 32])], None);
        let mut x = vec![1.0; 64];
        x[40] = bad;
        let out = run(&w, &x, 16, 0.0);
        assert!(out[..16].iter().all(|v| *v == 32.0) && out[16..].iter().all(|v| !v.is_finite()), "{bad}");
    }
}
