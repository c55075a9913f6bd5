//! Tensors of a Hugging Face checkpoint: one or many safetensors files,
//! memory-mapped, or bytes embedded in the binary.

mod finite;
mod layout;

use std::{
    collections::{BTreeSet, HashMap},
    fs::File,
    ops::Range,
    path::Path,
    sync::Arc,
};

use safetensors::SafeTensors;
use serde::Deserialize;

use crate::error::{Error, Result};

pub use layout::expected_tensors;

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

impl Storage {
    /// Maps a file.
    #[expect(unsafe_code, reason = "memory maps")]
    fn map(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|cause| unreadable(path, cause))?;
        // SAFETY: the map is read-only and private to this process's view. A file that another
        // process shortens or rewrites while it is mapped is outside what a map can promise;
        // checkpoints are replaced by renaming, as every tool that writes them does.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|cause| unreadable(path, cause))?;
        Ok(Storage::Mapped(map))
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Storage::Mapped(map) => map,
            Storage::Static(bytes) => bytes,
            Storage::Owned(bytes) => bytes,
        }
    }
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
    /// Lets the system take back the mapped pages of a tensor that was copied to another layout;
    /// should they be read again after all, they come from the file.
    #[expect(unsafe_code, reason = "advice on a memory map")]
    pub fn release(&self) {
        #[cfg(unix)]
        if let Storage::Mapped(map) = &*self.storage {
            use memmap2::UncheckedAdvice::DontNeed;
            // SAFETY: the map is read-only and backed by its file, so dropped pages read the same.
            // A refusal only means that the pages stay.
            let _ = unsafe { map.unchecked_advise_range(DontNeed, self.range.start, self.range.len()) };
        }
    }

    /// Every element in f32, in order.
    pub fn floats(&self) -> Vec<f32> {
        let bytes = self.bytes();
        match self.dtype {
            Dtype::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Dtype::F16 => bytes.as_chunks().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect(),
            Dtype::BF16 => {
                bytes.as_chunks().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect()
            }
        }
    }

    /// The raw bytes; not necessarily aligned.
    pub fn bytes(&self) -> &[u8] {
        &self.storage.bytes()[self.range.clone()]
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.range.len() / self.dtype.size()
    }
}

/// An opened checkpoint: the tensors of one or many safetensors files, by name.
pub struct Checkpoint {
    origin: String,
    tensors: HashMap<String, Stored>,
}

/// Where a tensor lies, unchecked but for the file's own bounds.
struct Stored {
    dtype: safetensors::Dtype,
    shape: Vec<usize>,
    storage: Arc<Storage>,
    range: Range<usize>,
}

/// `model.safetensors.index.json`.
#[derive(Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

/// One file with all the weights.
const SINGLE: &str = "model.safetensors";
/// The list of the files that hold them.
const INDEX: &str = "model.safetensors.index.json";
/// What transformers puts before the names of the decoder's tensors in a causal language model.
const PREFIX: &str = "model.";

impl Checkpoint {
    /// Opens `model.safetensors` or the shards of `model.safetensors.index.json` in `dir`.
    ///
    /// `Invalid`, naming the file: neither is there, a shard is absent, a file is cut short or
    /// garbled, or a tensor is not in the shard that the index names.
    pub fn open(dir: &Path) -> Result<Self> {
        let mut checkpoint = Self { origin: dir.display().to_string(), tensors: HashMap::new() };
        let (single, index) = (dir.join(SINGLE), dir.join(INDEX));
        if single.is_file() {
            checkpoint.add(Storage::map(&single)?, &single.display().to_string())?;
        } else if index.is_file() {
            checkpoint.add_shards(dir, &index)?;
        } else {
            return Err(Error::invalid(&checkpoint.origin, format!("neither {SINGLE} nor {INDEX} is there")));
        }
        Ok(checkpoint)
    }

    /// Opens a safetensors file embedded in the binary; `origin` names it in errors.
    pub fn from_static(bytes: &'static [u8], origin: &str) -> Result<Self> {
        Self::from_storage(Storage::Static(bytes), origin)
    }

    /// Opens a safetensors file held in memory; `origin` names it in errors.
    pub fn from_storage(storage: Storage, origin: &str) -> Result<Self> {
        let mut checkpoint = Self { origin: origin.to_owned(), tensors: HashMap::new() };
        checkpoint.add(storage, origin)?;
        Ok(checkpoint)
    }

