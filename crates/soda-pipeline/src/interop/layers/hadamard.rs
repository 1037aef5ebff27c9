//! LoHa as LyCORIS, ComfyUI, A1111 and PEFT store it: `ΔW = (α/r) (W1a W1b) ∘ (W2a W2b)`.

use burn::tensor::Tensor;
use soda_adapters::Weight;
use soda_kernels::matmul;

use super::delta::tucker;
use crate::error::InteropError;
use crate::interop::key_names::Role;
use crate::interop::layer_tensors::{LayerTensors, Parameters, to_host};
use crate::interop::peft::PeftConfig;

/// A LoHa of one weight, with the scale in its factors.
pub(crate) struct Hadamard {
    /// `W1a` and `W2a`, `[out, r]`.
    left: [Tensor<2>; 2],
    /// `W1b` and `W2b`, `[r, in]`.
    right: [Tensor<2>; 2],
}

const LEFT: [(Role, &str); 2] = [(Role::HadaW1A, "hada_w1_a"), (Role::HadaW2A, "hada_w2_a")];
const RIGHT: [(Role, &str); 2] = [(Role::HadaW1B, "hada_w1_b"), (Role::HadaW2B, "hada_w2_b")];
const CORES: [Role; 2] = [Role::HadaT1, Role::HadaT2];

/// The factors of a LoHa and its scale.
struct Factors {
    left: [Tensor<2>; 2],
    right: [Tensor<2>; 2],
    scale: f64,
}

impl Factors {
    fn read(
        layer: &LayerTensors,
        config: Option<&PeftConfig>,
        weight: &Weight,
    ) -> Result<Self, InteropError> {
        let device = weight.device();
        let matrix = |(role, name)| layer.matrix(role, name, &device);
        let left = [matrix(LEFT[0])?, matrix(LEFT[1])?];
        let right = [matrix(RIGHT[0])?, matrix(RIGHT[1])?];
        let rank = right[0].dims()[0];
        let scale = match (layer.number(Role::Alpha)?, config) {
            (Some(alpha), _) => alpha / rank as f64,
            (None, Some(PeftConfig::Loha(config))) => config.scale(layer.module(), rank),
            (None, _) => 1.0,
        };
        Ok(Self { left, right, scale })
    }
}

/// Whether the tensors are a Tucker decomposition.
pub(super) fn has_cores(layer: &LayerTensors) -> bool {
    CORES.iter().any(|role| layer.has(*role))
}

/// Reads the tensors of a LoHa with the cores of a Tucker decomposition, as `ΔWᵀ`.
pub(super) fn tucker_delta(
    layer: &LayerTensors,
    config: Option<&PeftConfig>,
    weight: &Weight,
) -> Result<Tensor<2>, InteropError> {
    let [input, output] = weight.dims();
    let Factors { left, right, scale } = Factors::read(layer, config, weight)?;
    let product = |side: usize| {
        let core = layer.required(CORES[side], "core (hada_t1 and hada_t2)")?;
        tucker(core, left[side].clone(), right[side].clone(), [output, input])
            .ok_or_else(|| layer.misfit(CORES[side], "a core between its two factors"))
    };
    Ok((product(0)? * product(1)?).mul_scalar(scale).transpose())
}

impl Hadamard {
    /// Reads the tensors of a LoHa.
    pub(super) fn new(
        layer: &LayerTensors,
        config: Option<&PeftConfig>,
        weight: &Weight,
    ) -> Result<Self, InteropError> {
        let [input, output] = weight.dims();
        let Factors { left, right, scale } = Factors::read(layer, config, weight)?;
        for side in 0..2 {
            let rank = right[side].dims()[0];
            if left[side].dims() != [output, rank] {
                return Err(layer.misfit(LEFT[side].0, &format!("[{output}, {rank}]")));
            }
            if right[side].dims()[1] != input {
                return Err(layer.misfit(RIGHT[side].0, &format!("[rank, {input}]")));
            }
        }
        let [first, second] = right;
        Ok(Self { left, right: [first.mul_scalar(scale), second] })
    }

    /// The larger of the two ranks.
    pub(crate) fn rank(&self) -> usize {
        self.right.iter().map(|factor| factor.dims()[0]).max().unwrap_or(1)
    }

    /// The tensors by their names in an adapter, with zeros up to a common rank.
    pub(crate) fn parameters(&self, rank: usize) -> Parameters {
        let pad = |factor: &Tensor<2>, axis: usize| {
            let mut zeros = factor.dims();
            zeros[axis] = rank.saturating_sub(zeros[axis]);
            let padded = match zeros[axis] {
                0 => factor.clone(),
                _ => {
                    let zeros = Tensor::zeros(zeros, (&factor.device(), factor.dtype()));
                    Tensor::cat(vec![factor.clone(), zeros], axis)
                }
            };
            to_host(padded)
        };
        vec![
            ("w1_a".into(), pad(&self.left[0], 1)),
            ("w1_b".into(), pad(&self.right[0], 0)),
            ("w2_a".into(), pad(&self.left[1], 1)),
            ("w2_b".into(), pad(&self.right[1], 0)),
        ]
    }

    /// Computes `ΔWᵀ`.
    pub(super) fn delta(&self) -> Tensor<2> {
        let product = |side: usize| matmul(self.left[side].clone(), self.right[side].clone());
        (product(0) * product(1)).transpose()
    }
}
