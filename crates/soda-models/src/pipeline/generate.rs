//! Generating images from prompts, and from an initial image and prompts.
//!
//! ```text
//! eps = e(empty) + g (e(prompt) - e(empty))
//! ```
//!
//! This is classifier-free guidance (arXiv 2207.12598) of scale `g`. Image-to-image follows SDEdit (arXiv
//! 2108.01073): noise is added to the initial image up to a timestep in the middle, and sampling starts
//! there.

use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::Tensor;
use image::RgbImage;
use tracing::info_span;

use super::guided_denoiser::GuidedDenoiser;
use super::model::Pipeline;
use crate::batch_shards::BatchShards;
use crate::error::{ImageError, ModelError};
use crate::image::{MAX_PIXELS, resize_center_crop, to_images, to_tensor};
use crate::noise::randn;
use crate::scheduler::{Sampler, SamplerKind};
use crate::vae::Tiling;

/// Prompts in one batch. Guidance doubles the samples of the denoiser, and memory grows with them.
const PROMPTS_AT_ONCE: usize = 16;

/// Pixels in one batch. Larger images are generated in smaller batches.
const PIXELS_AT_ONCE: usize = 1 << 20;

/// The settings of [`Pipeline::generate`].
#[derive(Debug, Clone)]
pub struct GenerateConfig {
    /// The prompts, one for each image.
    pub prompts: Vec<String>,
    /// What the images should not show.
    pub negative_prompt: String,
    /// Number of sampling steps.
    pub steps: usize,
    /// Scale of classifier-free guidance, in the terms of diffusers' pipeline. Without guidance there is half
    /// the work. See [`Pipeline::guidance_factor`].
    pub guidance_scale: f64,
    /// Seed of the noise. The noise of image `i` depends on `seed` and `i` alone.
    pub seed: u64,
    /// The sampler. `None` for the one in the model's config.
    pub sampler: Option<SamplerKind>,
    /// Height and width in pixels. `None` for the size that the model was trained on.
    pub size: Option<[usize; 2]>,
    /// Layers of the text encoders that are skipped at the end.
    pub clip_skip: usize,
    /// An initial image. `None` to start from noise alone.
    pub init_image: Option<InitImage>,
    /// The tiles in which larger images are encoded and decoded, which bounds memory. `None` for whole
    /// images.
    pub tiling: Option<Tiling>,
    /// Number of shards of a batch that the denoiser computes at once on a CPU, each on threads of its own.
    /// More shards than samples have no effect.
    pub shards: usize,
}

/// The initial image of image-to-image.
#[derive(Debug, Clone)]
pub struct InitImage {
    /// The image. Its centre is cropped and resized to the requested size.
    pub image: RgbImage,
    /// The share of the steps that are sampled, above 0 and at most 1. Near 0 the image is kept, at 1 nothing
    /// of it is left.
    pub strength: f64,
}

impl Default for GenerateConfig {
    fn default() -> Self {
        Self {
            prompts: Vec::new(),
            negative_prompt: String::new(),
            steps: 30,
            guidance_scale: 5.0,
            seed: 0,
            sampler: None,
            size: None,
            clip_skip: 0,
            init_image: None,
            tiling: None,
            shards: 1,
        }
    }
}

