//! A check that a GPU's driver computes gradients, before a training relies on them.
//!
//! Drivers compile the kernels of wgpu, and may round a division to either side. burn's gradient of
//! upsampling rounds such a quotient up. On an H200 through Vulkan, gradients of UNets were off by 10 to 40 %
//! until `soda_kernels::upsample_nearest` had a gradient of its own. Predictions were right, and so was all
//! of it on a CPU. The sizes here are among those that were wrong.

use anyhow::{Result, ensure};
use burn::module::Module as _;
use burn::tensor::{Device, Distribution, Tensor};
use soda_models::condition::Condition;
use soda_models::unet::{DownBlockType, PerBlock, Unet, UnetConfig, UpBlockType};

/// The largest distance of two gradients, over the length of the first. Orders of summation differ by 1e-5.
const TOLERANCE: f32 = 1e-3;

/// Compares the gradient of a small UNet on `device` with that on the processor.
///
/// # Errors
/// A gradient that is further away than rounding explains, or is no number.
pub(crate) fn check(device: &Device) -> Result<()> {
    let processor = Device::flex();
    let network = network().init(&processor);
    let x = Tensor::random([1, 4, 9, 13], Distribution::Normal(0.0, 1.0), &processor);
    let found = [&processor, device].map(|device| gradient(&network, &x, device));
    let error = distance(&found[0], &found[1]);
    ensure!(
        error <= TOLERANCE,
        "the driver of this GPU computes gradients wrongly: they are off by {:.0} % of the processor's; \
         train with --device cuda or --device cpu",
        100.0 * error
    );
    Ok(())
}

/// A UNet with every kind of layer, with two levels of 32 and 64 channels.
fn network() -> UnetConfig {
    UnetConfig {
        block_out_channels: vec![32, 64],
        down_block_types: vec![DownBlockType::CrossAttnDownBlock2D, DownBlockType::DownBlock2D],
        up_block_types: vec![UpBlockType::UpBlock2D, UpBlockType::CrossAttnUpBlock2D],
        layers_per_block: PerBlock::All(1),
        cross_attention_dim: PerBlock::All(32),
        attention_head_dim: PerBlock::All(4),
        ..UnetConfig::default()
    }
}

/// The gradient by the first weights, which depends on those of all layers.
fn gradient(network: &Unet, x: &Tensor<4>, device: &Device) -> Vec<f32> {
    let tape = device.clone().autodiff();
    let network = network.clone().to_device(device).train().set_require_grad(true);
    let time = Tensor::from_floats([500.0], &tape);
    let text = Tensor::ones([1, 7, 32], &tape);
    let x = x.clone().to_device(&tape);
    let out = network.forward(x.clone(), time, Condition::from(text));
    let gradients = (out * x).sum().backward();
    let gradient = network.conv_in.weight.val().grad(&gradients);
    gradient.map(|gradient| gradient.into_data().iter::<f32>().collect()).unwrap_or_default()
}

/// `|a - b| / |a|`. NaN if one of them holds a NaN or both are empty, infinity if they differ in length.
fn distance(a: &[f32], b: &[f32]) -> f32 {
    if a.len() != b.len() {
        return f32::INFINITY;
    }
    let length = |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>().sqrt();
    length(&mut a.iter().zip(b).map(|(a, b)| a - b)) / length(&mut a.iter().copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_passes_and_other_gradients_do_not() {
        assert!(check(&Device::flex()).is_ok());
        let right = [1.0, -2.0, 2.0];
        let passes = |a: &[f32], b: &[f32]| distance(a, b) <= TOLERANCE;
        assert!(passes(&right, &right));
        for wrong in [[1.0, -2.0, 2.1], [f32::NAN, -2.0, 2.0], [1.0, f32::INFINITY, 2.0]] {
            assert!(!passes(&right, &wrong), "{wrong:?}");
        }
        assert!(!passes(&right, &right[..2]) && !passes(&[], &[]));
    }
}
