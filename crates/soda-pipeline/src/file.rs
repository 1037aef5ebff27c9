//! Adapter files: the trained adapters of a pipeline's networks and the embeddings that belong to them.
//!
//! An adapter file is a safetensors file. Its tensors are in f32, with the names
//! `<component>.<path of the weight>.<method>.<parameter>`:
//!
//! - `unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight.soda.rotation.factors.0`
//! - `text_encoder.text_model.encoder.layers.0.self_attn.q_proj.weight.lora.a`
//!
//! An embedding has its vectors `[k, width]` in every text encoder as `<component>.tokens.<token>`. The
//! singular vectors of SODA are not stored, because they follow from the base; the file has the hash of the
//! base instead. [`Header`] is in the metadata.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::TensorData;
use soda_adapters::{AdapterState, Method, MethodConfig, Plan, PlanOptions, named_params};

use crate::component::Component;
use crate::counted::counted;
use crate::error::{FormatError, PipelineError};
use crate::header::{Header, from_metadata, to_metadata};
use crate::safetensors_file::SafetensorsFile;
use crate::target_presets::TARGET_PRESETS;

/// The part of a tensor name between a text encoder and the token of an embedding.
const TOKENS: &str = "tokens.";

/// The vectors `[k, width]` of an embedding (Textual Inversion), for each text encoder.
pub type EmbeddingVectors = BTreeMap<Component, TensorData>;

/// The trained adapters of a pipeline's networks, and the embeddings that belong to them.
///
/// [`load_adapter`](crate::load_adapter) and [`merge_adapters`](crate::merge_adapters) put the adapters on a
/// pipeline.
///
/// ```no_run
/// use soda_pipeline::AdapterFile;
///
/// let adapter: AdapterFile = AdapterFile::read("runs/mug-1/adapter.safetensors".as_ref())?;
/// assert_eq!(adapter.summary(), "soda on 32 weights of the UNet (10580 numbers)");
/// # Ok::<(), soda_pipeline::PipelineError>(())
/// ```
#[derive(Clone, Debug)]
pub struct AdapterFile<M = MethodConfig> {
    /// The description of the adapters.
    pub header: Header,
    /// The adapters, by the network that they adapt.
    pub adapters: BTreeMap<Component, AdapterState<M>>,
    /// The vectors of embeddings, by the token that prompts have for them.
    pub embeddings: BTreeMap<String, EmbeddingVectors>,
    /// The file that was read, for messages; `None` for adapters that were made in memory.
    pub path: Option<PathBuf>,
}

impl<M: Method> AdapterFile<M> {
    /// Makes a file without adapters and embeddings.
    pub fn new(header: Header) -> Self {
        Self { header, adapters: BTreeMap::new(), embeddings: BTreeMap::new(), path: None }
    }

    /// Adds the adapters of a network.
    #[must_use]
    pub fn with_adapter(mut self, component: Component, state: AdapterState<M>) -> Self {
        self.adapters.insert(component, state);
        self
    }

    /// Whether the adapters [depend on the timestep](Method::depends_on_timestep).
    pub fn depends_on_timestep(&self) -> bool {
        self.adapters.values().any(|state| state.recipe.method.depends_on_timestep())
    }

    /// Refuses adapters that depend on the timestep, which no weight can stand for.
    ///
    /// # Errors
    /// [`PipelineError::DependsOnTimestep`].
    pub fn check_has_weights(&self) -> Result<(), PipelineError> {
        if self.depends_on_timestep() {
            return Err(PipelineError::DependsOnTimestep { adapter: self.display_name() });
        }
        Ok(())
    }

    /// Makes a plan of all adapters for the base that they were trained on.
    ///
    /// `networks` is a module with a field for each network, by the names of [`Component`].
    ///
    /// # Errors
    /// [`PipelineError::NoNetwork`] for a network that the base lacks, and the errors of
    /// [`AdapterState::plan`].
    pub fn plan<N: Module>(&self, networks: &N) -> Result<Plan<M::Adapter>, PipelineError> {
        self.plan_with(networks, &mut PlanOptions::default())
    }

    /// [`AdapterFile::plan`] with a cache of decompositions and progress.
    ///
    /// The prefix and the presets of the options are not used: the prefix is that of each component, and the
    /// presets are [`TARGET_PRESETS`].
    ///
    /// # Errors
    /// As [`AdapterFile::plan`], and a cache that cannot be read or written.
    pub fn plan_with<N: Module>(
        &self,
        networks: &N,
        options: &mut PlanOptions<'_>,
    ) -> Result<Plan<M::Adapter>, PipelineError> {
        let paths: Vec<_> = named_params(networks).into_iter().map(|param| param.path).collect();
        let mut all = Plan::default();
        for (component, state) in &self.adapters {
            let prefix = component.prefix();
            if !paths.iter().any(|path| path.starts_with(&prefix)) {
                return Err(PipelineError::NoNetwork { component: *component });
            }
            let mut options = PlanOptions {
                prefix: &prefix,
                presets: TARGET_PRESETS,
                network_dtype: options.network_dtype,
                calibration: None,
                division: None,
                cache: options.cache,
                on_progress: match &mut options.on_progress {
                    Some(on_progress) => Some(&mut **on_progress),
                    None => None,
                },
                on_other_base: match &mut options.on_other_base {
                    Some(on_other_base) => Some(&mut **on_other_base),
                    None => None,
                },
            };
            let plan = state.plan_with(networks, &mut options)?;
            all.extend(plan.with_prefix(&prefix));
        }
        Ok(all)
    }

