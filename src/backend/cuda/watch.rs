//! Watches products that are tried: a kernel that never ends would hold the start forever, without a word.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{RecvTimeoutError, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use super::start::PRODUCTS_VARIABLE;
use crate::error::{Error, Result};

/// What an error says of a product, by a kernel of our own or not: how to do without.
pub(super) fn way_out(own: bool) -> String {
    if own { format!("; {PRODUCTS_VARIABLE}=library leaves out products of our own") } else { String::new() }
}

/// The product that is tried.
#[derive(Clone, Copy)]
pub(super) struct Tried {
    /// It is by a kernel of our own.
    pub(super) own: bool,
    pub(super) rows: usize,
    pub(super) outputs: usize,
    pub(super) depth: usize,
}

/// What is tried, and since when.
#[derive(Default)]
pub(super) struct Watch(Mutex<Option<(Instant, Tried)>>);

impl Watch {
    pub(super) fn at(&self, tried: Tried) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), tried));
    }

    /// What is tried for longer than `stall`.
    fn stuck(&self, stall: Duration) -> Option<Tried> {
        let at = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        at.filter(|(since, _)| since.elapsed() > stall).map(|(_, tried)| tried)
    }
}

/// Gives `device` back when `work` with it is done, which is done by a thread of its own: that thread keeps the device
/// if it is stuck, for to give back what a GPU holds is to wait for it.
///
/// # Errors
///
/// Those of `work`; `Internal` if it tries one product for longer than `stall`.
pub(super) fn within<T: Send + 'static>(
    stall: Duration,
    mut device: T,
    work: impl FnOnce(&mut T, &Watch) -> Result<()> + Send + 'static,
) -> Result<T> {
    let watch = Arc::new(Watch::default());
    let (done, ended) = sync_channel(1);
    let watched = Arc::clone(&watch);
    let worker = thread::Builder::new().name("cuda-start".to_owned()).spawn(move || {
        let worked = work(&mut device, &watched).map(|()| device);
        // Nobody waits any more where it was taken for stuck.
        let _ = done.send(worked);
    });
    worker.map_err(|cause| Error::internal("a thread could not be started").with_cause(cause))?;
    loop {
        match ended.recv_timeout(stall / 8) {
            Ok(worked) => return worked,
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Error::internal("device: cuda: the start panicked"));
            }
            Err(RecvTimeoutError::Timeout) => {
                if let Some(tried) = watch.stuck(stall) {
                    return Err(never_ends(tried, stall));
                }
            }
        }
    }
}

fn never_ends(Tried { own, rows, outputs, depth }: Tried, stall: Duration) -> Error {
    let way_out = way_out(own);
    Error::internal(format!(
        "device: cuda: a product of {rows} rows by [{outputs}, {depth}] has not ended for {stall:?}{way_out}"
    ))
}
