//! Sums over the devices of several processes, without the host: NCCL on CUDA devices.

use std::fmt;
use std::time::Duration;

use burn::tensor::{Device, Tensor};

use crate::cuda::{Communicator, nccl_refusal, nccl_unique_id};

/// The bytes by which the processes find each other. One of them makes it.
pub type CollectiveId = [u8; 128];

/// The devices of several processes, one each.
pub struct Collective {
    communicator: Communicator,
    patience: Duration,
}

/// Why devices cannot add. Displays as one sentence without a full stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CollectiveError {
    reason: String,
    is_late: bool,
}

impl CollectiveError {
    fn new(reason: String) -> Self {
        Self { reason, is_late: false }
    }

    /// Whether another process did not come in time. The device waits for it, and does nothing else any more.
    pub fn is_late(&self) -> bool {
        self.is_late
    }
}

impl fmt::Display for CollectiveError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.reason)
    }
}

impl std::error::Error for CollectiveError {}

impl fmt::Debug for Collective {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Collective")
    }
}

impl Collective {
    /// Checks that `device` and this machine can take part.
    ///
    /// # Errors
    /// A device that is no CUDA device, or a machine without NCCL.
    pub fn check(device: &Device) -> Result<(), CollectiveError> {
        nccl_refusal(&probe(device)).map_or(Ok(()), |reason| Err(CollectiveError::new(reason)))
    }

    /// Makes the bytes that every process needs to [`join`](Self::join).
    ///
    /// # Errors
    /// A machine without NCCL, or without a network that it can use.
    pub fn unique_id() -> Result<CollectiveId, CollectiveError> {
        nccl_unique_id().map_err(CollectiveError::new)
    }

    /// Joins `world` processes as number `rank`, and waits for all of them.
    ///
    /// # Errors
    /// Two processes on one GPU, GPUs that cannot reach each other, or a process that does not come within
    /// `patience`, which is also the longest time of a sum.
    pub fn join(
        device: &Device,
        rank: usize,
        world: usize,
        id: CollectiveId,
        patience: Duration,
    ) -> Result<Self, CollectiveError> {
        let communicator = Communicator::join(&probe(device), rank, world, id, patience);
        let late = || CollectiveError {
            reason: format!("NCCL did not connect the ranks within {} s", patience.as_secs()),
            is_late: true,
        };
        let communicator = communicator.map_err(CollectiveError::new)?.ok_or_else(late)?;
        Ok(Self { communicator, patience })
    }

    /// Leaves the other processes. Their next sum fails.
    pub fn abort(self) {
        self.communicator.abort();
    }

    /// The sum of `x` over all processes, which give tensors of one length. It is written over `x`, and all
    /// get the same bits.
    ///
    /// # Errors
    /// A process that has gone, or does not come in time.
    pub fn sum(&self, x: &Tensor<1>) -> Result<Tensor<1>, CollectiveError> {
        self.communicator.sum(x, self.patience).map_err(CollectiveError::new)
    }
}

/// A tensor of the device.
fn probe(device: &Device) -> Tensor<1> {
    Tensor::zeros([1], device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(feature = "cpu")]
    fn the_processor_has_no_collective() {
        let error = Collective::check(&Device::flex()).err().map(|error| error.to_string());
        assert!(error.is_some_and(|error| error.contains("CUDA")));
    }
}
