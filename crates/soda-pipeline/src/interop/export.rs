//! Writing adapters as files of other tools.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Module;
use burn::tensor::{DType, Tensor, TensorData};
use serde_json::{Value, json};

use soda_adapters::{Adapter, Plan, Targets, Weight};

use super::compress::{CompressedLora, LoraLayer, frobenius_norm, round};
use super::export_settings::{DYNAMIC, ExportSettings, Family, Network};
use super::key_names::{flatten, kohya_prefix};
use crate::component::Component;
use crate::error::PipelineError;
use crate::safetensors_file::SafetensorsFile;

/// The code of SDXL's authors, by whose names its modules go, as kohya's metadata name it.
const STABILITY: &str = "https://github.com/Stability-AI/generative-models";
/// The code that names the modules of all other files.
const DIFFUSERS: &str = "diffusers";

/// Writes a LoRA with the names of kohya's scripts, which ComfyUI, A1111 and diffusers read.
///
/// The UNet's modules have the names of Stability's code for SDXL, and of diffusers for other bases. All
/// layers have one `α`, and `B` is scaled in proportion to the rank, because diffusers 0.42 drops the `α` of
/// attention layers that differ from the others.
///
/// # Errors
/// [`PipelineError::Format`] with the name of a tensor that [`ExportSettings::dtype`] cannot hold, or with
/// the reason from the operating system.
pub fn write_kohya(
    lora: &CompressedLora,
    settings: &ExportSettings,
    path: &Path,
) -> Result<(), PipelineError> {
    let alpha = lora.largest_rank();
    let mut tensors = BTreeMap::new();
    for (path, LoraLayer { a, b, weight }) in &lora.layers {
        let name = kohya_name(path, settings);
        let b = b.clone().mul_scalar(a.dims()[1] as f64 / alpha as f64);
        tensors.insert(format!("{name}.lora_down.weight"), down(a, weight));
        tensors.insert(format!("{name}.lora_up.weight"), up(&b, weight));
        tensors.insert(format!("{name}.alpha"), TensorData::new(vec![alpha as f32], [0usize; 0]));
    }
    let metadata = settings.metadata(&lora_network(lora), implementation(settings));
    Ok(settings.write(SafetensorsFile { tensors, metadata }, path)?)
}

/// Writes a LoRA with the names of diffusers, for `load_lora_weights`.
///
/// # Errors
/// [`PipelineError::Format`] with the name of a tensor that [`ExportSettings::dtype`] cannot hold, or with
/// the reason from the operating system.
pub fn write_diffusers(
    lora: &CompressedLora,
    settings: &ExportSettings,
    path: &Path,
) -> Result<(), PipelineError> {
    let mut tensors = BTreeMap::new();
    for (path, LoraLayer { a, b, weight }) in &lora.layers {
        let (component, module) = component_and_module(path);
        let name = component.path(module);
        tensors.insert(format!("{name}.lora_A.weight"), down(a, weight));
        tensors.insert(format!("{name}.lora_B.weight"), up(b, weight));
    }
    let metadata = settings.metadata(&lora_network(lora), DIFFUSERS);
    Ok(settings.write(SafetensorsFile { tensors, metadata }, path)?)
}

/// Writes the deltas of all weights, as LyCORIS' `diff`, which ComfyUI and A1111 read.
///
/// Returns `‖ΔW - Δ‖ / ‖ΔW‖` over all weights, where `Δ` is what the file holds: 0 for f32. The file is as
/// large as the adapted weights. `networks` is the base that the plan was made for. Names are those of
/// [`write_kohya`].
///
/// # Errors
/// [`PipelineError::Format`] with the name of a tensor that [`ExportSettings::dtype`] cannot hold, or with
/// the reason from the operating system.
pub fn write_diff<A: Adapter, M: Module>(
    plan: &Plan<A>,
    networks: &M,
    settings: &ExportSettings,
    path: &Path,
) -> Result<f64, PipelineError> {
    let weights = Targets::from_paths(plan.paths()).select(networks)?;
    let mut tensors = BTreeMap::new();
    let (mut lost, mut total) = (0.0, 0.0);
    for (path, weight) in &weights {
        let Some(adapter) = plan.adapters().get(path) else { continue };
        let w = weight.matrix.clone().cast(DType::F32);
        let delta = (adapter.apply(w.clone()) - w).transpose();
        lost += frobenius_norm(round(delta.clone(), settings.dtype) - delta.clone()).powi(2);
        total += frobenius_norm(delta.clone()).powi(2);
        let mut shape = weight.shape.clone();
        if shape.len() == 2 {
            // burn stores the weight of a linear layer as `[in, out]`, torch as `[out, in]`.
            shape.reverse();
        }
        tensors.insert(format!("{}.diff", kohya_name(path, settings)), with_shape(delta, shape));
    }
    let network = Network {
        module: "lycoris.kohya",
        dim: DYNAMIC.to_owned(),
        alpha: DYNAMIC.to_owned(),
        args: json!({ "algo": "full" }),
    };
    let metadata = settings.metadata(&network, implementation(settings));
    settings.write(SafetensorsFile { tensors, metadata }, path)?;
    Ok(if lost == 0.0 { 0.0 } else { (lost / total).sqrt() })
}

