//! A network with random weights and a random batch, for `soda bench`.
//!
//! The speed of a training step does not depend on the values of the weights.

use burn::module::{ModuleMapper, Param};
use burn::tensor::{DType, Device, Distribution, FloatDType, Tensor};
use soda_kernels::persistent;
use soda_models::condition::{AddedCondition, Condition};
use soda_models::pipeline::Denoiser;
use soda_models::unet::{Unet, UnetConfig};
use soda_optim::BatchedParams;
use soda_train::{DenoiserInputs, GradientCheckpointing};

/// Draws the weights of a network at random in one dtype. The network never exists in another dtype.
pub(crate) struct RandomWeights(pub(crate) FloatDType);

impl ModuleMapper for RandomWeights {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let dtype = self.0;
        if D == 1 {
            let cast = |value: Tensor<D>| persistent(value, |value| value.cast(dtype));
            return param.map(|value| cast(value).set_require_grad(false));
        }
        let (id, device, shape) = (param.id, param.lazy_device(), param.lazy_shape());
        // Linear weights are `[in, out]`, convolution weights `[out, in, kh, kw]`.
        let inputs = if D == 2 { shape[0] } else { shape[1..].iter().product() };
        let bound = (inputs.max(1) as f64).powf(-0.5);
        let draw = |()| {
            let distribution = Distribution::Uniform(-bound, bound);
            Tensor::random(shape.clone(), distribution, (&device, DType::from(dtype)))
        };
        let value = device.memory_persistent_allocations((), draw);
        Param::initialized(id, value.set_require_grad(false))
    }
}

/// A batch of one training step.
#[derive(Clone)]
pub(crate) struct RandomBatch {
    /// `[batch, channels, height, width]`
    noisy: Tensor<4>,
    /// `[batch]`
    timesteps: Tensor<1>,
    condition: Condition,
    /// `[batch, channels, height, width]`
    target: Tensor<4>,
}

impl RandomBatch {
    /// Draws a batch of `size` samples with square latents of side `latents`.
    pub(crate) fn new(
        config: &UnetConfig,
        size: usize,
        latents: usize,
        dtype: FloatDType,
        device: &Device,
    ) -> Self {
        let map = || normal([size, config.in_channels, latents, latents], dtype, device);
        let side = (8 * latents) as f32;
        let added = config.projection_class_embeddings_input_dim.map(|width| {
            let pooled = width - 6 * config.addition_time_embed_dim.unwrap_or(0);
            let ids = [side, side, 0.0, 0.0, side, side];
            AddedCondition {
                pooled: normal([size, pooled], dtype, device),
                time_ids: Tensor::<1>::from_floats(ids, device).unsqueeze().repeat_dim(0, size),
            }
        });
        Self {
            noisy: map(),
            timesteps: Tensor::full([size], 500.0, device),
            condition: Condition {
                text: normal([size, 77, config.cross_attention_dim.get(0)], dtype, device),
                added,
            },
            target: map(),
        }
    }

    /// The gradients of the mean squared error of `denoiser` with these adapter parameters.
    ///
    /// Calls `on_forward` between the forward and the backward pass.
    pub(crate) fn gradients(
        &self,
        denoiser: &Unet,
        parameters: &BatchedParams,
        checkpointing: GradientCheckpointing,
        on_forward: impl FnOnce(),
    ) -> BatchedParams {
        let denoiser = Denoiser::from(parameters.write_to(denoiser.clone()));
        let inputs = DenoiserInputs {
            noisy: self.noisy.clone(),
            timesteps: self.timesteps.clone(),
            condition: self.condition.clone(),
            wants_condition_gradient: false,
        };
        let gradients = checkpointing.backward(&denoiser, inputs, |prediction| {
            let error = prediction - Tensor::from_inner(self.target.clone());
            let loss = error.cast(FloatDType::F32).square().mean();
            on_forward();
            loss
        });
        parameters.batch_gradients(gradients.adapters)
    }
}

fn normal<const D: usize>(shape: [usize; D], dtype: FloatDType, device: &Device) -> Tensor<D> {
    Tensor::<D>::random(shape, Distribution::Normal(0.0, 1.0), device).cast(dtype)
}
