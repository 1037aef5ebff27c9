//! Writing adapters in the formats of other tools.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use burn::module::Module;
use burn::tensor::{DType, Tensor, TensorData};

use soda_adapters::oft::OftConfig;
use soda_adapters::soda::Side;
use soda_adapters::{Adapter, AnyAdapter, CayleyForm, MethodConfig, Plan, Targets, Weight};

use super::compress::{CompressedLora, LoraLayer};
use super::key_names::{PEFT, TEXT_MODEL, flatten, kohya_prefix};
use super::peft_config::{Modules, PeftConfig, PeftLora, PeftOft, TENSORS};
use crate::component::Component;
use crate::error::{FormatError, InteropError, PipelineError};
use crate::safetensors_file::SafetensorsFile;

/// Writes a LoRA with the names of kohya's scripts, which ComfyUI, A1111 and diffusers read.
///
/// `trigger` goes into the metadata. `two_encoders` says whether the base has two text encoders, which
/// decides the names. All layers have one `α`, and `B` is scaled in proportion to the rank, because diffusers
/// 0.42 drops the `α` of attention layers that differ from the others.
///
/// # Errors
/// [`PipelineError::Format`] with the reason from the operating system.
pub fn write_kohya(
    lora: &CompressedLora,
    trigger: &[String],
    two_encoders: bool,
    path: &Path,
) -> Result<(), PipelineError> {
    let alpha = lora.layers.values().map(|layer| layer.a.dims()[1]).max().unwrap_or(1);
    let mut tensors = BTreeMap::new();
    for (path, LoraLayer { a, b, weight }) in &lora.layers {
        let name = kohya_name(path, two_encoders);
        let b = b.clone().mul_scalar(a.dims()[1] as f64 / alpha as f64);
        tensors.insert(format!("{name}.lora_down.weight"), down(a, weight));
        tensors.insert(format!("{name}.lora_up.weight"), up(&b, weight));
        tensors.insert(format!("{name}.alpha"), TensorData::new(vec![alpha as f32], [0usize; 0]));
    }
    let metadata = [
        ("ss_network_module", "networks.lora".to_owned()),
        ("ss_network_dim", alpha.to_string()),
        ("ss_network_alpha", alpha.to_string()),
        ("modelspec.trigger_phrase", trigger.join(", ")),
    ];
    let metadata = metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    Ok(SafetensorsFile { tensors, metadata }.write(path)?)
}

/// Writes a LoRA with the names of diffusers, for `load_lora_weights`.
///
/// # Errors
/// [`PipelineError::Format`] with the reason from the operating system.
pub fn write_diffusers(lora: &CompressedLora, path: &Path) -> Result<(), PipelineError> {
    let mut tensors = BTreeMap::new();
    for (path, LoraLayer { a, b, weight }) in &lora.layers {
        let (component, module) = component_and_module(path);
        let name = component.path(module);
        tensors.insert(format!("{name}.lora_A.weight"), down(a, weight));
        tensors.insert(format!("{name}.lora_B.weight"), up(b, weight));
    }
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    Ok(SafetensorsFile { tensors, metadata }.write(path)?)
}

/// Writes the deltas of all weights exactly, as LyCORIS' `diff`, which ComfyUI and A1111 read.
///
/// The file is as large as the adapted weights. `networks` is the base that the plan was made for.
/// `two_encoders` says whether it has two text encoders, which decides the names.
///
/// # Errors
/// [`PipelineError::Format`] with the reason from the operating system.
pub fn write_diff<A: Adapter, M: Module>(
    plan: &Plan<A>,
    networks: &M,
    two_encoders: bool,
    path: &Path,
) -> Result<(), PipelineError> {
    let weights = Targets::from_paths(plan.paths()).select(networks)?;
    let mut tensors = BTreeMap::new();
    for (path, weight) in &weights {
        let Some(adapter) = plan.adapters().get(path) else { continue };
        let w = weight.matrix.clone().cast(DType::F32);
        let delta = (adapter.apply(w.clone()) - w).transpose();
        let mut shape = weight.shape.clone();
        if shape.len() == 2 {
            // burn stores the weight of a linear layer as `[in, out]`, torch as `[out, in]`.
            shape.reverse();
        }
        let name = format!("{}.diff", kohya_name(path, two_encoders));
        tensors.insert(name, with_shape(delta, shape));
    }
    Ok(SafetensorsFile { tensors, metadata: HashMap::new() }.write(path)?)
}

