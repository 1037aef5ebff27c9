//! A batch split into shards, each computed on a thread of its own.
//!
//! On a CPU most of a network's operations are too small to be split, while the samples of a batch are
//! independent. One thread for each shard keeps every core busy from the first operation to the last.
//!
//! The shards are fixed by their number. The same number therefore gives the same bits.

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::error::ModelError;

/// The threads that compute the shards of a batch, one pool for each shard.
///
/// Operations inside a shard share the threads of its pool and wait for no other shard.
#[derive(Debug, Default)]
pub struct BatchShards {
    pools: Vec<ThreadPool>,
}

impl BatchShards {
    /// Starts the threads for `count` shards. The setting `shards` is this number.
    ///
    /// With `count` 0 or 1 there are no threads, and the caller's thread computes everything. That is right
    /// for a GPU.
    ///
    /// # Errors
    ///
    /// [`ModelError::Threads`] if the system does not start as many threads.
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

    /// The largest number of shards that are computed at once.
    pub fn count(&self) -> usize {
        self.pools.len().max(1)
    }

    /// Applies `f` to at most [`count`](Self::count) shards at once and returns the results in their order.
    ///
    /// # Panics
    ///
    /// If `f` panics.
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
