//! Deltas of a weight `[in, out]`: the form of whatever no method holds.

use std::borrow::Cow;
use std::collections::BTreeMap;

use burn::tensor::{DType, Tensor, TensorData};
use soda_adapters::{
    Adapter as _, AdapterState, Method as _, MethodConfig, PlanOptions, Recipe, Targets, Weight,
};
use soda_kernels::matmul;

use crate::error::InteropError;
use crate::interop::key_names::Role;
use crate::interop::layer_tensors::{LayerTensors, Parameters, to_tensor};

/// Reads LyCORIS' `diff`, a delta in torch's layout.
pub(super) fn read(layer: &LayerTensors, weight: &Weight) -> Result<Tensor<2>, InteropError> {
    let [input, output] = weight.dims();
    let device = weight.device();
    let delta = layer.sized_matrix(Role::Diff, "diff", [output, input], &device)?;
    if layer.has(Role::Alpha) {
        return Err(layer.unsupported("`alpha` beside its `diff`"));
    }
    Ok(delta.transpose())
}

/// Computes the delta of a weight by its adapter: `apply(w) - w`.
///
/// # Errors
/// [`InteropError::Layer`] for tensors that are not those of the method.
pub(super) fn adapted_delta(
    method: &MethodConfig,
    path: &str,
    weight: &Weight,
    parameters: Parameters,
) -> Result<Tensor<2>, InteropError> {
    let refused =
        |source| InteropError::Layer { weight: path.to_owned(), source: Box::new(source) };
    let named = |(name, data): (Cow<str>, _)| (method.tensor_name(path, &name), data);
    let (targets, base_hash) = (Targets::from_paths([path]), String::new());
    let recipe = Recipe { method: method.clone(), targets, base_hash };
    let state = AdapterState { recipe, tensors: parameters.into_iter().map(named).collect() };
    let weights = BTreeMap::from([(path.to_owned(), weight.clone())]);
    let plan = state.plan_selected(weights, &mut PlanOptions::default()).map_err(refused)?;
    let w = weight.matrix().cast(DType::F32);
    Ok(match plan.adapters().get(path) {
        Some(adapter) => adapter.apply(w.clone()) - w,
        None => w.zeros_like(),
    })
}

/// Gives the columns of a matrix the norms `magnitude` `[1, cols]`. A column of zeros stays as it is.
pub(super) fn directed(direction: Tensor<2>, magnitude: Tensor<2>) -> Tensor<2> {
    let norms = direction.clone().square().sum_dim(0).sqrt();
    let zero = norms.clone().equal_elem(0.0);
    direction * (magnitude / norms).mask_fill(zero, 1.0)
}

/// Computes `Σ_ij t[i, j, k] a[i, p] b[j, q]` as `[p, q k]` for the core `t` `[r_a, r_b, k…]`, if this has
/// the given rows and columns.
pub(super) fn tucker(
    core: &TensorData,
    a: Tensor<2>,
    b: Tensor<2>,
    [rows, cols]: [usize; 2],
) -> Option<Tensor<2>> {
    let ([left, p], [right, q]) = (a.dims(), b.dims());
    let fits = core.shape().as_slice().get(..2) == Some(&[left, right]);
    let window = core.num_elements().checked_div(left * right)?;
    if !fits || p != rows || q * window != cols {
        return None;
    }
    let core = to_tensor(core, [left, right * window], &a.device());
    // `[p, j, k]`, then `[p, k, j]` times `[j, q]`.
    let first = matmul(a.transpose(), core).reshape([p, right, window]);
    let rows = first.swap_dims(1, 2).reshape([p * window, right]);
    let product = matmul(rows, b).reshape([p, window, q]);
    Some(product.swap_dims(1, 2).reshape([p, q * window]))
}