/// Writes a directory for `PeftModel.from_pretrained`.
///
/// LoRA, DoRA and OFT are written exactly, any other method as the LoRA `compressed`. An adapter of the UNet
/// alone is one directory. With several networks, each has a directory by the name of its [`Component`].
/// `methods` has the methods of the adapted networks.
///
/// The names of the first text encoder are those of transformers 5.6 and later, without the module
/// `text_model`. PEFT finds none of them in a model of an earlier version.
///
/// PEFT 0.21 applies OFT to convolutions differently from how it merges OFT, since it folds overlapping
/// patches back into an image. The merged weights are those of this crate.
///
/// # Errors
/// [`InteropError::Settings`] for OFT on the output side, which PEFT does not have. [`PipelineError::Format`]
/// with the reason from the operating system.
pub fn write_peft(
    methods: &BTreeMap<Component, &MethodConfig>,
    plan: &Plan<AnyAdapter>,
    compressed: &CompressedLora,
    folder: &Path,
) -> Result<(), PipelineError> {
    let unet_only = methods.keys().all(|component| *component == Component::Unet);
    for (component, method) in methods {
        let folder = if unet_only { folder.to_owned() } else { folder.join(component.name()) };
        write_peft_component(*component, method, plan, compressed, &folder)?;
    }
    Ok(())
}

/// Writes the PEFT directory of one network.
fn write_peft_component(
    component: Component,
    method: &MethodConfig,
    plan: &Plan<AnyAdapter>,
    compressed: &CompressedLora,
    folder: &Path,
) -> Result<(), PipelineError> {
    let mut tensors = BTreeMap::new();
    let mut ranks = BTreeMap::new();
    let mut modules = Vec::new();
    let mut use_dora = false;
    for (path, LoraLayer { a, b, weight }) in &compressed.layers {
        let (own, module) = component_and_module(path);
        if own != component {
            continue;
        }
        let module = match component {
            Component::TextEncoder => module.strip_prefix(TEXT_MODEL).unwrap_or(module),
            Component::Unet | Component::TextEncoder2 => module,
        };
        modules.push(module.to_owned());
        let name = format!("{PEFT}{module}");
        match plan.adapters().get(path) {
            Some(AnyAdapter::Oft(oft)) => {
                let Some(rotation) = &oft.rotation else { continue };
                let skew = rotation.skew.val();
                let dims = skew.dims().to_vec();
                tensors.insert(format!("{name}.oft_R.weight"), with_shape(skew, dims));
                continue;
            }
            Some(AnyAdapter::Lora(lora)) => {
                let (a, b) = lora.factors();
                if let Some(magnitude) = &lora.magnitude {
                    use_dora = true;
                    let value = magnitude.value.val();
                    let outputs = value.dims()[0];
                    let dims = if weight.shape.len() == 2 {
                        vec![outputs]
                    } else {
                        vec![1, outputs, 1, 1]
                    };
                    let key = format!("{name}.lora_magnitude_vector");
                    tensors.insert(key, with_shape(value.unsqueeze_dim(0), dims));
                }
                tensors.insert(format!("{name}.lora_A.weight"), down(&a, weight));
                tensors.insert(format!("{name}.lora_B.weight"), up(&b, weight));
                ranks.insert(module.to_owned(), a.dims()[1]);
            }
            _ => {
                tensors.insert(format!("{name}.lora_A.weight"), down(a, weight));
                tensors.insert(format!("{name}.lora_B.weight"), up(b, weight));
                ranks.insert(module.to_owned(), a.dims()[1]);
            }
        }
    }
    let config = match method {
        MethodConfig::Oft(config) => PeftConfig::Oft(oft_config(config, Modules::List(modules))?),
        _ => PeftConfig::Lora(lora_config(ranks, use_dora, Modules::List(modules))),
    };
    let io = |source| FormatError::Io { action: "create", path: folder.to_owned(), source };
    std::fs::create_dir_all(folder).map_err(io)?;
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    SafetensorsFile { tensors, metadata }.write(&folder.join(TENSORS))?;
    config.write(folder)
}

