//! What the ranks of a training exchange in a step: one flat sum of gradients, loss and requests to stop.
//!
//! The weights of the samples are those of the whole step (`1 / images_per_step`), so that the sum over ranks
//! is the gradient of the whole step, also where ranks have different numbers of samples. The norm, clipping
//! and the optimizer come after the sum and are the same on every rank.

use std::cell::Cell;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use burn::tensor::{Device, Tensor, TensorData};
use soda_distributed::{Alone, Item, Reduce};
use soda_kernels::{Collective, CollectiveError, multi_tensor_cat, multi_tensor_split};
use soda_optim::BatchedParams;

use crate::divided::Division;
use crate::error::TrainError;

/// The number of steps between two comparisons of the parameters of all ranks.
const COMPARISON: usize = 50;

/// The ranks of a training. The default is one process.
#[derive(Clone)]
pub struct Ranks {
    reduce: Arc<dyn Reduce>,
    /// The sum of gradients without the host.
    collective: Option<Arc<Collective>>,
    /// Whether any rank was asked to stop before the last sum.
    stopped: Cell<bool>,
}

/// A rank's part of a step, or the sum of all parts.
pub(crate) struct Contribution {
    pub(crate) loss: f32,
    pub(crate) grads: BatchedParams,
}

/// A rank's part of a step that its device may still compute.
pub(crate) struct PendingContribution {
    /// The losses of the batches of the part, times `scale`.
    pub(crate) losses: Vec<Tensor<1>>,
    pub(crate) scale: f32,
    /// The sum of the batches, without the scale.
    pub(crate) grads: BatchedParams,
}

