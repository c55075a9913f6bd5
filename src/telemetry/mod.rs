//! Traces of requests, sent to an OpenTelemetry collector by OTLP over gRPC.
//!
//! Off unless an endpoint is configured; then nothing of this is built and a
//! request carries a `None`. Stages are recorded after they ended, from the times
//! that the service measures anyway, so no stage waits for its span. Spans are
//! handed to a bounded queue that a thread empties: a collector that is slow or
//! gone costs spans, never requests.

use std::{
    fmt,
    time::{Duration, Instant, SystemTime},
};

use opentelemetry::{
    Context, KeyValue,
    propagation::{Extractor, Injector, TextMapPropagator as _},
    trace::{Span as _, SpanBuilder, SpanKind, Status, TraceContextExt as _, TracerProvider as _},
};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    trace::{Sampler, SdkTracer, SdkTracerProvider, Span},
};

use crate::{
    config::Export,
    error::{Error, Result},
};

/// The name of the scope that the spans belong to, and of the service if `OTEL_SERVICE_NAME` says none.
const NAME: &str = "verdict";

/// Names of the headers of W3C trace context.
pub const TRACEPARENT: &str = "traceparent";
/// See [`TRACEPARENT`].
pub const TRACESTATE: &str = "tracestate";

/// Makes the traces of a server's requests, and sends them.
pub struct Tracing {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    w3c: TraceContextPropagator,
}

impl Tracing {
    /// Starts exporting. The connection is made when there are spans to send. Must be called
    /// inside a tokio runtime.
    ///
    /// # Errors
    ///
    /// `Invalid`, naming the endpoint that cannot be used.
    pub fn open(export: &Export) -> Result<Self> {
        let exporter = SpanExporter::builder().with_tonic().with_endpoint(&export.endpoint).build().map_err(
            |cause| {
                Error::invalid("otlp_endpoint", format!("{:?}: {cause}", export.endpoint)).with_cause(cause)
            },
        )?;
        let mut resource =
            Resource::builder().with_attribute(KeyValue::new("service.version", crate::VERSION));
        if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
            resource = resource.with_service_name(NAME);
        }
        let mut provider =
            SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource.build());
        if let Some(share) = export.sample {
            // What a caller decided holds; this is for requests that begin a trace here.
            let root = Sampler::TraceIdRatioBased(share);
            provider = provider.with_sampler(Sampler::ParentBased(Box::new(root)));
        }
        let provider = provider.build();
        let tracer = provider.tracer(NAME);
        Ok(Self { provider, tracer, w3c: TraceContextPropagator::new() })
    }

    /// A request arrives with these headers of W3C trace context, either of which may be absent
    /// or broken: then its trace begins here.
    pub fn arrived(&self, traceparent: Option<&str>, tracestate: Option<&str>) -> Trace {
        let parent = self.w3c.extract_with_context(&Context::new(), &Headers { traceparent, tracestate });
        let clock = Clock { instant: Instant::now(), time: SystemTime::now() };
        let span = SpanBuilder::from_name("request")
            .with_kind(SpanKind::Server)
            .with_start_time(clock.time)
            .start_with_context(&self.tracer, &parent);
        Trace { tracer: self.tracer.clone(), context: parent.with_span(span), clock }
    }

    /// The headers that lead from an answer to its trace.
    pub fn headers(&self, trace: &Trace) -> Vec<(String, String)> {
        let mut headers = Sent(Vec::new());
        self.w3c.inject_context(&trace.context, &mut headers);
        headers.0.retain(|(_, value)| !value.is_empty());
        headers.0
    }

    /// Sends what has not been sent, for at most `patience`, and ends. Blocks: call it off the
    /// async threads.
    pub fn close(&self, patience: Duration) {
        if let Err(error) = self.provider.shutdown_with_timeout(patience) {
            tracing::warn!(%error, "the last spans could not be sent");
        }
    }
}

/// A request's span, under which its stages are. Cheap to clone.
#[derive(Clone)]
pub struct Trace {
    tracer: SdkTracer,
    context: Context,
    clock: Clock,
}

impl fmt::Debug for Trace {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.id())
    }
}

/// Two readings of one moment: stages are measured on the clock that never jumps.
#[derive(Clone, Copy)]
struct Clock {
    instant: Instant,
    time: SystemTime,
}

