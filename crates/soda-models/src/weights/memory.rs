//! The memory of a network's weights.

use std::collections::BTreeSet;
use std::ops::Add;

use burn::module::Module;
use soda_kernels::stored_weights;

use super::parameters::{is_placeholder, stored_parameters};
use super::storage::{self, WeightStorage};

/// The bytes of weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WeightMemory {
    /// Bytes on the device.
    pub device: usize,
    /// Bytes of offloaded weights in host memory.
    pub host: usize,
}

impl WeightMemory {
    /// The memory of the parameters of `module`, as they are stored.
    pub fn of<M: Module>(module: &M) -> Self {
        let parameters = stored_parameters(module);
        let device = parameters.iter().map(|parameter| parameter.elements() * parameter.width);
        let stored = stored_weights(module).into_values();
        stored.fold(Self { device: device.sum(), host: 0 }, |sum, weight| {
            let (device, host) = weight.memory();
            sum + Self { device, host }
        })
    }
}

/// The linear weights of a network's repeated blocks, which [`WeightStorage`] concerns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockWeights {
    /// The numbers of the weights.
    pub numbers: usize,
    /// The blocks.
    pub blocks: usize,
}

impl BlockWeights {
    /// Counts the weights of `module`, however they are stored.
    pub fn of<M: Module>(module: &M) -> Self {
        let (mut blocks, mut numbers) = (BTreeSet::new(), 0);
        for parameter in &stored_parameters(module) {
            let Some(block) = storage::block(&parameter.path) else { continue };
            blocks.insert(block.to_owned());
            let is_matrix = parameter.shape.len() == 2 && !is_placeholder(&parameter.shape);
            if is_matrix && storage::is_stored(&parameter.path) {
                numbers += parameter.elements();
            }
        }
        let stored = stored_weights(module).into_values();
        let stored = stored.map(|weight| weight.dims().iter().product::<usize>());
        Self { numbers: numbers + stored.sum::<usize>(), blocks: blocks.len() }
    }

    /// The bytes on the device, stored as `storage` says in a network that computes in numbers of
    /// `dtype_bytes` bytes.
    pub fn device_bytes(&self, storage: WeightStorage, dtype_bytes: usize) -> usize {
        let resident = self.blocks.saturating_sub(storage.offload);
        let per_block = self.numbers / self.blocks.max(1);
        let of_numbers = |numbers: usize| match storage.quantization {
            None => numbers * dtype_bytes,
            Some(format) => {
                let scales = format.block().map_or(0, |block| numbers / block);
                numbers * format.bits() / 8 + scales
            }
        };
        of_numbers(resident * per_block)
    }
}

impl Add for WeightMemory {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { device: self.device + other.device, host: self.host + other.host }
    }
}

#[cfg(test)]
mod tests {
    use burn::nn::{Linear, LinearConfig};
    use burn::tensor::{Device, FloatDType};

    use super::*;
    use crate::weights::store;

    #[derive(Module, Debug)]
    struct Network {
        layers: Vec<Linear>,
    }

    #[test]
    fn offloaded_weights_are_counted_in_host_memory() {
        let layer = || LinearConfig::new(16, 8).init(&Device::default());
        let network = Network { layers: vec![layer(), layer()] };
        let (weight, bias) = (4 * 16 * 8, 4 * 8);
        let plain = WeightMemory::of(&network);
        assert_eq!(plain, WeightMemory { device: 2 * (weight + bias), host: 0 });
        let storage = WeightStorage { offload: 1, ..WeightStorage::default() };
        let found = WeightMemory::of(&store(network, storage, FloatDType::F32));
        // The placeholder, and a number in the place of scales.
        let device = weight + 2 * bias + 4 + 4;
        assert_eq!(found, WeightMemory { device, host: weight });
    }

    #[test]
    fn blocks_are_counted_however_they_are_stored() {
        let layer = || LinearConfig::new(64, 8).init(&Device::default());
        let network = Network { layers: vec![layer(), layer(), layer()] };
        let expected = BlockWeights { numbers: 3 * 64 * 8, blocks: 3 };
        assert_eq!(BlockWeights::of(&network), expected);
        let quantization = Some(soda_kernels::QuantFormat::Int8);
        let storage = WeightStorage { quantization, offload: 1, ..WeightStorage::default() };
        let stored = store(network, storage, FloatDType::F32);
        assert_eq!(BlockWeights::of(&stored), expected);
        let plain = WeightStorage::default();
        assert_eq!(expected.device_bytes(plain, 2), 2 * expected.numbers);
        assert_eq!(expected.device_bytes(storage, 2), 2 * 64 * 8);
        let all = WeightStorage { offload: 9, ..plain };
        assert_eq!(expected.device_bytes(all, 2), 0);
    }
}