/// Makes PEFT's configuration of a LoRA. `B` has the scale, so that `α` is the rank of each layer.
fn lora_config(
    ranks: BTreeMap<String, usize>,
    use_dora: bool,
    target_modules: Modules,
) -> PeftLora {
    let r = ranks.values().copied().max().unwrap_or(1);
    let others: BTreeMap<_, _> = ranks.into_iter().filter(|(_, rank)| *rank != r).collect();
    PeftLora {
        r,
        lora_alpha: r as f64,
        alpha_pattern: others.iter().map(|(name, rank)| (name.clone(), *rank as f64)).collect(),
        rank_pattern: others.into_iter().collect(),
        use_dora,
        target_modules,
        ..PeftLora::default()
    }
}

/// Makes PEFT's configuration of OFT.
fn oft_config(config: &OftConfig, target_modules: Modules) -> Result<PeftOft, InteropError> {
    if config.side != Side::Input {
        return Err(InteropError::Settings {
            method: "oft",
            reason: "PEFT turns inputs only; export it as a LoRA or as diff",
        });
    }
    let defaults = PeftOft::default();
    let terms = match config.cayley {
        CayleyForm::Exact => None,
        CayleyForm::Neumann { terms } => Some(terms),
    };
    Ok(PeftOft {
        oft_block_size: config.block_size,
        coft: config.constraint.is_some(),
        eps: config.constraint.unwrap_or(defaults.eps),
        block_share: config.block_share,
        use_cayley_neumann: terms.is_some(),
        num_cayley_neumann_terms: terms.unwrap_or(defaults.num_cayley_neumann_terms),
        target_modules,
        ..defaults
    })
}

/// Splits the path of a weight into the network and the path of the module. A path without a network is the
/// UNet's.
fn component_and_module(weight: &str) -> (Component, &str) {
    let module = weight.strip_suffix(".weight").unwrap_or(weight);
    Component::split_path(module).unwrap_or((Component::Unet, module))
}

/// The name of a module in kohya's files.
fn kohya_name(weight: &str, two_encoders: bool) -> String {
    let (component, module) = component_and_module(weight);
    format!("{}{}", kohya_prefix(component, two_encoders), flatten(module))
}

/// Converts `a` `[in, r]` to torch's `[r, in]`, or `[r, in, kh, kw]` for a convolution.
fn down(a: &Tensor<2>, weight: &Weight) -> TensorData {
    let [input, rank] = a.dims();
    let dims = match weight.shape[..] {
        [_, channels, kh, kw] => vec![rank, channels, kh, kw],
        _ => vec![rank, input],
    };
    with_shape(a.clone().transpose(), dims)
}

/// Converts `b` `[r, out]` to torch's `[out, r]`, or `[out, r, 1, 1]` for a convolution.
fn up(b: &Tensor<2>, weight: &Weight) -> TensorData {
    let [rank, output] = b.dims();
    let window = if weight.shape.len() == 4 { vec![1, 1] } else { Vec::new() };
    with_shape(b.clone().transpose(), [vec![output, rank], window].concat())
}

/// Copies a matrix to the host in another shape of as many elements.
fn with_shape(matrix: Tensor<2>, shape: Vec<usize>) -> TensorData {
    let values: Vec<f32> = matrix.into_data().iter().collect();
    TensorData::new(values, shape)
}
