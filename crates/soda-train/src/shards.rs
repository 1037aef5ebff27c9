//! A batch in parts, each on a thread of its own.
//!
//! On a CPU most of a step's operations are too small to be worth splitting, while the samples of a batch
//! are independent: a thread a part keeps every core busy from the first operation to the last. The
//! parts are fixed by their number and are added in order, so that the same number gives the same bits.

use rayon::{ThreadPool, ThreadPoolBuilder};
use soda_models::unet::Unet;

use crate::batch::Batch;
use crate::config::ObjectiveConfig;
use crate::error::TrainError;
use crate::gradients::AdapterGradients;
use crate::loss::gradients;

/// The threads, one pool a part: operations inside a part share its pool's threads and wait for no other.
pub(crate) struct Shards {
    pools: Vec<ThreadPool>,
}

impl Shards {
    /// `count` parts. One part runs on the caller's thread, and so does all work of a graphics card.
    pub(crate) fn new(count: usize) -> Result<Self, TrainError> {
        if count <= 1 {
            return Ok(Self { pools: Vec::new() });
        }
        let threads = (rayon::current_num_threads() / count).max(1);
        let pool = |_| ThreadPoolBuilder::new().num_threads(threads).build();
        let pools = (0..count).map(pool).collect::<Result<_, _>>();
        pools
            .map(|pools| Self { pools })
            .map_err(|error| TrainError::Threads { count, reason: error.to_string() })
    }

    /// The loss of `batch` and its gradients, see [`gradients`].
    pub(crate) fn gradients(
        &self,
        unet: &Unet,
        batch: &Batch,
        objective: &ObjectiveConfig,
    ) -> (f32, AdapterGradients) {
        if self.pools.is_empty() {
            return gradients(unet, batch, objective);
        }
        let parts = batch.parts(self.pools.len());
        std::thread::scope(|scope| {
            let mut running = Vec::with_capacity(parts.len());
            for (part, pool) in parts.into_iter().zip(&self.pools) {
                let unet = unet.clone();
                let work = move || pool.install(|| gradients(&unet, &part, objective));
                running.push(scope.spawn(work));
            }
            let mut sum = (0.0, AdapterGradients::default());
            for part in running {
                match part.join() {
                    Ok((loss, grads)) => sum = (sum.0 + loss, sum.1 + grads),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            sum
        })
    }
}
