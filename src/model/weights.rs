//! Tensors of a Hugging Face checkpoint: one or many safetensors files,
//! memory-mapped, or bytes embedded in the binary.

use std::{ops::Range, path::Path, sync::Arc};

use crate::error::Result;

/// Element type of a stored tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// 32-bit IEEE float.
    F32,
    /// 16-bit IEEE float.
    F16,
    /// bfloat16.
    BF16,
}

impl Dtype {
    /// Bytes per element.
    pub fn size(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::BF16 => 2,
        }
    }
}

/// Where a file's bytes live; shared by the tensors in it.
#[derive(Debug)]
pub enum Storage {
    /// A read-only memory map.
    Mapped(memmap2::Mmap),
    /// Bytes of the binary itself.
    Static(&'static [u8]),
    /// Bytes made in memory (tests).
    Owned(Vec<u8>),
}

/// One tensor: row-major little-endian bytes inside a [`Storage`]. All finite.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Name in the checkpoint.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Shape, outermost first.
    pub shape: Vec<usize>,
    storage: Arc<Storage>,
    range: Range<usize>,
}

impl Tensor {
    /// The raw bytes; not necessarily aligned.
    pub fn bytes(&self) -> &[u8] {
        let all: &[u8] = match &*self.storage {
            Storage::Mapped(map) => map,
            Storage::Static(bytes) => bytes,
            Storage::Owned(bytes) => bytes,
        };
        &all[self.range.clone()]
    }
}

/// An opened checkpoint.
pub struct Checkpoint {}

impl Checkpoint {
    /// Opens `model.safetensors` or the shards of `model.safetensors.index.json` in `dir`.
    pub fn open(_dir: &Path) -> Result<Self> {
        todo!()
    }

    /// The tensor `name`, checked: present, of exactly `shape`, f32/f16/bf16, every value finite.
    pub fn tensor(&self, _name: &str, _shape: &[usize]) -> Result<Tensor> {
        todo!()
    }
}
