//! `tei.v1`: the service of text-embeddings-inference, as its clients know it.

use std::sync::Arc;

use prost::Message as _;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    error::{Error, Result},
    metrics::Lane,
    request::{Document, Items, Pair, ScoreOptions, ScoreRequest, Truncation},
    server::{bodies::Held, call::Call, http::write, state::State},
    service::{ScoreResponse, Timing},
};

use super::{begin, refused, status, timeout};

/// The generated messages, servers and clients of `tei.v1`.
#[expect(clippy::allow_attributes, reason = "generated code has its own")]
pub mod pb {
    tonic::include_proto!("tei.v1");
}

use pb::{info_server::Info, rerank_server::Rerank};

pub(super) const RERANK: &str = "/tei.v1.Rerank/Rerank";
pub(super) const RERANK_STREAM: &str = "/tei.v1.Rerank/RerankStream";
pub(super) const INFO: &str = "/tei.v1.Info/Info";

/// The services' full names, as health checks ask for them.
pub(super) const NAMES: [&str; 2] = ["tei.v1.Rerank", "tei.v1.Info"];

#[derive(Clone)]
pub(super) struct Tei {
    pub(super) state: Arc<State>,
}

/// What a request's scores become.
struct Wish {
    raw: bool,
    chars: usize,
}

#[tonic::async_trait]
impl Rerank for Tei {
    async fn rerank(
        &self,
        request: Request<pb::RerankRequest>,
    ) -> Result<Response<pb::RerankResponse>, Status> {
        let mut call = begin(&self.state, RERANK, Lane::Score, &request);
        let timeout = timeout(request.metadata());
        let result = async {
            call.enter()?;
            let wire = request.into_inner();
            let mut held = call.state().bodies.share();
            held.grow(wire.encoded_len())?;
            call.service()?.limits().check_count("documents", wire.texts.len())?;
            let chars = wire.texts.iter().map(|text| chars(&wire.query, text)).sum();
            let wish = Wish { raw: wire.raw_scores, chars };
            let options = options(wire.truncate, wire.truncation_direction, wire.return_text)?;
            let documents = wire.texts.into_iter().map(Document::text).collect();
            let request = ScoreRequest::new(Items::Documents { query: wire.query, documents }, options)?;
            score(&call, timeout, request, &wish).await
        };
        let result = result.await;
        call.end(result.as_ref().err());
        result.map(Response::new).map_err(refusal)
    }

    async fn rerank_stream(
        &self,
        request: Request<Streaming<pb::RerankStreamRequest>>,
    ) -> Result<Response<pb::RerankResponse>, Status> {
        let mut call = begin(&self.state, RERANK_STREAM, Lane::Score, &request);
        let timeout = timeout(request.metadata());
        let result = async {
            call.enter()?;
            let wait = call.state().read_timeout;
            let collected = tokio::time::timeout(wait, collect(&call, request.into_inner())).await;
            let (request, wish, _held) = collected.map_err(|_| {
                let message = format!("texts: not sent within {} ms", wait.as_millis());
                Error::new(crate::error::Code::DeadlineExceeded, message)
            })??;
            score(&call, timeout, request, &wish).await
        };
        let result = result.await;
        call.end(result.as_ref().err());
        result.map(Response::new).map_err(refusal)
    }
}

#[tonic::async_trait]
impl Info for Tei {
    async fn info(&self, request: Request<pb::InfoRequest>) -> Result<Response<pb::InfoResponse>, Status> {
        let call = begin(&self.state, INFO, Lane::Score, &request);
        let info = self.state.service().map(|service| {
            let tei = write::Tei::of(service);
            pb::InfoResponse {
                version: crate::VERSION.to_owned(),
                sha: Some(crate::COMMIT.to_owned()).filter(|sha| !sha.is_empty()),
                docker_label: None,
                model_id: service.model().name.clone(),
                model_sha: Some(service.profile().hash.clone()),
                model_dtype: tei.model_dtype.to_owned(),
                model_type: pb::ModelType::Reranker.into(),
                max_concurrent_requests: small(tei.max_concurrent_requests),
                max_input_length: small(tei.max_input_length),
                max_batch_tokens: small(tei.max_batch_tokens),
                max_batch_requests: None,
                max_client_batch_size: small(tei.max_client_batch_size),
                tokenization_workers: small(tei.tokenization_workers),
            }
        });
        call.end(info.as_ref().err());
        info.map(Response::new).map_err(|error| status(&error))
    }
}

