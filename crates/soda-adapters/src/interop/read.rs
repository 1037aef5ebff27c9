//! From a file of another tool to an adapter of ours.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::TensorData;
use serde_json::json;

use super::config::{CONFIG, PeftConfig, PeftLora, PeftOft, TENSORS};
use super::names::{Key, Name, Part, TEXT_MODEL, flat, parse};
use super::{embedding, lycoris};
use crate::adaptation::{Adaptation, Recipe, key};
use crate::blocks::CayleyForm;
use crate::component::Component;
use crate::error::AdapterError;
use crate::file::{AdapterFile, Header, WordVectors};
use crate::fingerprint::fingerprint;
use crate::fold::Weight;
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
    /// Names in the file that were left out: of no weight of these networks.
    pub unmatched: Vec<String>,
    /// Names in the file that were left out since the base lacks their network.
    pub absent: BTreeMap<Component, Vec<String>>,
}

/// What a file has for one weight.
pub(super) type Parts = BTreeMap<Part, TensorData>;
/// What a file has for a network, by path of the weight.
pub(super) type Layers = BTreeMap<String, Parts>;

/// Reads a PEFT directory, or a LoRA, LoHa or LoKr file of diffusers, kohya or LyCORIS, or the vectors of a learnt word,
/// for the base of this `name`.
/// `networks` is a module with a field for each network, by the names of [`Component`]; a PEFT directory is for one network, or
/// has a directory for each of them by the same names.
///
/// # Errors
/// A file that cannot be read, in which nothing belongs to `networks`, whose tensors are incomplete or do not
/// fit their weights, or with settings that this crate has no method for.
pub fn import<M: Module>(path: &Path, networks: &M, name: &str) -> Result<Imported, AdapterError> {
    let known = Known::of(networks);
    let mut layers: BTreeMap<Component, (Layers, Option<PeftConfig>)> = BTreeMap::new();
    let mut words: BTreeMap<String, WordVectors> = BTreeMap::new();
    let mut unmatched = Vec::new();
    let mut absent: BTreeMap<Component, Vec<String>> = BTreeMap::new();
    for Source { file, config, component } in sources(path)? {
        let Tensors { tensors, metadata } = Tensors::read(&file)?;
        let configs = PeftConfig::of_networks(&file, &metadata)?;
        let alone = tensors.len() == 1;
        for (key, data) in tensors {
            let parsed = parse(&key);
            if parsed.is_none()
                && let Some((word, component)) = embedding::parse(&key, &file, alone)
                && let Some(vectors) = embedding::vectors(data.clone())
            {
                words.entry(word).or_default().insert(component, vectors);
                continue;
            }
            let component = parsed.as_ref().and_then(|key| key.component).or(component);
            let found = parsed.and_then(|Key { module, part, .. }| {
                let (component, weight) = known.weight(component, &module)?;
                Some((component, weight, part))
            });
            let Some((component, weight, part)) = found else {
                match component.filter(|component| !known.has(*component)) {
                    Some(component) => absent.entry(component).or_default().push(key),
                    None => unmatched.push(key),
                }
                continue;
            };
            let (layers, settings) = layers.entry(component).or_default();
            *settings = config.as_ref().or(configs.get(&component)).cloned();
            layers.entry(weight.to_owned()).or_default().insert(part, data);
        }
    }
    if layers.is_empty() && words.is_empty() {
        let example = unmatched.first().or(absent.values().flatten().next()).cloned();
        return Err(AdapterError::NothingMatched {
            path: path.to_owned(),
            example: example.unwrap_or_default(),
        });
    }
    let training = json!({ "imported": path.file_name().map(|name| name.to_string_lossy()) });
    let header = Header { base: name.to_owned(), training, ..Header::default() };
    let (mut file, mut matched) = (AdapterFile::new(header), Vec::new());
    for (component, (layers, config)) in layers {
        let targets = Targets::paths(layers.keys().map(String::as_str));
        let weights = targets.select_under(&component.path(""), networks)?;
        let (method, tensors) = read(&layers, config.as_ref(), &weights)?;
        let recipe = Recipe { method, targets, base_hash: fingerprint(&weights) };
        file = file.with(component, Adaptation { recipe, tensors });
        matched.extend(layers.keys().map(|weight| component.path(weight)));
    }
    file.plan(networks)?;
    file.words = words;
    Ok(Imported { file, matched, unmatched, absent })
}

