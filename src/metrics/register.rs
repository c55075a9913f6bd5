//! Names, units, buckets and help of the metrics.

use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, core::Collector,
};

use super::{DropReason, EngineMetrics, Lane, Metrics, Rejection, RequestMetrics, ServerMetrics};
use crate::error::TABLE;

/// From a tenth of a millisecond to a minute.
const SECONDS: [f64; 18] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
    30.0, 60.0,
];
const TOKENS: [f64; 12] =
    [16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0, 32768.0];
const SEQUENCES: [f64; 10] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];
const TENTHS: [f64; 10] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];
const FILL: [f64; 8] = [0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 1.0];
const MASS: [f64; 8] = [0.1, 0.5, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0];

const SOUND: &str = "names and labels are constants, checked by the tests";

struct Register<'a>(&'a Registry);

impl Register<'_> {
    fn add<C: Collector + Clone + 'static>(&self, collector: C) -> C {
        self.0.register(Box::new(collector.clone())).expect(SOUND);
        collector
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.add(IntCounter::new(name, help).expect(SOUND))
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.add(IntCounterVec::new(Opts::new(name, help), labels).expect(SOUND))
    }

    /// Counters by one label whose values are known: they are there, at zero, from the start, so that the first of each is
    /// seen as an increase.
    fn known(
        &self,
        name: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = &'static str>,
    ) -> IntCounterVec {
        let counters = self.counters(name, help, &[label]);
        values.into_iter().for_each(|value| counters.with_label_values(&[value]).reset());
        counters
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.add(IntGauge::new(name, help).expect(SOUND))
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.add(IntGaugeVec::new(Opts::new(name, help), labels).expect(SOUND))
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        self.add(Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec())).expect(SOUND))
    }

    fn histograms(&self, name: &str, help: &str, buckets: &[f64], labels: &[&str]) -> HistogramVec {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        self.add(HistogramVec::new(options, labels).expect(SOUND))
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let registry = Registry::new();
        let of = Register(&registry);
        let build = of.gauges(
            "verdict_build_info",
            "Always 1; the labels say what was built.",
            &["version", "commit"],
        );
        build.with_label_values(&[crate::VERSION, crate::COMMIT]).set(1);
        let server = ServerMetrics::register(&of);
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        server.started.set(since_1970.as_secs() as i64);
        let (requests, engine) = (RequestMetrics::register(&of), EngineMetrics::register(&of));
        Self { requests, engine, server, registry }
    }
}

impl RequestMetrics {
    fn register(of: &Register<'_>) -> Self {
        Self {
            ended: of.counters(
                "verdict_requests_total",
                "Requests ended, by route, lane and code.",
                &["route", "lane", "code"],
            ),
            seconds: of.histograms(
                "verdict_request_seconds",
                "From a request's arrival to the end of its answer.",
                &SECONDS,
                &["lane"],
            ),
            tokenize_seconds: of.histogram(
                "verdict_tokenize_seconds",
                "Rendering and tokenizing one request.",
                &SECONDS,
            ),
            time_to_score_seconds: of.histogram(
                "verdict_time_to_score_seconds",
                "From having read a request to its last score.",
                &SECONDS,
            ),
            first_reason_token_seconds: of.histogram(
                "verdict_time_to_first_reason_token_seconds",
                "From having read a request to the first token of its first reason.",
                &SECONDS,
            ),
            failed_pairs: of.known(
                "verdict_failed_pairs_total",
                "Pairs that were answered with an error, by its code.",
                "code",
                TABLE.map(|row| row.name),
            ),
            rejections: of.known(
                "verdict_rejections_total",
                "Requests or explanations refused before any work, by reason.",
                "reason",
                Rejection::ALL.map(Rejection::as_str),
            ),
            admitted_pairs: of.gauge("verdict_admitted_pairs", "Pairs admitted and not yet answered."),
            admitted_explanations: of
                .gauge("verdict_admitted_explanations", "Explanations admitted and not yet ended."),
            admitted_tokens: of.gauge("verdict_admitted_tokens", "Tokens admitted and not yet answered."),
            relevance_score: of.histogram(
                "verdict_relevance_score",
                "Relevance scores; a drift of the traffic or the model shows here first.",
                &TENTHS,
            ),
            label_mass: of.histogram(
                "verdict_label_mass",
                "Full-vocabulary probability that fell on the grades.",
                &MASS,
            ),
        }
    }
}

