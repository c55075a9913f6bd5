//! Threads that read large bodies, and do nothing else.
//!
//! What is made of a body is given back on the thread that made it, and allocators keep for a thread what it gave back:
//! were it any of the runtime's threads, each would come to keep as much as the largest body became.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
};

use tokio::sync::oneshot::{self, error::RecvError};

type Work = Box<dyn FnOnce() + Send>;

/// They end when this is dropped.
pub(crate) struct Readers {
    queue: mpsc::Sender<Work>,
}

impl Readers {
    /// So many threads. What a machine that has none left is asked to read is an error of its request.
    pub(crate) fn new(threads: usize) -> Self {
        let (queue, work) = mpsc::channel::<Work>();
        let work = Arc::new(Mutex::new(work));
        for _ in 0..threads {
            let work = Arc::clone(&work);
            drop(thread::Builder::new().name("reader".to_owned()).spawn(move || read(&work)));
        }
        Self { queue }
    }

    /// What becomes of `work` on one of them.
    ///
    /// # Errors
    ///
    /// If it panics.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, RecvError> {
        let (done, answer) = oneshot::channel();
        // Where nobody waits any more, or nobody works, the answer is dropped.
        drop(self.queue.send(Box::new(move || drop(done.send(work())))));
        answer.await
    }
}

fn read(queue: &Mutex<mpsc::Receiver<Work>>) {
    loop {
        let Ok(work) = queue.lock().unwrap_or_else(PoisonError::into_inner).recv() else { return };
        // A panic is its request's alone, whose answer is dropped by it.
        let _ = catch_unwind(AssertUnwindSafe(work));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_is_read_on_the_same_threads_whatever_panics() {
        let readers = Readers::new(1);
        let name = || (thread::current().id(), thread::current().name().map(str::to_owned));
        let first = readers.run(name).await.expect("read");
        assert_eq!(first.1.as_deref(), Some("reader"));
        readers.run(|| panic!("a fault")).await.expect_err("told");
        assert_eq!(readers.run(name).await.expect("read"), first);
    }
}