/// A file of tensors, and what is known of it besides.
struct Source {
    file: PathBuf,
    config: Option<PeftConfig>,
    component: Option<Component>,
}

fn sources(path: &Path) -> Result<Vec<Source>, AdapterError> {
    let peft = |folder: &Path, component| -> Result<Source, AdapterError> {
        let config = Some(PeftConfig::read(folder)?);
        Ok(Source { file: folder.join(TENSORS), config, component })
    };
    if !path.is_dir() {
        return Ok(vec![Source { file: path.to_owned(), config: None, component: None }]);
    }
    let each = Component::ALL.map(|component| (path.join(component.name()), component));
    let each = each.into_iter().filter(|(folder, _)| folder.join(CONFIG).is_file());
    let each: Vec<_> =
        each.map(|(folder, of)| peft(&folder, Some(of))).collect::<Result<_, _>>()?;
    // Without any, a directory for one network, or none at all: its configuration is what is missed then.
    if each.is_empty() { Ok(vec![peft(path, None)?]) } else { Ok(each) }
}

/// The weights of networks, by the names that tools have for them.
struct Known(HashMap<(Component, String), String>);

impl Known {
    fn of<M: Module>(networks: &M) -> Self {
        let mut names = HashMap::new();
        for leaf in leaves(networks).into_iter().filter(|leaf| matches!(leaf.shape.len(), 2 | 4)) {
            let Some((component, weight)) = Component::split(&leaf.path) else { continue };
            let Some(module) = weight.strip_suffix(".weight") else { continue };
            for name in [Some(module), module.strip_prefix(TEXT_MODEL)].into_iter().flatten() {
                names.insert((component, flat(name)), weight.to_owned());
                names.insert((component, name.to_owned()), weight.to_owned());
            }
        }
        Self(names)
    }

    fn has(&self, component: Component) -> bool {
        self.0.keys().any(|(of, _)| *of == component)
    }

    /// In the network that is named, or else in the first that has such a weight.
    fn weight(&self, component: Option<Component>, name: &Name) -> Option<(Component, &str)> {
        let (Name::Dotted(name) | Name::Flat(name)) = name;
        let all = Component::ALL.into_iter().filter(|of| component.is_none_or(|own| own == *of));
        let find = |of| Some((of, self.0.get(&(of, name.clone()))?.as_str()));
        all.into_iter().find_map(find)
    }
}

/// The method of a network's tensors, and they as that method has them.
fn read(
    layers: &Layers,
    config: Option<&PeftConfig>,
    weights: &BTreeMap<String, Weight>,
) -> Result<Read, AdapterError> {
    for (weight, parts) in layers {
        for (refused, part) in
            [(Part::Core, "core of a Tucker decomposition"), (Part::Scalar, "trained scalar")]
        {
            if parts.contains_key(&refused) {
                return Err(AdapterError::ForeignPart { weight: weight.clone(), part });
            }
        }
    }
    let any = |wanted: &[Part]| {
        layers.values().any(|parts| wanted.iter().any(|part| parts.contains_key(part)))
    };
    match config {
        None if any(&[Part::HadaW1A]) => lycoris::loha(layers),
        None if any(&[Part::LokrW1, Part::LokrW1A]) => lycoris::lokr(layers, weights),
        None => lora(layers, None),
        Some(PeftConfig::Lora(config)) => lora(layers, Some(config)),
        Some(PeftConfig::Oft(config)) => oft(layers, config),
    }
}

/// Settings, and the tensors by their names in an [`Adaptation`].
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
            // Without metadata, diffusers' files hold the scale in `B`.
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
