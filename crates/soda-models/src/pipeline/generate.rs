//! Drawing: noise, or a picture and noise, to pictures.
//!
//! Classifier-free guidance (arXiv 2207.12598): `eps = e(empty) + g (e(prompt) - e(empty))`.
//! From picture to picture (SDEdit, arXiv 2108.01073): the picture is noised to the middle of the
//! plan, and drawn again from there.

use burn::tensor::{FloatDType, Tensor};
use image::RgbImage;

use super::{Pipeline, unit_scale};
use crate::error::ModelError;
use crate::image::{resize_center_crop, to_images, to_tensor};
use crate::noise::gaussian;
use crate::scheduler::{Sampler, SamplerKind};
use crate::shards::Shards;
use crate::unet::Condition;

/// Prompts drawn at once: the UNet sees twice as many samples, and memory grows with them.
const PROMPTS_AT_ONCE: usize = 16;

/// Pixels of a batch. Larger pictures are drawn fewer at a time.
const PIXELS_AT_ONCE: usize = 1 << 20;

/// What to draw, and how.
#[derive(Debug, Clone)]
pub struct GenerateConfig {
    /// One picture each.
    pub prompts: Vec<String>,
    /// What the pictures should not be.
    pub negative_prompt: String,
    /// Steps of the sampler.
    pub steps: usize,
    /// Strength of the guidance; at 1 and below there is none, and half the work.
    pub guidance: f64,
    /// Picture `i` starts from noise that depends on this and on `i` alone.
    pub seed: u64,
    /// The sampler; without one, the model's own.
    pub scheduler: Option<SamplerKind>,
    /// Height and width in pixels; without them, those that the model was trained on.
    pub size: Option<[usize; 2]>,
    /// Layers of the text encoders left out at the end.
    pub clip_skip: usize,
    /// A picture to start from instead of noise alone.
    pub start: Option<Start>,
    /// Whether pictures larger than those of training are coded in tiles, which bounds memory.
    pub tiling: bool,
    /// Parts of a batch that the UNet sees at once, each on threads of its own, but no more than it has
    /// samples; for a CPU.
    pub shards: usize,
}

/// A picture to start from.
#[derive(Debug, Clone)]
pub struct Start {
    /// The picture; its centre is taken in the size asked for.
    pub picture: RgbImage,
    /// The share of the plan that is drawn again: near 0 the picture stays, at 1 nothing is left.
    pub strength: f64,
}

impl Default for GenerateConfig {
    fn default() -> Self {
        Self {
            prompts: Vec::new(),
            negative_prompt: String::new(),
            steps: 30,
            guidance: 5.0,
            seed: 0,
            scheduler: None,
            size: None,
            clip_skip: 0,
            start: None,
            tiling: false,
            shards: 1,
        }
    }
}

