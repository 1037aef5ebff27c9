//! A batch in parts, each on a thread of its own.
//!
//! On a CPU most of a network's operations are too small to be worth splitting, while the samples of a batch
//! are independent: a thread a part keeps every core busy from the first operation to the last. The
//! parts are fixed by their number, so that the same number gives the same bits.

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::error::ModelError;

/// The threads, one pool a part: operations inside a part share its pool's threads and wait for no other.
#[derive(Debug)]
pub struct Shards {
    pools: Vec<ThreadPool>,
}

impl Shards {
    /// `count` parts. One part runs on the caller's thread, and so does all work of a graphics card.
    ///
    /// # Errors
    /// More threads than the system gives.
    pub fn new(count: usize) -> Result<Self, ModelError> {
        if count <= 1 {
            return Ok(Self { pools: Vec::new() });
        }
        let threads = (rayon::current_num_threads() / count).max(1);
        let pool = |_| ThreadPoolBuilder::new().num_threads(threads).build();
        let pools = (0..count).map(pool).collect::<Result<_, _>>();
        pools
            .map(|pools| Self { pools })
            .map_err(|error| ModelError::Threads { count, reason: error.to_string() })
    }

    /// The most parts that run at once.
    pub fn count(&self) -> usize {
        self.pools.len().max(1)
    }

    /// `f` of at most [`count`](Self::count) parts at once, in their order.
    pub fn map<T: Send, R: Send>(&self, parts: Vec<T>, f: impl Fn(T) -> R + Sync) -> Vec<R> {
        if self.pools.is_empty() {
            return parts.into_iter().map(f).collect();
        }
        std::thread::scope(|scope| {
            let mut running = Vec::with_capacity(parts.len());
            for (part, pool) in parts.into_iter().zip(&self.pools) {
                let f = &f;
                running.push(scope.spawn(move || pool.install(move || f(part))));
            }
            let done = |part: std::thread::ScopedJoinHandle<'_, R>| match part.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            running.into_iter().map(done).collect()
        })
    }
}
