//! The memory of a network's weights.

use std::ops::Add;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::Tensor;
use soda_kernels::stored_weights;

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
        let mut sum = Bytes(0);
        module.visit(&mut sum);
        let stored = stored_weights(module).into_values();
        stored.fold(Self { device: sum.0, host: 0 }, |sum, weight| {
            let (device, host) = weight.memory();
            sum + Self { device, host }
        })
    }
}

impl Add for WeightMemory {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { device: self.device + other.device, host: self.host + other.host }
    }
}

struct Bytes(usize);

impl ModuleVisitor for Bytes {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let value = param.base();
        self.0 += value.dims().iter().product::<usize>() * value.dtype().size();
    }
}

#[cfg(test)]
mod tests {
    use burn::nn::LinearConfig;
    use burn::tensor::{Device, FloatDType};

    use super::*;
    use crate::weights::{WeightStorage, store};

    #[derive(Module, Debug)]
    struct Network {
        layers: Vec<burn::nn::Linear>,
    }

    #[test]
    fn offloaded_weights_are_counted_in_host_memory() {
        let layer = || LinearConfig::new(16, 8).init(&Device::default());
        let network = Network { layers: vec![layer(), layer()] };
        let (weight, bias) = (4 * 16 * 8, 4 * 8);
        let plain = WeightMemory::of(&network);
        assert_eq!(plain, WeightMemory { device: 2 * (weight + bias), host: 0 });
        let storage = WeightStorage { quantization: None, offload: 1 };
        let found = WeightMemory::of(&store(network, storage, FloatDType::F32));
        // The placeholder, and a number in the place of scales.
        let device = weight + 2 * bias + 4 + 4;
        assert_eq!(found, WeightMemory { device, host: weight });
    }
}
