//! Checkpoint tensors to one region of device memory: matrices in bf16, vectors in f32.

use std::sync::Arc;

use cudarc::driver::CudaContext;
use half::bf16;

use super::{
    gemm::Matrix,
    memory::{Address, Layout, Region, upload},
};
use crate::{
    error::Result,
    model::{
        Model,
        config::ModelConfig,
        weights::{Checkpoint, Dtype, Tensor},
    },
};

/// One decoder layer's weights; a bias or norm that the model lacks is 0.
pub(super) struct Layer {
    pub(super) attention_norm: Address,
    pub(super) mlp_norm: Address,
    pub(super) query_norm: Address,
    pub(super) key_norm: Address,
    /// Queries, keys, values, one after the other.
    pub(super) qkv: Matrix,
    pub(super) qkv_bias: Address,
    pub(super) output: Matrix,
    pub(super) output_bias: Address,
    /// Gates, then ups.
    pub(super) gate_up: Matrix,
    pub(super) gate_up_bias: Address,
    pub(super) down: Matrix,
    pub(super) down_bias: Address,
}

/// Where each weight lies.
pub(super) struct Placed {
    pub(super) embedding: Address,
    /// The embedding's matrix, where the model shares it.
    pub(super) head: Address,
    pub(super) final_norm: Address,
    /// f32, `[positions, head_dim / 4, 4]`: cosines, then sines, of two neighbours.
    pub(super) angles: Address,
    /// The grades' token ids.
    pub(super) grades: Address,
    /// Whether a score reads the whole vocabulary.
    pub(super) label_mass: bool,
    pub(super) layers: Vec<Layer>,
}

impl Placed {
    /// Copies `model`'s weights and the rotary tables of `positions` positions.
    ///
    /// `Invalid` for a tensor that is missing, of the wrong shape or not finite; `Internal` if the
    /// device has too little memory.
    pub(super) fn load(
        context: &Arc<CudaContext>,
        model: &Model,
        positions: usize,
    ) -> Result<(Region, Self)> {
        let grades: Vec<u32> = model.profile.grades.iter().map(|grade| grade.token).collect();
        // Once to know how much there is, and once to copy it.
        let mut layout = Layout::default();
        place(&mut Placing { layout: &mut layout, base: None }, model, positions, &grades)?;
        let region = Region::allocate(context, layout.bytes(), "the weights")?;
        let mut layout = Layout::default();
        let mut placing = Placing { layout: &mut layout, base: Some(region.base()) };
        let placed = place(&mut placing, model, positions, &grades)?;
        Ok((region, placed))
    }
}

/// Hands out places; copies once there is a base.
struct Placing<'a> {
    layout: &'a mut Layout,
    base: Option<Address>,
}

impl Placing<'_> {
    fn put<T: Copy>(&mut self, len: usize, values: impl FnOnce() -> Result<Vec<T>>) -> Result<Address> {
        let at = self.layout.take(len * size_of::<T>()) as Address;
        match self.base {
            None => Ok(at),
            Some(base) => {
                upload(base + at, &values()?)?;
                Ok(base + at)
            }
        }
    }

    /// Matrices that share their input, one below the other.
    fn matrix(&mut self, from: &Checkpoint, parts: &[(String, usize)], depth: usize) -> Result<Matrix> {
        let outputs: usize = parts.iter().map(|(_, outputs)| outputs).sum();
        let at = self.put(outputs * depth, || {
            let mut rows = Vec::with_capacity(outputs * depth);
            for (name, outputs) in parts {
                let tensor = from.tensor(name, &[*outputs, depth])?;
                append_bf16(&tensor, &mut rows);
                tensor.release();
            }
            Ok(rows)
        })?;
        Ok(Matrix { at, outputs, depth })
    }

    fn vector(&mut self, from: &Checkpoint, parts: &[(String, usize)]) -> Result<Address> {
        let width: usize = parts.iter().map(|(_, width)| width).sum();
        self.put(width, || {
            let mut all = Vec::with_capacity(width);
            for (name, width) in parts {
                all.extend(from.tensor(name, &[*width])?.floats());
            }
            Ok(all)
        })
    }
}

