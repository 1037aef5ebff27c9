//! The noise schedule of the forward process.
//!
//! ```text
//! abar_t = prod_{s <= t} (1 - beta_s),   x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps
//! ```
//!
//! DDPM (arXiv 2006.11239), section 2.

use burn::tensor::Tensor;

use super::config::{BetaSchedule, PredictionType, SchedulerConfig};
use super::flow::shifted;

/// The cumulative noise schedule of a model, indexed by training timestep.
#[derive(Clone)]
pub struct NoiseSchedule {
    /// `abar_t`, the share of the image's variance, which decreases with `t`.
    ///
    /// The products are computed in f64 and rounded to f32, as PyTorch's `cumprod` of an f32 tensor does. At
    /// the noisy end `abar` is 0.005, and samplers divide by its root.
    pub alphas_cumprod: Vec<f32>,
    /// The quantity that the denoiser predicts.
    pub prediction_type: PredictionType,
    /// The noise level of each timestep, for models of flow matching. The sample is `(1 - sigma) x0 + sigma
    /// eps`, whose variance is not 1, and `abar` is the image's share of it.
    pub flow_sigmas: Option<Vec<f32>>,
}

/// A run is recognised by this text, so that a schedule without `flow_sigmas` has that of older versions.
impl std::fmt::Debug for NoiseSchedule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut text = f.debug_struct("NoiseSchedule");
        text.field("alphas_cumprod", &self.alphas_cumprod);
        text.field("prediction_type", &self.prediction_type);
        if let Some(sigmas) = &self.flow_sigmas {
            text.field("flow_sigmas", sigmas);
        }
        text.finish()
    }
}

impl NoiseSchedule {
    /// Makes the schedule of a config.
    pub fn new(config: &SchedulerConfig) -> Self {
        if config.is_flow() {
            return Self::of_flow(config);
        }
        let mut betas = match &config.trained_betas {
            Some(betas) => betas.clone(),
            None => betas(config),
        };
        if config.rescale_betas_zero_snr {
            rescale_to_zero_snr(&mut betas);
        }
        Self {
            alphas_cumprod: cumprod(&betas),
            prediction_type: config.prediction_type,
            flow_sigmas: None,
        }
    }

    /// Makes the schedule of flow matching. Timestep `t` of `n` has the noise level `(t + 1) / n` before the
    /// constant shift, as in diffusers.
    fn of_flow(config: &SchedulerConfig) -> Self {
        let count = config.num_train_timesteps;
        let factor = if config.use_dynamic_shifting { 1.0 } else { config.shift };
        let sigma = |t: usize| shifted((t + 1) as f64 / count as f64, factor);
        let abar = |t: usize| {
            let (signal, sigma) = (1.0 - sigma(t), sigma(t));
            (signal * signal / (signal * signal + sigma * sigma)) as f32
        };
        Self {
            alphas_cumprod: (0..count).map(abar).collect(),
            prediction_type: config.prediction_type,
            flow_sigmas: Some((0..count).map(|t| sigma(t) as f32).collect()),
        }
    }

    /// Number of training timesteps.
    pub fn len(&self) -> usize {
        self.alphas_cumprod.len()
    }

    /// Whether there are no timesteps, which a checked config excludes.
    pub fn is_empty(&self) -> bool {
        self.alphas_cumprod.is_empty()
    }

    /// `abar` at timestep `t`.
    pub fn alpha_cumprod(&self, t: usize) -> f64 {
        f64::from(self.alphas_cumprod[t])
    }

    /// The signal-to-noise ratio `abar / (1 - abar)` at timestep `t`.
    pub fn snr(&self, t: usize) -> f64 {
        if self.flow_sigmas.is_some() {
            let (signal, sigma) = self.alpha_and_sigma(t);
            return (signal / sigma).powi(2);
        }
        let abar = self.alpha_cumprod(t);
        abar / (1.0 - abar)
    }

    /// `(alpha, sigma)` of a noisy sample `alpha x0 + sigma noise` at timestep `t`. Their squares add up to
    /// 1, or the two themselves for models of flow matching.
    pub fn alpha_and_sigma(&self, t: usize) -> (f64, f64) {
        if let Some(sigmas) = &self.flow_sigmas {
            let sigma = f64::from(sigmas[t]);
            return (1.0 - sigma, sigma);
        }
        let abar = self.alpha_cumprod(t);
        (abar.sqrt(), (1.0 - abar).sqrt())
    }

    /// The image and the noise, `(x0, eps)`, that a `prediction` implies for `sample` at timestep `t`. All
    /// are `[b, c, h, w]`.
    pub fn predicted_x0_and_noise(
        &self,
        prediction: Tensor<4>,
        t: usize,
        sample: Tensor<4>,
    ) -> (Tensor<4>, Tensor<4>) {
        let (signal, sigma) = self.alpha_and_sigma(t);
        let x0 =
            self.prediction_type.predicted_x0(prediction.clone(), sample.clone(), signal, sigma);
        (x0, self.prediction_type.predicted_noise(prediction, sample, signal, sigma))
    }
}

impl PredictionType {
    /// The image that a `prediction` implies for `sample = alpha x0 + sigma noise`. All are `[b, c, h, w]`.
    pub fn predicted_x0(
        self,
        prediction: Tensor<4>,
        sample: Tensor<4>,
        alpha: f64,
        sigma: f64,
    ) -> Tensor<4> {
        match self {
            Self::Epsilon => (sample - prediction.mul_scalar(sigma)).div_scalar(alpha),
            Self::VPrediction => {
                // The velocity belongs to the sample of unit variance.
                let square = alpha * alpha + sigma * sigma;
                sample.mul_scalar(alpha / square) - prediction.mul_scalar(sigma / square.sqrt())
            }
            Self::Sample => prediction,
            Self::Flow => sample - prediction.mul_scalar(sigma),
        }
    }

