//! Writing adapters as directories of PEFT.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use burn::tensor::{DType, FloatDType};

use soda_adapters::oft::OftConfig;
use soda_adapters::soda::Side;
use soda_adapters::{Adapter as _, AnyAdapter, CayleyForm, MethodConfig, Plan, map_params};

use super::compress::{AlphaRule, CompressedLora, LoraLayer, frobenius_norm, round};
use super::export::{component_and_module, down, up, with_shape};
use super::key_names::{PEFT, TEXT_MODEL};
use super::peft::{Modules, PeftConfig, PeftHra, PeftLora, PeftOft, TENSORS};
use super::staging::write_folder;
use crate::component::Component;
use crate::error::{FormatError, InteropError, PipelineError};
use crate::safetensors_file::SafetensorsFile;

/// Writes a directory for `PeftModel.from_pretrained`.
///
/// LoRA, DoRA, OFT and HRA are written exactly, any other method as the LoRA `compressed`. An adapter of the
/// denoiser alone is one directory. With several networks, each has a directory by the name of its
/// [`Component`]. `methods` has the methods of the adapted networks. The tensors are written as `dtype`. The
/// directory appears whole or not at all.
///
/// The names of the first text encoder are those of transformers 5.6 and later, without the module
/// `text_model`. PEFT finds none of them in a model of an earlier version.
///
/// PEFT 0.21 applies OFT to convolutions differently from how it merges OFT, since it folds overlapping
/// patches back into an image. The merged weights are those of this crate.
///
/// # Errors
/// [`InteropError::Settings`] for OFT on the output side, which PEFT does not have. [`PipelineError::Format`]
/// for a `folder` that exists, with the name of a tensor that `dtype` cannot hold, or with the reason from
/// the operating system.
pub fn write_peft(
    methods: &BTreeMap<Component, &MethodConfig>,
    plan: &Plan<AnyAdapter>,
    compressed: &CompressedLora,
    dtype: FloatDType,
    folder: &Path,
) -> Result<(), PipelineError> {
    let denoiser_only = methods
        .keys()
        .all(|component| matches!(component, Component::Unet | Component::Transformer));
    let networks = methods
        .iter()
        .map(|(component, method)| {
            let (tensors, config) = peft_component(*component, method, plan, compressed)?;
            Ok((component, tensors, config))
        })
        .collect::<Result<Vec<_>, PipelineError>>()?;
    write_folder(folder, |staging| {
        for (component, tensors, config) in &networks {
            let own = staging.join(component.name());
            let folder = if denoiser_only { staging } else { &own };
            let io = |source| FormatError::Io { action: "create", path: folder.to_owned(), source };
            std::fs::create_dir_all(folder).map_err(io)?;
            tensors.write_as(&folder.join(TENSORS), dtype.into())?;
            config.write(folder)?;
        }
        Ok(())
    })
}

/// Rounds the factors of a LoRA to those of a PEFT directory of `dtype`, and measures its errors.
///
/// As [`CompressedLora::round`], but for the layers that [`write_peft`] writes exactly, whose only error is
/// that of rounding.
pub fn round_for_peft(compressed: &mut CompressedLora, plan: &Plan<AnyAdapter>, dtype: FloatDType) {
    compressed.round(plan, dtype, AlphaRule::OwnRank);
    let (mut error, mut total) = (0.0, 0.0);
    for report in &mut compressed.reports {
        let found = (compressed.layers.get(&report.path), plan.adapters().get(&report.path));
        let (Some(layer), Some(adapter)) = found else { continue };
        let w = layer.weight.matrix().cast(DType::F32);
        let adapted = adapter.apply(w.clone());
        let norm = frobenius_norm(adapted.clone() - w.clone());
        let is_hra = || number_of_reflections(component_and_module(&report.path).0, plan).is_some();
        if matches!(adapter, AnyAdapter::Lora(_) | AnyAdapter::Oft(_)) || is_hra() {
            let rounded = map_params(adapter.clone(), |param| Some(round(param.value(), dtype)));
            let lost = frobenius_norm(rounded.apply(w) - adapted);
            report.error = if lost == 0.0 { 0.0 } else { lost / norm };
        }
        if let AnyAdapter::Lora(lora) = adapter {
            report.rank = lora.factors().0.dims()[1];
        }
        error += (report.error * norm).powi(2);
        total += norm.powi(2);
    }
    compressed.error = if error == 0.0 { 0.0 } else { (error / total).sqrt() };
}

/// Makes the tensors and the configuration of one network.
fn peft_component(
    component: Component,
    method: &MethodConfig,
    plan: &Plan<AnyAdapter>,
    compressed: &CompressedLora,
) -> Result<(SafetensorsFile, PeftConfig), PipelineError> {
    let mut tensors = BTreeMap::new();
    let mut ranks = BTreeMap::new();
    let mut modules = Vec::new();
    let mut use_dora = false;
    let reflections = number_of_reflections(component, plan);
    for (path, LoraLayer { a, b, weight }) in &compressed.layers {
        let (own, module) = component_and_module(path);
        if own != component {
            continue;
        }
        let module = match component {
            Component::TextEncoder => module.strip_prefix(TEXT_MODEL).unwrap_or(module),
            Component::Unet | Component::TextEncoder2 | Component::Transformer => module,
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
            Some(AnyAdapter::Soda(soda)) if reflections.is_some() => {
                let Some(vectors) = soda.rotation.as_ref().and_then(|r| r.reflections.as_ref())
                else {
                    continue;
                };
                let dims = vectors.val().dims().to_vec();
                tensors.insert(format!("{name}.hra_u"), with_shape(vectors.val(), dims));
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
        _ => match reflections {
            Some(r) => PeftConfig::Hra(PeftHra::new(r, Modules::List(modules))),
            None => PeftConfig::Lora(lora_config(ranks, use_dora, Modules::List(modules))),
        },
    };
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    Ok((SafetensorsFile { tensors, metadata }, config))
}

/// The number of reflections of a network whose adapters are HRAs of one rank and nothing else.
///
/// `None` for others, for another strength, and if a layer has fewer inputs than reflections.
fn number_of_reflections(component: Component, plan: &Plan<AnyAdapter>) -> Option<usize> {
    let mut rank = None;
    for (path, adapter) in plan.adapters() {
        if component_and_module(path).0 != component {
            continue;
        }
        let found = reflections_of(adapter)?;
        if rank.replace(found).is_some_and(|other| other != found) {
            return None;
        }
    }
    rank
}

/// The number of reflections of an HRA.
fn reflections_of(adapter: &AnyAdapter) -> Option<usize> {
    let AnyAdapter::Soda(soda) = adapter else { return None };
    let plain = soda.output_rotation.is_none()
        && soda.spectrum.is_none()
        && soda.truncated_spectrum.is_none()
        && soda.output_scale.is_none();
    let vectors = soda.rotation.as_ref()?.reflections.as_ref()?;
    plain.then(|| vectors.val().dims()[1])
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
        use_dora: Some(use_dora),
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
