//! What was typed (flags, environment, TOML file) to what the parts need.
//!
//! [`Settings`] is one list of names for all three sources; each wins over the
//! next: flag, environment, file, default.

mod access;
mod check;
mod duration;
mod export;
mod filter;
mod settings;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    admission::Capacity,
    backend::STALL,
    engine::EngineConfig,
    error::{Error, Result},
    request::Limits,
};

pub use access::{Access, ApiKeys, Origins, TlsFiles};
pub(crate) use check::threads;
pub use duration::Span;
pub use export::Export;
pub use settings::{DeviceName, LogFormat, ServeArgs, Settings};

/// Everything a server needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where HTTP and gRPC are served.
    pub address: SocketAddr,
    /// Where health and metrics are served.
    pub admin: SocketAddr,
    /// Whether `/metrics` is on the main port as well.
    pub metrics_on_main: bool,
    /// Who may ask, and from where.
    pub access: Access,
    /// Directory of the checkpoint; the embedded model if `None`.
    pub model: Option<PathBuf>,
    /// Where to compute.
    pub device: DeviceName,
    /// Compute threads of the CPU backend; 0 takes one per core.
    pub threads: usize,
    /// Batching.
    pub engine: EngineConfig,
    /// Largest request.
    pub limits: Limits,
    /// Most that is admitted at once.
    pub capacity: Capacity,
    /// Bytes of request bodies that may be held at once.
    pub bodies: usize,
    /// How long admitted work may take to end when the server is told to stop.
    pub grace: Duration,
    /// With work and no finished forward pass for so long, the engine counts as stuck.
    pub stall: Duration,
    /// How long a client may take to send a request's head, its body, and its next request.
    pub read_timeout: Duration,
    /// How often a quiet event stream gets a comment.
    pub keep_alive: Duration,
    /// Connections of the main port at once.
    pub connections: usize,
    /// Where traces go, if anywhere.
    pub export: Option<Export>,
    /// How the log is written.
    pub log_format: LogFormat,
    /// What is logged: a level, or levels of modules, in tracing's filter syntax.
    pub log: String,
}

impl Config {
    /// Merges command line and environment with the file they may name.
    ///
    /// # Errors
    ///
    /// `Invalid`, naming the file and the key or the flag, the limit and the value.
    pub fn load(args: ServeArgs) -> Result<Self> {
        let file = match &args.config {
            Some(path) => Settings::read(path)?,
            None => Settings::default(),
        };
        let mut settings = args.settings.or(file);
        export::standard(&mut settings, |name| std::env::var(name).ok())?;
        Self::new(settings)
    }

    /// Fills in the defaults and checks what one value says of another.
    ///
    /// # Errors
    ///
    /// `Invalid`, naming the setting.
    pub fn new(settings: Settings) -> Result<Self> {
        let host = settings.host.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let limits = limits(&settings);
        let config = Self {
            address: SocketAddr::new(host, settings.port.unwrap_or(8080)),
            admin: SocketAddr::new(settings.admin_host.unwrap_or(host), settings.admin_port.unwrap_or(9090)),
            metrics_on_main: settings.metrics_on_main.unwrap_or(true),
            access: Access::read(&settings)?,
            model: settings.model.clone(),
            device: settings.device.unwrap_or_default(),
            threads: settings.threads.unwrap_or(0),
            engine: engine(&settings),
            capacity: Capacity {
                pairs: settings.queue_pairs.unwrap_or(8192),
                tokens: settings.queue_tokens.unwrap_or(4 << 20),
                explanations: settings.queue_explanations.unwrap_or(64),
            },
            bodies: settings.queue_body_mib.unwrap_or(256).saturating_mul(1 << 20),
            grace: span(settings.grace, Duration::from_secs(30)),
            stall: span(settings.stall, STALL),
            read_timeout: span(settings.read_timeout, Duration::from_secs(75)),
            keep_alive: span(settings.keep_alive, Duration::from_secs(15)),
            connections: settings.max_connections.unwrap_or(4096),
            export: Export::read(&settings)?,
            log_format: settings.log_format.unwrap_or_default(),
            log: settings.log.clone().unwrap_or_else(|| "info".to_owned()),
            limits,
        };
        config.check()?;
        Ok(config)
    }
}