impl Pipeline {
    /// Generates one image for each prompt.
    ///
    /// `progress` is called after each denoising step with the number of steps done and of all steps.
    ///
    /// # Errors
    ///
    /// - [`ModelError::InvalidRequest`], with the name of the field, for a setting that cannot be used.
    /// - [`ModelError::Image`] with [`ImageError::NonFinite`] if latents or pixels are NaN or infinite.
    pub fn generate(
        &self,
        request: &GenerateConfig,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Vec<RgbImage>, ModelError> {
        self.generate_unless(request, &AtomicBool::new(false), progress)
    }

    /// Generates one image for each prompt, as [`Pipeline::generate`] does. Setting `stop` from another
    /// thread ends the work before the next denoising step.
    ///
    /// # Errors
    ///
    /// [`ModelError::Stopped`] after `stop` was set; all errors of [`Pipeline::generate`].
    pub fn generate_unless(
        &self,
        request: &GenerateConfig,
        stop: &AtomicBool,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Vec<RgbImage>, ModelError> {
        let all: Vec<usize> = (0..request.prompts.len()).collect();
        self.generate_some(request, &all, stop, progress)
    }

    /// Generates the images of a request with these indices, as [`Pipeline::generate_unless`] does. The
    /// others are left to other processes.
    ///
    /// An image has the noise that it has among all of them. A batch holds other images than with all of
    /// them, which changes rounding only, and not even that where a batch is one large image.
    ///
    /// # Errors
    ///
    /// [`ModelError::InvalidRequest`] for an index without a prompt; all errors of
    /// [`Pipeline::generate_unless`].
    pub fn generate_some(
        &self,
        request: &GenerateConfig,
        indices: &[usize],
        stop: &AtomicBool,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Vec<RgbImage>, ModelError> {
        let size = self.check(request)?;
        if let Some(index) = indices.iter().find(|index| **index >= request.prompts.len()) {
            let expected = format!("there are {} prompts", request.prompts.len());
            let value = format!("image {index}");
            return Err(ModelError::InvalidRequest { field: "prompts", value, expected });
        }
        let (sampler, begin) = self.plan(request, size)?;
        let at_once = (PIXELS_AT_ONCE / (size[0] * size[1])).clamp(1, PROMPTS_AT_ONCE);
        let batches = indices.len().div_ceil(at_once);
        let total = batches * (sampler.timesteps().len() - begin);
        let mut denoiser = self.guided_denoiser(request, total);
        let mut done = 0;
        let mut images = Vec::with_capacity(indices.len());
        for indices in indices.chunks(at_once) {
            let noise = indices.iter().map(|i| self.noise(request.seed, *i, size)).collect();
            let prompts = indices.iter().map(|i| request.prompts[*i].clone()).collect();
            let part = GenerateConfig { prompts, ..request.clone() };
            let noise = Tensor::cat(noise, 0);
            let latents = self.sample(&part, &mut denoiser, indices, noise, stop, &mut |_| {
                done += 1;
                progress(done, total);
            })?;
            images.extend(self.decode_each(latents, indices, request.tiling)?);
        }
        Ok(images)
    }

    /// The noise from which image `index` of `seed` starts, `[1, c, h', w']`, in the size that the model was
    /// trained on.
    pub fn initial_latents(&self, seed: u64, index: usize) -> Tensor<4> {
        self.noise(seed, index, [self.image_size(); 2])
    }

    /// Denoises `noise` of unit variance, `[n, c, h', w']`, to latents of the same shape, one for each
    /// prompt.
    ///
    /// `observe` is called with the latents after each step.
    ///
    /// # Errors
    ///
    /// [`ModelError::InvalidRequest`], with the name of the field, for a setting that cannot be used.
    pub fn denoise(
        &self,
        request: &GenerateConfig,
        noise: Tensor<4>,
        observe: &mut dyn FnMut(&Tensor<4>),
    ) -> Result<Tensor<4>, ModelError> {
        self.check(request)?;
        let indices: Vec<usize> = (0..request.prompts.len()).collect();
        let mut denoiser = self.guided_denoiser(request, request.steps);
        self.sample(request, &mut denoiser, &indices, noise, &AtomicBool::new(false), observe)
    }

    /// The denoiser for about `calls` calls of a request.
    fn guided_denoiser(&self, request: &GenerateConfig, calls: usize) -> GuidedDenoiser {
        let guidance = self.guidance_factor(request.guidance_scale);
        GuidedDenoiser::new(self.denoiser.clone(), guidance, calls)
    }

    /// Denoises the images with the given indices. See [`Pipeline::denoise`].
    fn sample(
        &self,
        request: &GenerateConfig,
        denoiser: &mut GuidedDenoiser,
        indices: &[usize],
        noise: Tensor<4>,
        stop: &AtomicBool,
        observe: &mut dyn FnMut(&Tensor<4>),
    ) -> Result<Tensor<4>, ModelError> {
        let count = indices.len();
        let shape = noise.dims();
        let size = [shape[2], shape[3]].map(|side| side * self.vae_config.pixels_per_patch());
        let (mut sampler, begin) = self.plan(request, size)?;

        let guided = self.guidance_factor(request.guidance_scale).is_some();
        let shards = BatchShards::new(request.shards.min(if guided { 2 * count } else { count }))?;
        let span = info_span!("encode prompts").entered();
        let condition = self.condition(&request.prompts, request.clip_skip, size);
        let condition = if guided {
            let negative = self.negative(&request.negative_prompt, size);
            negative.repeat(count).cat(condition)
        } else {
            condition
        };
        let condition = condition.cast(self.denoiser.dtype());
        span.exit();

        let mut latents = match &request.init_image {
            None => noise.mul_scalar(sampler.init_noise_sigma()),
            Some(init) => {
                let image = self.init_latents(init, request.tiling, size);
                sampler.add_noise(begin, image.repeat_dim(0, count), noise)
            }
        };
        let mask = self.paint_all(size, count);
        let _span = info_span!("denoise").entered();
        let timesteps = sampler.timesteps()[begin..].to_vec();
        for (call, t) in timesteps.into_iter().enumerate() {
            if stop.load(Ordering::Relaxed) {
                return Err(ModelError::Stopped);
            }
            let call = begin + call;
            let input = sampler.scale_model_input(call, latents.clone());
            let input = match &mask {
                Some(mask) => Tensor::cat(vec![input, mask.clone()], 1),
                None => input,
            };
            let prediction = denoiser.predict(input, t, &condition, &shards);
            let mut fresh = || {
                // Stream `i` of the seed starts image `i`; the upper bits are the sampler's step.
                let stream = |i: &usize| (*i as u64) | ((call as u64 + 1) << 32);
                let noise = |i| {
                    let [_, c, h, w] = shape;
                    randn(request.seed, stream(i), [1, c, h, w], &self.device)
                };
                Tensor::cat(indices.iter().map(noise).collect(), 0)
            };
            latents = sampler.step(call, prediction, latents, &mut fresh);
            observe(&latents);
        }
        Ok(latents)
    }

    /// Makes the sampler, and the index of the first step, which is not 0 with an initial image.
    fn plan(
        &self,
        request: &GenerateConfig,
        size: [usize; 2],
    ) -> Result<(Box<dyn Sampler>, usize), ModelError> {
        let [rows, columns] = size.map(|side| side / self.pixels_per_token());
        let (kind, steps) = (request.sampler, request.steps);
        let sampler = self.scheduler.sampler_for_tokens(kind, steps, rows * columns)?;
        let calls = (request.steps, sampler.timesteps().len());
        let begin = request.init_image.as_ref().map_or(0, |init| {
            let again = (request.steps as f64 * init.strength) as usize;
            let skipped = calls.0 - again.clamp(1, calls.0);
            (skipped * sampler.calls_per_step()).min(calls.1 - 1)
        });
        Ok((sampler, begin))
    }

    /// Scaled latents of an initial image, `[1, c, h', w']`: the mode of the posterior.
    fn init_latents(
        &self,
        init: &InitImage,
        tiling: Option<Tiling>,
        [height, width]: [usize; 2],
    ) -> Tensor<4> {
        let image = resize_center_crop(&init.image, width as u32, height as u32);
        self.encode(to_tensor(&[image], &self.device), tiling)
    }

    /// The further inputs of an inpainting UNet, `[n, 1 + c, h', w']`. They are a mask that covers
    /// everything, and the latents of the masked image, which is empty.
    fn paint_all(&self, [height, width]: [usize; 2], count: usize) -> Option<Tensor<4>> {
        if self.denoiser_config.in_channels() == self.vae_config.patch_channels() {
            return None;
        }
        let grey = Tensor::full([1, self.vae_config.in_channels, height, width], 0.5, &self.device);
        let empty = self.encode(grey, None);
        let mask = Tensor::ones_like(&empty.clone().narrow(1, 0, 1));
        Some(Tensor::cat(vec![mask, empty], 1).repeat_dim(0, count))
    }

    /// Decodes latents to images, large ones one at a time, since the autoencoder needs more memory than the
    /// denoiser.
    ///
    /// `indices` are those of the images, for errors.
    fn decode_each(
        &self,
        latents: Tensor<4>,
        indices: &[usize],
        tiling: Option<Tiling>,
    ) -> Result<Vec<RgbImage>, ModelError> {
        let _span = info_span!("decode").entered();
        let [count, channels, height, width] = latents.dims();
        let bad = latents.clone().into_data().iter::<f32>().position(|value| !value.is_finite());
        if let Some(bad) = bad {
            let index = indices[bad / (channels * height * width)];
            return Err(ImageError::NonFinite { what: "latents", index }.into());
        }
        let at_once = if height * width > 32 * 32 { 1 } else { count };
        let mut images = Vec::with_capacity(count);
        for latents in latents.split(at_once, 0) {
            let decoded = self.decode_in(latents, tiling);
            // The pixels are not clamped before the check, since a clamp would turn infinity into white.
            let decoded = to_images(decoded).map_err(|error| match error {
                ModelError::Image(ImageError::NonFinite { what, index }) => {
                    ImageError::NonFinite { what, index: indices[images.len() + index] }.into()
                }
                other => other,
            })?;
            images.extend(decoded);
        }
        Ok(images)
    }

    fn noise(&self, seed: u64, index: usize, size: [usize; 2]) -> Tensor<4> {
        let [height, width] = size.map(|side| side / self.vae_config.pixels_per_patch());
        let shape = [1, self.vae_config.patch_channels(), height, width];
        randn(seed, index as u64, shape, &self.device)
    }

    /// Checks a request. Returns the height and width in pixels.
    fn check(&self, request: &GenerateConfig) -> Result<[usize; 2], ModelError> {
        let refuse = |field, value: String, expected: String| {
            Err(ModelError::InvalidRequest { field, value, expected })
        };
        if !request.guidance_scale.is_finite() {
            let expected = "it must be a finite number".to_string();
            return refuse("guidance", request.guidance_scale.to_string(), expected);
        }
        let size = request.size.unwrap_or([self.image_size(); 2]);
        self.check_size("size", size)?;
        let mut prompts = request.prompts.iter().chain([&request.negative_prompt]);
        prompts.try_for_each(|prompt| self.check_prompt(prompt))?;
        if let Err(expected) = self.text.check_clip_skip(request.clip_skip) {
            return refuse("clip_skip", request.clip_skip.to_string(), expected);
        }
        if let Some(init) = &request.init_image {
            if !(init.strength > 0.0 && init.strength <= 1.0) {
                let expected = "it must be above 0 and at most 1".to_string();
                return refuse("strength", init.strength.to_string(), expected);
            }
            if init.image.width() == 0 || init.image.height() == 0 {
                return refuse("init_image", "an empty image".into(), "it must have pixels".into());
            }
        }
        Ok(size)
    }

    /// Refuses a [`resolution`](Self::resolution) that the model does not draw.
    pub(super) fn check_resolution(&self) -> Result<(), ModelError> {
        match self.resolution {
            Some(side) => self.check_size("resolution", [side; 2]),
            None => Ok(()),
        }
    }

    /// Refuses images of a size that the model does not draw, by height and width in pixels.
    fn check_size(&self, field: &'static str, size: [usize; 2]) -> Result<(), ModelError> {
        let refuse = |expected: String| {
            let value = format!("{}x{}", size[1], size[0]);
            Err(ModelError::InvalidRequest { field, value, expected })
        };
        let unit = self.pixels_per_token();
        if size.iter().any(|side| *side == 0 || !side.is_multiple_of(unit)) {
            return refuse(format!("both sides must be positive multiples of {unit}"));
        }
        let pixels = size.iter().fold(1u64, |pixels, side| pixels.saturating_mul(*side as u64));
        if pixels > MAX_PIXELS {
            return refuse(format!("an image has at most {MAX_PIXELS} pixels"));
        }
        if let Some(most) = self.denoiser_config.most_tokens()
            && (size[0] / unit > most[0] || size[1] / unit > most[1])
        {
            let [height, width] = most.map(|tokens| tokens * unit);
            return refuse(format!("this model draws {width}x{height} pixels at most"));
        }
        Ok(())
    }
}
