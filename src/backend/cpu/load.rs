//! Checkpoint tensors to the layouts that the kernels read.

use rayon::prelude::*;

use super::{
    CpuBackend, Head, Layer, Rotary, gemm::PackedMatrix, head::RowMatrix, isa::Isa, pass::Workspace,
};
use crate::{
    error::{Error, Result},
    model::{
        Model,
        config::ModelConfig,
        weights::{Checkpoint, Dtype, Tensor},
    },
};

pub(super) fn open(model: &Model, threads: usize) -> Result<CpuBackend> {
    let isa = Isa::detect();
    let config = model.config.clone();
    let threads = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|i| format!("compute-{i}"))
        .build()
        .map_err(|error| Error::internal("the compute threads could not be started").with_cause(error))?;
    let checkpoint = &model.checkpoint;
    let (vocabulary, hidden) = (config.vocab_size, config.hidden_size);
    let embedding = RowMatrix::new(checkpoint.tensor("model.embed_tokens.weight", &[vocabulary, hidden])?);
    let matrix = if config.tied_head {
        None
    } else {
        Some(RowMatrix::new(checkpoint.tensor("lm_head.weight", &[vocabulary, hidden])?))
    };
    let layers = threads.install(|| {
        (0..config.layers).map(|i| layer(isa, checkpoint, &config, i)).collect::<Result<Vec<_>>>()
    })?;
    let head = Head {
        grades: model.profile.grades.iter().map(|grade| grade.token).collect(),
        label_mass: model.profile.label_mass,
        matrix,
    };
    // Longer reasons than this end with `length`.
    const REASON_ROOM: usize = 4096;
    let positions = config.max_positions.min(model.profile.max_tokens + REASON_ROOM);
    Ok(CpuBackend {
        isa,
        embedding,
        layers,
        final_norm: vector(checkpoint, "model.norm.weight", hidden)?,
        head,
        rotary: rotary(&config, positions),
        kv: Vec::new(),
        workspace: Workspace::default(),
        threads,
        config,
    })
}

fn layer(isa: Isa, checkpoint: &Checkpoint, config: &ModelConfig, index: usize) -> Result<Layer> {
    let name = |part: &str| format!("model.layers.{index}.{part}");
    let hidden = config.hidden_size;
    let inner = config.intermediate_size;
    let (q, kv) = (config.query_width(), config.kv_width());
    let joined = |parts: &[(&str, usize)], depth: usize, bias: bool, gated: bool| {
        let tensors = parts
            .iter()
            .map(|(part, outputs)| checkpoint.tensor(&name(&format!("{part}.weight")), &[*outputs, depth]))
            .collect::<Result<Vec<_>>>()?;
        let biases = parts
            .iter()
            .map(|(part, outputs)| vector(checkpoint, &name(&format!("{part}.bias")), *outputs))
            .take(if bias { parts.len() } else { 0 })
            .collect::<Result<Vec<_>>>()?;
        pack(isa, &tensors, depth, bias.then(|| biases.concat()), gated)
    };
    let norm = |part: &str, width: usize| vector(checkpoint, &name(&format!("{part}.weight")), width);
    let head_norm = |part: &str| config.qk_norm.then(|| norm(part, config.head_dim)).transpose();
    Ok(Layer {
        attention_norm: norm("input_layernorm", hidden)?,
        mlp_norm: norm("post_attention_layernorm", hidden)?,
        query_norm: head_norm("self_attn.q_norm")?,
        key_norm: head_norm("self_attn.k_norm")?,
        queries: joined(&[("self_attn.q_proj", q)], hidden, config.qkv_bias, false)?,
        keys_values: joined(
            &[("self_attn.k_proj", kv), ("self_attn.v_proj", kv)],
            hidden,
            config.qkv_bias,
            false,
        )?,
        output: joined(&[("self_attn.o_proj", hidden)], q, config.o_bias, false)?,
        gate_up: joined(&[("mlp.gate_proj", inner), ("mlp.up_proj", inner)], hidden, config.mlp_bias, true)?,
        down: joined(&[("mlp.down_proj", hidden)], inner, config.mlp_bias, false)?,
    })
}

/// Packs tensors that share their input; mixed types (rare) meet in f32. `gated`: they are an MLP's gate and up.
fn pack(
    isa: Isa,
    tensors: &[Tensor],
    depth: usize,
    bias: Option<Vec<f32>>,
    gated: bool,
) -> Result<PackedMatrix> {
    let dtype = tensors[0].dtype;
    if tensors.iter().all(|tensor| tensor.dtype == dtype) {
        let parts: Vec<&[u8]> = tensors.iter().map(Tensor::bytes).collect();
        let packed = match parts[..] {
            [gate, up] if gated => PackedMatrix::pack_gated(isa, dtype, depth, [gate, up], bias),
            _ => PackedMatrix::pack(isa, dtype, depth, &parts, bias),
        };
        tensors.iter().for_each(Tensor::release);
        return Ok(packed);
    }
    let wide: Vec<Vec<u8>> =
        tensors.iter().map(|t| t.floats().iter().flat_map(|v| v.to_le_bytes()).collect()).collect();
    let parts: Vec<&[u8]> = wide.iter().map(Vec::as_slice).collect();
    Ok(PackedMatrix::pack(isa, Dtype::F32, depth, &parts, bias))
}

fn vector(checkpoint: &Checkpoint, name: &str, width: usize) -> Result<Vec<f32>> {
    Ok(checkpoint.tensor(name, &[width])?.floats())
}

fn rotary(config: &ModelConfig, positions: usize) -> Rotary {
    let (cos, sin) =
        (0..positions).into_par_iter().flat_map_iter(|position| config.rotary_row(position)).unzip();
    Rotary { cos, sin }
}
