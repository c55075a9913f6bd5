//! The routes of other programs' clients: each peer's request becomes the one
//! [`ScoreRequest`], and the answer is written as that peer writes it.
//!
//! A dialect is a file with a type that reads the peer's body and says how the
//! answer looks. Here is what they share: which dialect a body is in, and the
//! one way from a body to [`crate::service::Service::score`] and back.

mod cohere;
mod infinity;
mod jina;
mod lenient;
mod mixedbread;
mod nim;
mod refusal;
mod rows;
mod sglang_score;
mod systemone;
mod tei;
mod tei_predict;
mod vllm_score;
mod voyage;
mod weaviate;

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    extract::State as Shared,
    http::{Request, Response},
    routing::{get, post},
};
use bytes::Bytes;
use futures::{FutureExt as _, future::BoxFuture};
use serde::de::DeserializeOwned;

use crate::{
    error::{Error, Result, shown},
    metrics::Lane,
    profile::Profile,
    request::{Limits, ScoreOptions, ScoreRequest},
    service::ScoreResponse,
};

use super::{
    bodies::Held,
    call::{Call, RequestId},
    http::{
        self, body,
        large::{self, Room},
        object::Object,
        parse::parse,
        weigh::Weight,
    },
    state::State,
};

use lenient::Keys;
use refusal::{Fields, Shape};

/// One peer's request and answer.
trait Dialect: DeserializeOwned + Send + 'static {
    /// How the peer writes errors.
    const SHAPE: Shape;
    /// What the peer calls the query and the documents.
    const FIELDS: Fields;
    /// What the answer needs to know of the request.
    type Kept: Send + 'static;

    /// The same of a body with these keys, where names depend on them.
    fn fields(_: &Keys) -> Fields {
        Self::FIELDS
    }

    /// What is asked.
    fn read(self, arrived: &Arrived<'_>) -> Result<(ScoreRequest, Self::Kept)>;

    /// The answer's body.
    fn write(kept: Self::Kept, response: &ScoreResponse, id: &RequestId) -> Result<Vec<u8>>;
}

/// What a dialect may look at beside the body's own fields.
struct Arrived<'a> {
    keys: &'a Keys,
    profile: &'a Profile,
    limits: &'a Limits,
}

impl Arrived<'_> {
    /// What was not done as asked: fields that are not `read`, and another model's name.
    fn warnings(&self, read: &[&str], model: Option<&str>) -> Vec<String> {
        let mut unread = self.keys.given().filter(|key| !read.contains(key));
        let told = unread.by_ref().take(WARNINGS);
        let mut warnings: Vec<String> = told.map(|key| warning(key, "not used here")).collect();
        let more = unread.count();
        if more > 0 {
            warnings.push(format!("{more} more fields: not used here"));
        }
        if let Some(model) = model.filter(|model| !self.profile.answers_to(model)) {
            let answered = format!("{} is not served here; {:?} answered", shown(model), self.profile.name);
            warnings.push(warning("model", &answered));
        }
        warnings
    }
}

/// Fields that are named in an answer's warnings; more are counted.
const WARNINGS: usize = 16;

/// As an error would say it, and as short.
fn warning(field: &str, what: &str) -> String {
    Error::invalid(field, what).message().to_owned()
}

/// As ranking dialects want it: best first, and whole or not at all, for they
/// have no place for a pair's error.
fn ranked() -> ScoreOptions {
    ScoreOptions { sort: true, ..in_order() }
}

/// In input order, and whole or not at all. Documents may be blank: peers score them, and clients
/// send them among others.
fn in_order() -> ScoreOptions {
    ScoreOptions { whole: true, blank: true, ..ScoreOptions::default() }
}

/// A dialect, to be chosen by a body's keys.
struct Spoken {
    shape: Shape,
    fields: fn(&Keys) -> Fields,
    read: fn(&[u8], &Keys, &Profile, &Limits) -> Result<ScoreRequest>,
    answer: for<'a> fn(&'a Call, Exchange) -> BoxFuture<'a, Result<Response<Body>>>,
}

/// A request whose body was read.
struct Exchange {
    body: Bytes,
    held: Held,
    /// Of one that is not small.
    weight: Option<Weight>,
    keys: Keys,
    timeout: Option<std::time::Duration>,
}

fn spoken<D: Dialect>() -> Spoken {
    Spoken {
        shape: D::SHAPE,
        fields: D::fields,
        read: |body, keys, profile, limits| {
            read::<D>(body, keys, profile, limits).map(|(request, _)| request)
        },
        answer: |call, exchange| score::<D>(call, exchange).boxed(),
    }
}

