//! `verdict prompt`: JSON lines in, the prompts' token ids out, by the server's own renderer.

use std::{io::BufRead as _, path::PathBuf};

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::{
    error::Result,
    model::Model,
    request::{Document, Items},
    server::http::wire,
    service::{Names, document_text},
};

use super::{Failure, files, load_model, score};

/// Arguments of `verdict prompt`.
#[derive(Clone, Debug, clap::Args)]
pub struct PromptArgs {
    /// Directory of a Hugging Face checkpoint [default: the embedded model]
    #[arg(long, value_name = "DIR", env = "VERDICT_MODEL")]
    model: Option<PathBuf>,
    /// Requests, one JSON object a line: a body of POST /score, or {"query": …, "document": …}; - is stdin
    #[arg(long, short, value_name = "FILE", default_value = "-")]
    input: PathBuf,
    /// Where to write the prompts, a line for each request; - is stdout
    #[arg(long, short, value_name = "FILE", default_value = "-")]
    output: PathBuf,
}

/// Writes `{"prompts": [{"ids": …, "document": [start, end], "truncated": …}, …]}` for every line: the
/// ids in the order of the request's documents, and which of them (partly) stand for the document.
/// Nothing is computed.
///
/// A line that fails leaves `{"line": …, "error": …}` in its place and the others stand. A reader of
/// the output that leaves ends it.
///
/// # Errors
///
/// [`Exit::Model`](super::Exit::Model) if the model is refused, [`Exit::Usage`](super::Exit::Usage) if a file cannot be opened
/// or both are one, [`Exit::Runtime`](super::Exit::Runtime) if reading or writing fails or, at the end, if any line failed.
pub fn run(args: PromptArgs) -> Result<(), Failure> {
    let (mut input, mut output) = files::open(&args.input, &args.output)?;
    let model = load_model(args.model.as_deref())?;
    let mut failed = 0_u64;
    for number in 1.. {
        let mut line = Vec::new();
        let read = input
            .reader
            .read_until(b'\n', &mut line)
            .with_context(|| format!("{}: line {number} cannot be read", input.name))?;
        if read == 0 {
            break;
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        let answer = prompts(&model, &line).map_err(|error| score::failure(number, &line, &error));
        failed += u64::from(answer.is_err());
        let answer = answer.map_or_else(|error| error, |prompts| prompts.to_string().into_bytes());
        output.bytes(&answer)?;
        if output.is_left() {
            break;
        }
    }
    output.flush()?;
    match failed {
        0 => Ok(()),
        failed => {
            Err(Failure::from(anyhow::anyhow!("{failed} of the lines failed; see their error objects")))
        }
    }
}

/// The prompts of one line's pairs.
fn prompts(model: &Model, line: &[u8]) -> Result<Value> {
    let profile = &model.profile;
    let (items, options) = score::read(line, wire::score)?.into_parts();
    let instruction = options.instruction.as_ref().unwrap_or(&profile.instruction);
    let names = Names::of(&items);
    let pairs: Vec<(String, Document)> = match items {
        Items::Documents { query, documents } => {
            documents.into_iter().map(|document| (query.clone(), document)).collect()
        }
        Items::Pairs(pairs) => pairs.into_iter().map(|pair| (pair.query, pair.document)).collect(),
    };
    let render = |query: &str, text: &str| {
        let filled = profile.template.for_query(&model.tokenizer, instruction, query, profile.max_tokens)?;
        filled.render(text, options.truncation)
    };
    let prompts: Result<Vec<Value>> = pairs
        .into_iter()
        .enumerate()
        .map(|(index, (query, document))| {
            let (_, text) = document_text(document, options.blank, profile, || names.document(index))?;
            let prompt = render(&query, &text).map_err(|error| names.place(index, error))?;
            let document = [prompt.document.start, prompt.document.end];
            Ok(json!({"ids": prompt.tokens, "document": document, "truncated": prompt.truncated}))
        })
        .collect();
    Ok(json!({ "prompts": prompts? }))
}
