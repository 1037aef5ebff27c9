//! What the ranks of a training exchange in a step: one flat sum of gradients, loss and requests to stop.
//!
//! The weights of the samples are those of the whole step (`1 / images_per_step`), so that the sum over ranks
//! is the gradient of the whole step, also where ranks have different numbers of samples. The norm, clipping
//! and the optimizer come after the sum and are the same on every rank.

use std::cell::Cell;
use std::fmt;
use std::sync::Arc;

use burn::tensor::{Tensor, TensorData};
use soda_distributed::{Alone, Item, Reduce};
use soda_kernels::{multi_tensor_cat, multi_tensor_split};
use soda_optim::BatchedParams;

use crate::error::TrainError;

/// The number of steps between two comparisons of the parameters of all ranks.
const COMPARISON: usize = 50;

/// The ranks of a training. The default is one process.
#[derive(Clone)]
pub struct Ranks {
    reduce: Arc<dyn Reduce>,
    /// Whether any rank was asked to stop before the last sum.
    stopped: Cell<bool>,
}

/// A rank's part of a step, or the sum of all parts.
pub(crate) struct Contribution {
    pub(crate) loss: f32,
    pub(crate) grads: BatchedParams,
}

impl Default for Ranks {
    fn default() -> Self {
        Self::new(Arc::new(Alone))
    }
}

impl fmt::Debug for Ranks {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "rank {} of {}", self.rank(), self.world())
    }
}

impl Ranks {
    /// The ranks that `reduce` connects.
    pub fn new(reduce: Arc<dyn Reduce>) -> Self {
        Self { reduce, stopped: Cell::new(false) }
    }

    /// This rank, from 0. Rank 0 writes.
    pub fn rank(&self) -> usize {
        self.reduce.rank()
    }

    /// The number of ranks.
    pub fn world(&self) -> usize {
        self.reduce.world()
    }

    /// Whether any rank was asked to stop before the last sum. All ranks have the same answer.
    pub(crate) fn stopped(&self) -> bool {
        self.stopped.get()
    }

    /// The exchange of bytes and comparisons.
    pub(crate) fn reduce(&self) -> &dyn Reduce {
        &*self.reduce
    }

    /// The sum of the parts of all ranks.
    pub(crate) fn sum(
        &self,
        own: Contribution,
        stop: impl FnOnce() -> bool,
    ) -> Result<Contribution, TrainError> {
        if self.world() == 1 {
            return Ok(own);
        }
        let Contribution { loss, grads } = own;
        let flattened = grads.flattened();
        let sizes: Vec<usize> = flattened.iter().map(|values| values.dims()[0]).collect();
        let device = flattened.first().map(Tensor::device);
        let mut bucket: Vec<f32> = match device {
            Some(_) => multi_tensor_cat(flattened).into_data().iter().collect(),
            None => Vec::new(),
        };
        // Whoever is asked while the others compute is asked in the same step.
        bucket.extend([loss, f32::from(u8::from(stop()))]);
        self.reduce.sum(&mut bucket)?;
        let stops = bucket.pop().unwrap_or_default();
        let loss = bucket.pop().unwrap_or_default();
        self.stopped.set(stops > 0.0);
        let grads = match device {
            Some(device) => {
                let count = bucket.len();
                let sum = Tensor::from_data(TensorData::new(bucket, [count]), &device);
                grads.with_flattened(multi_tensor_split(sum, &sizes).into_iter())
            }
            None => grads,
        };
        Ok(Contribution { loss, grads })
    }

    /// Compares the parameters of all ranks, at the first step and every [`COMPARISON`] steps.
    pub(crate) fn agree_on_params(
        &self,
        params: &BatchedParams,
        step: usize,
    ) -> Result<(), TrainError> {
        if self.world() == 1 || !step.is_multiple_of(COMPARISON) {
            return Ok(());
        }
        let sum = params.to_data().iter().fold(0, |sum, (path, data)| {
            crc32c::crc32c_append(crc32c::crc32c_append(sum, path.as_bytes()), data.as_bytes())
        });
        let what = format!(
            "the adapter's parameters after step {step}; its processor, its GPU or its build of soda is another one or faulty"
        );
        Ok(self.reduce.agree(&[Item::new(what, format!("{sum:08x}"))])?)
    }
}
