//! Compression of any adapter to a LoRA by the leading singular triples of its delta.
//!
//! `ΔW ≈ B A` with `‖ΔW - B A‖ / ‖ΔW‖` at most the budget in every layer. The truncated SVD has the least
//! error in the Frobenius norm (Eckart and Young 1936). An adapter that has a low-rank form is converted
//! exactly.

use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::{DType, FloatDType, Tensor, TensorData};
use rayon::prelude::*;
use soda_adapters::{Adapter, AdapterError, Plan, Targets, Weight};
use soda_kernels::matmul;
use soda_linalg::Svd;

use crate::error::PipelineError;

/// The error and the rank that a layer's LoRA may have.
#[derive(Clone, Copy, Debug)]
pub struct CompressionBudget {
    /// The largest `‖ΔW - B A‖ / ‖ΔW‖` of a layer.
    pub error: f64,
    /// The largest rank, which takes precedence over the error; `None` for no limit.
    pub max_rank: Option<usize>,
}

impl Default for CompressionBudget {
    fn default() -> Self {
        Self { error: 0.05, max_rank: None }
    }
}

/// The `α` of a LoRA's layers in a file. A layer's delta is `α / r` times the product of its factors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AlphaRule {
    /// All layers have the largest rank as `α`, as [`write_kohya`](super::write_kohya) writes it.
    LargestRank,
    /// The `α` of a layer is its rank, as in the other formats.
    OwnRank,
}

/// A LoRA that approximates an adapter, with its error.
#[derive(Clone, Debug)]
pub struct CompressedLora {
    /// The layers, by path of the weight.
    pub layers: BTreeMap<String, LoraLayer>,
    /// The error of each layer, in the order of the paths.
    pub reports: Vec<LayerReport>,
    /// `‖ΔW - B A‖ / ‖ΔW‖` over all layers together.
    pub error: f64,
}

/// The LoRA of one weight: `W = W0 + a b`.
#[derive(Clone, Debug)]
pub struct LoraLayer {
    /// The first factor, `[in, r]`.
    pub a: Tensor<2>,
    /// The second factor, `[r, out]`, with the scale.
    pub b: Tensor<2>,
    /// The weight of the base.
    pub weight: Weight,
}

impl CompressedLora {
    /// The largest rank of a layer.
    pub fn largest_rank(&self) -> usize {
        self.layers.values().map(|layer| layer.a.dims()[1]).max().unwrap_or(1)
    }

    /// Rounds the factors to those of a file of `dtype` with this `alpha`, and measures the errors of the
    /// result.
    ///
    /// `plan` is the one that the LoRA was made of. A value that `dtype` cannot hold stays as it is; the
    /// functions that write files refuse it.
    pub fn round<A: Adapter>(&mut self, plan: &Plan<A>, dtype: FloatDType, alpha: AlphaRule) {
        let largest = self.largest_rank();
        let (mut error, mut total) = (0.0, 0.0);
        for report in &mut self.reports {
            let found = (self.layers.get_mut(&report.path), plan.adapters().get(&report.path));
            let (Some(layer), Some(adapter)) = found else { continue };
            let scale = match alpha {
                AlphaRule::LargestRank => report.rank as f64 / largest as f64,
                AlphaRule::OwnRank => 1.0,
            };
            layer.a = round(layer.a.clone(), dtype);
            layer.b = round(layer.b.clone().mul_scalar(scale), dtype).div_scalar(scale);
            let w = layer.weight.matrix().cast(DType::F32);
            let delta = adapter.apply(w.clone()) - w;
            let lost = delta.clone() - matmul(layer.a.clone(), layer.b.clone());
            let (lost, norm) = (frobenius_norm(lost), frobenius_norm(delta));
            report.error = if lost == 0.0 { 0.0 } else { lost / norm };
            error += lost.powi(2);
            total += norm.powi(2);
        }
        self.error = if error == 0.0 { 0.0 } else { (error / total).sqrt() };
    }
}

/// Rounds a tensor to `dtype`. The result is in f32. A value that `dtype` cannot hold stays as it is, so that
/// writing it can name it.
pub(super) fn round<const D: usize>(tensor: Tensor<D>, dtype: FloatDType) -> Tensor<D> {
    let device = tensor.device();
    let data = tensor.into_data();
    let rounded = data.clone().convert_dtype(dtype.into());
    let values = data.iter::<f32>().zip(rounded.iter::<f32>());
    let values = values.map(|(value, near)| if near.is_finite() { near } else { value });
    let data = TensorData::new(values.collect::<Vec<f32>>(), data.shape().clone());
    Tensor::from_data(data, &device)
}

