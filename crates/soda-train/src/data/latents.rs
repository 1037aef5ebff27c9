//! Pictures as the network sees them: distributions of latents, all pictures of a size in one tensor.
//!
//! What is kept of a picture is the encoder's distribution, not one sample of it: every step draws anew, as the
//! reference trainers do.

use burn::tensor::{Device, FloatDType, Int, Tensor, TensorData};
use image::RgbImage;
use rand::Rng;
use soda_models::image::to_tensor;
use soda_models::noise::normal;
use soda_models::vae::Vae;

use crate::data::augment::View;

/// A picture's distribution of latents, scaled as the network expects.
#[derive(Clone, Debug)]
pub(crate) struct Posterior {
    /// `[1, c, h, w]`.
    pub(crate) mean: Tensor<4>,
    /// Standard deviation, `[1, c, h, w]`.
    pub(crate) std: Tensor<4>,
}

impl Posterior {
    /// What the autoencoder says of a picture.
    pub(crate) fn of(picture: RgbImage, vae: &Vae, device: &Device) -> Self {
        // The decoder's range is [-1, 1].
        let pixels = to_tensor(&[picture], device).mul_scalar(2.0).sub_scalar(1.0);
        let posterior = vae.encode(pixels.cast(vae.quant_conv.weight.val().dtype()));
        let scaled = |x: Tensor<4>| x.cast(FloatDType::F32).mul_scalar(vae.scaling_factor);
        Self { std: scaled(posterior.std()), mean: scaled(posterior.mean) }
    }
}

/// Views of one size, on one device.
#[derive(Clone, Debug)]
pub(crate) struct Latents {
    /// `[n, c, h, w]`.
    mean: Tensor<4>,
    /// Standard deviation, `[n, c, h, w]`.
    std: Tensor<4>,
    /// Sizes and crops as SDXL is told them, `[n, 6]`.
    time_ids: Tensor<2>,
    /// What each latent counts, `[n, 1, h, w]`; without it all count alike.
    mask: Option<Tensor<4>>,
}

impl Latents {
    /// Number of views.
    pub(crate) fn len(&self) -> usize {
        self.mean.dims()[0]
    }

    pub(crate) fn device(&self) -> Device {
        self.mean.device()
    }

    /// One sample of each of `rows`, `[b, c, h, w]`.
    pub(crate) fn sample(&self, rows: &[i64], rng: &mut impl Rng) -> Tensor<4> {
        let mean = self.mode(rows);
        let noise = normal(rng, mean.dims(), &mean.device());
        mean + self.std.clone().select(0, self.select(rows)) * noise
    }

    /// The likeliest latents of each of `rows`, `[b, c, h, w]`.
    pub(crate) fn mode(&self, rows: &[i64]) -> Tensor<4> {
        self.mean.clone().select(0, self.select(rows))
    }

    /// `[b, 6]`.
    pub(crate) fn time_ids(&self, rows: &[i64]) -> Tensor<2> {
        self.time_ids.clone().select(0, self.select(rows))
    }

    /// What each latent of `rows` counts, `[b, 1, h, w]`, where they do not count alike.
    pub(crate) fn mask(&self, rows: &[i64]) -> Option<Tensor<4>> {
        self.mask.clone().map(|mask| mask.select(0, self.select(rows)))
    }

    fn select(&self, rows: &[i64]) -> Tensor<1, Int> {
        Tensor::from_data(TensorData::new(rows.to_vec(), [rows.len()]), &self.device())
    }
}

/// Views of one size, one after the other.
#[derive(Debug, Default)]
pub(crate) struct LatentsBuilder {
    means: Vec<Tensor<4>>,
    stds: Vec<Tensor<4>>,
    ids: Vec<f32>,
    /// What each latent counts; `None` where all count alike.
    masks: Vec<Option<Vec<f32>>>,
}

impl LatentsBuilder {
    /// Number of views so far.
    pub(crate) fn len(&self) -> usize {
        self.means.len()
    }

    /// One more.
    pub(crate) fn push(
        &mut self,
        view: &View,
        Posterior { mean, std }: Posterior,
        mask: Option<Vec<f32>>,
    ) {
        self.masks.push(mask);
        self.means.push(mean);
        self.stds.push(std);
        self.ids.extend(view.time_ids());
    }

    /// All of them; there is at least one.
    pub(crate) fn finish(self, device: &Device) -> Latents {
        let count = self.len();
        let mean = Tensor::cat(self.means, 0);
        let [_, _, height, width] = mean.dims();
        let mask = self.masks.iter().any(Option::is_some).then(|| {
            let each = |mask: Option<Vec<f32>>| mask.unwrap_or_else(|| vec![1.0; height * width]);
            let all: Vec<f32> = self.masks.into_iter().flat_map(each).collect();
            Tensor::from_data(TensorData::new(all, [count, 1, height, width]), device)
        });
        Latents {
            mask,
            mean,
            std: Tensor::cat(self.stds, 0),
            time_ids: Tensor::from_data(TensorData::new(self.ids, [count, 6]), device),
        }
    }
}
