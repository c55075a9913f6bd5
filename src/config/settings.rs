//! The one list of settings, for flags, environment and file alike.

use std::{net::IpAddr, path::PathBuf};

use serde::Deserialize;

use super::{ApiKeys, Origins, Span};

/// Arguments of `verdict serve`.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ServeArgs {
    /// TOML file with any of the settings below (max_documents = 100); flags and environment win over it
    #[arg(long, value_name = "FILE", env = "VERDICT_CONFIG")]
    pub config: Option<PathBuf>,
    /// Everything else.
    #[command(flatten)]
    pub settings: Settings,
}

/// `--device`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum DeviceName {
    /// The fastest there is.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
}

/// `--log-format`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Every setting, as it was given or not. The names are those of the file's
/// keys, of the flags (with dashes) and of the environment (`VERDICT_` before
/// them).
#[derive(Clone, Debug, Default, Deserialize, clap::Args)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Address to listen on for HTTP and gRPC [default: 127.0.0.1]
    #[arg(long, value_name = "HOST", env = "VERDICT_HOST", help_heading = "Address")]
    pub host: Option<IpAddr>,
    /// Port for HTTP and gRPC; 0 takes a free one [default: 8080]
    #[arg(long, value_name = "PORT", env = "VERDICT_PORT", help_heading = "Address")]
    pub port: Option<u16>,
    /// Address to listen on for health and metrics [default: that of --host]
    #[arg(long, value_name = "HOST", env = "VERDICT_ADMIN_HOST", help_heading = "Address")]
    pub admin_host: Option<IpAddr>,
    /// Port for /livez, /readyz and /metrics; 0 takes a free one [default: 9090]
    #[arg(long, value_name = "PORT", env = "VERDICT_ADMIN_PORT", help_heading = "Address")]
    pub admin_port: Option<u16>,
    /// Serve /metrics on the main port as well [default: true]
    #[arg(long, value_name = "BOOL", env = "VERDICT_METRICS_ON_MAIN", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Address")]
    pub metrics_on_main: Option<bool>,
    /// API keys, of which a request then needs one, with commas between them; --api-keys-file keeps them out of sight [default: none needed]
    #[arg(
        long,
        value_name = "KEYS",
        env = "VERDICT_API_KEYS",
        hide_env_values = true,
        help_heading = "Access"
    )]
    pub api_keys: Option<ApiKeys>,
    /// File of API keys, one a line; lines that start with # are comments [default: none needed]
    #[arg(long, value_name = "FILE", env = "VERDICT_API_KEYS_FILE", help_heading = "Access")]
    pub api_keys_file: Option<PathBuf>,
    /// PEM file of the certificate and its chain: the main port then speaks TLS [default: in clear]
    #[arg(long, value_name = "FILE", env = "VERDICT_TLS_CERT", help_heading = "Access")]
    pub tls_cert: Option<PathBuf>,
    /// PEM file of the certificate's private key
    #[arg(long, value_name = "FILE", env = "VERDICT_TLS_KEY", help_heading = "Access")]
    pub tls_key: Option<PathBuf>,
    /// Origins whose web pages may call this server (scheme and host, as in `https://app.example`), with commas between them; * for all [default: none]
    #[arg(long, value_name = "ORIGINS", env = "VERDICT_CORS_ORIGINS", help_heading = "Access")]
    pub cors_origins: Option<Origins>,
    /// Directory of a Hugging Face checkpoint (config.json, tokenizer.json, *.safetensors) [default: the embedded model]
    #[arg(long, value_name = "DIR", env = "VERDICT_MODEL", help_heading = "Model")]
    pub model: Option<PathBuf>,
    /// Where to compute [default: auto]
    #[arg(long, value_name = "DEVICE", env = "VERDICT_DEVICE", help_heading = "Model")]
    pub device: Option<DeviceName>,
    /// Compute threads of the CPU backend, at most 64, or 4 per core where that is more; 0 takes one per core [default: 0]
    #[arg(long, value_name = "N", env = "VERDICT_THREADS", help_heading = "Model")]
    pub threads: Option<usize>,
    /// Documents or pairs in one request [default: 1024]
    #[arg(
        long,
        value_name = "N",
        env = "VERDICT_MAX_DOCUMENTS",
        help_heading = "Limits on requests (past them: 413)"
    )]
    pub max_documents: Option<usize>,
    /// Bytes of a query [default: 16384]
    #[arg(
        long,
        value_name = "BYTES",
        env = "VERDICT_MAX_QUERY_BYTES",
        help_heading = "Limits on requests (past them: 413)"
    )]
    pub max_query_bytes: Option<usize>,
    /// Bytes of an instruction [default: 16384]
    #[arg(
        long,
        value_name = "BYTES",
        env = "VERDICT_MAX_INSTRUCTION_BYTES",
        help_heading = "Limits on requests (past them: 413)"
    )]
    pub max_instruction_bytes: Option<usize>,
    /// Bytes of one document; what passes the model's token limit is truncated [default: 1048576]
    #[arg(
        long,
        value_name = "BYTES",
        env = "VERDICT_MAX_DOCUMENT_BYTES",
        help_heading = "Limits on requests (past them: 413)"
    )]
    pub max_document_bytes: Option<usize>,
    /// Bytes of a request's body [default: 16777216]
    #[arg(
        long,
        value_name = "BYTES",
        env = "VERDICT_MAX_BODY_BYTES",
        help_heading = "Limits on requests (past them: 413)"
    )]
    pub max_body_bytes: Option<usize>,
    /// Longest deadline, to which longer ones are cut, and that of requests without one [default: 60s]
    #[arg(
        long,
        value_name = "TIME",
        env = "VERDICT_MAX_DEADLINE",
        help_heading = "Requests that do not say"
    )]
    pub max_deadline: Option<Span>,
    /// Documents explained when a request does not say [default: 3]
    #[arg(long, value_name = "N", env = "VERDICT_EXPLAIN_TOP_N", help_heading = "Requests that do not say")]
    pub explain_top_n: Option<usize>,
    /// Most documents explained in one request [default: 16]
    #[arg(
        long,
        value_name = "N",
        env = "VERDICT_MAX_EXPLAINED",
        help_heading = "Limits on requests (past them: 413)"
    )]
    pub max_explained: Option<usize>,
    /// Most tokens of one reason; the model's own limit also holds [default: 256]
    #[arg(
        long,
        value_name = "N",
        env = "VERDICT_MAX_REASON_TOKENS",
        help_heading = "Limits on requests (past them: 413)"
    )]
    pub max_reason_tokens: Option<usize>,
    /// Most pairs admitted and not yet answered [default: 8192]
    #[arg(
        long,
        value_name = "N",
        env = "VERDICT_QUEUE_PAIRS",
        help_heading = "Admission (past it: 429 with Retry-After)"
    )]
    pub queue_pairs: Option<usize>,
    /// Most tokens admitted and not yet answered [default: 4194304]
    #[arg(
        long,
        value_name = "N",
        env = "VERDICT_QUEUE_TOKENS",
        help_heading = "Admission (past it: 429 with Retry-After)"
    )]
    pub queue_tokens: Option<usize>,
    /// Most sequences being explained or waiting for it; past it reasons are shed, scores are not [default: 64]
    #[arg(
        long,
        value_name = "N",
        env = "VERDICT_QUEUE_EXPLANATIONS",
        help_heading = "Admission (past it: 429 with Retry-After)"
    )]
    pub queue_explanations: Option<usize>,
    /// Most memory of request bodies, of all requests that are being read or answered, and of answers not taken yet, in MiB [default: 256]
    #[arg(
        long,
        value_name = "N",
        env = "VERDICT_QUEUE_BODY_MIB",
        help_heading = "Admission (past it: 429 with Retry-After)"
    )]
    pub queue_body_mib: Option<usize>,
    /// Most distinct tokens in one forward pass, up to 1048576 [default: 4096]
    #[arg(long, value_name = "N", env = "VERDICT_BATCH_TOKENS", help_heading = "Batching")]
    pub batch_tokens: Option<usize>,
    /// What a forward pass of scores should take: batches are cut to it, down to 256 tokens; 0s for no cut [default: 40ms]
    #[arg(long, value_name = "TIME", env = "VERDICT_BATCH_TIME", help_heading = "Batching")]
    pub batch_time: Option<Span>,
    /// Most sequences in one forward pass, up to 16384 [default: 256]
    #[arg(long, value_name = "N", env = "VERDICT_BATCH_SEQUENCES", help_heading = "Batching")]
    pub batch_sequences: Option<usize>,
    /// Most sequences decoded at once, up to 4096 [default: 8]
    #[arg(long, value_name = "N", env = "VERDICT_EXPLAIN_SEQUENCES", help_heading = "Batching")]
    pub explain_sequences: Option<usize>,
    /// The explain lane gets a step after at most so many score batches [default: 4]
    #[arg(long, value_name = "N", env = "VERDICT_EXPLAIN_EVERY", help_heading = "Batching")]
    pub explain_every: Option<usize>,
    /// KV memory of the prefix cache, in MiB; 0 turns it off [default: 256]
    #[arg(long, value_name = "N", env = "VERDICT_PREFIX_CACHE_MIB", help_heading = "Batching")]
    pub prefix_cache_mib: Option<usize>,
    /// KV memory held for explanations, in MiB [default: 1024]
    #[arg(long, value_name = "N", env = "VERDICT_EXPLAIN_KV_MIB", help_heading = "Batching")]
    pub explain_kv_mib: Option<usize>,
    /// On SIGTERM or SIGINT, how long admitted work may take to end [default: 30s]
    #[arg(long, value_name = "TIME", env = "VERDICT_GRACE", help_heading = "Operation")]
    pub grace: Option<Span>,
    /// With work and no finished forward pass for so long, the server is not ready, and a start ends [default: 120s]
    #[arg(long, value_name = "TIME", env = "VERDICT_STALL", help_heading = "Operation")]
    pub stall: Option<Span>,
    /// How long a client may take to send a request's head, its body or a message of a stream, its next request, and to take some of an answer [default: 75s]
    #[arg(long, value_name = "TIME", env = "VERDICT_READ_TIMEOUT", help_heading = "Operation")]
    pub read_timeout: Option<Span>,
    /// How often a quiet event stream gets a comment [default: 15s]
    #[arg(long, value_name = "TIME", env = "VERDICT_KEEP_ALIVE", help_heading = "Operation")]
    pub keep_alive: Option<Span>,
    /// Connections of the main port at once; more wait to be accepted [default: 4096]
    #[arg(long, value_name = "N", env = "VERDICT_MAX_CONNECTIONS", help_heading = "Operation")]
    pub max_connections: Option<usize>,
    /// OpenTelemetry collector that traces go to, by OTLP over gRPC, as in `http://collector:4317`; OTEL_EXPORTER_OTLP_ENDPOINT does as well [default: no traces]
    #[arg(long, value_name = "URL", env = "VERDICT_OTLP_ENDPOINT", help_heading = "Operation")]
    pub otlp_endpoint: Option<String>,
    /// Of the requests whose caller has no trace, the share that gets one, from 0 to 1 [default: OTEL_TRACES_SAMPLER, or all]
    #[arg(long, value_name = "SHARE", env = "VERDICT_TRACE_SAMPLE", help_heading = "Operation")]
    pub trace_sample: Option<f64>,
    /// What is logged: off, error, warn, info, debug (one line per request), trace, or also levels of modules, as in `info,verdict::engine=debug` [default: info]
    #[arg(long, value_name = "FILTER", env = "VERDICT_LOG", help_heading = "Operation")]
    pub log: Option<String>,
    /// How the log is written [default: text]
    #[arg(long, value_name = "FORMAT", env = "VERDICT_LOG_FORMAT", help_heading = "Operation")]
    pub log_format: Option<LogFormat>,
}

