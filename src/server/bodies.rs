//! Memory of request bodies, and of answers that were not taken yet, of all requests together.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::{
    error::{Code, Error, Result},
    metrics::{Metrics, Rejection},
};

/// Bodies come and go within a request: a second later there is room, or a queue that says more.
const RETRY: Duration = Duration::from_secs(1);

/// How many bytes of bodies are held, of how many there may be.
pub(crate) struct Bodies {
    limit: usize,
    held: AtomicUsize,
    metrics: Arc<Metrics>,
}

impl Bodies {
    pub(crate) fn new(limit: usize, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { limit, held: AtomicUsize::new(0), metrics })
    }

    /// One was not sent in time.
    pub(crate) fn late(&self) {
        self.metrics.rejected(Rejection::Late);
    }

    /// Bytes that may be held.
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// Bytes that are held now.
    pub(crate) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// The share of a request that has sent nothing yet.
    pub(crate) fn share(self: &Arc<Self>) -> Held {
        Held { bodies: Arc::clone(self), bytes: 0 }
    }
}

/// One request's bytes; given back when it is dropped.
pub(crate) struct Held {
    bodies: Arc<Bodies>,
    bytes: usize,
}

impl Held {
    /// Takes `bytes` more.
    ///
    /// # Errors
    ///
    /// `Overloaded` with when to try again, where the limit leaves no room for them.
    pub(crate) fn grow(&mut self, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let Bodies { limit, held, metrics } = &*self.bodies;
        let fits = |held: usize| held.checked_add(bytes).filter(|sum| sum <= limit);
        match held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits) {
            Ok(_) => {
                self.bytes += bytes;
                Ok(())
            }
            Err(held) => {
                metrics.rejected(Rejection::Bodies);
                let message =
                    format!("body: {bytes} bytes more; bodies hold {held} of at most {limit} bytes");
                Err(Error::new(Code::Overloaded, message).with_retry_after(RETRY))
            }
        }
    }

    /// Takes `bytes` more that are there already, as an answer is: past the limit too, and then there is no room for
    /// bodies until some are given back.
    pub(crate) fn keep(&mut self, bytes: usize) {
        self.bodies.held.fetch_add(bytes, Ordering::Relaxed);
        self.bytes += bytes;
    }

    /// Gives back `bytes`, or all there are.
    pub(crate) fn shrink(&mut self, bytes: usize) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        self.bodies.held.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.shrink(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_held_up_to_the_limit_and_come_back() {
        let bodies = Bodies::new(100, Arc::default());
        let (mut one, mut two) = (bodies.share(), bodies.share());
        one.grow(60).expect("room");
        two.grow(40).expect("room");
        let error = two.grow(1).expect_err("full");
        assert_eq!(error.code(), Code::Overloaded);
        assert_eq!(error.message(), "body: 1 bytes more; bodies hold 100 of at most 100 bytes");
        assert_eq!(error.retry_after(), Some(RETRY));
        one.shrink(10);
        two.grow(10).expect("room again");
        two.grow(usize::MAX).expect_err("no sum goes past the end of numbers");
        drop(two);
        assert_eq!(bodies.held(), 50);
        one.keep(100);
        assert_eq!(bodies.held(), 150, "what is there is counted");
        bodies.share().grow(1).expect_err("and leaves no room");
        bodies.share().grow(0).expect("what needs none is not refused");
        one.shrink(1000);
        drop(one);
        assert_eq!(bodies.held(), 0, "nothing is given back twice");
    }
}
