//! Deltas of a weight `[in, out]`: the form of whatever no method holds.

use std::borrow::Cow;
use std::collections::BTreeMap;

use burn::tensor::{DType, Tensor, TensorData};
use soda_adapters::{
    Adapter as _, AdapterState, Method as _, MethodConfig, PlanOptions, Recipe, Targets, Weight,
};
use soda_kernels::matmul;

use super::super::key_names::Role;
use super::super::layer_tensors::{LayerTensors, Parameters, to_tensor};
use super::LayerForm;
use crate::error::InteropError;

/// Reads LyCORIS' `diff`, a delta in torch's layout.
pub(super) fn read(layer: &LayerTensors, weight: &Weight) -> Result<Tensor<2>, InteropError> {
    let [input, output] = weight.matrix.dims();
    let device = weight.matrix.device();
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
    let w = weight.matrix.clone().cast(DType::F32);
    Ok(match plan.adapters().get(path) {
        Some(adapter) => adapter.apply(w.clone()) - w,
        None => w.zeros_like(),
    })
}

/// Gives a form the magnitude that the file has beside it.
///
/// `W = m (W0 + ΔW) / |W0 + ΔW|`, with norms and magnitudes of the outputs or of the input channels. LoRA's
/// method has those of the outputs; anything else becomes a delta.
pub(super) fn with_magnitude(
    form: LayerForm,
    layer: &LayerTensors,
    weight: &Weight,
) -> Result<LayerForm, InteropError> {
    let ([input, output], window) = (weight.matrix.dims(), weight.window());
    let (role, name) = match (layer.has(Role::Magnitude), layer.has(Role::DoraScale)) {
        (false, false) => return Ok(form),
        (true, _) => (Role::Magnitude, "magnitude"),
        (false, true) => (Role::DoraScale, "dora_scale"),
    };
    let data = layer.required(role, name)?;
    let (count, channels) = (data.num_elements(), input / window);
    // LyCORIS has `[out, 1, …]` or `[1, in, …]`; PEFT has one magnitude for each output in any shape.
    let first = data.shape().as_slice().first().copied();
    let by_output = count == output && (role == Role::Magnitude || first == Some(output));
    let by_input = role == Role::DoraScale && count == channels && first == Some(1);
    if !by_output && !by_input {
        let expected = format!("[{output}, 1] or [1, {channels}]");
        return Err(layer.misfit(role, &expected));
    }
    match form {
        LayerForm::LowRank(mut low_rank) if by_output => {
            let values: Vec<f32> = data.iter().collect();
            low_rank.magnitude = Some(TensorData::new(values, [output]));
            Ok(LayerForm::LowRank(low_rank))
        }
        LayerForm::Rotation(_) => Err(layer.unsupported("magnitude beside a rotation")),
        form => {
            let w = weight.matrix.clone().cast(DType::F32);
            let direction = w.clone() + form.delta(layer.weight(), weight)?;
            let device = w.device();
            let adapted = if by_output {
                directed(direction, to_tensor(data, [1, output], &device))
            } else {
                // The rows of a channel are those of its window.
                let rows = direction.reshape([channels, window * output]).transpose();
                let scaled = directed(rows, to_tensor(data, [1, channels], &device));
                scaled.transpose().reshape([input, output])
            };
            Ok(LayerForm::Delta(adapted - w))
        }
    }
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
