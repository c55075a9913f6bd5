//! Checkpoints with faults: each is refused at start with a message that names the file and the fault.

use std::path::{Path, PathBuf};

use safetensors::tensor::{TensorView, serialize_to_file};
use verdict::{
    backend::{Options, open},
    error::{Code, Error},
    model::Model,
};

/// A copy of a golden checkpoint, to be broken.
struct Broken {
    dir: tempfile::TempDir,
}

impl Broken {
    fn new(name: &str) -> Self {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
        let dir = tempfile::tempdir().expect("made");
        for entry in std::fs::read_dir(source).expect("listed") {
            let entry = entry.expect("listed");
            std::fs::copy(entry.path(), dir.path().join(entry.file_name())).expect("copied");
        }
        Self { dir }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    fn remove(self, file: &str) -> Self {
        std::fs::remove_file(self.path(file)).expect("removed");
        self
    }

    fn replace(self, file: &str, from: &str, to: &str) -> Self {
        let text = std::fs::read_to_string(self.path(file)).expect("read");
        assert!(text.contains(from), "{file} has no {from:?}");
        std::fs::write(self.path(file), text.replacen(from, to, 1)).expect("written");
        self
    }

    fn truncate(self, file: &str, bytes: u64) -> Self {
        let file = std::fs::OpenOptions::new().write(true).open(self.path(file)).expect("opened");
        file.set_len(bytes).expect("cut");
        self
    }

    /// Rewrites the weights: `edit` returns a tensor's new shape and bytes, or `None` to drop it.
    fn rewrite(self, edit: impl Fn(&str, Vec<usize>, Vec<u8>) -> Option<(Vec<usize>, Vec<u8>)>) -> Self {
        let path = self.path("model.safetensors");
        let bytes = std::fs::read(&path).expect("read");
        let file = safetensors::SafeTensors::deserialize(&bytes).expect("whole");
        let kept: Vec<_> = file
            .tensors()
            .into_iter()
            .filter_map(|(name, view)| {
                let (shape, data) = edit(&name, view.shape().to_vec(), view.data().to_vec())?;
                Some((name, view.dtype(), shape, data))
            })
            .collect();
        let views = kept.iter().map(|(name, dtype, shape, data)| {
            (name.as_str(), TensorView::new(*dtype, shape.clone(), data).expect("sound"))
        });
        serialize_to_file(views, None, &path).expect("written");
        self
    }

    /// The refusal by loading the model or, later, its weights; without the directory's path.
    fn refusal(&self) -> String {
        let error = self.refused();
        assert_eq!(error.code(), Code::Invalid, "{error}");
        let dir = self.dir.path().display().to_string();
        let message = error.message().strip_prefix(&dir).expect("begins with the path");
        message.trim_start_matches('/').trim_start_matches(": ").to_owned()
    }

    fn refused(&self) -> Error {
        let model = match Model::load(self.dir.path()) {
            Err(error) => return error,
            Ok(model) => model,
        };
        match open(&model, &Options { threads: 1, ..Options::default() }) {
            Err(error) => error,
            Ok(_) => panic!("loaded"),
        }
    }
}

const Q_PROJ: &str = "model.layers.1.self_attn.q_proj.weight";

#[test]
fn a_weight_that_is_not_finite() {
    let poison = |value: f32| {
        Broken::new("qwen3").rewrite(move |name, shape, mut data| {
            if name == Q_PROJ {
                data[40..44].copy_from_slice(&value.to_le_bytes());
            }
            Some((shape, data))
        })
    };
    assert_eq!(poison(f32::NAN).refusal(), format!("tensor {Q_PROJ} has NaN at index 10"));
    assert_eq!(poison(f32::NEG_INFINITY).refusal(), format!("tensor {Q_PROJ} has -inf at index 10"));
}

#[test]
fn a_missing_tensor() {
    let broken = Broken::new("qwen3").rewrite(|name, shape, data| (name != Q_PROJ).then_some((shape, data)));
    assert_eq!(broken.refusal(), format!("tensor {Q_PROJ} is missing"));
}

#[test]
fn a_tensor_of_the_wrong_shape() {
    let broken = Broken::new("qwen3").rewrite(|name, shape, data| {
        let shape = if name == Q_PROJ { vec![shape[1], shape[0]] } else { shape };
        Some((shape, data))
    });
    assert_eq!(broken.refusal(), format!("tensor {Q_PROJ} has shape [64, 128], expected [128, 64]"));
}

#[test]
fn a_tied_head_that_is_another() {
    let tied = || {
        Broken::new("llama3").replace(
            "config.json",
            "\"tie_word_embeddings\": false",
            "\"tie_word_embeddings\": true",
        )
    };
    let message = "tie_word_embeddings is true in config.json, but lm_head.weight is not model.embed_tokens.weight: \
                   say false, or remove it";
    assert_eq!(tied().refusal(), message);
    let embedding = std::cell::RefCell::new(Vec::new());
    let same = tied().rewrite(|name, shape, data| {
        if name == "model.embed_tokens.weight" {
            embedding.replace(data.clone());
        }
        Some((shape, data))
    });
    let same = same.rewrite(|name, shape, data| {
        Some((shape, if name == "lm_head.weight" { embedding.borrow().clone() } else { data }))
    });
    Model::load(same.dir.path()).expect("it is there twice");
}

#[test]
fn an_adapter_that_is_not_merged() {
    for file in ["README.md", "model.safetensors"] {
        let broken = Broken::new("qwen3");
        std::fs::write(broken.path("README.md"), "").expect("written");
        std::fs::write(broken.path("adapter_config.json"), "{}").expect("written");
        let expected = "adapter_config.json: an adapter is not merged here; save the model that has it merged \
                        (PEFT's merge_and_unload)";
        assert_eq!(broken.remove(file).refusal(), expected);
    }
}

#[test]
fn an_added_token_that_only_the_tokenizers_config_has() {
    let with = |token: &str| {
        let broken = Broken::new("qwen3");
        let config = format!(
            "{{\"added_tokens_decoder\": {{\"300\": {{\"content\": \"{token}\", \"special\": true}}}}}}"
        );
        std::fs::write(broken.path("tokenizer_config.json"), config).expect("written");
        broken
    };
    let expected = "tokenizer_config.json: added tokens that tokenizer.json does not have: [\"<|mine|>\"]";
    assert_eq!(with("<|mine|>").refusal(), expected);
    Model::load(with("<|im_end|>").dir.path()).expect("both have it");
}

#[test]
fn a_template_without_what_the_tokenizer_puts_before_a_text() {
    let with = |token: &str| {
        let processor = format!(
            r#""post_processor":{{"type":"TemplateProcessing","single":[{{"SpecialToken":{{"id":"{token}","type_id":0}}}},{{"Sequence":{{"id":"A","type_id":0}}}}],"pair":[{{"Sequence":{{"id":"A","type_id":0}}}},{{"Sequence":{{"id":"B","type_id":1}}}}],"special_tokens":{{"{token}":{{"id":"{token}","ids":[ID],"tokens":["{token}"]}}}}}},"#
        );
        let model = Model::load(Broken::new("qwen3").dir.path()).expect("loads");
        let id = model.tokenizer.control(token).expect("known").to_string();
        let broken = Broken::new("qwen3");
        broken.replace("tokenizer.json", "\"post_processor\":null,", &processor.replace("ID", &id))
    };
    let expected = "relevance.toml: prompt.template: must begin with [\"<|endoftext|>\"], which the tokenizer puts \
                    before every text";
    assert_eq!(with("<|endoftext|>").refusal(), expected);
    Model::load(with("<|im_start|>").dir.path()).expect("it does");
}

#[test]
fn a_config_of_another_model() {
    let broken = Broken::new("qwen3").replace("config.json", "\"hidden_size\": 64", "\"hidden_size\": 128");
    assert_eq!(broken.refusal(), "tensor model.embed_tokens.weight has shape [304, 64], expected [304, 128]");
}

#[test]
fn weights_cut_short() {
    for bytes in [0, 5, 1000, 400_000] {
        let message = Broken::new("qwen3").truncate("model.safetensors", bytes).refusal();
        assert!(message.starts_with("model.safetensors: "), "{bytes}: {message}");
        assert!(message.contains("not a whole safetensors file"), "{bytes}: {message}");
    }
}

#[test]
fn weights_that_are_absent() {
    let broken = Broken::new("qwen3").remove("model.safetensors");
    assert_eq!(broken.refusal(), "neither model.safetensors nor model.safetensors.index.json is there");
}

#[test]
fn an_index_that_names_an_absent_shard() {
    let shard = "model-00002-of-00002.safetensors";
    let message = Broken::new("qwen3-sharded").remove(shard).refusal();
    assert_eq!(message, format!("model.safetensors.index.json: {shard:?} is named but absent"));
    let escape = Broken::new("qwen3-sharded").replace("model.safetensors.index.json", shard, "../x");
    assert_eq!(
        escape.refusal(),
        "model.safetensors.index.json: \"../x\" is not the name of a file beside it"
    );
    let wrong = Broken::new("qwen3-sharded").replace("model.safetensors.index.json", "lm_head", "lm_tail");
    assert!(
        wrong.refusal().starts_with("model.safetensors.index.json: tensor lm_tail.weight is not in"),
        "{}",
        wrong.refusal()
    );
}

#[test]
fn an_absent_tokenizer_or_config() {
    for file in ["tokenizer.json", "config.json"] {
        let message = Broken::new("qwen3").remove(file).refusal();
        assert!(message.starts_with(&format!("{file}: cannot be read: ")), "{message}");
    }
}

#[test]
fn a_garbled_tokenizer() {
    let message = Broken::new("qwen3").truncate("tokenizer.json", 300).refusal();
    assert!(message.starts_with("tokenizer.json: not a tokenizer.json: "), "{message}");
}

#[test]
fn a_tokenizer_with_more_tokens_than_the_model() {
    let broken = Broken::new("qwen3").replace("config.json", "\"vocab_size\": 304", "\"vocab_size\": 200");
    let message = broken.refusal();
    assert!(message.starts_with("tokenizer.json: "), "{message}");
    assert!(message.ends_with("tokens, but config.json's vocab_size is 200"), "{message}");
}

#[test]
fn a_grade_that_is_two_tokens() {
    let broken = Broken::new("qwen3").replace("relevance.toml", "token = \"<|1|>\"", "token = \"so so\"");
    let message = broken.refusal();
    assert!(message.starts_with("relevance.toml: grades[1].token \"so so\" is "), "{message}");
    assert!(message.ends_with("; a grade must be exactly one"), "{message}");
}

#[test]
fn an_unknown_field_of_the_profile() {
    let message =
        Broken::new("qwen3").replace("relevance.toml", "[prompt]", "[prompt]\ntemplete = \"x\"").refusal();
    assert!(message.starts_with("relevance.toml: "), "{message}");
    assert!(message.contains("unknown field `templete`, expected one of `template`"), "{message}");
}

#[test]
fn no_profile_and_no_known_name() {
    let message = Broken::new("qwen3").remove("relevance.toml").refusal();
    assert!(message.starts_with("no relevance.toml, and no built-in profile by these names"), "{message}");
    assert!(message.contains("write one with [prompt] and [[grades]]"), "{message}");
}

#[test]
fn an_unsupported_architecture() {
    let message = Broken::new("qwen3").replace("config.json", "\"qwen3\"", "\"mistral\"").refusal();
    assert_eq!(
        message,
        "config.json: model_type \"mistral\" is not supported; supported are qwen3, qwen2 and llama"
    );
}

#[test]
fn a_directory_that_is_not_there() {
    let error = Model::load("/nonexistent/model".as_ref()).expect_err("refused");
    assert_eq!((error.code(), error.message()), (Code::Invalid, "/nonexistent/model: no such directory"));
}
