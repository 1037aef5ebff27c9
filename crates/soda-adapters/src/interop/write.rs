//! From an adapter of ours to files of other tools.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use burn::module::Module;
use burn::tensor::{DType, Tensor, TensorData};

use super::compress::Compressed;
use super::config::{Modules, PeftConfig, PeftLora, PeftOft, TENSORS};
use super::names::{PEFT, TEXT_MODEL, flat, kohya};
use crate::attach::Plan;
use crate::blocks::CayleyForm;
use crate::component::Component;
use crate::error::AdapterError;
use crate::fold::Weight;
use crate::method::Adapter;
use crate::oft::OftConfig;
use crate::soda::Side;
use crate::table::{AnyAdapter, MethodConfig};
use crate::target::Targets;
use crate::tensors::Tensors;

/// Writes a LoRA with the names of kohya's scripts, which ComfyUI, A1111 and diffusers read; `trigger`
/// goes into the metadata.
///
/// `α` is the same in every layer whatever its rank, and `B` makes up for it: diffusers (0.42) loses the
/// `α` of attention layers that differ from the rest. `two_encoders` says whether the base has two text encoders.
///
/// # Errors
/// What the operating system says.
pub fn write_kohya(
    lora: &Compressed,
    trigger: &[String],
    two_encoders: bool,
    path: &Path,
) -> Result<(), AdapterError> {
    let alpha = lora.layers.values().map(|(a, _, _)| a.dims()[1]).max().unwrap_or(1);
    let mut tensors = BTreeMap::new();
    for (weight, (a, b, shape)) in &lora.layers {
        let name = kohya_name(weight, two_encoders);
        let b = b.clone().mul_scalar(a.dims()[1] as f64 / alpha as f64);
        tensors.insert(format!("{name}.lora_down.weight"), down(a, shape));
        tensors.insert(format!("{name}.lora_up.weight"), up(&b, shape));
        tensors.insert(format!("{name}.alpha"), TensorData::new(vec![alpha as f32], [0usize; 0]));
    }
    let metadata = [
        ("ss_network_module", "networks.lora".to_owned()),
        ("ss_network_dim", alpha.to_string()),
        ("ss_network_alpha", alpha.to_string()),
        ("modelspec.trigger_phrase", trigger.join(", ")),
    ];
    let metadata = metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    Tensors { tensors, metadata }.write(path)
}

/// Writes a LoRA with the names of diffusers, for `load_lora_weights`.
///
/// # Errors
/// What the operating system says.
pub fn write_diffusers(lora: &Compressed, path: &Path) -> Result<(), AdapterError> {
    let mut tensors = BTreeMap::new();
    for (weight, (a, b, shape)) in &lora.layers {
        let (component, module) = place(weight);
        let name = component.path(module);
        tensors.insert(format!("{name}.lora_A.weight"), down(a, shape));
        tensors.insert(format!("{name}.lora_B.weight"), up(b, shape));
    }
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    Tensors { tensors, metadata }.write(path)
}

/// Writes every delta whole, as LyCORIS' `diff`: exact, as large as the weights, for ComfyUI and A1111.
/// `networks` is the base the plan was made on, `two_encoders` whether it has two text encoders.
///
/// # Errors
/// What the operating system says.
pub fn write_diff<A: Adapter, M: Module>(
    plan: &Plan<A>,
    networks: &M,
    two_encoders: bool,
    path: &Path,
) -> Result<(), AdapterError> {
    let weights = Targets::paths(plan.paths()).select(networks)?;
    let mut tensors = BTreeMap::new();
    for (name, weight) in &weights {
        let Some(adapter) = plan.adapters().get(name) else { continue };
        let w = weight.matrix.clone().cast(DType::F32);
        let delta = (adapter.apply(w.clone()) - w).transpose();
        let mut shape = weight.shape.clone();
        if shape.len() == 2 {
            // burn's linear is stored the other way round.
            shape.reverse();
        }
        let name = format!("{}.diff", kohya_name(name, two_encoders));
        tensors.insert(name, shaped(delta, shape));
    }
    Tensors { tensors, metadata: HashMap::new() }.write(path)
}

/// Writes what `PeftModel.from_pretrained` loads: LoRA, DoRA and OFT as they are, exactly, any
/// other method as the LoRA `compressed`. An adapter of the UNet alone is one directory; of several networks, each
/// has a directory by the name of its [`Component`]. `methods` are those of the adapted networks.
///
/// The first text encoder is named as transformers 5.6 and later have it, without the level `text_model`: in a model of
/// an earlier version PEFT finds nothing.
///
/// PEFT 0.21 applies OFT on convolutions otherwise than it merges it (it folds overlapping patches back
/// into a picture); merged, it is what it is here.
///
/// # Errors
/// OFT on the output side, which PEFT does not have, and what the operating system says.
pub fn write_peft(
    methods: &BTreeMap<Component, &MethodConfig>,
    plan: &Plan<AnyAdapter>,
    compressed: &Compressed,
    folder: &Path,
) -> Result<(), AdapterError> {
    let unet_only = methods.keys().all(|component| *component == Component::Unet);
    for (component, method) in methods {
        let folder = if unet_only { folder.to_owned() } else { folder.join(component.name()) };
        write_peft_of(*component, method, plan, compressed, &folder)?;
    }
    Ok(())
}

