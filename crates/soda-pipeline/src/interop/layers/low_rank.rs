//! LoRA and DoRA.

use burn::tensor::{DType, Device, Tensor, TensorData};
use soda_adapters::lora::{LoraConfig, LoraInit};
use soda_adapters::{MethodConfig, Weight};
use soda_kernels::matmul;

use super::delta::{adapted_delta, directed};
use crate::error::InteropError;
use crate::interop::key_names::Role;
use crate::interop::layer_tensors::{LayerTensors, Parameters, to_host, to_tensor};
use crate::interop::peft::{PeftConfig, PeftInit};

/// A LoRA or DoRA of one weight: `w + s a b`.
pub(crate) struct LowRank {
    /// `a`, `[in, r]`.
    a: Tensor<2>,
    /// `b`, `[r, out]`.
    b: Tensor<2>,
    /// `s`.
    scale: f64,
    /// Whether the leading singular triples are taken off the weight.
    pub(crate) pissa: bool,
    /// DoRA's magnitudes of the outputs, `[out]`.
    pub(crate) magnitude: Option<TensorData>,
}

impl LowRank {
    /// Reads the tensors of a LoRA.
    pub(super) fn new(
        layer: &LayerTensors,
        config: Option<&PeftConfig>,
        weight: &Weight,
    ) -> Result<Self, InteropError> {
        let ([input, output], device) = (weight.dims(), weight.device());
        let mut down = layer.matrix(Role::Down, "A (down)", &device)?;
        let up = layer.matrix(Role::Up, "B (up)", &device)?;
        let rank = down.dims()[0];
        if layer.has(Role::Mid) {
            down = with_middle(layer, down, input, &device)?;
        }
        if down.dims()[1] != input {
            return Err(layer.misfit(Role::Down, &format!("[rank, {input}]")));
        }
        if up.dims() != [output, rank] {
            return Err(layer.misfit(Role::Up, &format!("[{output}, {rank}]")));
        }
        let config = match config {
            Some(PeftConfig::Lora(config)) => Some(config),
            _ => None,
        };
        if let Some(config) = config {
            config.check_rank(layer.module(), rank)?;
            config.check_magnitude(layer.has(Role::Magnitude))?;
        }
        let scale = match (layer.number(Role::Alpha)?, config) {
            (Some(alpha), _) => alpha / rank as f64,
            (None, Some(config)) => config.scale(layer.module(), rank),
            // Without metadata, diffusers' files hold the scale in `B`.
            (None, None) => 1.0,
        };
        let pissa = config.is_some_and(|config| config.init == PeftInit::Pissa);
        let low_rank =
            Self { a: down.transpose(), b: up.transpose(), scale, pissa, magnitude: None };
        // PiSSA's rank is that of the part which is taken off.
        Ok(if rank > input.min(output) && !pissa { low_rank.at_full_rank() } else { low_rank })
    }

    /// Holds a delta `[in, out]` exactly, with the identity as one factor.
    pub(crate) fn whole(delta: Tensor<2>) -> Self {
        let [input, output] = delta.dims();
        let eye = |size| Tensor::<2>::eye(size, &delta.device()).cast(delta.dtype());
        let (a, b) = if output <= input {
            (delta.clone(), eye(output))
        } else {
            (eye(input), delta.clone())
        };
        Self { a, b, scale: 1.0, pissa: false, magnitude: None }
    }

    /// Replaces factors of a rank above the smaller side of the weight by their product.
    fn at_full_rank(self) -> Self {
        let product = matmul(self.a, self.b);
        Self { scale: self.scale, magnitude: self.magnitude, ..Self::whole(product) }
    }

    /// The number of columns of `a`.
    pub(crate) fn rank(&self) -> usize {
        self.a.dims()[1]
    }

    /// `s` times the rank, as methods count `α`.
    pub(crate) fn alpha(&self) -> f64 {
        self.scale * self.rank() as f64
    }

    /// The tensors by their names in an adapter.
    pub(crate) fn parameters(&self) -> Parameters {
        let mut parameters =
            vec![("a".into(), to_host(self.a.clone())), ("b".into(), to_host(self.b.clone()))];
        if let Some(magnitude) = &self.magnitude {
            parameters.push(("magnitude.value".into(), magnitude.clone()));
        }
        parameters
    }

    /// Computes `ΔWᵀ`.
    pub(super) fn delta(&self, path: &str, weight: &Weight) -> Result<Tensor<2>, InteropError> {
        if self.pissa {
            let (rank, alpha) = (self.rank(), Some(self.alpha()));
            let dora = self.magnitude.is_some();
            let init = LoraInit::Pissa;
            let method = LoraConfig { rank, alpha, dora, init, ..LoraConfig::default() };
            return adapted_delta(&MethodConfig::from(method), path, weight, self.parameters());
        }
        let product = matmul(self.a.clone(), self.b.clone()).mul_scalar(self.scale);
        Ok(match &self.magnitude {
            None => product,
            Some(magnitude) => {
                let outputs = weight.dims()[1];
                let magnitude = to_tensor(magnitude, [1, outputs], &weight.device());
                let w = weight.matrix().cast(DType::F32);
                directed(w.clone() + product, magnitude) - w
            }
        })
    }
}

/// Contracts `A` `[r, in]` with the convolution in the middle: `Σ_b mid[a, b, k] down[b, i]`, `[r, in k]`,
/// which has `input` columns.
fn with_middle(
    layer: &LayerTensors,
    down: Tensor<2>,
    input: usize,
    device: &Device,
) -> Result<Tensor<2>, InteropError> {
    let [rank, channels] = down.dims();
    let middle = layer.required(Role::Mid, "lora_mid")?;
    let window = middle.num_elements() / (rank * rank);
    if middle.shape().as_slice().get(..2) != Some(&[rank, rank]) || window == 0 {
        return Err(layer.misfit(Role::Mid, &format!("[{rank}, {rank}, height, width]")));
    }
    // Two small tensors may have a product that no memory holds.
    if window.checked_mul(channels) != Some(input) {
        return Err(
            layer.misfit(Role::Mid, &format!("a window of {} numbers", input / channels.max(1)))
        );
    }
    let middle = to_tensor(middle, [rank, rank, window], device);
    // `[a, k, b]` times `[b, i]`.
    let rows = middle.swap_dims(1, 2).reshape([rank * window, rank]);
    let product = matmul(rows, down).reshape([rank, window, channels]);
    Ok(product.swap_dims(1, 2).reshape([rank, channels * window]))
}
