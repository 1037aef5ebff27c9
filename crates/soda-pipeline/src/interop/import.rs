//! Reading the adapter files of other tools.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::TensorData;
use serde_json::json;

use soda_adapters::{AdapterState, PlanOptions, Recipe, Targets};

use super::architecture::Architecture;
use super::convert::convert;
use super::embedding_files;
use super::key_names::{ModuleName, PEFT, Role, flatten, parse};
use super::layers::Layers;
use super::peft::{CONFIG, PeftConfig, TENSORS};
use super::weight_names::WeightNames;
use crate::component::Component;
use crate::error::{InteropError, PipelineError};
use crate::file::{AdapterFile, EmbeddingVectors};
use crate::header::{Header, is_own_format};
use crate::safetensors_file::SafetensorsFile;

/// The result of an [`import`].
#[derive(Clone, Debug)]
pub struct Imported {
    /// The adapters and embeddings, checked against the base.
    pub file: AdapterFile,
    /// Paths of the weights that the file has adapters for.
    pub matched: Vec<String>,
    /// Tensor names of the file that belong to no weight of the networks and were ignored.
    pub unmatched: Vec<String>,
    /// Tensor names of the file that were ignored because no method here holds their kind: changes of biases
    /// and of normalization layers, and names that are not known.
    pub unread: Vec<String>,
    /// Tensor names of the file that were ignored because the base lacks their network.
    pub absent: BTreeMap<Component, Vec<String>>,
}

/// Reads an adapter of another tool for a base model with the name `base`.
///
/// `path` is a PEFT directory, an adapter file of diffusers, kohya's scripts, LyCORIS or OneTrainer, or a
/// file with an embedding. A PEFT directory is for one network, or has a directory for each network.
/// `networks` is a module with a field for each network. Directories and fields have the names of
/// [`Component`]. The file of tensors in a PEFT directory stands for the directory.
///
/// ```no_run
/// use burn::tensor::Device;
/// use soda_models::pipeline::Pipeline;
/// use soda_pipeline::interop::import;
///
/// let pipeline = Pipeline::load("models/toy".as_ref(), &Device::default())?;
/// let imported = import("mug-lora.safetensors".as_ref(), &pipeline.networks(), "toy")?;
/// imported.file.write("mug.safetensors".as_ref())?;
/// # Ok::<(), soda_pipeline::PipelineError>(())
/// ```
///
/// # Errors
/// [`PipelineError::Format`] for a file that cannot be read. [`PipelineError::Interop`] for a file in which
/// nothing belongs to `networks` or that is for another architecture, for incomplete layers, for tensors that
/// do not fit their weights, and for settings that no method has.
pub fn import<M: Module>(path: &Path, networks: &M, base: &str) -> Result<Imported, PipelineError> {
    let weight_names = WeightNames::from_networks(networks);
    let mut contents = Contents::default();
    for source in sources(path)? {
        contents.read(&source, &weight_names)?;
    }
    contents.check_architecture(path, &weight_names)?;
    let Contents { networks: layers, embeddings, unmatched, unread, absent, .. } = contents;
    if layers.is_empty() && embeddings.is_empty() {
        let names = [unmatched.first(), absent.values().flatten().next(), unread.first()];
        return Err(InteropError::NothingMatched {
            path: path.to_owned(),
            example: names.into_iter().flatten().next().cloned(),
        }
        .into());
    }
    let training = json!({ "imported": path.file_name().map(|name| name.to_string_lossy()) });
    let header = Header { base: base.to_owned(), training, ..Header::default() };
    let (mut file, mut matched) = (AdapterFile::new(header), Vec::new());
    for (component, Network { layers, config }) in layers {
        let targets = Targets::from_paths(layers.weights());
        let weights = targets.select_within(networks, &component.prefix(), &[])?;
        let (method, tensors) = convert(&layers, config.as_ref(), &weights)?;
        let recipe = Recipe::from_weights(method, targets, &weights);
        let state = AdapterState { recipe, tensors };
        // The hash of the weights is their own: only the tensors are checked.
        state.plan_selected(weights, &mut PlanOptions::default())?;
        file = file.with_adapter(component, state);
        matched.extend(layers.weights().into_iter().map(|weight| component.path(weight)));
    }
    file.embeddings = embeddings;
    Ok(Imported { file, matched, unmatched, unread, absent })
}

/// The tensors of the files, by what they belong to.
#[derive(Default)]
struct Contents {
    networks: BTreeMap<Component, Network>,
    embeddings: BTreeMap<String, EmbeddingVectors>,
    unmatched: Vec<String>,
    unread: Vec<String>,
    absent: BTreeMap<Component, Vec<String>>,
    /// The architecture that the files are for, if they say so.
    architecture: Option<Architecture>,
}

/// The tensors for a network.
#[derive(Default)]
struct Network {
    layers: Layers,
    config: Option<PeftConfig>,
}