impl Settings {
    /// These settings where they are given, else `other`'s.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            host: self.host.or(other.host),
            port: self.port.or(other.port),
            admin_host: self.admin_host.or(other.admin_host),
            admin_port: self.admin_port.or(other.admin_port),
            metrics_on_main: self.metrics_on_main.or(other.metrics_on_main),
            api_keys: self.api_keys.or(other.api_keys),
            api_keys_file: self.api_keys_file.or(other.api_keys_file),
            tls_cert: self.tls_cert.or(other.tls_cert),
            tls_key: self.tls_key.or(other.tls_key),
            cors_origins: self.cors_origins.or(other.cors_origins),
            model: self.model.or(other.model),
            device: self.device.or(other.device),
            threads: self.threads.or(other.threads),
            max_documents: self.max_documents.or(other.max_documents),
            max_query_bytes: self.max_query_bytes.or(other.max_query_bytes),
            max_instruction_bytes: self.max_instruction_bytes.or(other.max_instruction_bytes),
            max_document_bytes: self.max_document_bytes.or(other.max_document_bytes),
            max_body_bytes: self.max_body_bytes.or(other.max_body_bytes),
            max_deadline: self.max_deadline.or(other.max_deadline),
            explain_top_n: self.explain_top_n.or(other.explain_top_n),
            max_explained: self.max_explained.or(other.max_explained),
            max_reason_tokens: self.max_reason_tokens.or(other.max_reason_tokens),
            queue_pairs: self.queue_pairs.or(other.queue_pairs),
            queue_tokens: self.queue_tokens.or(other.queue_tokens),
            queue_explanations: self.queue_explanations.or(other.queue_explanations),
            queue_body_mib: self.queue_body_mib.or(other.queue_body_mib),
            batch_tokens: self.batch_tokens.or(other.batch_tokens),
            batch_time: self.batch_time.or(other.batch_time),
            batch_sequences: self.batch_sequences.or(other.batch_sequences),
            explain_sequences: self.explain_sequences.or(other.explain_sequences),
            explain_every: self.explain_every.or(other.explain_every),
            prefix_cache_mib: self.prefix_cache_mib.or(other.prefix_cache_mib),
            explain_kv_mib: self.explain_kv_mib.or(other.explain_kv_mib),
            grace: self.grace.or(other.grace),
            stall: self.stall.or(other.stall),
            read_timeout: self.read_timeout.or(other.read_timeout),
            keep_alive: self.keep_alive.or(other.keep_alive),
            max_connections: self.max_connections.or(other.max_connections),
            otlp_endpoint: self.otlp_endpoint.or(other.otlp_endpoint),
            trace_sample: self.trace_sample.or(other.trace_sample),
            log: self.log.or(other.log),
            log_format: self.log_format.or(other.log_format),
        }
    }
}
