//! The norm of all layers, a root mean square over channels.

use burn::nn::{RmsNorm, RmsNormConfig};
use burn::tensor::Device;

use super::config::Qwen3Config;

/// Makes a norm over `width` channels.
pub(super) fn norm(width: usize, config: &Qwen3Config, device: &Device) -> RmsNorm {
    RmsNormConfig::new(width).with_epsilon(config.rms_norm_eps).init(device)
}
