//! Weights as the products read them: panels of outputs, in the precision of the checkpoint.

use half::{bf16, f16, slice::HalfFloatSliceExt};
use rayon::prelude::*;

use super::amx;
use super::isa::{Isa, kernel};
use super::tile::{Lanes, PANEL, align, widen};
use crate::model::weights::Dtype;

/// A weight matrix as panels, in the precision of the checkpoint.
pub struct PackedMatrix {
    outputs: usize,
    depth: usize,
    pub(super) panels: Panels,
    pub(super) bias: Option<Vec<f32>>,
    gated: bool,
}

/// `panel[depth][16]`, one panel after the other.
pub(super) enum Panels {
    F32(Vec<Lanes>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
    /// bf16 for the tile unit: by panel and depth block, `tile[depth / 2][16][2]`.
    Bf16Tiles(Vec<amx::Tile>),
}

impl PackedMatrix {
    /// Packs row-major weights `[rows, depth]` given as parts that follow each other by rows
    /// (q, k, v, say), all of one `dtype`, as little-endian bytes.
    pub fn pack(isa: Isa, dtype: Dtype, depth: usize, parts: &[&[u8]], bias: Option<Vec<f32>>) -> Self {
        let rows = parts.iter().flat_map(|part| part.chunks_exact(depth * dtype.size())).collect();
        Self::pack_rows(isa, dtype, depth, rows, bias)
    }

    /// Packs an MLP's gate and up weights. Where they can be computed panel beside panel, products with the
    /// result are gated ([`super::gemm::product`]); else gate's outputs come first, then up's.
    pub fn pack_gated(
        isa: Isa,
        dtype: Dtype,
        depth: usize,
        parts: [&[u8]; 2],
        bias: Option<Vec<f32>>,
    ) -> Self {
        let panel = PANEL * depth * dtype.size();
        let whole = parts[0].len() == parts[1].len() && parts[0].len().is_multiple_of(panel);
        if !(isa == Isa::Amx && dtype == Dtype::BF16 && whole) {
            return Self::pack(isa, dtype, depth, &parts, bias);
        }
        let [gate, up] = parts.map(|part| part.chunks_exact(panel));
        let rows = gate.zip(up).flat_map(|(gate, up)| [gate, up]);
        let rows = rows.flat_map(|panel| panel.chunks_exact(depth * dtype.size())).collect();
        let bias = bias.map(|bias| {
            let (gate, up) = bias.split_at(bias.len() / 2);
            gate.chunks(PANEL)
                .zip(up.chunks(PANEL))
                .flat_map(|(gate, up)| [gate, up])
                .flatten()
                .copied()
                .collect()
        });
        Self { gated: true, ..Self::pack_rows(isa, dtype, depth, rows, bias) }
    }

    fn pack_rows(isa: Isa, dtype: Dtype, depth: usize, rows: Vec<&[u8]>, bias: Option<Vec<f32>>) -> Self {
        let panels = match dtype {
            Dtype::F32 => Panels::F32(align(&interleave(&rows, depth, f32::from_le_bytes))),
            Dtype::F16 => Panels::F16(interleave(&rows, depth, f16::from_le_bytes)),
            Dtype::BF16 if isa == Isa::Amx => Panels::Bf16Tiles(amx::weight_tiles(&rows, depth)),
            Dtype::BF16 => Panels::Bf16(interleave(&rows, depth, bf16::from_le_bytes)),
        };
        Self { outputs: rows.len(), depth, panels, bias, gated: false }
    }

    /// Number of outputs.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Number of inputs.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Whether these weights are laid out for the tile unit.
    pub(super) fn is_tiled(&self) -> bool {
        matches!(self.panels, Panels::Bf16Tiles(_))
    }

    /// Whether products with these weights are gated.
    pub(super) fn is_gated(&self) -> bool {
        self.gated
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        match &self.panels {
            Panels::F32(p) => size_of_val(p.as_slice()),
            Panels::F16(p) => p.len() * 2,
            Panels::Bf16(p) => p.len() * 2,
            Panels::Bf16Tiles(p) => size_of_val(p.as_slice()),
        }
    }

    /// Depth block `from..from + len` of panel `panel` in f32, expanded into `scratch` if stored in 16 bits.
    pub(super) fn block<'a>(
        &'a self,
        isa: Isa,
        panel: usize,
        from: usize,
        len: usize,
        scratch: &'a mut [Lanes],
    ) -> &'a [Lanes] {
        let lanes = panel * self.depth + from..panel * self.depth + from + len;
        let values = lanes.start * PANEL..lanes.end * PANEL;
        let scratch = &mut scratch[..len];
        match &self.panels {
            Panels::F32(all) => return &all[lanes],
            Panels::F16(all) => {
                let from = all[values].as_chunks::<PANEL>().0;
                scratch.iter_mut().zip(from).for_each(|(to, from)| from.convert_to_f32_slice(&mut to.0));
            }
            Panels::Bf16(all) => expand_bf16(isa, &all[values], scratch),
            Panels::Bf16Tiles(_) => unreachable!("tiles are never expanded"),
        }
        scratch
    }
}

fn interleave<T: Copy + Default + Send + Sync, const N: usize>(
    rows: &[&[u8]],
    depth: usize,
    read: impl Fn([u8; N]) -> T + Sync,
) -> Vec<T> {
    let mut panels = vec![T::default(); rows.len().div_ceil(PANEL) * PANEL * depth];
    panels.par_chunks_mut(PANEL * depth).zip(rows.par_chunks(PANEL)).for_each(|(panel, rows)| {
        for (column, row) in rows.iter().enumerate() {
            let (values, _) = row.as_chunks::<N>();
            for (k, value) in values.iter().enumerate() {
                panel[k * PANEL + column] = read(*value);
            }
        }
    });
    panels
}

kernel! {
    fn expand_bf16(from: &[bf16], to: &mut [Lanes]) {
        for (to, from) in to.iter_mut().zip(from.as_chunks::<PANEL>().0) {
            for (to, from) in to.0.iter_mut().zip(from) {
                *to = widen(*from);
            }
        }
    }
}
