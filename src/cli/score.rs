//! `verdict score`: JSON lines in, JSON lines out, through the same service as the server.

use std::{
    io::{self, BufRead},
    path::PathBuf,
};

use anyhow::Context as _;
use futures::StreamExt as _;
use serde_json::{Value, json};
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    error::{Error, Result},
    server::http::{unique::Unique, wire, write},
    service::Service,
};

use super::{
    Exit, Failure,
    files::{self, Input},
    local::{Local, ModelArgs},
    output::Output,
    progress::Progress,
};

/// Arguments of `verdict score`.
#[derive(Clone, Debug, clap::Args)]
pub struct ScoreArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Requests, one JSON object a line: a body of POST /score, or {"query": …, "document": …}; gzipped if
    /// named .gz; - is stdin
    #[arg(long, short, value_name = "FILE", default_value = "-")]
    input: PathBuf,
    /// Where to write the responses, one a line, in the order of the requests; - is stdout
    #[arg(long, short, value_name = "FILE", default_value = "-")]
    output: PathBuf,
    /// Add reasons, as POST /score?explain=true does
    #[arg(long)]
    explain: bool,
}

/// Requests that are being worked on at once: enough to fill the engine's batches.
const CONCURRENT: usize = 64;

/// Scores every line.
///
/// A line that fails leaves `{"line": …, "error": …}` in its place and the others stand. A reader of
/// the output that leaves ends it.
///
/// # Errors
///
/// [`Exit::Model`] if the model is refused or its probes fail, [`Exit::Usage`] if a file cannot
/// be opened or both are one, [`Exit::Runtime`] if reading or writing fails or, at the end, if any line failed.
pub fn run(args: ScoreArgs) -> Result<(), Failure> {
    let (input, output) = files::open(&args.input, &args.output)?;
    let local = Local::start(&args.model)?;
    local.runtime.block_on(local.service.run_probes()).map_err(|error| Failure::new(Exit::Model, error))?;
    let lines = local.runtime.block_on(score(&local.service, input, output, args.explain));
    local.stop()?;
    match lines? {
        0 => Ok(()),
        failed => {
            Err(Failure::from(anyhow::anyhow!("{failed} of the lines failed; see their error objects")))
        }
    }
}

/// A line's number, from 1, and its bytes.
type Line = (usize, io::Result<Vec<u8>>);

/// Scores all lines; returns how many failed, wholly or for a pair.
async fn score(service: &Service, input: Input, mut output: Output, explain: bool) -> anyhow::Result<u64> {
    let mut progress = Progress::new("requests", None);
    let Input { reader, name } = input;
    let name = &name;
    let mut answers = ReceiverStream::new(lines(reader))
        .map(|(number, line)| async move {
            let line = line.with_context(|| format!("{name}: line {number} cannot be read"))?;
            anyhow::Ok(answer(service, number, &line, explain).await)
        })
        .buffered(CONCURRENT);
    while let Some(answer) = answers.next().await {
        let Answer { body, ok } = answer?;
        output.bytes(&body)?;
        if output.is_left() {
            return Ok(progress.failed());
        }
        progress.step(ok);
    }
    output.flush()?;
    progress.finish();
    Ok(progress.failed())
}

/// Reads on a thread of its own, so that waiting for input holds up no answer.
fn lines(mut input: Box<dyn BufRead + Send>) -> tokio::sync::mpsc::Receiver<Line> {
    let (sender, receiver) = tokio::sync::mpsc::channel(CONCURRENT);
    std::thread::spawn(move || {
        for number in 1.. {
            let mut line = Vec::new();
            let read = match input.read_until(b'\n', &mut line) {
                Ok(0) => return,
                Ok(_) if line.trim_ascii().is_empty() => continue,
                Ok(_) => Ok(line),
                Err(cause) => Err(cause),
            };
            let failed = read.is_err();
            // Nobody receives any more once writing has failed.
            if sender.blocking_send((number, read)).is_err() || failed {
                return;
            }
        }
    });
    receiver
}

struct Answer {
    body: Vec<u8>,
    /// The line and all of its pairs were scored.
    ok: bool,
}

async fn answer(service: &Service, number: usize, line: &[u8], explain: bool) -> Answer {
    let scored = async {
        if explain {
            service.explain(read(line, wire::explain)?).await?.collect().await
        } else {
            Ok((service.score(read(line, wire::score)?).await?, Vec::new()))
        }
    };
    match scored.await {
        Ok((response, reasons)) => Answer {
            body: write::scores(&response, &reasons),
            ok: response.results.iter().all(|result| result.score.is_ok()),
        },
        Err(error) => Answer { body: failure(number, line, &error), ok: false },
    }
}

/// What a line asks for: a body of `POST /score`, or one pair.
pub(super) fn read<T>(line: &[u8], parse: impl Fn(&[u8]) -> Result<T>) -> Result<T> {
    match request(line)? {
        Some(body) => parse(&body).map_err(unwrapped),
        None => parse(line),
    }
}

