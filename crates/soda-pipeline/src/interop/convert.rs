//! Conversion of a network's layers to one method of `soda-adapters`.
//!
//! An adapter state has one method for a network. Files of other tools may have a method, a rank and a factor
//! for each layer. Layers of one method that holds them all keep it. Otherwise the layers that are no LoRA
//! become whole deltas:
//!
//! | layers of the file | method |
//! |---|---|
//! | LoRA, each of its own rank and `α` | `lora` |
//! | DoRA; PiSSA | `lora` with this setting |
//! | LoHa, each of its own rank | `loha` |
//! | LoKr, and whole deltas | `lokr`, with sizes by weight where no `factor` gives them |
//! | OFT or BOFT of one block size; HRA of one rank | `oft`, `boft`, `soda` |
//! | LoRA, and others | `lora`, the others with the identity as one factor |
//! | anything else | `full` |

use std::collections::BTreeMap;

use burn::tensor::TensorData;
use soda_adapters::full::FullConfig;
use soda_adapters::loha::LohaConfig;
use soda_adapters::lokr::LokrConfig;
use soda_adapters::lora::{LoraConfig, LoraInit};
use soda_adapters::{Method as _, MethodConfig, Weight};

use super::layer_tensors::{Parameters, to_host};
use super::layers::{Hadamard, Kronecker, LayerForm, Layers, LowRank, Rotation};
use super::peft::PeftConfig;
use crate::error::InteropError;

/// A method with its settings, and its tensors by their names in an adapter state.
pub(super) type Converted = (MethodConfig, BTreeMap<String, TensorData>);

/// A rank above that of any layer, with which LoKr stores both matrices whole.
const WHOLE: usize = 1 << 20;

/// Converts the tensors of a network to a method and its tensors.
///
/// # Errors
/// [`InteropError`] for incomplete layers, and for tensors and settings that are not supported.
pub(super) fn convert(
    layers: &Layers,
    config: Option<&PeftConfig>,
    weights: &BTreeMap<String, Weight>,
) -> Result<Converted, InteropError> {
    let forms = layers.forms(config, weights)?;
    if let Some(converted) = of_one_method(&forms).or_else(|| lokr(&forms, weights)) {
        return Ok(converted);
    }
    let adds = |form: &LayerForm| {
        matches!(form, LayerForm::LowRank(LowRank { magnitude: None, pissa: false, .. }))
    };
    if !forms.values().any(adds) {
        return full(&forms, weights);
    }
    let mut low_rank = BTreeMap::new();
    for (path, form) in forms {
        let form = match form {
            LayerForm::LowRank(form @ LowRank { magnitude: None, pissa: false, .. }) => form,
            form => LowRank::whole(form.delta(&path, &weights[&path])?),
        };
        low_rank.insert(path, form);
    }
    let low_rank = low_rank.iter().map(|(path, form)| (path.as_str(), form));
    Ok(lora(&low_rank.collect(), false, LoraInit::default()))
}

/// Converts layers of one method that holds them all; `None` for others.
fn of_one_method(forms: &BTreeMap<String, LayerForm>) -> Option<Converted> {
    let low_rank = all(forms, |form| match form {
        LayerForm::LowRank(form) => Some(form),
        _ => None,
    });
    if let Some(layers) = low_rank {
        let first = *layers.values().next()?;
        let (dora, pissa) = (first.magnitude.is_some(), first.pissa);
        let alike = |layer: &&LowRank| layer.magnitude.is_some() == dora && layer.pissa == pissa;
        let init = if pissa { LoraInit::Pissa } else { LoraInit::default() };
        return layers.values().all(alike).then(|| lora(&layers, dora, init));
    }
    let hadamard = all(forms, |form| match form {
        LayerForm::Hadamard(form) => Some(form),
        _ => None,
    });
    if let Some(layers) = hadamard {
        return Some(loha(&layers));
    }
    let rotations = all(forms, |form| match form {
        LayerForm::Rotation(form) => Some(form),
        _ => None,
    });
    rotations.and_then(|layers| rotations_of_one_size(&layers))
}

/// The layers as one form; `None` if a layer has another form.
fn all<'a, T>(
    forms: &'a BTreeMap<String, LayerForm>,
    form: impl Fn(&'a LayerForm) -> Option<&'a T>,
) -> Option<BTreeMap<&'a str, &'a T>> {
    forms.iter().map(|(path, layer)| Some((path.as_str(), form(layer)?))).collect()
}