/// What a body asks, and what its answer needs to know of it.
fn read<D: Dialect>(
    body: &[u8],
    keys: &Keys,
    profile: &Profile,
    limits: &Limits,
) -> Result<(ScoreRequest, D::Kept)> {
    let Object(body) = parse::<Object<D>>(body)?;
    keys.check()?;
    body.read(&Arrived { keys, profile, limits })
}

/// What the dialect's route at `path` makes of a body, with the limits of a server that was told none;
/// `None` if it is no dialect's route.
pub(super) fn read_body(path: &str, body: &[u8], profile: &Profile) -> Option<Result<ScoreRequest>> {
    let route = ROUTES.iter().find(|route| leads(route.path, path))?;
    let keys = Keys::of(body);
    Some(((route.choose)(&keys).read)(body, &keys, profile, &Limits::default()))
}

async fn score<D: Dialect>(call: &Call, exchange: Exchange) -> Result<Response<Body>> {
    let Exchange { body, held, weight, keys, timeout } = exchange;
    let (service, room) = (call.service()?.clone(), Room::of(call.state()));
    let ((mut request, kept), held) = large::apart(call.state(), body, held, move |body, held| {
        let limits = service.limits();
        // Where fields of documents are picked, the others are no part of them.
        let lists = D::fields(&keys).lists(!keys.has("rank_fields"));
        room.make(weight.as_ref(), lists, limits, body.len(), held, |large| {
            let (request, kept) = read::<D>(&body, &keys, service.profile(), limits)?;
            Ok((if large { service.rendered(request)? } else { request }, kept))
        })
    })
    .await?;
    if let Some(timeout) = timeout {
        request.limit_deadline(timeout);
    }
    let response = call.score(request).await?;
    let answer = D::write(kept, &response, call.id())?;
    // What was sent may be in the answer.
    drop(held);
    let mut answer = http::json(answer);
    answer.headers_mut().insert(http::SERVER_TIMING, http::server_timing(&response.timing));
    Ok(answer)
}

/// A route, how it refuses what it cannot read, and whose body it is.
struct Route {
    path: &'static str,
    shape: Shape,
    choose: fn(&Keys) -> Spoken,
}

const ROUTES: [Route; 11] = [
    route("/rerank", Shape::Any, rerank),
    // llama.cpp's other name for it.
    route("/reranking", Shape::Any, rerank),
    route("/v1/rerank", Shape::Jina, rerank_v1),
    route("/v2/rerank", Shape::Cohere, |_| spoken::<cohere::Body<'2'>>()),
    route("/v1/reranking", Shape::Mixedbread, reranking_v1),
    route("/v1/ranking", Shape::Nim, |_| spoken::<nim::Body>()),
    // NVIDIA's hosted models have their names in the path.
    route("/v1/retrieval/{model}/reranking", Shape::Nim, |_| spoken::<nim::Body>()),
    route("/v1/retrieval/{vendor}/{model}/reranking", Shape::Nim, |_| spoken::<nim::Body>()),
    route("/v1/score", Shape::OpenAi, |keys| {
        if keys.has("query") { spoken::<sglang_score::Body>() } else { spoken::<vllm_score::Body>() }
    }),
    route("/v1/systemone", Shape::OpenAi, |_| spoken::<systemone::Body>()),
    route("/predict", Shape::Tei, |_| spoken::<tei_predict::Body>()),
];

const fn route(path: &'static str, shape: Shape, choose: fn(&Keys) -> Spoken) -> Route {
    Route { path, shape, choose }
}

/// Weaviate's, and what any other client writes there.
fn rerank(keys: &Keys) -> Spoken {
    if keys.has("property") && !keys.has("texts") { spoken::<weaviate::Body>() } else { rerank_v1(keys) }
}

/// TEI, Infinity, Voyage, Cohere; and the body that Jina, Cohere, vLLM and many others share.
fn rerank_v1(keys: &Keys) -> Spoken {
    if keys.has("texts") {
        spoken::<tei::Body>()
    } else if keys.has("raw_scores") {
        spoken::<infinity::Body>()
    } else if keys.has("top_k") || keys.has("truncation") {
        spoken::<voyage::Body>()
    } else if keys.has("rank_fields") || keys.has("max_chunks_per_doc") {
        spoken::<cohere::Body<'1'>>()
    } else {
        spoken::<jina::Body>()
    }
}

/// Mixedbread's, whose documents are `input`; else llama.cpp's other name for `/v1/rerank`.
fn reranking_v1(keys: &Keys) -> Spoken {
    let shared = keys.has("documents") && !keys.has("input");
    if shared { rerank_v1(keys) } else { spoken::<mixedbread::Body>() }
}