/// A request of one pair as a body of `POST /score`; `None` if the line is not of that form.
///
/// As strict as that route: a name that is there twice, at any depth, or `pairs` or `documents`
/// beside `document`, is an error.
fn request(line: &[u8]) -> Result<Option<Vec<u8>>> {
    let mut fields = match serde_json::from_slice(line) {
        Ok(Unique(Value::Object(fields))) => fields,
        // What is no JSON, or of the other form, is told by whoever parses it.
        Err(_) if is_pair(line) => return Err(repeated(line)),
        Ok(_) | Err(_) => return Ok(None),
    };
    if !(fields.contains_key("query") && fields.contains_key("document")) {
        return Ok(None);
    }
    if let Some(other) = ["pairs", "documents"].into_iter().find(|name| fields.contains_key(*name)) {
        return Err(Error::invalid(other, "cannot be combined with document"));
    }
    let pair = json!({"query": fields.remove("query"), "document": fields.remove("document")});
    fields.insert("pairs".to_owned(), json!([pair]));
    Ok(serde_json::to_vec(&fields).ok())
}

/// Whether a line is JSON and of the form of one pair, but for names that are there twice.
fn is_pair(line: &[u8]) -> bool {
    let value = serde_json::from_slice(line).unwrap_or(Value::Null);
    value.get("query").is_some() && value.get("document").is_some()
}

/// Says where in a line a name is there twice.
fn repeated(line: &[u8]) -> Error {
    let mut deserializer = serde_json::Deserializer::from_slice(line);
    match serde_path_to_error::deserialize::<_, Unique>(&mut deserializer) {
        Err(cause) => {
            let path = cause.path().to_string();
            Error::invalid(if path == "." { "body" } else { &path }, cause.inner())
        }
        Ok(_) => Error::invalid("body", "not a request"),
    }
}

/// An error of a body that [`request`] made, in terms of the line it was made from.
fn unwrapped(error: Error) -> Error {
    let message = error.message().replacen("pairs[0].", "", 1);
    // A column of the made body means nothing to the line's author.
    let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(before, _)| before);
    Error::new(error.code(), message)
}

/// What stands in the place of a line that failed, in the line's own terms.
pub(super) fn failure(number: usize, line: &[u8], error: &Error) -> Vec<u8> {
    let code = error.code().row().name;
    let message = error.message();
    let message = message.strip_prefix("pairs[0].").filter(|_| is_pair(line)).unwrap_or(message);
    // Here the caller and the operator are one: nothing is held back.
    json!({"line": number, "error": {"code": code, "message": message}}).to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_one_pair_is_read_as_strictly_as_a_body() {
        let refusal = |line: &str| read(line.as_bytes(), wire::score).expect_err(line).message().to_owned();
        for (line, message) in [
            (r#"{"query":"q","document":"d","document":"e"}"#, "body: duplicate field `document` at line 1 "),
            (r#"{"query":"q","document":"d","query":"r"}"#, "body: duplicate field `query` at line 1 "),
            (
                r#"{"query":"q","document":"d","raw":true,"raw":false}"#,
                "body: duplicate field `raw` at line 1 ",
            ),
            (r#"{"query":"q","document":{"t":"x","t":"y"}}"#, "document: duplicate field `t` at line 1 "),
            (r#"{"query":"q","document":{"t":{"u":1,"u":2}}}"#, "document.t: duplicate field `u` at line 1 "),
            (r#"{"query":"q","document":"d","pairs":[]}"#, "pairs: cannot be combined with document"),
            (
                r#"{"query":"q","document":"d","documents":["e"]}"#,
                "documents: cannot be combined with document",
            ),
            (r#"{"query":"q","document":"d","x":1}"#, "x: unknown field `x`"),
            (r#"{"query":"q","query":"q"}"#, "body: duplicate field `query` at line 1 "),
        ] {
            assert!(refusal(line).starts_with(message), "{line}: {}", refusal(line));
        }
    }

    #[test]
    fn an_error_is_told_in_the_terms_of_its_line() {
        let error = Error::too_large("pairs[0].document", "tokens", 7, 8);
        let told = |line: &str| String::from_utf8(failure(3, line.as_bytes(), &error)).expect("text");
        let message = r#"document: 8 tokens, over the limit of 7"#;
        let one = told(r#"{"query":"q","document":"d"}"#);
        assert_eq!(one, format!(r#"{{"error":{{"code":"too_large","message":"{message}"}},"line":3}}"#));
        assert!(told(r#"{"pairs":[["q","d"]]}"#).contains(&format!("\"pairs[0].{message}\"")));
    }

    #[test]
    fn a_line_of_one_pair_keeps_its_options_and_its_fields() {
        let line = r#"{"document":{"id":"x","n":0.1,"title":"t"},"raw":true,"query":"q"}"#;
        let body = r#"{"pairs":[{"query":"q","document":{"id":"x","n":0.1,"title":"t"}}],"raw":true}"#;
        let parts = |text: &str| read(text.as_bytes(), wire::score).expect("valid").into_parts();
        assert_eq!(format!("{:?}", parts(line)), format!("{:?}", parts(body)));
    }
}
