//! From a file of another tool to an adapter of ours.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use burn::module::Module;
use burn::tensor::TensorData;
use serde_json::json;

use super::config::{PeftConfig, PeftLora, PeftOft, TENSORS};
use super::lycoris;
use super::names::{Name, Part, flat, of_text_encoder, parse};
use crate::blocks::CayleyForm;
use crate::error::AdapterError;
use crate::file::{AdapterFile, Header, key};
use crate::fingerprint::fingerprint;
use crate::leaf::leaves;
use crate::lora::LoraConfig;
use crate::oft::OftConfig;
use crate::table::MethodConfig;
use crate::target::Targets;
use crate::tensors::Tensors;

/// What an import gave.
#[derive(Clone, Debug)]
pub struct Imported {
    /// The adapter, checked against the base.
    pub file: AdapterFile,
    /// Weights that got an adapter.
    pub matched: Vec<String>,
    /// Names in the file that were left out: of no weight of this network.
    pub unmatched: Vec<String>,
    /// Names in the file that were left out because they are of text encoders, which are not adapted.
    pub text_encoders: Vec<String>,
}

/// What a file has for one weight.
pub(super) type Parts = BTreeMap<Part, TensorData>;
/// What a file has, by path of the weight.
pub(super) type Layers = BTreeMap<String, Parts>;

/// Reads a PEFT directory, or a LoRA, LoHa or LoKr file of diffusers, kohya or LyCORIS, for the network `base` of this `name`.
///
/// # Errors
/// A file that cannot be read, in which nothing belongs to `base`, whose tensors are incomplete or do not
/// fit their weights, or with settings that this crate has no method for.
pub fn import<M: Module>(path: &Path, base: &M, name: &str) -> Result<Imported, AdapterError> {
    let (file, config) = if path.is_dir() {
        (path.join(TENSORS), Some(PeftConfig::read(path)?))
    } else {
        (path.to_owned(), None)
    };
    let known = Known::of(base);
    let mut layers = Layers::new();
    let (mut unmatched, mut text_encoders) = (Vec::new(), Vec::new());
    for (key, data) in Tensors::read(&file)?.tensors {
        let found = parse(&key).and_then(|found| Some((known.weight(&found.module)?, found.part)));
        match found {
            Some((weight, part)) => {
                layers.entry(weight.to_owned()).or_default().insert(part, data);
            }
            None if of_text_encoder(&key) => text_encoders.push(key),
            None => unmatched.push(key),
        }
    }
    if layers.is_empty() {
        return Err(AdapterError::NothingMatched {
            path: file,
            example: unmatched.first().or(text_encoders.first()).cloned().unwrap_or_default(),
        });
    }
    for (weight, parts) in &layers {
        for (refused, part) in
            [(Part::Core, "core of a Tucker decomposition"), (Part::Scalar, "trained scalar")]
        {
            if parts.contains_key(&refused) {
                return Err(AdapterError::ForeignPart { weight: weight.clone(), part });
            }
        }
    }
    let targets = Targets::paths(layers.keys().map(String::as_str));
    let weights = targets.select(base)?;
    let any = |wanted: &[Part]| {
        layers.values().any(|parts| wanted.iter().any(|part| parts.contains_key(part)))
    };
    let (method, tensors) = match config {
        None if any(&[Part::HadaW1A]) => lycoris::loha(&layers)?,
        None if any(&[Part::LokrW1, Part::LokrW1A]) => lycoris::lokr(&layers, &weights)?,
        None => lora(&layers, None)?,
        Some(PeftConfig::Lora(config)) => lora(&layers, Some(&config))?,
        Some(PeftConfig::Oft(config)) => oft(&layers, &config)?,
    };
    let header = Header {
        method,
        base: name.to_owned(),
        base_hash: fingerprint(&weights),
        targets,
        trigger: Vec::new(),
        training: json!({ "imported": file.file_name().map(|name| name.to_string_lossy()) }),
    };
    let file = AdapterFile { header, tensors };
    file.plan(base)?;
    Ok(Imported { file, matched: layers.into_keys().collect(), unmatched, text_encoders })
}

/// The weights of a network, by the names that tools have for them.
struct Known(HashMap<String, String>);