/// Describes a LoRA in the words of kohya's scripts.
fn lora_network(lora: &CompressedLora) -> Network {
    let ranks = |convolutions: bool| {
        let of_kind = move |layer: &&LoraLayer| has_window(&layer.weight) == convolutions;
        lora.layers.values().filter(of_kind).map(|layer| layer.a.dims()[1])
    };
    let one_or_dynamic = |mut ranks: Box<dyn Iterator<Item = usize> + '_>| {
        let first = ranks.next()?;
        Some(if ranks.all(|rank| rank == first) { first.to_string() } else { DYNAMIC.to_owned() })
    };
    let alpha = lora.largest_rank().to_string();
    let linear = one_or_dynamic(Box::new(ranks(false)));
    let windows = one_or_dynamic(Box::new(ranks(true)));
    let args: Value = match &windows {
        Some(rank) => json!({ "conv_dim": rank, "conv_alpha": alpha }),
        None => json!({}),
    };
    let dim = linear.or(windows).unwrap_or_else(|| alpha.clone());
    Network { module: "networks.lora", dim, alpha, args }
}

/// Whether a weight is that of a convolution with a window of several pixels, to which kohya's scripts give
/// a rank of its own.
fn has_window(weight: &Weight) -> bool {
    matches!(weight.shape[..], [_, _, height, width] if height * width > 1)
}

/// The code by whose names the modules of kohya's files go.
fn implementation(settings: &ExportSettings) -> &'static str {
    if settings.family() == Family::Sdxl { STABILITY } else { DIFFUSERS }
}

/// Splits the path of a weight into the network and the path of the module. A path without a network is the
/// UNet's.
pub(super) fn component_and_module(weight: &str) -> (Component, &str) {
    let module = weight.strip_suffix(".weight").unwrap_or(weight);
    Component::split_path(module).unwrap_or((Component::Unet, module))
}

/// The name of a module in kohya's files.
fn kohya_name(weight: &str, settings: &ExportSettings) -> String {
    let (component, module) = component_and_module(weight);
    let sdxl = settings.family() == Family::Sdxl;
    let original =
        if sdxl && component == Component::Unet { settings.sgm().original(module) } else { None };
    let module = original.as_deref().unwrap_or(module);
    format!("{}{}", kohya_prefix(component, sdxl), flatten(module))
}

/// Converts `a` `[in, r]` to torch's `[r, in]`, or `[r, in, kh, kw]` for a convolution.
pub(super) fn down(a: &Tensor<2>, weight: &Weight) -> TensorData {
    let [input, rank] = a.dims();
    let dims = match weight.shape[..] {
        [_, channels, kh, kw] => vec![rank, channels, kh, kw],
        _ => vec![rank, input],
    };
    with_shape(a.clone().transpose(), dims)
}

/// Converts `b` `[r, out]` to torch's `[out, r]`, or `[out, r, 1, 1]` for a convolution.
pub(super) fn up(b: &Tensor<2>, weight: &Weight) -> TensorData {
    let [rank, output] = b.dims();
    let window = if weight.shape.len() == 4 { vec![1, 1] } else { Vec::new() };
    with_shape(b.clone().transpose(), [vec![output, rank], window].concat())
}

/// Copies a matrix to the host in another shape of as many elements.
pub(super) fn with_shape(matrix: Tensor<2>, shape: Vec<usize>) -> TensorData {
    let values: Vec<f32> = matrix.into_data().iter().collect();
    TensorData::new(values, shape)
}
