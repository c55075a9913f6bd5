//! Turns at tokenizing: so many threads at once, and whoever has much to do lets others pass.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::{block_in_place, spawn_blocking},
};

use crate::{
    engine::stopped,
    error::{Error, Result},
};

/// First come, first served, a step at a time.
pub(super) struct Turns {
    free: Arc<Semaphore>,
    waiting: AtomicUsize,
    threads: usize,
}

impl Turns {
    /// For so many threads.
    pub(super) fn new(threads: usize) -> Arc<Self> {
        Arc::new(Self { free: Arc::new(Semaphore::new(threads)), waiting: AtomicUsize::new(0), threads })
    }

    /// Threads that may work at once.
    pub(super) fn threads(&self) -> usize {
        self.threads
    }

    /// Takes steps off the async threads until `step` says that it was the last. Between two of them the turn goes to
    /// whoever waits for one, if anybody does. Brief work stays on this thread: what else that one has to do goes to
    /// another.
    ///
    /// # Errors
    ///
    /// `Internal` if a step panics.
    pub(super) async fn run<W: Send + 'static>(
        self: &Arc<Self>,
        mut work: W,
        brief: bool,
        step: fn(&mut W) -> Step,
    ) -> Result<W> {
        loop {
            let turn = self.take().await?;
            let last = if brief && may_block_in_place() {
                let last = block_in_place(|| self.steps(&mut work, step));
                drop(turn);
                last
            } else {
                // The turn is the thread's: it lasts as long as its work, whether or not anybody waits for that still.
                let turns = Arc::clone(self);
                let task = spawn_blocking(move || {
                    let last = turns.steps(&mut work, step);
                    drop(turn);
                    (work, last)
                });
                let last;
                (work, last) =
                    task.await.map_err(|cause| Error::internal("tokenizing failed").with_cause(cause))?;
                last
            };
            if last == Step::Last {
                return Ok(work);
            }
        }
    }

    fn steps<W>(&self, work: &mut W, step: fn(&mut W) -> Step) -> Step {
        loop {
            if step(work) == Step::Last {
                return Step::Last;
            }
            if self.waiting.load(Ordering::Relaxed) > 0 {
                return Step::More;
            }
        }
    }

    async fn take(&self) -> Result<OwnedSemaphorePermit> {
        let _waiting = Waiting::new(&self.waiting);
        Arc::clone(&self.free).acquire_owned().await.map_err(|cause| stopped().with_cause(cause))
    }
}

/// Whether work goes on after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    More,
    Last,
}

/// One who waits, until it is dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(waiting: &'a AtomicUsize) -> Self {
        waiting.fetch_add(1, Ordering::Relaxed);
        Self(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether this runtime has other threads that take over what this one has to do.
fn may_block_in_place() -> bool {
    tokio::runtime::Handle::current().runtime_flavor() == tokio::runtime::RuntimeFlavor::MultiThread
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Steps that are left, under a name that is written down at each.
    struct Counted {
        name: char,
        left: usize,
        written: Arc<Mutex<String>>,
        turns: Arc<Turns>,
        /// Before its first step it waits until so many wait for a turn.
        until: usize,
    }

    impl Counted {
        fn step(&mut self) -> Step {
            while self.turns.waiting.load(Ordering::Relaxed) < self.until {
                std::thread::yield_now();
            }
            self.until = 0;
            self.written.lock().expect("sound").push(self.name);
            self.left -= 1;
            if self.left == 0 { Step::Last } else { Step::More }
        }
    }

    /// What was written when one with much to do came first, and `others` while it had its turn.
    async fn written(others: &[(char, usize)]) -> String {
        let (turns, written) = (Turns::new(1), Arc::new(Mutex::new(String::new())));
        let counted = |name, left, until| {
            let (written, turns) = (Arc::clone(&written), Arc::clone(&turns));
            Counted { name, left, written, turns, until }
        };
        let run = |work: Counted| {
            let turns = Arc::clone(&turns);
            tokio::spawn(async move { turns.run(work, false, Counted::step).await.map(drop) })
        };
        let mut tasks = vec![run(counted('A', 5, others.len()))];
        while turns.free.available_permits() > 0 && written.lock().expect("sound").is_empty() {
            tokio::task::yield_now().await;
        }
        for &(name, left) in others {
            let waiting = turns.waiting.load(Ordering::Relaxed);
            tasks.push(run(counted(name, left, 0)));
            while turns.waiting.load(Ordering::Relaxed) == waiting
                && written.lock().expect("sound").is_empty()
            {
                tokio::task::yield_now().await;
            }
        }
        for task in tasks {
            task.await.expect("joined").expect("done");
        }
        let written = written.lock().expect("sound").clone();
        assert_eq!((turns.waiting.load(Ordering::Relaxed), turns.free.available_permits()), (0, 1));
        written
    }

    #[tokio::test]
    async fn who_has_much_to_do_lets_others_pass_after_each_step() {
        assert_eq!(written(&[]).await, "AAAAA");
        assert_eq!(written(&[('b', 1)]).await, "AbAAAA");
        let all = written(&[('B', 3), ('c', 1)]).await;
        assert!(all.starts_with("ABc") && all.len() == 9, "{all}");
    }
}
