//! `POST /score?explain=true`: events as they happen, or one body at the end.

use std::{convert::Infallible, pin::Pin, task};

use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, Request, Response, header::CACHE_CONTROL},
    response::{
        IntoResponse as _,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures::Stream;

use crate::{
    error::Result,
    request::ExplainRequest,
    server::call::Call,
    service::{ExplainItem, ExplainStream, Service},
};

use super::{body, failed, large, scores, server_timing, timeout, wants_json, wire, write};

/// Tells nginx and its like not to hold events back.
const NO_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Answers with reasons.
pub(super) async fn explain(mut call: Call, request: Request<Body>) -> Response<Body> {
    let json = wants_json(request.headers());
    match explained(&mut call, request).await {
        Err(error) => failed(call, &error),
        Ok(stream) if json => match stream.collect().await {
            Ok((response, reasons)) => {
                let answer = scores(&response, &reasons);
                call.end(None);
                answer
            }
            Err(error) => failed(call, &error),
        },
        Ok(stream) => events(call, stream),
    }
}

async fn explained(call: &mut Call, request: Request<Body>) -> Result<ExplainStream> {
    call.enter()?;
    let (head, body) = request.into_parts();
    let (body, held) = body::read(&head.headers, body, call.state()).await?;
    let rendered =
        |service: &Service, request: ExplainRequest| request.with_score(|score| service.rendered(score));
    let (mut request, _held) = large::request(call, body, held, wire::explain, rendered).await?;
    if let Some(timeout) = timeout(&head.headers)? {
        request.limit_deadline(timeout);
    }
    call.explain(request).await
}

fn events(call: Call, stream: ExplainStream) -> Response<Body> {
    let timing = server_timing(&stream.timing());
    let keep_alive = KeepAlive::new().interval(call.state().keep_alive);
    let events = Events { stream, call: Some(call) };
    let mut response = Sse::new(events).keep_alive(keep_alive).into_response();
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(NO_BUFFERING, HeaderValue::from_static("no"));
    headers.insert(super::SERVER_TIMING, timing);
    response
}

/// The event stream. Dropping it, because the client left, cancels the explanation.
struct Events {
    stream: ExplainStream,
    call: Option<Call>,
}

impl Stream for Events {
    type Item = Result<Event, Infallible>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
    ) -> task::Poll<Option<Self::Item>> {
        self.stream.poll_item(context).map(|item| {
            let item = item?;
            if matches!(item, ExplainItem::Done { .. })
                && let Some(call) = self.call.take()
            {
                call.end(None);
            }
            Some(Ok(event(&item)))
        })
    }
}

fn event(item: &ExplainItem) -> Event {
    let (name, data) = match item {
        ExplainItem::Scores(response) => ("scores", write::scores(response, &[])),
        ExplainItem::Delta { index, text } => ("reason", write::delta(*index, text)),
        ExplainItem::ReasonDone(reason) => ("reason_done", write::reason_done(reason)),
        ExplainItem::Done { usage, timing } => ("done", write::done(usage, timing)),
    };
    Event::default().event(name).data(String::from_utf8_lossy(&data))
}