    /// Number of trained values, embeddings included.
    pub fn num_params(&self) -> usize {
        let states = self.adapters.values().map(AdapterState::num_params).sum::<usize>();
        let vectors = self.embeddings.values().flat_map(BTreeMap::values);
        states + vectors.map(TensorData::num_elements).sum::<usize>()
    }

    /// Number of tensors, embeddings included.
    pub fn num_tensors(&self) -> usize {
        self.tensors().count()
    }

    /// The tensors by their names in the file.
    pub fn tensors<'a>(&'a self) -> impl Iterator<Item = (String, &'a TensorData)> {
        let of_adapter = |(component, state): (&Component, &'a _)| state_tensors(*component, state);
        let of_embedding =
            |(token, vectors): (&'a String, &'a EmbeddingVectors)| token_tensors(token, vectors);
        let embeddings = self.embeddings.iter().flat_map(of_embedding);
        self.adapters.iter().flat_map(of_adapter).chain(embeddings)
    }

    /// Sizes of the rotations' Kronecker factors, by the rotated width, which is their product.
    pub fn factor_sizes(&self) -> BTreeMap<usize, Vec<usize>> {
        self.adapters.values().flat_map(AdapterState::factor_sizes).collect()
    }

    /// Describes the contents in one line: the method, weights and values of each network, and each
    /// embedding.
    pub fn summary(&self) -> String {
        let adapter = |(component, state): (&Component, &AdapterState<M>)| {
            format!(
                "{} on {} of the {component} ({})",
                state.recipe.method.name(),
                counted(state.num_weights(), "weight"),
                counted(state.num_params(), "number")
            )
        };
        let embedding = |(token, vectors): (&String, &EmbeddingVectors)| {
            let count = vectors.values().next().map_or(0, |data| data.shape()[0]);
            format!("the word {token} ({})", counted(count, "vector"))
        };
        let adapters = self.adapters.iter().map(adapter);
        adapters.chain(self.embeddings.iter().map(embedding)).collect::<Vec<_>>().join(", ")
    }

    /// The name of the file in messages.
    pub(crate) fn display_name(&self) -> String {
        self.path
            .as_ref()
            .map_or_else(|| "the adapter".to_owned(), |path| path.display().to_string())
    }

    /// Reads an adapter file.
    ///
    /// # Errors
    /// [`PipelineError::Format`] for a file that cannot be read, is not a safetensors file, or was not
    /// written by [`AdapterFile::write`] in a version that this build reads with a method of `M`.
    pub fn read(path: &Path) -> Result<Self, PipelineError> {
        if path.is_dir() {
            let (path, remedy) = (path.to_owned(), instead_of_directory(path));
            return Err(FormatError::Directory { path, remedy }.into());
        }
        // A file of another kind may be a model of many gigabytes, of which the header alone is read.
        let (header, recipes) = from_metadata(path, SafetensorsFile::read_metadata(path)?)?;
        let tensors = SafetensorsFile::read(path)?.tensors;
        let state =
            |(component, recipe)| (component, AdapterState { recipe, tensors: BTreeMap::new() });
        let mut adapters: BTreeMap<_, _> = recipes.into_iter().map(state).collect();
        let mut embeddings: BTreeMap<String, EmbeddingVectors> = BTreeMap::new();
        for (key, data) in tensors {
            let split = Component::split_path(&key);
            let token = |(component, inside): (_, &str)| {
                Some((component, inside.strip_prefix(TOKENS)?.to_owned()))
            };
            if let (Some((component, token)), 2) = (split.and_then(token), data.rank()) {
                embeddings.entry(token).or_default().insert(component, data);
                continue;
            }
            let found =
                split.and_then(|(component, inside)| Some((adapters.get_mut(&component)?, inside)));
            let Some((state, inside)) = found else {
                return Err(FormatError::UnknownTensor { path: path.to_owned(), key }.into());
            };
            state.tensors.insert(inside.to_owned(), data);
        }
        Ok(Self { header, adapters, embeddings, path: Some(path.to_owned()) })
    }

    /// Writes the adapter file. `path` never holds an incomplete file.
    ///
    /// # Errors
    /// [`PipelineError::Format`] with the reason from the operating system.
    pub fn write(&self, path: &Path) -> Result<(), PipelineError> {
        let tensors = self.tensors().map(|(key, data)| (key, data.clone())).collect();
        let recipes =
            self.adapters.iter().map(|(component, state)| (*component, &state.recipe)).collect();
        let metadata = to_metadata(&self.header, &recipes, &self.factor_sizes());
        Ok(SafetensorsFile { tensors, metadata }.write(path)?)
    }
}

/// What to give instead of a directory, by what it has.
fn instead_of_directory(path: &Path) -> String {
    let file = path.join("adapter.safetensors");
    let is_peft = |folder: &Path| folder.join("adapter_config.json").is_file();
    let networks = Component::ALL.map(|component| path.join(component.name()));
    match () {
        () if file.is_file() => format!("give {}", file.display()),
        () if is_peft(path) || networks.iter().any(|folder| is_peft(folder)) => format!(
            "`soda import {} --base BASE --out adapter.safetensors` makes one of a directory of PEFT",
            path.display()
        ),
        () => "give the file `adapter.safetensors` of a run".to_owned(),
    }
}

fn state_tensors<M>(
    component: Component,
    state: &AdapterState<M>,
) -> impl Iterator<Item = (String, &TensorData)> {
    state.tensors.iter().map(move |(key, data)| (component.path(key), data))
}

fn token_tensors<'a>(
    token: &'a str,
    vectors: &'a EmbeddingVectors,
) -> impl Iterator<Item = (String, &'a TensorData)> {
    let named = move |(component, data): (&Component, _)| {
        (component.path(&format!("{TOKENS}{token}")), data)
    };
    vectors.iter().map(named)
}
