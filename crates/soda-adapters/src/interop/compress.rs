//! Any adapter as a LoRA: the delta's leading singular triples, as many as a budget for the error asks.
//!
//! `ΔW ≈ B A` with `‖ΔW - B A‖ / ‖ΔW‖` no more than the budget in every layer (Frobenius norm; the truncated
//! SVD is the best there is, Eckart and Young 1936). A method that already is of low rank is exact.

use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::{DType, Tensor};
use rayon::prelude::*;
use soda_linalg::Svd;

use crate::attach::Plan;
use crate::error::AdapterError;
use crate::fold::Weight;
use crate::method::Adapter;
use crate::target::Targets;

/// What a layer's LoRA may cost and lose.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Largest `‖ΔW - B A‖ / ‖ΔW‖` of a layer.
    pub error: f64,
    /// Largest rank; it wins over the error.
    pub max_rank: Option<usize>,
}

impl Default for Budget {
    fn default() -> Self {
        Self { error: 0.05, max_rank: None }
    }
}

/// A LoRA, and what it lost.
#[derive(Clone, Debug)]
pub struct Compressed {
    /// Factors `a` `[in, r]` and `b` `[r, out]` and the weight they belong to, by its path.
    pub layers: BTreeMap<String, (Tensor<2>, Tensor<2>, Weight)>,
    /// What was lost, by path.
    pub losses: Vec<Loss>,
    /// `‖ΔW - B A‖ / ‖ΔW‖` over all layers together.
    pub error: f64,
}

/// What one layer lost.
#[derive(Clone, Debug)]
pub struct Loss {
    /// The weight.
    pub path: String,
    /// The rank it got.
    pub rank: usize,
    /// `‖ΔW - B A‖ / ‖ΔW‖`.
    pub error: f64,
    /// `‖ΔW‖ / ‖W0‖`: how much there was to lose.
    pub delta: f64,
}

/// Reads every adapter of `plan` as a LoRA on `module`, the base it was planned on.
///
/// # Errors
/// A delta that cannot be decomposed, named by its weight.
pub fn compress<A: Adapter, M: Module>(
    plan: &Plan<A>,
    module: &M,
    budget: Budget,
) -> Result<Compressed, AdapterError> {
    let mut weights = Targets::paths(plan.paths()).select(module)?;
    let layers: Vec<_> = plan
        .adapters()
        .iter()
        .filter_map(|(path, adapter)| Some((path, adapter, weights.remove(path)?)))
        .collect();
    let layers = layers
        .into_par_iter()
        .map(|(path, adapter, weight)| layer(path, adapter, weight, budget))
        .collect::<Result<Vec<_>, _>>()?;
    let mut compressed = Compressed { layers: BTreeMap::new(), losses: Vec::new(), error: 0.0 };
    let (mut lost, mut all) = (0.0, 0.0);
    for Layer { a, b, weight, loss, norm } in layers {
        lost += (loss.error * norm).powi(2);
        all += norm.powi(2);
        compressed.layers.insert(loss.path.clone(), (a, b, weight));
        compressed.losses.push(loss);
    }
    compressed.error = if all == 0.0 { 0.0 } else { (lost / all).sqrt() };
    Ok(compressed)
}

struct Layer {
    a: Tensor<2>,
    b: Tensor<2>,
    weight: Weight,
    loss: Loss,
    norm: f64,
}

fn layer<A: Adapter>(
    path: &str,
    adapter: &A,
    weight: Weight,
    budget: Budget,
) -> Result<Layer, AdapterError> {
    let w = weight.matrix.clone().cast(DType::F32);
    let delta = adapter.apply(w.clone()) - w.clone();
    let (norm, base) = (norm(delta.clone()), norm(w));
    let exact =
        adapter.low_rank().filter(|(a, _)| budget.max_rank.is_none_or(|most| a.dims()[1] <= most));
    let (a, b, error) = match exact {
        Some((a, b)) => (a, b, 0.0),
        None => truncate(path, &delta, budget)?,
    };
    let loss = Loss {
        path: path.to_owned(),
        rank: a.dims()[1],
        error,
        delta: if base == 0.0 { 0.0 } else { norm / base },
    };
    Ok(Layer { a, b, weight, loss, norm })
}

/// The least rank within the budget, at least 1; the singular values go half to each factor.
fn truncate(
    path: &str,
    delta: &Tensor<2>,
    budget: Budget,
) -> Result<(Tensor<2>, Tensor<2>, f64), AdapterError> {
    let svd = Svd::thin(delta)
        .map_err(|source| AdapterError::Decomposition { path: path.to_owned(), source })?;
    let s: Vec<f64> = svd.s.clone().into_data().iter().collect();
    // From the smallest up, so that nothing is lost by cancellation.
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

fn norm(a: Tensor<2>) -> f64 {
    a.square().sum().sqrt().into_scalar::<f64>()
}
