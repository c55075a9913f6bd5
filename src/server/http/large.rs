//! Reading of bodies that are not small: weighed before anything is made of them, off the async threads, few at once.

use std::sync::Arc;

use bytes::Bytes;

use crate::{
    error::{Error, Result},
    request::Limits,
    server::{bodies::Held, call::Call, state::State},
    service::Service,
};

use super::weigh::{Lists, Weight};

/// Bodies up to so many bytes are read where they arrived: that takes a few milliseconds at most, and what is made of
/// them, of `{"a":0}` many times as many bytes, is there only for as long.
const SMALL: usize = 64 << 10;
/// How many times the bytes of the largest body what is made of one may take.
const MOST_TIMES: usize = 8;
/// What is made of a body may take so many times its bytes before it is held against the memory of all bodies.
const FREE_TIMES: usize = 2;

/// The documents of our own requests.
const OWN: Lists = Lists { documents: "documents", pairs: Some("pairs"), whole: true };

/// What `read` makes of the body of one of our own requests, and its share of the memory.
///
/// # Errors
///
/// `Invalid` for what is no JSON object, those of [`Room::make`], and those of `read`.
pub(super) async fn request<T: Send + 'static>(
    call: &Call,
    body: Bytes,
    held: Held,
    read: fn(&[u8]) -> Result<T>,
    rendered: fn(&Service, T) -> Result<T>,
) -> Result<(T, Held)> {
    let (service, room) = (call.service()?.clone(), Room::of(call.state()));
    apart(call.state(), body, held, move |body, held| {
        let weight = weigh(&body, service.limits())?;
        room.make(weight.as_ref(), OWN, service.limits(), body.len(), held, |large| {
            let request = read(&body)?;
            if large { rendered(&service, request) } else { Ok(request) }
        })
    })
    .await
}

/// The weight of a body that is not small.
///
/// # Errors
///
/// Those of [`Weight::of`].
pub(in crate::server) fn weigh(body: &[u8], limits: &Limits) -> Result<Option<Weight>> {
    if body.len() <= SMALL { Ok(None) } else { Weight::of(body, limits).map(Some) }
}

/// What `work` makes of a body and its share of the memory: of a small one here and now.
///
/// # Errors
///
/// Those of `work`.
pub(in crate::server) async fn apart<T: Send + 'static>(
    state: &State,
    body: Bytes,
    mut held: Held,
    work: impl FnOnce(Bytes, &mut Held) -> Result<T> + Send + 'static,
) -> Result<(T, Held)> {
    if body.len() <= SMALL {
        return Ok((work(body, &mut held)?, held));
    }
    let turn = Arc::clone(&state.reading).acquire_owned().await.map_err(failed)?;
    // A client that leaves takes nothing back: turn and memory are held until the work is done.
    let made = state.readers.run(move || {
        let made = work(body, &mut held)?;
        drop(turn);
        Ok((made, held))
    });
    made.await.map_err(failed)?
}

fn failed(cause: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::internal("reading a body failed").with_cause(cause)
}

/// The memory that there is for what is made of one body.
#[derive(Clone, Copy)]
pub(in crate::server) struct Room {
    largest_body: usize,
    bodies: usize,
}

impl Room {
    pub(in crate::server) fn of(state: &State) -> Self {
        Self { largest_body: state.body_bytes, bodies: state.bodies.limit() }
    }

    /// What `make` makes of a body of `sent` bytes, in memory that is held until then: what is left of one that is large,
    /// as `make` is told, is texts.
    ///
    /// # Errors
    ///
    /// `TooLarge` for documents that are too many or too large, and for what would take too much memory at any time;
    /// `Overloaded` where there is none now; those of `make`.
    pub(in crate::server) fn make<T>(
        self,
        weight: Option<&Weight>,
        lists: Lists,
        limits: &Limits,
        sent: usize,
        held: &mut Held,
        make: impl FnOnce(bool) -> Result<T>,
    ) -> Result<T> {
        let Some(weight) = weight else { return make(false) };
        weight.check(lists, limits)?;
        let free = sent * FREE_TIMES;
        let most = (self.largest_body * MOST_TIMES).min(self.bodies.saturating_sub(sent) + free);
        if weight.memory > most {
            let unit = format!("bytes in memory, {sent} as sent");
            return Err(Error::too_large("body", &unit, most, weight.memory));
        }
        let more = weight.memory.saturating_sub(free);
        held.grow(more)?;
        let made = make(true);
        held.shrink(more);
        made
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt as _, poll};

    use super::*;
    use crate::{
        config::{Config, Settings},
        server::bodies::Bodies,
    };

    fn state() -> State {
        let config = Config::new(Settings::default()).expect("valid");
        State::new(&config, Arc::default())
    }

    #[tokio::test]
    async fn small_bodies_wait_for_no_large_ones() {
        let state = state();
        let threads = state.reading.available_permits();
        assert!(threads <= std::thread::available_parallelism().map_or(1, usize::from));
        let others = Arc::clone(&state.reading).acquire_many_owned(threads as u32).await.expect("open");
        let read = |bytes: usize| {
            let body = Bytes::from(vec![b' '; bytes]);
            apart(&state, body, state.bodies.share(), |body, _| Ok(body.len()))
        };
        let (length, _held) = read(SMALL).now_or_never().expect("read at once").expect("read");
        assert_eq!(length, SMALL);
        let mut large = Box::pin(read(SMALL + 1));
        assert!(poll!(&mut large).is_pending(), "it waits for a turn");
        drop(others);
        assert_eq!(large.await.expect("read").0, SMALL + 1);
        assert_eq!((state.reading.available_permits(), state.bodies.held()), (threads, 0));
    }

    #[test]
    fn what_is_made_is_held_with_what_was_sent() {
        let limits = Limits::default();
        let (bodies, room) = (Bodies::new(1000, Arc::default()), Room { largest_body: 200, bodies: 1000 });
        let make = |memory, held: &mut Held| {
            let weight = Weight::heavy(memory);
            let made = room.make(Some(&weight), OWN, &limits, 100, held, |large| Ok((large, bodies.held())));
            made.map_err(|error| error.message().to_owned())
        };
        let mut held = bodies.share();
        held.grow(100).expect("room");
        assert_eq!(make(200, &mut held), Ok((true, 100)), "as large as many a body");
        assert_eq!(make(900, &mut held), Ok((true, 800)));
        assert_eq!(bodies.held(), 100, "it is made");
        let mut other = bodies.share();
        other.grow(700).expect("room");
        let full = "body: 300 bytes more; bodies hold 800 of at most 1000 bytes";
        assert_eq!(make(500, &mut held), Err(full.to_owned()));
        let never = "body: 1101 bytes in memory, 100 as sent, over the limit of 1100";
        assert_eq!(make(1101, &mut held), Err(never.to_owned()));
        let small = room.make(None, OWN, &limits, 100, &mut held, |large| Ok((large, bodies.held())));
        assert_eq!(small.expect("made"), (false, 800));
        drop(other);
        drop(held);
        assert_eq!(bodies.held(), 0);
    }
}