impl Known {
    fn of<M: Module>(base: &M) -> Self {
        let mut names = HashMap::new();
        for leaf in leaves(base).into_iter().filter(|leaf| matches!(leaf.shape.len(), 2 | 4)) {
            if let Some(module) = leaf.path.strip_suffix(".weight") {
                names.insert(flat(module), leaf.path.clone());
                names.insert(module.to_owned(), leaf.path.clone());
            }
        }
        Self(names)
    }

    fn weight(&self, name: &Name) -> Option<&str> {
        let (Name::Dotted(name) | Name::Flat(name)) = name;
        self.0.get(name).map(String::as_str)
    }
}

/// Settings, and the tensors by their names in an adapter file.
pub(super) type Read = (MethodConfig, BTreeMap<String, TensorData>);

/// A part that a weight must have, by its `name` for people.
pub(super) fn part<'a>(
    weight: &str,
    parts: &'a Parts,
    part: Part,
    name: &'static str,
) -> Result<&'a TensorData, AdapterError> {
    let missing = || AdapterError::MissingPart { weight: weight.to_owned(), part: name };
    parts.get(&part).ok_or_else(missing)
}

/// LoRA and DoRA; every layer has a rank of its own, and its scale goes into `α`.
fn lora(layers: &Layers, config: Option<&PeftLora>) -> Result<Read, AdapterError> {
    let mut method = LoraConfig {
        dora: layers.values().any(|parts| parts.contains_key(&Part::Magnitude)),
        ..LoraConfig::default()
    };
    let mut parameters = Vec::new();
    for (weight, parts) in layers {
        let part = |which, name| part(weight, parts, which, name);
        let (down, up) = (part(Part::Down, "A (down)")?, part(Part::Up, "B (up)")?);
        let rank = down.shape().as_slice().first().copied().unwrap_or_default();
        let module = weight.trim_end_matches(".weight");
        let scale = match (parts.get(&Part::Alpha), config) {
            (Some(alpha), _) => {
                alpha.iter::<f64>().next().unwrap_or(rank as f64) / rank.max(1) as f64
            }
            (None, Some(config)) => config.scale(module, rank),
            // diffusers' files without metadata hold the scale in `B`.
            (None, None) => 1.0,
        };
        let pattern = format!("^{}$", regex::escape(weight));
        method.rank_pattern.insert(pattern.clone(), rank);
        method.alpha_pattern.insert(pattern, scale * rank as f64);
        parameters.push((weight, "a", transposed(down, rank)));
        parameters.push((weight, "b", transposed(up, up.num_elements() / rank.max(1))));
        if method.dora {
            let magnitude = part(Part::Magnitude, "magnitude")?;
            let values: Vec<f32> = magnitude.iter().collect();
            let length = values.len();
            parameters.push((weight, "magnitude.value", TensorData::new(values, [length])));
        }
    }
    let method = MethodConfig::from(method);
    let tensors =
        parameters.into_iter().map(|(weight, name, data)| (key(&method, weight, name), data));
    let tensors = tensors.collect();
    Ok((method, tensors))
}

/// PEFT's OFT, whose parameters are ours.
fn oft(layers: &Layers, config: &PeftOft) -> Result<Read, AdapterError> {
    if config.oft_block_size == 0 {
        // `r` blocks of a size that differs from layer to layer.
        return Err(AdapterError::Config {
            method: "oft",
            reason: "an import needs `oft_block_size`; a number of blocks `r` is not supported",
        });
    }
    let method = MethodConfig::from(OftConfig {
        block_size: config.oft_block_size,
        cayley: if config.use_cayley_neumann {
            CayleyForm::Neumann { terms: config.num_cayley_neumann_terms }
        } else {
            CayleyForm::Exact
        },
        block_share: config.block_share,
        constraint: config.coft.then_some(config.eps),
        ..OftConfig::default()
    });
    let mut tensors = BTreeMap::new();
    for (weight, parts) in layers {
        let skew = part(weight, parts, Part::Skew, "oft_R")?;
        tensors.insert(key(&method, weight, "rotation.skew"), skew.clone());
    }
    Ok((method, tensors))
}

/// `[rows, …]` read as a matrix and transposed, on the host.
fn transposed(data: &TensorData, rows: usize) -> TensorData {
    let values: Vec<f32> = data.iter().collect();
    let cols = values.len() / rows.max(1);
    let at = |index: usize| values[(index % rows) * cols + index / rows];
    TensorData::new((0..rows * cols).map(at).collect::<Vec<f32>>(), [cols, rows])
}