fn place(placing: &mut Placing<'_>, model: &Model, positions: usize, grades: &[u32]) -> Result<Placed> {
    let (config, checkpoint) = (&model.config, &model.checkpoint);
    let (vocabulary, hidden) = (config.vocab_size, config.hidden_size);
    let rows = |name: &str| [(name.to_owned(), vocabulary)];
    let embedding = placing.matrix(checkpoint, &rows("model.embed_tokens.weight"), hidden)?.at;
    let head = match config.tied_head {
        true => embedding,
        false => placing.matrix(checkpoint, &rows("lm_head.weight"), hidden)?.at,
    };
    let angles = |position| {
        let row: Vec<_> = config.rotary_row(position).collect();
        row.as_chunks()
            .0
            .iter()
            .flat_map(|[(cos, sin), (next_cos, next_sin)]| [*cos, *next_cos, *sin, *next_sin])
            .collect::<Vec<f32>>()
    };
    Ok(Placed {
        embedding,
        head,
        final_norm: placing.vector(checkpoint, &[("model.norm.weight".to_owned(), hidden)])?,
        angles: placing.put(positions * config.head_dim, || Ok((0..positions).flat_map(angles).collect()))?,
        grades: placing.put(grades.len(), || Ok(grades.to_vec()))?,
        label_mass: model.profile.label_mass,
        layers: (0..config.layers).map(|i| layer(placing, checkpoint, config, i)).collect::<Result<_>>()?,
    })
}

fn layer(
    placing: &mut Placing<'_>,
    checkpoint: &Checkpoint,
    config: &ModelConfig,
    index: usize,
) -> Result<Layer> {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let (q, kv) = (config.query_width(), config.kv_width());
    let named = |parts: &[(&str, usize)], kind: &str| -> Vec<(String, usize)> {
        let name = |part: &str| format!("model.layers.{index}.{part}.{kind}");
        parts.iter().map(|(part, width)| (name(part), *width)).collect()
    };
    let mut joined = |parts: &[(&str, usize)], depth: usize, bias: bool| -> Result<(Matrix, Address)> {
        let matrix = placing.matrix(checkpoint, &named(parts, "weight"), depth)?;
        let bias = if bias { placing.vector(checkpoint, &named(parts, "bias"))? } else { 0 };
        Ok((matrix, bias))
    };
    let projections = [("self_attn.q_proj", q), ("self_attn.k_proj", kv), ("self_attn.v_proj", kv)];
    let (qkv, qkv_bias) = joined(&projections, hidden, config.qkv_bias)?;
    let (output, output_bias) = joined(&[("self_attn.o_proj", hidden)], q, config.o_bias)?;
    let (gate_up, gate_up_bias) =
        joined(&[("mlp.gate_proj", inner), ("mlp.up_proj", inner)], hidden, config.mlp_bias)?;
    let (down, down_bias) = joined(&[("mlp.down_proj", hidden)], inner, config.mlp_bias)?;
    let mut norm = |part: &str, width: usize| placing.vector(checkpoint, &named(&[(part, width)], "weight"));
    let (query_norm, key_norm) = match config.qk_norm {
        true => (norm("self_attn.q_norm", config.head_dim)?, norm("self_attn.k_norm", config.head_dim)?),
        false => (0, 0),
    };
    let attention_norm = norm("input_layernorm", hidden)?;
    let mlp_norm = norm("post_attention_layernorm", hidden)?;
    Ok(Layer {
        attention_norm,
        mlp_norm,
        query_norm,
        key_norm,
        qkv,
        qkv_bias,
        output,
        output_bias,
        gate_up,
        gate_up_bias,
        down,
        down_bias,
    })
}

fn append_bf16(tensor: &Tensor, to: &mut Vec<bf16>) {
    let bytes = tensor.bytes();
    match tensor.dtype {
        Dtype::BF16 => to.extend(bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b))),
        Dtype::F16 | Dtype::F32 => to.extend(tensor.floats().into_iter().map(bf16::from_f32)),
    }
}
