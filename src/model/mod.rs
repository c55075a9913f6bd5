//! The transformer: its configuration, its weights, and its one forward pass.

pub mod config;
pub mod forward;
pub mod weights;

use std::{collections::HashMap, path::Path};

use crate::{
    error::{Error, Result, listed},
    profile::{Grade, Profile},
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
    /// The model with every token of its vocabulary as a grade, so that a backend reads every logit:
    /// for comparing engines, not for serving.
    pub fn reading_every_token(mut self) -> Self {
        let grade = |token: usize| Grade {
            name: token.to_string(),
            label: String::new(),
            value: token as f64,
            token: token as u32,
            text: String::new(),
        };
        self.profile.grades = (0..self.config.vocab_size).map(grade).collect();
        self
    }

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
        refuse_adapter(dir)?;
        let checkpoint = Checkpoint::open(dir)?;
        let config_json = read(dir, CONFIG)?;
        let tokenizer_json = read(dir, TOKENIZER)?;
        let profile = if dir.join(PROFILE).is_file() { Some(read(dir, PROFILE)?) } else { None };
        let names = names(dir, &config_json);
        let model =
            Self::from_files(&origin, &config_json, &tokenizer_json, profile.as_deref(), &names, checkpoint)?;
        check_added_tokens(&model.tokenizer, dir)?;
        Ok(model)
    }

    /// The model that is embedded in the program: verdict-mini.
    pub fn bundled() -> Result<Self> {
        let checkpoint = Checkpoint::from_static(bundled::WEIGHTS, bundled::ORIGIN)?;
        let profile = Some(bundled::PROFILE);
        Self::from_files(bundled::ORIGIN, bundled::CONFIG, bundled::TOKENIZER, profile, &[], checkpoint)
    }

    fn from_files(
        origin: &str,
        config_json: &[u8],
        tokenizer_json: &[u8],
        profile_toml: Option<&[u8]>,
        names: &[String],
        checkpoint: Checkpoint,
    ) -> Result<Self> {
        let path = |name| Path::new(origin).join(name).display().to_string();
        let config = ModelConfig::from_json(config_json, &path(CONFIG))?;
        let tokenizer = Tokenizer::from_bytes(tokenizer_json, &path(TOKENIZER))?;
        check_vocabulary(&tokenizer, &config, &path(TOKENIZER))?;
        let profile = match profile_toml {
            Some(toml) => {
                let origin = path(PROFILE);
                let toml = str::from_utf8(toml).map_err(|cause| Error::invalid(&origin, cause))?;
                Profile::from_toml(toml, &origin, &tokenizer, &config)?
            }
            None => {
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                Profile::builtin(&names, origin, &tokenizer, &config)?
            }
        };
        checkpoint.check_layout(&config)?;
        checkpoint.check_tied_head(&config)?;
        let name = profile.name.clone();
        Ok(Self { profile, tokenizer, config, checkpoint, name })
    }
}

/// The files of the embedded model.
pub mod bundled {
    /// Begins the messages about them.
    pub const ORIGIN: &str = "models/verdict-mini";
    /// `config.json`.
    pub const CONFIG: &[u8] = include_bytes!("../../models/verdict-mini/config.json");
    /// `tokenizer.json`.
    pub const TOKENIZER: &[u8] = include_bytes!("../../models/verdict-mini/tokenizer.json");
    /// `relevance.toml`.
    pub const PROFILE: &[u8] = include_bytes!("../../models/verdict-mini/relevance.toml");
    /// `model.safetensors`.
    pub static WEIGHTS: &[u8] = include_bytes!("../../models/verdict-mini/model.safetensors");
}

const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
/// What PEFT writes beside an adapter's weights.
const ADAPTER: &str = "adapter_config.json";
/// Our own file in a checkpoint's directory.
const PROFILE: &str = "relevance.toml";

fn read(dir: &Path, name: &str) -> Result<Vec<u8>> {
    let path = dir.join(name);
    std::fs::read(&path)
        .map_err(|cause| Error::invalid(&path.display().to_string(), format!("cannot be read: {cause}")))
}

/// transformers would add it to the weights, or call the directory no model.
fn refuse_adapter(dir: &Path) -> Result<()> {
    let path = dir.join(ADAPTER);
    if !path.exists() {
        return Ok(());
    }
    let problem =
        "an adapter is not merged here; save the model that has it merged (PEFT's merge_and_unload)";
    Err(Error::invalid(&path.display().to_string(), problem))
}

/// The part of `tokenizer_config.json` that is read.
#[derive(serde::Deserialize)]
struct TokenizerConfig {
    added_tokens_decoder: Option<HashMap<String, AddedToken>>,
}

#[derive(serde::Deserialize)]
struct AddedToken {
    content: String,
}

/// transformers adds what only `tokenizer_config.json` has; here it would be plain text.
fn check_added_tokens(tokenizer: &Tokenizer, dir: &Path) -> Result<()> {
    let path = dir.join(TOKENIZER_CONFIG);
    let Ok(json) = std::fs::read(&path) else { return Ok(()) };
    let origin = path.display().to_string();
    let config: TokenizerConfig =
        serde_json::from_slice(&json).map_err(|cause| Error::invalid(&origin, cause))?;
    let mut unknown: Vec<&str> = config
        .added_tokens_decoder
        .iter()
        .flat_map(HashMap::values)
        .map(|token| token.content.as_str())
        .collect();
    unknown.retain(|text| tokenizer.control(text).is_none());
    unknown.sort_unstable();
    if unknown.is_empty() {
        return Ok(());
    }
    let unknown = listed(unknown);
    Err(Error::invalid(&origin, format!("added tokens that {TOKENIZER} does not have: {unknown}")))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bundled_model_loads_and_is_whole() {
        let model = Model::bundled().expect("loads");
        assert_eq!(model.name, "verdict-mini");
        assert!(model.profile.explain.is_some() && !model.profile.probes.is_empty());
        let embedding = model
            .checkpoint
            .tensor("model.embed_tokens.weight", &[model.config.vocab_size, model.config.hidden_size])
            .expect("finite");
        assert_eq!(embedding.elements(), model.config.vocab_size * model.config.hidden_size);
    }

    #[test]
    fn the_hugging_face_cache_names_the_repository() {
        let root = tempfile::tempdir().expect("made");
        let dir = root.path().join("models--Qwen--Qwen3-Reranker-0.6B/snapshots/0123abcd");
        std::fs::create_dir_all(&dir).expect("made");
        let names = names(&dir, br#"{"_name_or_path": "x/y"}"#);
        assert_eq!(names, ["models--Qwen--Qwen3-Reranker-0.6B", "x/y"]);
    }
}