/// Converts LoRA and DoRA. Each layer has its own rank and `α`.
fn lora(layers: &BTreeMap<&str, &LowRank>, dora: bool, init: LoraInit) -> Converted {
    let mut method = LoraConfig { dora, init, ..LoraConfig::default() };
    for (path, layer) in layers {
        let pattern = format!("^{}$", regex::escape(path));
        method.rank_pattern.insert(pattern.clone(), layer.rank());
        method.alpha_pattern.insert(pattern, layer.alpha());
    }
    named(method.into(), layers.iter().map(|(path, layer)| (*path, layer.parameters())))
}

/// Converts LoHa, with zeros up to the largest rank of the layers.
fn loha(layers: &BTreeMap<&str, &Hadamard>) -> Converted {
    let rank = layers.values().map(|layer| layer.rank()).max().unwrap_or(1);
    let method = LohaConfig { rank, ..LohaConfig::default() };
    named(method.into(), layers.iter().map(|(path, layer)| (*path, layer.parameters(rank))))
}

/// Converts LoKr, with whole deltas as Kronecker products by the number 1. `None` for other layers, and for
/// deltas alone.
///
/// Files do not have LyCORIS' setting `factor`: the value that gives the sizes is found by trial. If there is
/// none, the sizes are named.
fn lokr(
    forms: &BTreeMap<String, LayerForm>,
    weights: &BTreeMap<String, Weight>,
) -> Option<Converted> {
    let layer = |(path, form): (&String, &LayerForm)| {
        let layer = match form {
            LayerForm::Kronecker(form) => form.clone(),
            LayerForm::Delta(delta) => Kronecker::whole(delta.clone(), weights[path].window()),
            _ => return None,
        };
        Some((path.clone(), layer))
    };
    let layers: BTreeMap<String, Kronecker> = forms.iter().map(layer).collect::<Option<_>>()?;
    if !forms.values().any(|form| matches!(form, LayerForm::Kronecker(_))) {
        return None;
    }
    let most = layers.values().map(Kronecker::largest_factor).max().unwrap_or(1);
    let factor = std::iter::once(None)
        .chain((1..=most).map(Some))
        .find(|factor| layers.values().all(|layer| layer.has_factor(*factor)));
    let mut method = LokrConfig { rank: WHOLE, ..LokrConfig::default() };
    match factor {
        Some(factor) => method.factor = factor,
        None => {
            let size = |(path, layer): (&String, &Kronecker)| (path.clone(), layer.small_size());
            method.sizes = layers.iter().map(size).collect();
        }
    }
    let parameters = layers.iter().map(|(path, layer)| (path.as_str(), layer.parameters()));
    Some(named(method.into(), parameters))
}

/// Converts OFT and BOFT of one block size, and HRA of one rank.
fn rotations_of_one_size(layers: &BTreeMap<&str, &Rotation>) -> Option<Converted> {
    let method = &layers.values().next()?.method;
    let parameters = layers.iter().map(|(path, layer)| (*path, layer.parameters.clone()));
    let one_size = layers.values().all(|layer| layer.method == *method);
    one_size.then(|| named(method.clone(), parameters))
}

/// Converts layers of whatever method to their deltas.
fn full(
    forms: &BTreeMap<String, LayerForm>,
    weights: &BTreeMap<String, Weight>,
) -> Result<Converted, InteropError> {
    let mut deltas: Vec<(&str, Parameters)> = Vec::new();
    for (path, form) in forms {
        let delta = form.delta(path, &weights[path])?;
        deltas.push((path, vec![("delta".into(), to_host(delta))]));
    }
    Ok(named(FullConfig {}.into(), deltas.into_iter()))
}

/// Names the tensors of all layers as in an adapter state.
fn named<'a>(
    method: MethodConfig,
    layers: impl Iterator<Item = (&'a str, Parameters)>,
) -> Converted {
    let mut tensors = BTreeMap::new();
    for (path, parameters) in layers {
        for (name, data) in parameters {
            tensors.insert(method.tensor_name(path, &name), data);
        }
    }
    (method, tensors)
}