impl Contents {
    /// Adds the tensors of a file.
    fn read(&mut self, source: &Source, names: &WeightNames) -> Result<(), PipelineError> {
        let Source { file, config, component } = source;
        let read = SafetensorsFile::read_where(file, |key| parse(key).is_some())?;
        let (SafetensorsFile { tensors, metadata }, mut others) = read;
        self.unread.append(&mut others);
        if is_own_format(&metadata) {
            return Err(InteropError::OwnFormat { path: file.clone() }.into());
        }
        let mut configs = PeftConfig::from_diffusers_metadata(file, &metadata)?;
        if config.is_none() && configs.is_empty() && lacks_scale(tensors.keys()) {
            return Err(InteropError::NoPeftConfig { path: file.clone() }.into());
        }
        let architecture = Architecture::of_file(&metadata, tensors.keys().map(String::as_str));
        self.architecture = self.architecture.or(architecture);
        let alone = tensors.len() == 1;
        for (key, data) in tensors {
            let Some(parsed) = parse(&key) else {
                self.read_unparsed(key, data, file, alone);
                continue;
            };
            let named = parsed.component.map(|component| names.of_base(component));
            let component = named.or(*component);
            if component.is_some_and(|component| !names.has(component)) {
                self.absent.entry(component.unwrap_or(Component::Unet)).or_default().push(key);
                continue;
            }
            if parsed.role == Role::Vector {
                self.unread.push(key);
                continue;
            }
            let Some((component, places)) = names.find(component, &parsed.module) else {
                self.unmatched.push(key);
                continue;
            };
            let network = self.networks.entry(component).or_default();
            if network.config.is_none() {
                network.config = config.clone().or_else(|| configs.remove(&component));
            }
            let (ModuleName::Dotted(module) | ModuleName::Flat(module)) = &parsed.module;
            network.layers.insert(module, places, parsed.role, key, data)?;
        }
        Ok(())
    }

    /// Adds a tensor whose name is not of an adapter.
    fn read_unparsed(&mut self, key: String, data: TensorData, file: &Path, alone: bool) {
        if let Some((token, component)) = embedding_files::parse(&key, file, alone)
            && let Some(vectors) = embedding_files::vectors(data)
        {
            self.embeddings.entry(token).or_default().insert(component, vectors);
        } else {
            self.unread.push(key);
        }
    }

    /// Refuses a file that is for a base of another architecture than that of the networks.
    fn check_architecture(&self, path: &Path, names: &WeightNames) -> Result<(), InteropError> {
        let base = names.base();
        let unet = self.networks.get(&Component::Unet);
        let width = unet.and_then(|network| network.layers.text_width());
        let by_width = width.filter(|width| Some(*width) != base.text_width);
        let by_width = by_width.and_then(Architecture::of_text_width);
        let found = match self.architecture {
            None | Some(Architecture::Unet) => by_width.or(self.architecture),
            found => found,
        };
        let file = match found {
            Some(found) if !found.fits(&base) => found.name(),
            _ if base.transformer.is_some() && self.has_more_blocks(names) => "a larger model",
            _ => return Ok(()),
        };
        Err(InteropError::OtherArchitecture { path: path.to_owned(), file, base: base.name() })
    }

    /// Whether the file has blocks of a transformer that the base lacks.
    ///
    /// Layers of FLUX.1, Lumina 2 and larger models have the same names, and some have the same sizes.
    fn has_more_blocks(&self, names: &WeightNames) -> bool {
        self.unmatched.iter().filter_map(|key| block_of(key)).any(|block| !names.has_block(&block))
    }
}

/// The block of a transformer that a tensor is in, as `double_blocks_3_`.
fn block_of(key: &str) -> Option<String> {
    const BLOCKS: [&str; 7] = [
        "transformer_blocks",
        "single_transformer_blocks",
        "double_blocks",
        "single_blocks",
        "noise_refiner",
        "context_refiner",
        "layers",
    ];
    let (ModuleName::Dotted(module) | ModuleName::Flat(module)) = parse(key)?.module;
    let module = flatten(&module);
    BLOCKS.iter().find_map(|blocks| {
        let inside = module.strip_prefix(blocks)?.strip_prefix('_')?;
        let (number, _) = inside.split_once('_')?;
        let is_number = !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit());
        is_number.then(|| format!("{blocks}_{number}_"))
    })
}

/// Whether tensor names are PEFT's and without `α`. The scale is in the configuration then.
fn lacks_scale<'a>(mut keys: impl Iterator<Item = &'a String> + Clone) -> bool {
    let has_alpha = keys.clone().any(|key| key.ends_with(".alpha"));
    !has_alpha && keys.any(|key| key.starts_with(PEFT))
}

/// A file of tensors.
struct Source {
    file: PathBuf,
    /// The configuration of a PEFT directory.
    config: Option<PeftConfig>,
    /// The network that the directory is named after.
    component: Option<Component>,
}

/// Returns the files of `path`: one file, or those of the PEFT directories.
fn sources(path: &Path) -> Result<Vec<Source>, PipelineError> {
    let peft = |folder: &Path, component| -> Result<Source, PipelineError> {
        let config = Some(PeftConfig::read(folder)?);
        Ok(Source { file: folder.join(TENSORS), config, component })
    };
    if !path.is_dir() {
        let folder = path.parent().unwrap_or(Path::new(""));
        if path.file_name().is_some_and(|name| name == TENSORS) && folder.join(CONFIG).is_file() {
            return Ok(vec![peft(folder, named_after(folder))?]);
        }
        return Ok(vec![Source { file: path.to_owned(), config: None, component: None }]);
    }
    let folders = Component::ALL.map(|component| (path.join(component.name()), component));
    let folders = folders.into_iter().filter(|(folder, _)| folder.join(CONFIG).is_file());
    let sources: Vec<_> = folders
        .map(|(folder, component)| peft(&folder, Some(component)))
        .collect::<Result<_, _>>()?;
    // A directory without folders is for one network. If it is no PEFT directory, the error names its
    // configuration.
    if sources.is_empty() { Ok(vec![peft(path, named_after(path))?]) } else { Ok(sources) }
}

/// The network that a directory has the name of. Both text encoders of SDXL have modules of the same names.
fn named_after(folder: &Path) -> Option<Component> {
    let name = folder.file_name()?;
    Component::ALL.into_iter().find(|component| name == component.name())
}
