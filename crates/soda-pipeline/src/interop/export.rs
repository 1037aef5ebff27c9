//! Writing adapters as files of other tools.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Module;
use burn::tensor::{DType, Tensor, TensorData};
use serde_json::{Value, json};

use soda_adapters::{Adapter, Plan, Targets, Weight};
use soda_models::original_names::Rows;

use super::compress::{AlphaRule, CompressedLora, LoraLayer, frobenius_norm, round};
use super::export_settings::{DYNAMIC, ExportSettings, Family, Network};
use super::key_names::{flatten, kohya_prefix};
use super::layers::{join_loras, join_outputs};
use crate::component::Component;
use crate::error::PipelineError;
use crate::safetensors_file::SafetensorsFile;

/// The code of SDXL's authors, by whose names its modules go, as kohya's metadata name it.
const STABILITY: &str = "https://github.com/Stability-AI/generative-models";
/// The code that names the modules of all other files.
const DIFFUSERS: &str = "diffusers";

/// The code of FLUX.2's authors.
const BLACK_FOREST_LABS: &str = "https://github.com/black-forest-labs/flux2";

/// The code of Z-Image's authors.
const TONGYI_MAI: &str = "https://github.com/Tongyi-MAI/Z-Image";

/// Writes a LoRA with the names of kohya's scripts, which ComfyUI, A1111 and diffusers read.
///
/// A UNet's modules have the names of Stability's code for SDXL, and of diffusers for other bases. All layers
/// have one `α`, and `B` is scaled in proportion to the rank, because diffusers 0.42 drops the `α` of
/// attention layers that differ from the others.
///
/// The modules of FLUX.2 and Z-Image have the names of their authors' code, where queries, keys and values
/// are one layer. Its rank is the sum of theirs, unless they have one `A`. `α` is the rank of each layer.
///
/// # Errors
/// [`PipelineError::Format`] with the name of a tensor that [`ExportSettings::dtype`] cannot hold, or with
/// the reason from the operating system.
pub fn write_kohya(
    lora: &CompressedLora,
    settings: &ExportSettings,
    path: &Path,
) -> Result<(), PipelineError> {
    let layers = by_kohya_name(lora.layers.iter(), settings);
    let mut joined = Vec::new();
    for (name, parts) in &layers {
        let (Some((a, b)), [(_, LoraLayer { weight, .. }), ..]) = (join_loras(parts), &parts[..])
        else {
            continue;
        };
        joined.push((name, a, b, weight));
    }
    let largest = joined.iter().map(|(_, a, ..)| a.dims()[1]).max().unwrap_or(1);
    let (mut tensors, mut ranks) = (BTreeMap::new(), Vec::new());
    for (name, a, b, weight) in joined {
        let rank = a.dims()[1];
        ranks.push(FileRank::new(rank, weight));
        let alpha = match settings.kohya_alpha() {
            AlphaRule::LargestRank => largest,
            AlphaRule::OwnRank => rank,
        };
        let b = b.mul_scalar(rank as f64 / alpha as f64);
        tensors.insert(format!("{name}.lora_down.weight"), down(&a, weight));
        tensors.insert(format!("{name}.lora_up.weight"), up(&b, weight));
        tensors.insert(format!("{name}.alpha"), TensorData::new(vec![alpha as f32], [0usize; 0]));
    }
    let metadata = settings.metadata(&lora_network(&ranks), implementation(settings));
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
    let (mut tensors, mut ranks) = (BTreeMap::new(), Vec::new());
    for (path, LoraLayer { a, b, weight }) in &lora.layers {
        ranks.push(FileRank::new(a.dims()[1], weight));
        let (component, module) = component_and_module(path);
        let name = component.path(module);
        tensors.insert(format!("{name}.lora_A.weight"), down(a, weight));
        tensors.insert(format!("{name}.lora_B.weight"), up(b, weight));
    }
    let metadata = settings.metadata(&lora_network(&ranks), DIFFUSERS);
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
    let layers =
        by_kohya_name(weights.iter().map(|(path, weight)| (path, (path, weight))), settings);
    let mut tensors = BTreeMap::new();
    let (mut lost, mut total) = (0.0, 0.0);
    for (name, parts) in layers {
        let mut deltas = Vec::new();
        let mut shape = Vec::new();
        for (rows, (path, weight)) in parts {
            let Some(adapter) = plan.adapters().get(path) else { continue };
            let w = weight.matrix().cast(DType::F32);
            let delta = adapter.apply(w.clone()) - w;
            lost += frobenius_norm(round(delta.clone(), settings.dtype) - delta.clone()).powi(2);
            total += frobenius_norm(delta.clone()).powi(2);
            shape.clone_from(&weight.shape);
            deltas.push((rows, delta));
        }
        let Some(delta) = join_outputs(deltas).map(Tensor::transpose) else { continue };
        if shape.len() == 2 {
            // burn stores the weight of a linear layer as `[in, out]`, torch as `[out, in]`.
            shape = delta.dims().to_vec();
        }
        tensors.insert(format!("{name}.diff"), with_shape(delta, shape));
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

/// The rank of a layer in a file.
struct FileRank {
    rank: usize,
    /// Whether the layer is a convolution with a window of several pixels, to which kohya's scripts give a
    /// rank of its own.
    has_window: bool,
}

impl FileRank {
    fn new(rank: usize, weight: &Weight) -> Self {
        let has_window = matches!(weight.shape[..], [_, _, height, width] if height * width > 1);
        Self { rank, has_window }
    }
}

/// Describes a LoRA in the words of kohya's scripts.
fn lora_network(layers: &[FileRank]) -> Network {
    let one_or_dynamic = |has_window: bool| {
        let of_kind = layers.iter().filter(|layer| layer.has_window == has_window);
        let mut ranks = of_kind.map(|layer| layer.rank);
        let first = ranks.next()?;
        Some(if ranks.all(|rank| rank == first) { first.to_string() } else { DYNAMIC.to_owned() })
    };
    let alpha = layers.iter().map(|layer| layer.rank).max().unwrap_or(1).to_string();
    let (linear, windows) = (one_or_dynamic(false), one_or_dynamic(true));
    let args: Value = match &windows {
        Some(rank) => json!({ "conv_dim": rank, "conv_alpha": alpha }),
        None => json!({}),
    };
    let dim = linear.or(windows).unwrap_or_else(|| alpha.clone());
    Network { module: "networks.lora", dim, alpha, args }
}

/// The code by whose names the modules of kohya's files go.
fn implementation(settings: &ExportSettings) -> &'static str {
    match settings.family() {
        Family::Sd1 | Family::Sd2 => DIFFUSERS,
        Family::Sdxl => STABILITY,
        Family::Flux2(_) => BLACK_FOREST_LABS,
        Family::ZImage => TONGYI_MAI,
    }
}

/// Splits the path of a weight into the network and the path of the module. A path without a network is the
/// UNet's.
pub(super) fn component_and_module(weight: &str) -> (Component, &str) {
    let module = weight.strip_suffix(".weight").unwrap_or(weight);
    Component::split_path(module).unwrap_or((Component::Unet, module))
}

/// Collects what belongs to weights by the module of kohya's files that has them. `layers` are the paths of
/// the weights and what belongs to them.
fn by_kohya_name<'a, T>(
    layers: impl Iterator<Item = (&'a String, T)>,
    settings: &ExportSettings,
) -> BTreeMap<String, Vec<(Rows, T)>> {
    let mut named: BTreeMap<String, Vec<(Rows, T)>> = BTreeMap::new();
    for (weight, layer) in layers {
        let (name, rows) = kohya_name(weight, settings);
        named.entry(name).or_default().push((rows, layer));
    }
    named
}

/// The name of a weight's module in kohya's files, and the rows of the module that the weight is.
fn kohya_name(weight: &str, settings: &ExportSettings) -> (String, Rows) {
    let (component, module) = component_and_module(weight);
    let family = settings.family();
    let original = match family {
        Family::Sd1 | Family::Sd2 => None,
        Family::Sdxl | Family::Flux2(_) | Family::ZImage => {
            settings.original_names().of(component, module)
        }
    };
    let (module, rows) = original.unwrap_or_else(|| (module.to_owned(), Rows::All));
    let prefix = kohya_prefix(component, family == Family::Sdxl);
    (format!("{prefix}{}", flatten(&module)), rows)
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