fn write_peft_of(
    component: Component,
    method: &MethodConfig,
    plan: &Plan<AnyAdapter>,
    compressed: &Compressed,
    folder: &Path,
) -> Result<(), AdapterError> {
    let mut tensors = BTreeMap::new();
    let mut ranks = BTreeMap::new();
    let mut modules = Vec::new();
    let mut dora = false;
    for (weight, (a, b, shape)) in &compressed.layers {
        let (of, module) = place(weight);
        if of != component {
            continue;
        }
        let module = match component {
            Component::TextEncoder => module.strip_prefix(TEXT_MODEL).unwrap_or(module),
            Component::Unet | Component::TextEncoder2 => module,
        };
        modules.push(module.to_owned());
        let name = format!("{PEFT}{module}");
        match plan.adapters().get(weight) {
            Some(AnyAdapter::Oft(oft)) => {
                let Some(rotation) = &oft.rotation else { continue };
                let skew = rotation.skew.val();
                let dims = skew.dims().to_vec();
                tensors.insert(format!("{name}.oft_R.weight"), shaped(skew, dims));
                continue;
            }
            Some(AnyAdapter::Lora(lora)) => {
                let (a, b) = lora.factors();
                if let Some(magnitude) = &lora.magnitude {
                    dora = true;
                    let value = magnitude.value.val();
                    let outputs = value.dims()[0];
                    let dims =
                        if shape.shape.len() == 2 { vec![outputs] } else { vec![1, outputs, 1, 1] };
                    let key = format!("{name}.lora_magnitude_vector");
                    tensors.insert(key, shaped(value.unsqueeze_dim(0), dims));
                }
                tensors.insert(format!("{name}.lora_A.weight"), down(&a, shape));
                tensors.insert(format!("{name}.lora_B.weight"), up(&b, shape));
                ranks.insert(module.to_owned(), a.dims()[1]);
            }
            _ => {
                tensors.insert(format!("{name}.lora_A.weight"), down(a, shape));
                tensors.insert(format!("{name}.lora_B.weight"), up(b, shape));
                ranks.insert(module.to_owned(), a.dims()[1]);
            }
        }
    }
    let config = match method {
        MethodConfig::Oft(config) => PeftConfig::Oft(oft(config, Modules::List(modules))?),
        _ => PeftConfig::Lora(lora(ranks, dora, Modules::List(modules))),
    };
    let io = |source| AdapterError::Io { action: "create", path: folder.to_owned(), source };
    std::fs::create_dir_all(folder).map_err(io)?;
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    Tensors { tensors, metadata }.write(&folder.join(TENSORS))?;
    config.write(folder)
}

/// The scale is in `B`, so that `α` is each layer's rank.
fn lora(ranks: BTreeMap<String, usize>, use_dora: bool, target_modules: Modules) -> PeftLora {
    let r = ranks.values().copied().max().unwrap_or(1);
    let others: BTreeMap<_, _> = ranks.into_iter().filter(|(_, rank)| *rank != r).collect();
    PeftLora {
        r,
        lora_alpha: r as f64,
        alpha_pattern: others.iter().map(|(name, rank)| (name.clone(), *rank as f64)).collect(),
        rank_pattern: others,
        use_dora,
        target_modules,
        ..PeftLora::default()
    }
}

fn oft(config: &OftConfig, target_modules: Modules) -> Result<PeftOft, AdapterError> {
    if config.side != Side::Input {
        return Err(AdapterError::Config {
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

/// The network of a weight, and its module's path in there. A path without a network is the UNet's.
fn place(weight: &str) -> (Component, &str) {
    let module = weight.strip_suffix(".weight").unwrap_or(weight);
    Component::split(module).unwrap_or((Component::Unet, module))
}

fn kohya_name(weight: &str, two_encoders: bool) -> String {
    let (component, module) = place(weight);
    format!("{}{}", kohya(component, two_encoders), flat(module))
}

/// `a` `[in, r]` as torch's `[r, in]`, or `[r, in, kh, kw]`.
fn down(a: &Tensor<2>, weight: &Weight) -> TensorData {
    let [input, rank] = a.dims();
    let dims = match weight.shape[..] {
        [_, channels, kh, kw] => vec![rank, channels, kh, kw],
        _ => vec![rank, input],
    };
    shaped(a.clone().transpose(), dims)
}

/// `b` `[r, out]` as torch's `[out, r]`, or `[out, r, 1, 1]`.
fn up(b: &Tensor<2>, weight: &Weight) -> TensorData {
    let [rank, output] = b.dims();
    let window = if weight.shape.len() == 4 { vec![1, 1] } else { Vec::new() };
    shaped(b.clone().transpose(), [vec![output, rank], window].concat())
}

fn shaped(matrix: Tensor<2>, shape: Vec<usize>) -> TensorData {
    let values: Vec<f32> = matrix.into_data().iter().collect();
    TensorData::new(values, shape)
}