async fn score(
    call: &Call,
    timeout: Result<Option<std::time::Duration>>,
    mut request: ScoreRequest,
    wish: &Wish,
) -> Result<pb::RerankResponse> {
    if let Some(timeout) = timeout? {
        request.limit_deadline(timeout);
    }
    ranks(call.score(request).await?, wish)
}

/// A whole stream as one request. It is bounded as a body is: by texts and by bytes.
async fn collect(
    call: &Call,
    mut stream: Streaming<pb::RerankStreamRequest>,
) -> Result<(ScoreRequest, Wish, Held)> {
    let (texts, bytes) = (call.service()?.limits().documents, call.state().body_bytes);
    let mut pairs = Vec::new();
    let mut held = call.state().bodies.share();
    let mut wish = Wish { raw: false, chars: 0 };
    let (mut first, mut sent) = (None, 0);
    while let Some(wire) = stream.message().await.map_err(|broken| refused::error(&broken, None))? {
        if first.is_none() {
            wish.raw = wire.raw_scores;
            first = Some(options(wire.truncate, wire.truncation_direction, wire.return_text)?);
        }
        held.grow(wire.encoded_len())?;
        wish.chars += chars(&wire.query, &wire.text);
        sent += wire.query.len() + wire.text.len();
        if sent > bytes {
            return Err(Error::too_large("texts", "bytes", bytes, sent));
        }
        pairs.push(Pair { query: wire.query, document: Document::text(wire.text) });
        if pairs.len() > texts {
            return Err(Error::too_large("texts", "texts", texts, pairs.len()));
        }
    }
    if pairs.is_empty() {
        return Err(Error::invalid("texts", "the stream has none; at least one text is needed"));
    }
    Ok((ScoreRequest::new(Items::Pairs(pairs), first.unwrap_or_default())?, wish, held))
}

/// An error as a status that names this interface's fields.
fn refusal(error: Error) -> Status {
    status(&error.rename_field("documents", "texts").rename_field("pairs", "texts"))
}

fn options(truncate: bool, direction: i32, return_text: bool) -> Result<ScoreOptions> {
    if direction != i32::from(pb::TruncationDirection::Right) {
        let message = "only TRUNCATION_DIRECTION_RIGHT is offered; texts are cut at their end";
        return Err(Error::invalid("truncation_direction", message));
    }
    let truncation = if truncate { Truncation::Document } else { Truncation::Error };
    Ok(ScoreOptions {
        truncation,
        return_documents: return_text,
        sort: true,
        whole: true,
        blank: true,
        ..ScoreOptions::default()
    })
}

fn ranks(response: ScoreResponse, wish: &Wish) -> Result<pb::RerankResponse> {
    let ScoreResponse { results, usage, timing, .. } = response;
    let rank = |result: crate::service::ScoreResult| {
        let score = result.score?.distribution.score;
        let score = if wish.raw { score.logit() } else { score.get() };
        // The wire has single precision.
        Ok(pb::Rank { index: small(result.index), text: result.document, score: score as f32 })
    };
    let ranks = results.into_iter().map(rank).collect::<Result<_>>()?;
    Ok(pb::RerankResponse { ranks, metadata: Some(metadata(usage.prompt_tokens(), timing, wish)) })
}

fn metadata(tokens: usize, timing: Timing, wish: &Wish) -> pb::Metadata {
    let ns = |time: std::time::Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    pb::Metadata {
        compute_chars: small(wish.chars),
        compute_tokens: small(tokens),
        total_time_ns: ns(timing.total),
        tokenization_time_ns: ns(timing.tokenize),
        queue_time_ns: ns(timing.queue),
        inference_time_ns: ns(timing.compute),
    }
}

fn chars(query: &str, text: &str) -> usize {
    query.chars().count() + text.chars().count()
}

/// Limits keep these far below 2^32.
fn small(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}