fn limits(settings: &Settings) -> Limits {
    let default = Limits::default();
    Limits {
        documents: settings.max_documents.unwrap_or(default.documents),
        query_bytes: settings.max_query_bytes.unwrap_or(default.query_bytes),
        instruction_bytes: settings.max_instruction_bytes.unwrap_or(default.instruction_bytes),
        document_bytes: settings.max_document_bytes.unwrap_or(default.document_bytes),
        body_bytes: settings.max_body_bytes.unwrap_or(default.body_bytes),
        explain_top_n: settings.explain_top_n.unwrap_or(default.explain_top_n),
        explain_documents: settings.max_explained.unwrap_or(default.explain_documents),
        reason_tokens: settings.max_reason_tokens.unwrap_or(default.reason_tokens),
        deadline: span(settings.max_deadline, default.deadline),
    }
}

fn engine(settings: &Settings) -> EngineConfig {
    let default = EngineConfig::default();
    EngineConfig {
        batch_tokens: settings.batch_tokens.unwrap_or(default.batch_tokens),
        batch_time: span(settings.batch_time, default.batch_time),
        batch_sequences: settings.batch_sequences.unwrap_or(default.batch_sequences),
        explain_sequences: settings.explain_sequences.unwrap_or(default.explain_sequences),
        explain_every: settings.explain_every.unwrap_or(default.explain_every),
        prefix_cache_bytes: settings
            .prefix_cache_mib
            .map_or(default.prefix_cache_bytes, |mib| mib.saturating_mul(1 << 20)),
        explain_kv_bytes: settings
            .explain_kv_mib
            .map_or(default.explain_kv_bytes, |mib| mib.saturating_mul(1 << 20)),
    }
}

fn span(set: Option<Span>, default: Duration) -> Duration {
    set.map_or(default, |span| span.0)
}

impl Settings {
    /// Reads a TOML file.
    ///
    /// # Errors
    ///
    /// `Invalid`, naming the path and the key.
    pub fn read(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|cause| Error::invalid(&name, format!("cannot be read: {cause}")).with_cause(cause))?;
        let read = toml::Deserializer::parse(&text).map_err(|cause| (String::new(), cause));
        let read = read.and_then(|toml| {
            serde_path_to_error::deserialize(toml)
                .map_err(|error| (format!("{}: ", error.path()), error.into_inner()))
        });
        read.map_err(|(key, cause)| refused(&name, &text, &key, &cause))
    }
}