/// All dialects' routes.
pub(super) fn routes() -> Router<Arc<State>> {
    let weaviate = Router::new()
        .route("/meta", get(weaviate::meta))
        .route("/.well-known/live", get(weaviate::live))
        .route("/.well-known/ready", get(weaviate::ready));
    ROUTES.iter().fold(weaviate, |router, route| {
        let handler = move |Shared(state): Shared<Arc<State>>, request: Request<Body>| async move {
            serve(&state, route, request).await
        };
        router.route(route.path, post(handler))
    })
}

/// An error, of a request that reached no handler or that broke it, as the clients
/// of `path` read it; `None` if it is no dialect's route.
pub(super) fn refuse(path: &str, error: &Error) -> Option<Response<Body>> {
    let route = ROUTES.iter().find(|route| leads(route.path, path))?;
    Some(refusal::refuse(route.shape, Fields::default(), error))
}

/// Whether a path is one of a route; `{…}` in it stands for any part.
fn leads(route: &str, path: &str) -> bool {
    let (mut route, mut path) = (route.split('/'), path.split('/'));
    loop {
        match (route.next(), path.next()) {
            (None, None) => return true,
            (Some(named), Some(part)) if named.starts_with('{') || named == part => {}
            _ => return false,
        }
    }
}

async fn serve(state: &Arc<State>, route: &'static Route, request: Request<Body>) -> Response<Body> {
    let mut call = Call::begin(state, route.path, Lane::Score, http::id(&request));
    let (mut shape, mut fields) = (route.shape, Fields::default());
    let exchange = exchange(&mut call, request).await;
    let answer = match exchange {
        Ok(exchange) => {
            let spoken = (route.choose)(&exchange.keys);
            // Of what cannot be read nobody knows whose it is.
            if !exchange.keys.unread() {
                (shape, fields) = (spoken.shape, (spoken.fields)(&exchange.keys));
            }
            (spoken.answer)(&call, exchange).await
        }
        Err(error) => Err(error),
    };
    match answer {
        Ok(answer) => {
            call.end(None);
            answer
        }
        Err(error) => {
            let answer = refusal::refuse(shape, fields, &error);
            call.end(Some(&error));
            answer
        }
    }
}

async fn exchange(call: &mut Call, request: Request<Body>) -> Result<Exchange> {
    call.enter()?;
    let (head, body) = request.into_parts();
    let (body, held) = body::read(&head.headers, body, call.state()).await?;
    let limits = call.service()?.limits().clone();
    let weighed = large::apart(call.state(), body, held, move |body, _| {
        Ok((large::weigh(&body, &limits)?, Keys::of(&body), body))
    });
    let ((weight, keys, body), held) = weighed.await?;
    Ok(Exchange { body, held, weight, keys, timeout: http::timeout(&head.headers)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_told_by_its_keys() {
        let shape = |choose: fn(&Keys) -> Spoken, body: &str| choose(&Keys::of(body.as_bytes())).shape;
        for (body, shared) in [
            (r#"{"texts": 1, "raw_scores": 1, "top_k": 1}"#, Shape::Tei),
            (r#"{"documents": 1, "raw_scores": 1, "top_k": 1}"#, Shape::OpenAi),
            (r#"{"documents": 1, "top_k": null, "rank_fields": 1}"#, Shape::Voyage),
            (r#"{"documents": 1, "max_chunks_per_doc": 1}"#, Shape::Cohere),
            (r#"{"documents": 1}"#, Shape::Jina),
        ] {
            assert_eq!(shape(rerank, body), shared, "{body}");
            assert_eq!(shape(rerank_v1, body), shared, "{body}");
            let mixed = if shared == Shape::Tei { Shape::Mixedbread } else { shared };
            assert_eq!(shape(reranking_v1, body), mixed, "{body}");
        }
        assert_eq!(shape(rerank, r#"{"documents": 1, "property": "p"}"#), Shape::Weaviate);
        assert_eq!(shape(rerank, r#"{"texts": 1, "property": "p"}"#), Shape::Tei);
        assert_eq!(shape(reranking_v1, r#"{"documents": 1, "input": 1}"#), Shape::Mixedbread);
    }

    #[test]
    fn paths_lead_to_their_routes() {
        let found = |path: &str| ROUTES.iter().find(|route| leads(route.path, path)).map(|route| route.path);
        for route in &ROUTES {
            assert_eq!(found(route.path), Some(route.path));
        }
        let vendor = "/v1/retrieval/{vendor}/{model}/reranking";
        assert_eq!(found("/v1/retrieval/nvidia/reranker/reranking"), Some(vendor));
        for path in ["/score", "/rerank/", "/v1/retrieval/a/b/c/reranking", "/", ""] {
            assert_eq!(found(path), None, "{path}");
        }
    }
}