impl EngineMetrics {
    fn register(of: &Register<'_>) -> Self {
        Self {
            queue_seconds: of.histogram(
                "verdict_queue_seconds",
                "From a pair's entering the queue to the start of its batch.",
                &SECONDS,
            ),
            compute_seconds: of.histogram(
                "verdict_compute_seconds",
                "Time of a pair's batch, once a pair.",
                &SECONDS,
            ),
            queue_length: of.gauges("verdict_queue_length", "Jobs waiting, by lane.", &["lane"]),
            jobs: of.known(
                "verdict_jobs_total",
                "Jobs queued, by lane.",
                "lane",
                [Lane::Score, Lane::Explain].map(Lane::as_str),
            ),
            dropped: of.known(
                "verdict_dropped_jobs_total",
                "Jobs that left the queue without compute, by reason.",
                "reason",
                [DropReason::Abandoned, DropReason::Expired].map(DropReason::as_str),
            ),
            batch_seconds: of.histogram("verdict_batch_seconds", "Time of a forward pass.", &SECONDS),
            batch_tokens: of.histogram("verdict_batch_tokens", "Distinct tokens of a forward pass.", &TOKENS),
            batch_sequences: of.histogram(
                "verdict_batch_sequences",
                "Sequences of a forward pass.",
                &SEQUENCES,
            ),
            batch_fill: of.histogram(
                "verdict_batch_fill_ratio",
                "Tokens of a forward pass over the most it could have held.",
                &FILL,
            ),
            batch_pairs: of
                .counter("verdict_pairs_computed_total", "Pairs that went through a forward pass."),
            batch_steps: of.counter("verdict_explain_steps_total", "Decode steps, counted by sequence."),
            tokens: of.counters(
                "verdict_tokens_total",
                "Prompt tokens, by how they were had: computed, shared in the batch, cached.",
                &["fate"],
            ),
            wasted_tokens: of.counter(
                "verdict_wasted_tokens_total",
                "Prompt tokens computed for requests that were left, late, or failed as a whole.",
            ),
            kv_blocks_used: of.gauge("verdict_kv_blocks_used", "KV blocks held."),
            kv_blocks_total: of.gauge("verdict_kv_blocks_total", "KV blocks there are."),
            prefix_cache_hit_tokens: of
                .counter("verdict_prefix_cache_hit_tokens_total", "Tokens found in the prefix cache."),
            prefix_cache_evicted_tokens: of.counter(
                "verdict_prefix_cache_evicted_tokens_total",
                "Tokens evicted from the prefix cache.",
            ),
            explain_tokens: of.counter("verdict_explain_tokens_total", "Tokens decoded for reasons."),
        }
    }
}

impl ServerMetrics {
    fn register(of: &Register<'_>) -> Self {
        Self {
            connections: of.gauge("verdict_connections", "Open connections on the main port."),
            body_bytes: of.gauge(
                "verdict_body_bytes",
                "Bytes of request bodies, and of answers not taken yet, that are held.",
            ),
            ready: of.gauge("verdict_ready", "1 while the server takes requests."),
            started: of
                .gauge("verdict_start_time_seconds", "When the process started, in seconds since 1970."),
            load_seconds: of.add(
                Gauge::new("verdict_model_load_seconds", "Time that loading the model took.").expect(SOUND),
            ),
            model_info: of.gauges(
                "verdict_model_info",
                "Always 1; the labels say what is served.",
                &["model", "profile_hash"],
            ),
        }
    }
}
