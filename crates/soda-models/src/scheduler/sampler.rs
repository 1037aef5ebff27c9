//! The interface of all samplers.

use burn::tensor::Tensor;

/// A sampler: turns noise into a sample by repeated calls of a denoiser.
///
/// Calls are counted from 0, the noisiest timestep. Sampling may start at any call with an image that
/// [`Sampler::add_noise`] has noised, and proceeds in order.
pub trait Sampler: std::fmt::Debug {
    /// The timestep of each call, noisiest first. Timesteps need not be whole.
    fn timesteps(&self) -> &[f64];

    /// `(alpha, sigma)` of the sample at a call, which is `alpha x0 + sigma noise`.
    fn alpha_and_sigma(&self, call: usize) -> (f64, f64);

    /// Computes the next sample from the denoiser's `prediction` at `call`. All tensors are `[b, c, h, w]`.
    ///
    /// `noise` makes fresh noise of unit variance, `[b, c, h, w]`. A deterministic sampler does not call it.
    fn step(
        &mut self,
        call: usize,
        prediction: Tensor<4>,
        sample: Tensor<4>,
        noise: &mut dyn FnMut() -> Tensor<4>,
    ) -> Tensor<4>;

    /// The number of calls in a step of the plan. Sampling starts at a multiple of it.
    fn calls_per_step(&self) -> usize {
        1
    }

    /// The standard deviation of the noise from which sampling starts.
    fn init_noise_sigma(&self) -> f64 {
        1.0
    }

    /// Scales a sample to the denoiser's input.
    fn scale_model_input(&self, _call: usize, sample: Tensor<4>) -> Tensor<4> {
        sample
    }

    /// Adds noise to an image `x0`, as much as the sample at `call` has. All tensors are `[b, c, h, w]`.
    fn add_noise(&self, call: usize, x0: Tensor<4>, noise: Tensor<4>) -> Tensor<4> {
        let (signal, sigma) = self.alpha_and_sigma(call);
        x0.mul_scalar(signal) + noise.mul_scalar(sigma)
    }
}
