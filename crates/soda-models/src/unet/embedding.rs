//! The timestep embedding: sinusoids, then a two-layer MLP.
//!
//! ```text
//! w_i = exp(-ln(10000) i / (d/2 - shift)),   e(t) = [cos(t w), sin(t w)]
//! ```
//!
//! From "Attention Is All You Need" (arXiv 1706.03762) and DDPM (arXiv 2006.11239). Mirrors diffusers'
//! `Timesteps` and `TimestepEmbedding`.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::activation::silu;
use burn::tensor::{Device, Tensor, TensorData};

use crate::layers::project;

/// Embeds timesteps `[b]` as sinusoids `[b, channels]`. Timesteps need not be whole.
///
/// `flip` puts the cosines first, and `shift` shifts the frequencies. The frequencies are computed on the
/// host in f32 and in PyTorch's order of operations. At t = 999 the last bit of a frequency is 6e-5 of a
/// radian.
pub fn sinusoidal_embedding(
    timestep: Tensor<1>,
    channels: usize,
    flip: bool,
    shift: f64,
) -> Tensor<2> {
    let device = timestep.device();
    let half = channels / 2;
    let frequencies: Vec<f32> = (0..half)
        .map(|i| (-(10000f64.ln()) as f32 * i as f32 / (half as f64 - shift) as f32).exp())
        .collect();
    let frequencies = Tensor::<2>::from_data(TensorData::new(frequencies, [1, half]), &device);
    let angles = timestep.unsqueeze_dim::<2>(1).mul(frequencies);
    let (sin, cos) = (angles.clone().sin(), angles.cos());
    Tensor::cat(if flip { vec![cos, sin] } else { vec![sin, cos] }, 1)
}

/// The MLP after the sinusoids.
#[derive(Module, Debug)]
pub struct TimestepEmbedding {
    /// Linear layer from sinusoids to embedding.
    pub linear_1: Linear,
    /// Linear layer from embedding to embedding.
    pub linear_2: Linear,
}

impl TimestepEmbedding {
    /// Makes an MLP with random weights, from `channels` sinusoids to `width` features.
    pub fn init(channels: usize, width: usize, device: &Device) -> Self {
        Self {
            linear_1: LinearConfig::new(channels, width).init(device),
            linear_2: LinearConfig::new(width, width).init(device),
        }
    }

    /// Embeds sinusoids `[b, channels]` as `[b, width]`.
    pub fn forward(&self, sinusoids: Tensor<2>) -> Tensor<2> {
        project(&self.linear_2, silu(project(&self.linear_1, sinusoids)))
    }
}