impl Pipeline {
    /// Draws pictures. `progress` is told (calls of the network done, calls in all) after each.
    ///
    /// # Errors
    ///
    /// A request that cannot be met, by the name of its field.
    pub fn generate(
        &self,
        request: &GenerateConfig,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Vec<RgbImage>, ModelError> {
        let size = self.check(request)?;
        let (sampler, begin) = self.plan(request)?;
        let at_once = (PIXELS_AT_ONCE / (size[0] * size[1])).clamp(1, PROMPTS_AT_ONCE);
        let batches = request.prompts.len().div_ceil(at_once);
        let total = batches * (sampler.timesteps().len() - begin);
        let mut done = 0;
        let mut images = Vec::with_capacity(request.prompts.len());
        for (batch, prompts) in request.prompts.chunks(at_once).enumerate() {
            let first = batch * at_once;
            let indices: Vec<usize> = (first..first + prompts.len()).collect();
            let noise = indices.iter().map(|i| self.noise(request.seed, *i, size)).collect();
            let part = GenerateConfig { prompts: prompts.to_vec(), ..request.clone() };
            let latents = self.draw(&part, &indices, Tensor::cat(noise, 0), &mut |_| {
                done += 1;
                progress(done, total);
            })?;
            images.extend(self.decode_each(latents, first, request.tiling)?);
        }
        Ok(images)
    }

    /// The noise that picture `index` of a seed starts from, `[1, c, h', w']`.
    pub fn initial_latents(&self, seed: u64, index: usize) -> Tensor<4> {
        self.noise(seed, index, [self.image_size(); 2])
    }

    /// Turns noise of unit variance into latents, `[n, c, h', w']` both, one for each prompt.
    ///
    /// `observe` sees the latents after each call of the network.
    ///
    /// # Errors
    ///
    /// A request that cannot be met, by the name of its field.
    pub fn denoise(
        &self,
        request: &GenerateConfig,
        noise: Tensor<4>,
        observe: &mut dyn FnMut(&Tensor<4>),
    ) -> Result<Tensor<4>, ModelError> {
        self.check(request)?;
        let indices: Vec<usize> = (0..request.prompts.len()).collect();
        self.draw(request, &indices, noise, observe)
    }

    /// [`Pipeline::denoise`] of the pictures with these indices.
    fn draw(
        &self,
        request: &GenerateConfig,
        indices: &[usize],
        noise: Tensor<4>,
        observe: &mut dyn FnMut(&Tensor<4>),
    ) -> Result<Tensor<4>, ModelError> {
        let count = indices.len();
        let (mut sampler, begin) = self.plan(request)?;
        let shape = noise.dims();
        let size = [shape[2], shape[3]].map(|side| side * self.vae_config.downscale());

        let guided = request.guidance > 1.0;
        let shards = Shards::new(request.shards.min(if guided { 2 * count } else { count }))?;
        let condition = self.condition(&request.prompts, request.clip_skip, size);
        let condition = if guided {
            let negative = self.negative(&request.negative_prompt, size);
            negative.repeat(count).cat(condition)
        } else {
            condition
        };
        let condition = condition.cast(self.unet_dtype());

        let mut latents = match &request.start {
            None => noise.mul_scalar(sampler.init_noise_sigma()),
            Some(start) => {
                let picture = self.start_latents(start, request.tiling, size);
                sampler.add_noise(begin, picture.repeat_dim(0, count), noise)
            }
        };
        let mask = self.paint_all(size, count);
        let timesteps = sampler.timesteps()[begin..].to_vec();
        for (call, t) in timesteps.into_iter().enumerate() {
            let call = begin + call;
            let input = sampler.scale_input(call, latents.clone());
            let input = match &mask {
                Some(mask) => Tensor::cat(vec![input, mask.clone()], 1),
                None => input,
            };
            let prediction = self.predict(input, t, &condition, guided, request.guidance, &shards);
            let mut fresh = || {
                // Streams of a picture: 0 starts it, the others are those of its calls.
                let stream = |i: &usize| (*i as u64) | ((call as u64 + 1) << 32);
                let noise = |i| {
                    let [_, c, h, w] = shape;
                    gaussian(request.seed, stream(i), [1, c, h, w], &self.device)
                };
                Tensor::cat(indices.iter().map(noise).collect(), 0)
            };
            latents = sampler.step(call, prediction, latents, &mut fresh);
            observe(&latents);
        }
        Ok(latents)
    }

    /// The network's prediction for `input`, guided away from the first half of `condition`.
    fn predict(
        &self,
        input: Tensor<4>,
        t: f64,
        condition: &Condition,
        guided: bool,
        guidance: f64,
        shards: &Shards,
    ) -> Tensor<4> {
        let count = input.dims()[0];
        let input = if guided { input.repeat_dim(0, 2) } else { input };
        let steps = Tensor::<1>::full([input.dims()[0]], t, &self.device);
        let input = input.cast(self.unet_dtype());
        let (all, parts) = (input.dims()[0], shards.count().min(input.dims()[0]));
        let part = |i| {
            let rows = all * i / parts..all * (i + 1) / parts;
            let input = input.clone().narrow(0, rows.start, rows.len());
            let steps = steps.clone().narrow(0, rows.start, rows.len());
            (self.unet.clone(), input, steps, condition.rows(rows))
        };
        let done = shards.map((0..parts).map(part).collect(), |(unet, input, steps, condition)| {
            unet.forward(input, steps, condition)
        });
        let prediction = Tensor::cat(done, 0).cast(FloatDType::F32);
        if !guided {
            return prediction;
        }
        let empty = prediction.clone().narrow(0, 0, count);
        let prompted = prediction.narrow(0, count, count);
        empty.clone() + (prompted - empty).mul_scalar(guidance)
    }

    /// The sampler, and the call that it starts with: not the first where a picture is given.
    fn plan(&self, request: &GenerateConfig) -> Result<(Box<dyn Sampler>, usize), ModelError> {
        let sampler = self.scheduler.sampler(request.scheduler, request.steps)?;
        let calls = (request.steps, sampler.timesteps().len());
        let begin = request.start.as_ref().map_or(0, |start| {
            let again = (request.steps as f64 * start.strength) as usize;
            (calls.0 - again.clamp(1, calls.0)).min(calls.1 - 1)
        });
        Ok((sampler, begin))
    }

    /// The scaled latents of a picture to start from, `[1, c, h', w']`: the likeliest ones.
    fn start_latents(&self, start: &Start, tiling: bool, [height, width]: [usize; 2]) -> Tensor<4> {
        let picture = resize_center_crop(&start.picture, width as u32, height as u32);
        self.encode(to_tensor(&[picture], &self.device), tiling)
    }

    /// What an inpainting UNet sees beside the latents: a mask that covers everything, and the
    /// latents of the empty picture that it leaves. `[n, 1 + c, h', w']`.
    fn paint_all(&self, [height, width]: [usize; 2], count: usize) -> Option<Tensor<4>> {
        if self.unet_config.in_channels == self.vae_config.latent_channels {
            return None;
        }
        let grey = Tensor::full([1, self.vae_config.in_channels, height, width], 0.5, &self.device);
        let empty = self.encode(grey, false);
        let mask = Tensor::ones_like(&empty.clone().narrow(1, 0, 1));
        Some(Tensor::cat(vec![mask, empty], 1).repeat_dim(0, count))
    }

    /// Decodes latents to images, one at a time if they are large: the autoencoder needs more memory than the UNet.
    /// `first` is the index of the first image, for errors.
    fn decode_each(
        &self,
        latents: Tensor<4>,
        first: usize,
        tiling: bool,
    ) -> Result<Vec<RgbImage>, ModelError> {
        let [count, channels, height, width] = latents.dims();
        let bad = latents.clone().into_data().iter::<f32>().position(|value| !value.is_finite());
        if let Some(bad) = bad {
            let index = first + bad / (channels * height * width);
            return Err(ModelError::NonFiniteImage { what: "latents", index });
        }
        let at_once = if height * width > 32 * 32 { 1 } else { count };
        let mut images = Vec::with_capacity(count);
        for latents in latents.split(at_once, 0) {
            let latents = self.unscaled(latents);
            let decoded = match tiling {
                true => self.vae.decode_tiled(latents, &self.vae_config.tiling()),
                false => self.vae.decode(latents),
            };
            // Not clamped before the check: a clamp would turn infinity into white.
            let decoded = to_images(unit_scale(decoded)).map_err(|error| match error {
                ModelError::NonFiniteImage { what, index } => {
                    ModelError::NonFiniteImage { what, index: first + images.len() + index }
                }
                other => other,
            })?;
            images.extend(decoded);
        }
        Ok(images)
    }

    fn noise(&self, seed: u64, index: usize, size: [usize; 2]) -> Tensor<4> {
        let [height, width] = size.map(|side| side / self.vae_config.downscale());
        let shape = [1, self.vae_config.latent_channels, height, width];
        gaussian(seed, index as u64, shape, &self.device)
    }

    /// Refuses what cannot be drawn; returns the size.
    fn check(&self, request: &GenerateConfig) -> Result<[usize; 2], ModelError> {
        let refuse = |field, value: String, expected: String| {
            Err(ModelError::InvalidRequest { field, value, expected })
        };
        if !request.guidance.is_finite() {
            let expected = "it must be a finite number".to_string();
            return refuse("guidance", request.guidance.to_string(), expected);
        }
        let size = request.size.unwrap_or([self.image_size(); 2]);
        let unit = self.vae_config.downscale();
        if size.iter().any(|side| *side == 0 || !side.is_multiple_of(unit)) {
            let expected = format!("both sides must be positive multiples of {unit}");
            return refuse("size", format!("{}x{}", size[1], size[0]), expected);
        }
        // SDXL leaves out one layer of each by itself.
        let layers =
            |encoder: &crate::clip::text::ClipTextModel| encoder.text_model.encoder.layers.len();
        let (least, own) = match &self.second {
            None => (layers(&self.text_encoder), 0),
            Some(second) => (layers(&self.text_encoder).min(layers(&second.text_encoder)), 1),
        };
        if request.clip_skip + own >= least {
            let expected = format!("the text encoder has {least} layers, of which one must stay");
            return refuse("clip_skip", request.clip_skip.to_string(), expected);
        }
        if let Some(start) = &request.start {
            if !(start.strength > 0.0 && start.strength <= 1.0) {
                let expected = "it must be above 0 and at most 1".to_string();
                return refuse("strength", start.strength.to_string(), expected);
            }
            if start.picture.width() == 0 || start.picture.height() == 0 {
                return refuse("start", "an empty picture".into(), "it must have pixels".into());
            }
        }
        Ok(size)
    }
}