    /// Where it was opened, for messages.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The stored names, sorted.
    pub fn names(&self) -> BTreeSet<&str> {
        self.tensors.keys().map(String::as_str).collect()
    }

    /// Bytes of all its tensors.
    pub fn byte_size(&self) -> usize {
        self.tensors.values().map(|stored| stored.range.len()).sum()
    }

    /// The tensor `name`, checked: present, of exactly `shape`, f32/f16/bf16, every value finite.
    ///
    /// A checkpoint of the bare decoder, whose names lack `model.`, is found too.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let tensor = self.located(name, shape)?;
        match finite::first_not_finite(tensor.bytes(), tensor.dtype) {
            None => Ok(tensor),
            Some((index, value)) => {
                let problem = format!("tensor {} has {value} at index {index}", tensor.name);
                Err(Error::invalid(&self.origin, problem))
            }
        }
    }

    /// As [`Checkpoint::tensor`], but its values are not read.
    fn located(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let (name, stored) = self.find(name)?;
        if stored.shape != shape {
            let problem = format!("tensor {name} has shape {:?}, expected {shape:?}", stored.shape);
            return Err(Error::invalid(&self.origin, problem));
        }
        let dtype = match stored.dtype {
            safetensors::Dtype::F32 => Dtype::F32,
            safetensors::Dtype::F16 => Dtype::F16,
            safetensors::Dtype::BF16 => Dtype::BF16,
            other => {
                let problem = format!("tensor {name} is {other:?}; supported are F32, F16 and BF16");
                return Err(Error::invalid(&self.origin, problem));
            }
        };
        let (storage, range) = (Arc::clone(&stored.storage), stored.range.clone());
        Ok(Tensor { name: name.to_owned(), dtype, shape: stored.shape.clone(), storage, range })
    }

    /// Whether there is a tensor `name`.
    pub fn contains(&self, name: &str) -> bool {
        self.find(name).is_ok()
    }

    fn find<'a>(&'a self, name: &'a str) -> Result<(&'a str, &'a Stored)> {
        [Some(name), name.strip_prefix(PREFIX)]
            .into_iter()
            .flatten()
            .find_map(|name| Some((name, self.tensors.get(name)?)))
            .ok_or_else(|| Error::invalid(&self.origin, format!("tensor {name} is missing")))
    }

    fn add_shards(&mut self, dir: &Path, index: &Path) -> Result<()> {
        let origin = index.display().to_string();
        let json = std::fs::read(index).map_err(|cause| unreadable(index, cause))?;
        let Index { weight_map } =
            serde_json::from_slice(&json).map_err(|cause| Error::invalid(&origin, cause))?;
        for file in weight_map.values().collect::<BTreeSet<_>>() {
            // A shard is a file beside the index: a path would read outside the directory.
            if file.contains(['/', '\\']) || file.is_empty() {
                return Err(Error::invalid(&origin, format!("{file:?} is not the name of a file beside it")));
            }
            let path = dir.join(file);
            if !path.is_file() {
                return Err(Error::invalid(&origin, format!("{file:?} is named but absent")));
            }
            self.add(Storage::map(&path)?, &path.display().to_string())?;
        }
        let absent = weight_map.iter().filter(|(name, _)| !self.tensors.contains_key(*name)).min();
        match absent {
            None => Ok(()),
            Some((name, file)) => Err(Error::invalid(&origin, format!("tensor {name} is not in {file:?}"))),
        }
    }

    fn add(&mut self, storage: Storage, origin: &str) -> Result<()> {
        let storage = Arc::new(storage);
        // Checks that the tensors lie in the file, without gaps or overlap, and fill it.
        let (header, metadata) = SafeTensors::read_metadata(storage.bytes())
            .map_err(|cause| Error::invalid(origin, format!("not a whole safetensors file: {cause}")))?;
        // The data begin after the header's length and the header.
        let data = header + size_of::<u64>();
        for (name, info) in metadata.tensors() {
            let (start, end) = info.data_offsets;
            let range = data + start..data + end;
            let (dtype, shape, storage) = (info.dtype, info.shape.clone(), Arc::clone(&storage));
            self.tensors.insert(name, Stored { dtype, shape, storage, range });
        }
        Ok(())
    }
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Checkpoint")
            .field("origin", &self.origin)
            .field("tensors", &self.tensors.len())
            .finish()
    }
}

fn unreadable(path: &Path, cause: std::io::Error) -> Error {
    Error::invalid(&path.display().to_string(), format!("cannot be read: {cause}"))
}

#[cfg(test)]
mod tests;