impl PendingContribution {
    /// Waits for the losses, and adds them in the order of the batches.
    pub(crate) fn read(self) -> Contribution {
        let Self { losses, scale, grads } = self;
        let losses = losses.into_iter().map(|loss| loss.into_scalar::<f32>() / scale);
        Contribution { loss: losses.reduce(|sum, loss| sum + loss).unwrap_or(0.0), grads }
    }
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
        Self { reduce, collective: None, stopped: Cell::new(false) }
    }

    /// Adds gradients on the devices of the ranks, by NCCL, if all of them can. Otherwise they are added on
    /// rank 0, over TCP. Also returns why, on a rank that cannot.
    ///
    /// A rank that does not come within `patience`, at the start or to a sum, is an error. `is_wanted` is
    /// whether this rank would.
    ///
    /// # Errors
    /// A rank that has gone, or did not come in time.
    pub fn with_collective(
        mut self,
        device: &Device,
        is_wanted: bool,
        patience: Duration,
    ) -> Result<(Self, Option<CollectiveError>), TrainError> {
        if self.world() == 1 {
            return Ok((self, None));
        }
        let own = if is_wanted { Collective::check(device).err() } else { None };
        if !self.all(is_wanted && own.is_none())? {
            return Ok((self, own));
        }
        let mut id = [0; 128];
        if self.rank() == 0 {
            match Collective::unique_id() {
                Ok(made) => id = made,
                Err(error) => {
                    self.reduce.broadcast(Vec::new(), id.len())?;
                    return Ok((self, Some(error)));
                }
            }
        }
        let sent = self.reduce.broadcast(id.to_vec(), id.len())?;
        let Ok(id) = sent.try_into() else { return Ok((self, None)) };
        let joined = Collective::join(device, self.rank(), self.world(), id, patience);
        let late = joined.as_ref().err().is_some_and(CollectiveError::is_late);
        // A device that waits for another can train by no other way either.
        let any_late = !self.all(!late)?;
        if self.all(joined.is_ok())? {
            self.collective = joined.ok().map(Arc::new);
            return Ok((self, None));
        }
        match joined {
            Err(error) if any_late => Err(TrainError::Collective(error)),
            Err(error) => Ok((self, Some(error))),
            Ok(collective) => {
                collective.abort();
                Ok((self, None))
            }
        }
    }

    /// Whether gradients are added on the devices.
    pub fn has_collective(&self) -> bool {
        self.collective.is_some()
    }

    /// Whether something holds on all ranks.
    fn all(&self, holds: bool) -> Result<bool, TrainError> {
        let mut count = [f32::from(u8::from(holds))];
        self.reduce.sum(&mut count)?;
        Ok(count[0] == self.world() as f32)
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

    /// Work that the ranks divide.
    pub(crate) fn division(&self) -> Division<'_> {
        Division::new(&*self.reduce)
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
        let flat = (!sizes.is_empty()).then(|| multi_tensor_cat(flattened));
        let on_host = flat.as_ref().filter(|_| self.collective.is_none());
        let mut bucket: Vec<f32> = on_host.map_or_else(Vec::new, |flat| to_vec(&flat.to_data()));
        // Whoever is asked while the others compute is asked in the same step. With a collective this
        // exchange finds ranks that have gone before the devices wait for them.
        bucket.extend([loss, f32::from(u8::from(stop()))]);
        self.reduce.sum(&mut bucket)?;
        let stops = bucket.pop().unwrap_or_default();
        let loss = bucket.pop().unwrap_or_default();
        self.stopped.set(stops > 0.0);
        let Some(flat) = flat else { return Ok(Contribution { loss, grads }) };
        let sum = match &self.collective {
            Some(collective) => match collective.sum(&flat) {
                Ok(sum) => sum,
                Err(error) => return Err(self.blame(error)),
            },
            None => {
                let count = bucket.len();
                Tensor::from_data(TensorData::new(bucket, [count]), &flat.device())
            }
        };
        let grads = grads.with_flattened(multi_tensor_split(sum, &sizes).into_iter());
        Ok(Contribution { loss, grads })
    }

    /// The rank that has gone, if there is one, or the error of the devices.
    fn blame(&self, error: CollectiveError) -> TrainError {
        let found = self.reduce.agree(&[]);
        found.err().map_or_else(|| TrainError::Collective(error), TrainError::Ranks)
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

/// The values of a gradient. Those of f32, as all are, are copied at once.
fn to_vec(data: &TensorData) -> Vec<f32> {
    data.as_slice().map_or_else(|_| data.iter().collect(), <[f32]>::to_vec)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use std::sync::Mutex;

    use burn::nn::{Linear, LinearConfig};
    use soda_adapters::lora::LoraConfig;
    use soda_adapters::{Method as _, Targets};
    use soda_distributed::DistributedError;

    use super::*;

    /// Two ranks that have the same values, and what they have compared.
    #[derive(Default)]
    struct Twins(Mutex<Vec<Item>>);

    impl Reduce for Twins {
        fn rank(&self) -> usize {
            0
        }

        fn world(&self) -> usize {
            2
        }

        fn sum(&self, values: &mut [f32]) -> Result<(), DistributedError> {
            values.iter_mut().for_each(|value| *value *= 2.0);
            Ok(())
        }

        fn broadcast(&self, bytes: Vec<u8>, _: usize) -> Result<Vec<u8>, DistributedError> {
            Ok(bytes)
        }

        fn gather(&self, bytes: Vec<u8>, _: usize) -> Result<Vec<Vec<u8>>, DistributedError> {
            Ok(vec![bytes.clone(), bytes])
        }

        fn refuse(&self, rank: usize, what: &str) -> DistributedError {
            Alone.refuse(rank, what)
        }

        fn agree(&self, items: &[Item]) -> Result<(), DistributedError> {
            self.0.lock().unwrap().extend_from_slice(items);
            Ok(())
        }

        fn alive(&self) {}

        fn end(&self, _: &str) {}
    }

    fn params() -> BatchedParams {
        let device = Device::default();
        let layer: Linear = LinearConfig::new(6, 4).init(&device);
        let method = LoraConfig::default();
        let plan = method.plan(&Targets(vec!["weight$".to_owned()]), &layer).unwrap();
        BatchedParams::new(&method, &plan.attach(layer))
    }

    fn values(params: &BatchedParams) -> Vec<f32> {
        params
            .flattened()
            .into_iter()
            .flat_map(|x| x.into_data().iter().collect::<Vec<f32>>())
            .collect()
    }

    #[test]
    fn gradients_losses_and_requests_to_stop_are_added() {
        let grads = params().map(|_, value| value.clone().add_scalar(0.25));
        let before = values(&grads);
        assert!(before.iter().any(|value| *value != 0.25));
        for (stop, expected) in [(true, true), (false, false)] {
            let ranks = Ranks::new(Arc::new(Twins::default()));
            let own = Contribution { loss: 1.5, grads: grads.clone() };
            let sum = ranks.sum(own, || stop).unwrap();
            assert_eq!((sum.loss, ranks.stopped()), (3.0, expected));
            let doubled: Vec<f32> = before.iter().map(|value| 2.0 * value).collect();
            assert_eq!(values(&sum.grads), doubled);
        }
        // One process changes no bit and looks at no flag.
        let alone = Ranks::default();
        let own = Contribution { loss: 1.5, grads };
        let sum = alone.sum(own, || panic!("looked at")).unwrap();
        assert_eq!((sum.loss, values(&sum.grads), alone.stopped()), (1.5, before, false));
    }

    #[test]
    fn other_parameters_are_compared_as_other_values() {
        let twins = Arc::new(Twins::default());
        let ranks = Ranks::new(twins.clone());
        let params = params();
        let other = params.map(|_, value| value.clone().add_scalar(1e-6));
        for (params, step) in [(&params, 0), (&params, 1), (&params, 50), (&other, 50)] {
            ranks.agree_on_params(params, step).unwrap();
        }
        let compared = twins.0.lock().unwrap();
        assert_eq!(compared.len(), 3, "{compared:?}");
        assert_eq!(compared[0].value, compared[1].value);
        assert_ne!(compared[1].value, compared[2].value);
        assert!(compared[2].what.contains("after step 50"));
    }
}
