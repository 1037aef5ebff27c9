//! The norm of all layers: `w x / sqrt(mean(x²) + eps)` (RMSNorm, Zhang and Sennrich, arXiv 1910.07467).

use burn::nn::{RmsNorm, RmsNormConfig};
use burn::tensor::{DType, Device, Tensor};

use super::config::Qwen3Config;

/// Makes a norm over `width` channels.
pub(super) fn norm(width: usize, config: &Qwen3Config, device: &Device) -> RmsNorm {
    RmsNormConfig::new(width).with_epsilon(config.rms_norm_eps).init(device)
}

/// Normalises the last axis of `x` in f32 and scales it in the dtype of `x`, as transformers does. burn's own
/// forward pass divides in the dtype of `x`.
pub(super) fn rms_norm<const D: usize>(layer: &RmsNorm, x: Tensor<D>) -> Tensor<D> {
    let dtype = x.dtype();
    let x = x.cast(DType::F32);
    let scale = x.clone().square().mean_dim(D - 1).add_scalar(layer.epsilon).sqrt().recip();
    (x * scale).cast(dtype) * layer.gamma.val().unsqueeze()
}