/// Rank and error of one layer.
#[derive(Clone, Debug)]
pub struct LayerReport {
    /// Path of the weight.
    pub path: String,
    /// Rank of the layer's LoRA.
    pub rank: usize,
    /// `‖ΔW - B A‖ / ‖ΔW‖`.
    pub error: f64,
    /// `‖ΔW‖ / ‖W0‖`, the relative size of the change.
    pub delta: f64,
}

/// Converts every adapter of `plan` to a LoRA. `module` is the base that the plan was made for.
///
/// # Errors
/// [`AdapterError::Decomposition`] for a delta that cannot be decomposed.
pub fn compress_to_lora<A: Adapter, M: Module>(
    plan: &Plan<A>,
    module: &M,
    budget: CompressionBudget,
) -> Result<CompressedLora, PipelineError> {
    let mut weights = Targets::from_paths(plan.paths()).select(module)?;
    let layers: Vec<_> = plan
        .adapters()
        .iter()
        .filter_map(|(path, adapter)| Some((path, adapter, weights.remove(path)?)))
        .collect();
    let layers = layers
        .into_par_iter()
        .map(|(path, adapter, weight)| compress_layer(path, adapter, weight, budget))
        .collect::<Result<Vec<_>, AdapterError>>()?;
    let mut lora = CompressedLora { layers: BTreeMap::new(), reports: Vec::new(), error: 0.0 };
    let (mut error, mut total) = (0.0, 0.0);
    for CompressedLayer { layer, report, norm } in layers {
        error += (report.error * norm).powi(2);
        total += norm.powi(2);
        lora.layers.insert(report.path.clone(), layer);
        lora.reports.push(report);
    }
    lora.error = if total == 0.0 { 0.0 } else { (error / total).sqrt() };
    Ok(lora)
}

struct CompressedLayer {
    layer: LoraLayer,
    report: LayerReport,
    /// `‖ΔW‖`.
    norm: f64,
}

fn compress_layer<A: Adapter>(
    path: &str,
    adapter: &A,
    weight: Weight,
    budget: CompressionBudget,
) -> Result<CompressedLayer, AdapterError> {
    let w = weight.matrix().cast(DType::F32);
    let delta = adapter.apply(w.clone()) - w.clone();
    let (norm, base) = (frobenius_norm(delta.clone()), frobenius_norm(w));
    let exact =
        adapter.low_rank().filter(|(a, _)| budget.max_rank.is_none_or(|most| a.dims()[1] <= most));
    let (a, b, error) = match exact {
        Some((a, b)) => (a, b, 0.0),
        None => truncate(path, &delta, budget)?,
    };
    let report = LayerReport {
        path: path.to_owned(),
        rank: a.dims()[1],
        error,
        delta: if base == 0.0 { 0.0 } else { norm / base },
    };
    Ok(CompressedLayer { layer: LoraLayer { a, b, weight }, report, norm })
}

/// Truncates the SVD of `delta` `[in, out]` to the least rank within the budget, at least 1.
///
/// Returns the factors, which have the square roots of the singular values each, and the relative error.
fn truncate(
    path: &str,
    delta: &Tensor<2>,
    budget: CompressionBudget,
) -> Result<(Tensor<2>, Tensor<2>, f64), AdapterError> {
    let svd = Svd::thin(delta)
        .map_err(|source| AdapterError::Decomposition { path: path.to_owned(), source })?;
    let s: Vec<f64> = svd.s.clone().into_data().iter().collect();
    // Summed from the smallest value up, which avoids cancellation.
    let mut tail = vec![0.0; s.len() + 1];
    for at in (0..s.len()).rev() {
        tail[at] = tail[at + 1] + s[at] * s[at];
    }
    let error = |rank: usize| if tail[0] == 0.0 { 0.0 } else { (tail[rank] / tail[0]).sqrt() };
    let least = (1..s.len()).find(|rank| error(*rank) <= budget.error).unwrap_or(s.len());
    let rank = budget.max_rank.map_or(least, |most| least.min(most.max(1)));
    let root = svd.s.narrow(0, 0, rank).sqrt();
    let a = svd.u.narrow(1, 0, rank) * root.clone().unsqueeze_dim(0);
    let b = svd.vt.narrow(0, 0, rank) * root.unsqueeze_dim(1);
    Ok((a, b, error(rank)))
}

pub(super) fn frobenius_norm(a: Tensor<2>) -> f64 {
    a.square().sum().sqrt().into_scalar::<f64>()
}
