//! Reading the adapter files of other tools.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::module::Module;
use serde_json::json;

use soda_adapters::{AdapterState, Recipe, Targets};

use super::convert::convert;
use super::embedding_files;
use super::key_names::{TensorName, parse};
use super::layer_tensors::Layers;
use super::peft_config::{CONFIG, PeftConfig, TENSORS};
use super::weight_names::WeightNames;
use crate::component::Component;
use crate::error::{InteropError, PipelineError};
use crate::file::{AdapterFile, EmbeddingVectors};
use crate::header::Header;
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
    /// Tensor names of the file that were ignored because the base lacks their network.
    pub absent: BTreeMap<Component, Vec<String>>,
}

/// Reads an adapter of another tool for a base model with the name `base`.
///
/// `path` is a PEFT directory, a LoRA, LoHa or LoKr file of diffusers, kohya's scripts or LyCORIS, or a file
/// with an embedding. A PEFT directory is for one network, or has a directory for each network. `networks` is
/// a module with a field for each network. Directories and fields have the names of [`Component`].
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
/// nothing belongs to `networks`, for incomplete layers, and for settings that no method has.
/// [`PipelineError::Adapter`] for tensors that do not fit their weights.
pub fn import<M: Module>(path: &Path, networks: &M, base: &str) -> Result<Imported, PipelineError> {
    let weight_names = WeightNames::from_networks(networks);
    let mut layers: BTreeMap<Component, (Layers, Option<PeftConfig>)> = BTreeMap::new();
    let mut embeddings: BTreeMap<String, EmbeddingVectors> = BTreeMap::new();
    let mut unmatched = Vec::new();
    let mut absent: BTreeMap<Component, Vec<String>> = BTreeMap::new();
    for Source { file, config, component } in sources(path)? {
        let SafetensorsFile { tensors, metadata } = SafetensorsFile::read(&file)?;
        let configs = PeftConfig::from_diffusers_metadata(&file, &metadata)?;
        let alone = tensors.len() == 1;
        for (key, data) in tensors {
            let parsed = parse(&key);
            if parsed.is_none()
                && let Some((token, component)) = embedding_files::parse(&key, &file, alone)
                && let Some(vectors) = embedding_files::vectors(data.clone())
            {
                embeddings.entry(token).or_default().insert(component, vectors);
                continue;
            }
            let component = parsed.as_ref().and_then(|name| name.component).or(component);
            let found = parsed.and_then(|TensorName { module, role, .. }| {
                let (component, weight) = weight_names.find(component, &module)?;
                Some((component, weight, role))
            });
            let Some((component, weight, role)) = found else {
                match component.filter(|component| !weight_names.has(*component)) {
                    Some(component) => absent.entry(component).or_default().push(key),
                    None => unmatched.push(key),
                }
                continue;
            };
            let (layers, settings) = layers.entry(component).or_default();
            *settings = config.as_ref().or(configs.get(&component)).cloned();
            layers.entry(weight.to_owned()).or_default().insert(role, data);
        }
    }
    if layers.is_empty() && embeddings.is_empty() {
        let example = unmatched.first().or(absent.values().flatten().next()).cloned();
        return Err(InteropError::NothingMatched {
            path: path.to_owned(),
            example: example.unwrap_or_default(),
        }
        .into());
    }
    let training = json!({ "imported": path.file_name().map(|name| name.to_string_lossy()) });
    let header = Header { base: base.to_owned(), training, ..Header::default() };
    let (mut file, mut matched) = (AdapterFile::new(header), Vec::new());
    for (component, (layers, config)) in layers {
        let targets = Targets::from_paths(layers.keys().map(String::as_str));
        let weights = targets.select_within(networks, &component.prefix(), &[])?;
        let (method, tensors) = convert(&layers, config.as_ref(), &weights)?;
        let recipe = Recipe::from_weights(method, targets, &weights);
        file = file.with_adapter(component, AdapterState { recipe, tensors });
        matched.extend(layers.keys().map(|weight| component.path(weight)));
    }
    file.plan(networks)?;
    file.embeddings = embeddings;
    Ok(Imported { file, matched, unmatched, absent })
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
        return Ok(vec![Source { file: path.to_owned(), config: None, component: None }]);
    }
    let folders = Component::ALL.map(|component| (path.join(component.name()), component));
    let folders = folders.into_iter().filter(|(folder, _)| folder.join(CONFIG).is_file());
    let sources: Vec<_> = folders
        .map(|(folder, component)| peft(&folder, Some(component)))
        .collect::<Result<_, _>>()?;
    // A directory without folders is for one network. If it is no PEFT directory, the error names its
    // configuration.
    if sources.is_empty() { Ok(vec![peft(path, None)?]) } else { Ok(sources) }
}
