use proptest::prelude::*;
use safetensors::tensor::{TensorView, serialize};

use super::*;
use crate::error::Code;

/// A safetensors file with one tensor.
fn file(name: &str, dtype: safetensors::Dtype, shape: &[usize], data: &[u8]) -> Vec<u8> {
    let view = TensorView::new(dtype, shape.to_vec(), data).expect("sound");
    serialize([(name, view)], None).expect("writes")
}

fn open(bytes: Vec<u8>) -> Result<Checkpoint> {
    Checkpoint::from_storage(Storage::Owned(bytes), "a.safetensors")
}

fn refused<T: std::fmt::Debug>(result: Result<T>) -> String {
    let error = result.expect_err("refused");
    assert_eq!(error.code(), Code::Invalid);
    error.message().to_owned()
}

proptest! {
    #[test]
    fn a_value_that_is_not_finite_is_found_wherever_it_is(
        dtype in prop::sample::select(vec![Dtype::F32, Dtype::F16, Dtype::BF16]),
        length in 1_usize..3000,
        at in any::<prop::sample::Index>(),
        kind in 0_usize..3,
    ) {
        let value = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][kind];
        let mut bytes: Vec<u8> = (0..length).flat_map(|i| encode((i as f32).sin() * 100.0, dtype)).collect();
        prop_assert_eq!(finite::first_not_finite(&bytes, dtype), None);
        let at = at.index(length);
        bytes[at * dtype.size()..(at + 1) * dtype.size()].copy_from_slice(&encode(value, dtype));
        let found = finite::first_not_finite(&bytes, dtype).expect("found");
        prop_assert_eq!(found.0, at);
        prop_assert!(found.1 == value || (found.1.is_nan() && value.is_nan()));
    }

    #[test]
    fn a_file_of_any_bytes_is_refused_or_read(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = open(bytes);
    }
}

fn encode(value: f32, dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::F32 => value.to_le_bytes().to_vec(),
        Dtype::F16 => half::f16::from_f32(value).to_le_bytes().to_vec(),
        Dtype::BF16 => half::bf16::from_f32(value).to_le_bytes().to_vec(),
    }
}

#[test]
fn values_past_the_first_chunk_are_checked() {
    let mut bytes = vec![0_u8; (3 << 20) + 8];
    let index = (2 << 20) / 2 + 5;
    bytes[index * 2..index * 2 + 2].copy_from_slice(&half::bf16::NAN.to_le_bytes());
    assert_eq!(finite::first_not_finite(&bytes, Dtype::BF16).map(|found| found.0), Some(index));
}

#[test]
fn a_tensor_is_given_as_it_is_stored() {
    let data: Vec<u8> = [1.0_f32, -2.0, 3.5, 0.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    let checkpoint = open(file("model.norm.weight", safetensors::Dtype::F32, &[2, 2], &data)).expect("opens");
    let tensor = checkpoint.tensor("model.norm.weight", &[2, 2]).expect("there");
    assert_eq!((tensor.bytes(), tensor.elements(), tensor.dtype), (data.as_slice(), 4, Dtype::F32));
    assert_eq!(checkpoint.byte_size(), 16);
    assert!(checkpoint.contains("model.norm.weight") && !checkpoint.contains("lm_head.weight"));
}

#[test]
fn names_without_the_prefix_are_found() {
    let checkpoint = open(file("norm.weight", safetensors::Dtype::BF16, &[1], &[0, 0])).expect("opens");
    assert_eq!(checkpoint.tensor("model.norm.weight", &[1]).expect("there").name, "norm.weight");
}

#[test]
fn faults_are_named() {
    let checkpoint = open(file("x", safetensors::Dtype::F32, &[1], &f32::NAN.to_le_bytes())).expect("opens");
    assert_eq!(refused(checkpoint.tensor("y", &[1])), "a.safetensors: tensor y is missing");
    assert_eq!(refused(checkpoint.tensor("x", &[2])), "a.safetensors: tensor x has shape [1], expected [2]");
    assert_eq!(refused(checkpoint.tensor("x", &[1])), "a.safetensors: tensor x has NaN at index 0");
    let integers = open(file("x", safetensors::Dtype::I32, &[1], &[0; 4])).expect("opens");
    assert_eq!(
        refused(integers.tensor("x", &[1])),
        "a.safetensors: tensor x is I32; supported are F32, F16 and BF16"
    );
}