/// Where in the file what is wrong. The parser's own words are not kept as a cause: they repeat
/// the line, and a line may hold API keys.
fn refused(name: &str, text: &str, key: &str, cause: &toml::de::Error) -> Error {
    let Some(span) = cause.span() else { return Error::invalid(name, cause.message()) };
    let before = &text[..text.floor_char_boundary(span.start)];
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|&character| character != '\n').count() + 1;
    let said = cause.message().replace("expected usize", "expected a whole number from 0 up");
    // The key of what is unknown is in the message.
    let key = if said.starts_with("unknown field") { "" } else { key };
    Error::invalid(name, format!("line {line}, column {column}: {key}{said}"))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use clap::{CommandFactory as _, Parser};

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: ServeArgs,
    }

    fn parse(words: &[&str]) -> ServeArgs {
        Line::try_parse_from([&["verdict"], words].concat()).unwrap_or_else(|error| panic!("{error}")).args
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.write_all(text.as_bytes()).expect("written");
        file
    }

    #[test]
    fn the_defaults_are_those_of_the_manual() {
        let config = Config::new(Settings::default()).expect("valid");
        assert_eq!(config.address.to_string(), "127.0.0.1:8080");
        assert_eq!(config.admin.to_string(), "127.0.0.1:9090");
        assert!(config.model.is_none() && config.metrics_on_main);
    }

    #[test]
    fn help_tells_every_default() {
        let help = Line::command().render_long_help().to_string();
        let config = Config::new(Settings::default()).expect("valid");
        for (flag, default) in [
            ("--port", "8080".to_owned()),
            ("--admin-port", "9090".to_owned()),
            ("--max-documents", config.limits.documents.to_string()),
            ("--max-query-bytes", config.limits.query_bytes.to_string()),
            ("--max-instruction-bytes", config.limits.instruction_bytes.to_string()),
            ("--max-document-bytes", config.limits.document_bytes.to_string()),
            ("--max-body-bytes", config.limits.body_bytes.to_string()),
            ("--max-deadline", Span(config.limits.deadline).to_string()),
            ("--explain-top-n", config.limits.explain_top_n.to_string()),
            ("--max-explained", config.limits.explain_documents.to_string()),
            ("--max-reason-tokens", config.limits.reason_tokens.to_string()),
            ("--queue-pairs", config.capacity.pairs.to_string()),
            ("--queue-tokens", config.capacity.tokens.to_string()),
            ("--queue-explanations", config.capacity.explanations.to_string()),
            ("--batch-tokens", config.engine.batch_tokens.to_string()),
            ("--queue-body-mib", (config.bodies >> 20).to_string()),
            ("--batch-time", Span(config.engine.batch_time).to_string()),
            ("--batch-sequences", config.engine.batch_sequences.to_string()),
            ("--explain-sequences", config.engine.explain_sequences.to_string()),
            ("--explain-every", config.engine.explain_every.to_string()),
            ("--prefix-cache-mib", (config.engine.prefix_cache_bytes >> 20).to_string()),
            ("--explain-kv-mib", (config.engine.explain_kv_bytes >> 20).to_string()),
            ("--grace", Span(config.grace).to_string()),
            ("--stall", Span(config.stall).to_string()),
            ("--read-timeout", Span(config.read_timeout).to_string()),
            ("--keep-alive", Span(config.keep_alive).to_string()),
            ("--max-connections", config.connections.to_string()),
        ] {
            let from = help.find(&format!("{flag} <")).unwrap_or_else(|| panic!("{flag} is not in the help"));
            let rest = &help[from + flag.len()..];
            let entry = &rest[..rest.find("\n      --").unwrap_or(rest.len())];
            let entry = entry.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(entry.contains(&format!("[default: {default}]")), "{flag}: {default} is not in: {entry}");
        }
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let file = file("port = 1234\nmax_documents = 7\ngrace = \"2s\"\ndevice = \"cpu\"\n");
        let path = file.path().to_str().expect("a text path");
        let config = Config::load(parse(&["--config", path, "--port", "99"])).expect("valid");
        assert_eq!(config.address.port(), 99);
        assert_eq!(config.limits.documents, 7);
        assert_eq!(config.grace, Duration::from_secs(2));
        assert_eq!(config.device, DeviceName::Cpu);
        assert_eq!(config.admin.port(), 9090);
    }

    #[test]
    fn every_setting_has_an_environment_variable() {
        let command = Line::command();
        for argument in command
            .get_arguments()
            .filter(|argument| !["help", "version"].contains(&argument.get_id().as_str()))
        {
            let expected = format!("VERDICT_{}", argument.get_id().as_str().to_uppercase());
            let name = argument.get_env().and_then(|name| name.to_str());
            assert_eq!(name, Some(expected.as_str()), "{}", argument.get_id());
        }
    }

    #[test]
    fn unknown_and_wrong_keys_are_named() {
        let refuse = |text: &str| {
            let file = file(text);
            let error = Settings::read(file.path()).expect_err("refused");
            assert!(error.message().starts_with(&file.path().display().to_string()), "{error}");
            error.message().to_owned()
        };
        assert!(refuse("prot = 80\n").contains("unknown field `prot`"), "{}", refuse("prot = 80\n"));
        assert!(refuse("port = \"x\"\n").contains("invalid type: string \"x\""));
        assert!(refuse("grace = \"soon\"\n").contains("\"soon\" is not a duration"));
        let error = Settings::read(Path::new("/nonexistent/verdict.toml")).expect_err("refused");
        assert!(error.message().starts_with("/nonexistent/verdict.toml: cannot be read"));
    }

    #[test]
    fn a_broken_file_is_told_by_its_place_and_never_by_its_text() {
        for (text, place) in [
            ("api_keys = [\"secret-key-123\", 5]\n", "line 1, column 12: "),
            ("port = 1\n\napi_keys = \"secret-key-123\n", "line 3, column "),
            ("# é\n  api_keys = [secret-key-123]\n", "line 2, column "),
            ("api_keys = ['secret-key-123'", "line 1, column "),
            ("api_keys = 'secret-key-123' 'more'", "line 1, column "),
            ("[api_keys]\nfirst = \"secret-key-123\"\n", "line 1, column 1: "),
            ("[[api_keys]]\nsecret-key-123 = 5\n", "line 1, column "),
            ("api_key = \"secret-key-123\"\n", "line 1, column 1: unknown field `api_key`"),
            ("api_keys = 'a'\napi_keys = 'secret-key-123'\n", "line 2, column "),
        ] {
            let file = file(text);
            let error = Settings::read(file.path()).expect_err("refused");
            let said = crate::cli::Failure::new(crate::cli::Exit::Usage, error).to_string();
            assert!(said.starts_with(&format!("{}: {place}", file.path().display())), "{said}");
            assert!(!said.contains("secret"), "{said}");
        }
    }
}