impl Clock {
    fn time(self, instant: Instant) -> SystemTime {
        match instant.checked_duration_since(self.instant) {
            Some(later) => self.time + later,
            None => self.time - self.instant.duration_since(instant),
        }
    }
}

impl Trace {
    /// The trace's id in hexadecimal, as logs and collectors show it.
    pub fn id(&self) -> String {
        self.context.span().span_context().trace_id().to_string()
    }

    /// Whether the trace is recorded, and not one that sampling left out.
    pub fn is_recorded(&self) -> bool {
        self.context.span().is_recording()
    }

    /// Says what the request is: the route (a path, or a gRPC method's) and its id.
    pub fn name(&self, route: &'static str, request_id: &str) {
        let span = self.context.span();
        if !span.is_recording() {
            return;
        }
        span.update_name(route);
        let method = route.trim_start_matches('/').contains('.');
        let kind = if method { KeyValue::new("rpc.system", "grpc") } else { http_method() };
        let name = KeyValue::new(if method { "rpc.method" } else { "http.route" }, route);
        span.set_attributes([kind, name, KeyValue::new("verdict.request_id", request_id.to_owned())]);
    }

    /// The request ended, with a code's name or `ok` or `cancelled`, on a lane. `fault` says that
    /// it failed through no fault of the client.
    pub fn end(&self, code: &str, lane: &'static str, fault: bool) {
        let span = self.context.span();
        span.set_attributes([
            KeyValue::new("verdict.code", code.to_owned()),
            KeyValue::new("verdict.lane", lane),
        ]);
        if fault {
            span.set_attribute(KeyValue::new("error.type", code.to_owned()));
            span.set_status(Status::error(code.to_owned()));
        }
        span.end();
    }

    /// A trace of its own kind below this one: a request among those of a stream.
    pub fn nested(&self) -> Self {
        let clock = Clock { instant: Instant::now(), time: SystemTime::now() };
        let span = SpanBuilder::from_name("request")
            .with_kind(SpanKind::Server)
            .start_with_context(&self.tracer, &self.context);
        Self { tracer: self.tracer.clone(), context: self.context.with_span(span), clock }
    }

    /// Records a stage that is over, and returns what further stages inside it lie under.
    pub fn stage(
        &self,
        name: &'static str,
        start: Instant,
        end: Instant,
        facts: &[(&'static str, usize)],
    ) -> Self {
        let mut span = self.begin(name, start);
        span.set_attributes(facts.iter().map(|&(name, value)| KeyValue::new(name, count(value))));
        span.end_with_timestamp(self.clock.time(end));
        Self { context: self.context.with_span(span), ..self.clone() }
    }

    /// Begins a stage that ends by itself when it is dropped.
    pub fn open(&self, name: &'static str, start: Instant) -> Stage {
        Stage(self.begin(name, start))
    }

    fn begin(&self, name: &'static str, start: Instant) -> Span {
        SpanBuilder::from_name(name)
            .with_start_time(self.clock.time(start))
            .start_with_context(&self.tracer, &self.context)
    }
}

/// A stage that is going on.
pub struct Stage(Span);

impl Stage {
    /// Adds a number.
    pub fn count(&mut self, name: &'static str, value: usize) {
        self.0.set_attribute(KeyValue::new(name, count(value)));
    }

    /// Adds a word.
    pub fn say(&mut self, name: &'static str, value: &'static str) {
        self.0.set_attribute(KeyValue::new(name, value));
    }

    /// Marks a moment in it.
    pub fn event(&mut self, name: &'static str) {
        self.0.add_event(name, Vec::new());
    }

    /// It failed.
    pub fn fail(&mut self, code: &'static str) {
        self.0.set_attribute(KeyValue::new("error.type", code));
        self.0.set_status(Status::error(code));
    }
}

fn http_method() -> KeyValue {
    // Only work is traced, and all of it is asked for so.
    KeyValue::new("http.request.method", "POST")
}

fn count(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The two headers as they came.
struct Headers<'a> {
    traceparent: Option<&'a str>,
    tracestate: Option<&'a str>,
}

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        match key {
            TRACEPARENT => self.traceparent,
            TRACESTATE => self.tracestate,
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec![TRACEPARENT, TRACESTATE]
    }
}

/// Headers as they go out.
struct Sent(Vec<(String, String)>);

impl Injector for Sent {
    fn set(&mut self, key: &str, value: String) {
        self.0.push((key.to_owned(), value));
    }
}

#[cfg(test)]
mod tests;