    /// The noise that a `prediction` implies for `sample = alpha x0 + sigma noise`, of unit variance except
    /// in flow matching. All are `[b, c, h, w]`.
    pub fn predicted_noise(
        self,
        prediction: Tensor<4>,
        sample: Tensor<4>,
        alpha: f64,
        sigma: f64,
    ) -> Tensor<4> {
        match self {
            Self::Epsilon => prediction,
            Self::VPrediction => prediction.mul_scalar(alpha) + sample.mul_scalar(sigma),
            Self::Sample => (sample - prediction.mul_scalar(alpha)).div_scalar(sigma),
            Self::Flow => sample + prediction.mul_scalar(alpha),
        }
    }
}

/// The cumulative products of `1 - beta`.
fn cumprod(betas: &[f32]) -> Vec<f32> {
    let mut abar = 1.0f64;
    let product = |beta: &f32| {
        abar *= f64::from(1.0 - beta);
        abar as f32
    };
    betas.iter().map(product).collect()
}

/// Rescales `betas` to zero terminal SNR, by algorithm 1 of arXiv 2305.08891 in f32 as in diffusers.
///
/// The signal is shifted and scaled so that it vanishes at the last timestep and is unchanged at the first
/// one.
fn rescale_to_zero_snr(betas: &mut [f32]) {
    let signal: Vec<f32> = cumprod(betas).into_iter().map(f32::sqrt).collect();
    let (first, last) = (signal[0], signal[signal.len() - 1]);
    let abar: Vec<f32> =
        signal.iter().map(|s| ((s - last) * (first / (first - last))).powi(2)).collect();
    for t in 0..betas.len() {
        let alpha = if t == 0 { abar[0] } else { abar[t] / abar[t - 1] };
        betas[t] = 1.0 - alpha;
    }
}

/// The variances, in f32 and in PyTorch's order of operations.
fn betas(config: &SchedulerConfig) -> Vec<f32> {
    let n = config.num_train_timesteps;
    match config.beta_schedule {
        BetaSchedule::Linear => linspace(config.beta_start, config.beta_end, n),
        BetaSchedule::ScaledLinear => {
            let roots = linspace(config.beta_start.sqrt(), config.beta_end.sqrt(), n);
            roots.into_iter().map(|root| root * root).collect()
        }
        BetaSchedule::SquaredcosCapV2 => {
            let alpha_bar = |t: f64| {
                let angle = (t + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2;
                angle.cos().powi(2)
            };
            let time = |i: usize| i as f64 / n as f64;
            (0..n)
                .map(|i| (1.0 - alpha_bar(time(i + 1)) / alpha_bar(time(i))).min(0.999) as f32)
                .collect()
        }
    }
}

/// `torch.linspace` in f32, which counts from both ends towards the middle.
fn linspace(start: f64, end: f64, n: usize) -> Vec<f32> {
    let (start, end) = (start as f32, end as f32);
    let step = (end - start) / (n - 1) as f32;
    (0..n)
        .map(|i| if i < n / 2 { start + step * i as f32 } else { end - step * (n - 1 - i) as f32 })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values are `DDIMScheduler(beta_start=0.00085, beta_end=0.012, ...).alphas_cumprod` of diffusers
    /// 0.42.
    #[test]
    fn schedules_match_diffusers() {
        let at = [0, 1, 250, 500, 750, 998, 999];
        let expected = [
            (
                BetaSchedule::Linear,
                [
                    0.999_15,
                    0.998_289_5,
                    0.568_788_05,
                    0.160_771_62,
                    0.022_519_225,
                    1.598_140_6e-3,
                    1.578_962_8e-3,
                ],
            ),
            (
                BetaSchedule::ScaledLinear,
                [
                    0.999_15,
                    0.998_296,
                    0.673_792_3,
                    0.276_332_47,
                    0.056_169_804,
                    4.716_695_8e-3,
                    4.660_095e-3,
                ],
            ),
            (
                BetaSchedule::SquaredcosCapV2,
                [
                    0.999_958_7,
                    0.999_912_56,
                    0.845_888,
                    0.492_285_04,
                    0.143_178_66,
                    2.428_766_3e-6,
                    2.428_735e-9,
                ],
            ),
        ];
        for (beta_schedule, values) in expected {
            let config = SchedulerConfig {
                beta_start: 0.00085,
                beta_end: 0.012,
                beta_schedule,
                ..SchedulerConfig::default()
            };
            let schedule = NoiseSchedule::new(&config);
            for (t, value) in at.into_iter().zip(values) {
                let ours = schedule.alphas_cumprod[t];
                // The tolerance is one unit in the last place.
                assert!((ours / value - 1.0).abs() <= 1.2e-7, "{beta_schedule:?} {t}: {ours}");
            }
        }
    }

    #[test]
    fn snr_decreases_with_the_timestep() {
        for beta_schedule in
            [BetaSchedule::Linear, BetaSchedule::ScaledLinear, BetaSchedule::SquaredcosCapV2]
        {
            let config = SchedulerConfig { beta_schedule, ..SchedulerConfig::default() };
            let schedule = NoiseSchedule::new(&config);
            assert!((1..schedule.len()).all(|t| schedule.snr(t) < schedule.snr(t - 1)));
        }
    }
}
