//! The transformer: its configuration, its weights, and its one forward pass.

pub mod config;
pub mod forward;
pub mod weights;

use std::path::Path;

use crate::{
    error::{Error, Result},
    profile::Profile,
    tokenize::Tokenizer,
};

use config::ModelConfig;
use weights::Checkpoint;

/// A loaded model: everything but the device's copy of its weights.
#[derive(Debug)]
pub struct Model {
    /// How it is prompted and read.
    pub profile: Profile,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Its shape.
    pub config: ModelConfig,
    /// Its weights.
    pub checkpoint: Checkpoint,
    /// The name it is served under: the profile's.
    pub name: String,
}

impl Model {
    /// Loads a Hugging Face directory: `config.json`, `tokenizer.json`, safetensors, and
    /// `relevance.toml` or a name that a built-in profile knows.
    ///
    /// `Invalid`, naming the file and what is wrong with it. The weights' values are checked
    /// later, as the backend takes them from the checkpoint.
    pub fn load(dir: &Path) -> Result<Self> {
        let origin = dir.display().to_string();
        if !dir.is_dir() {
            return Err(Error::invalid(&origin, "no such directory"));
        }
        let (config_json, config_path) = read(dir, "config.json")?;
        let config = ModelConfig::from_json(&config_json, &config_path)?;
        let (tokenizer_json, tokenizer_path) = read(dir, "tokenizer.json")?;
        let tokenizer = Tokenizer::from_bytes(&tokenizer_json, &tokenizer_path)?;
        check_vocabulary(&tokenizer, &config, &tokenizer_path)?;
        let profile = if dir.join(PROFILE).is_file() {
            let (toml, path) = read(dir, PROFILE)?;
            let toml = String::from_utf8(toml).map_err(|cause| Error::invalid(&path, cause))?;
            Profile::from_toml(&toml, &path, &tokenizer, &config)?
        } else {
            let names = names(dir, &config_json);
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            Profile::builtin(&names, &origin, &tokenizer, &config)?
        };
        let checkpoint = Checkpoint::open(dir)?;
        checkpoint.check_layout(&config)?;
        let name = profile.name.clone();
        Ok(Self { profile, tokenizer, config, checkpoint, name })
    }
}

/// Our own file in a checkpoint's directory.
const PROFILE: &str = "relevance.toml";

fn read(dir: &Path, name: &str) -> Result<(Vec<u8>, String)> {
    let path = dir.join(name);
    let shown = path.display().to_string();
    match std::fs::read(&path) {
        Ok(bytes) => Ok((bytes, shown)),
        Err(cause) => Err(Error::invalid(&shown, format!("cannot be read: {cause}"))),
    }
}

/// What a checkpoint is called: its directory (in the Hugging Face cache, which names
/// directories by commit, the one that names the repository), and the name some tools leave
/// in `config.json`.
fn names(dir: &Path, config_json: &[u8]) -> Vec<String> {
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    let snapshots = dir.parent().filter(|parent| parent.file_name().is_some_and(|name| name == "snapshots"));
    let named = snapshots.and_then(Path::parent).unwrap_or(&dir);
    let directory = named.file_name().map(|name| name.to_string_lossy().into_owned());
    let config: serde_json::Value = serde_json::from_slice(config_json).unwrap_or_default();
    let written = config.get("_name_or_path").and_then(|name| name.as_str()).map(str::to_owned);
    directory.into_iter().chain(written).collect()
}

/// Every token that the tokenizer can give must have a row in the embedding.
fn check_vocabulary(tokenizer: &Tokenizer, config: &ModelConfig, origin: &str) -> Result<()> {
    let (tokens, rows) = (tokenizer.vocab_size(), config.vocab_size);
    if tokens > rows {
        return Err(Error::invalid(
            origin,
            format!("{tokens} tokens, but config.json's vocab_size is {rows}"),
        ));
    }
    Ok(())
}
