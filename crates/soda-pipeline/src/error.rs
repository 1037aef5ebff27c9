//! Errors of adapters on pipelines: their files, the formats of other tools, loading and merging.

use std::path::PathBuf;

use soda_adapters::{AdapterError, StateError};
use soda_models::ModelError;
use soda_models::pipeline::PromptEncoding;

use crate::component::Component;

/// An error of reading, loading, merging or converting adapters.
///
/// Every message is one sentence that names the file, network or token at fault and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PipelineError {
    /// An adapter cannot be planned or merged.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// The pipeline refuses a noise schedule or an embedding.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// An adapter file cannot be read or written.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// A file of another tool cannot be converted.
    #[error(transparent)]
    Interop(#[from] InteropError),
    /// The adapter does not fit the pipeline's networks.
    #[error("{adapter} (of {trained_on}) does not fit {base}")]
    DoesNotFit {
        /// The adapter's file.
        adapter: String,
        /// Name of the base model that the adapter was trained on.
        trained_on: String,
        /// Folder or file of the pipeline.
        base: String,
        /// The reason.
        source: Box<PipelineError>,
    },
    /// The adapter has a mask by the timestep, and a weight cannot have it.
    #[error(
        "{adapter} has a `timestep_mask`, so that no weight stands for it at all timesteps; draw with it by \
         `soda generate --adapter`, or train without the mask"
    )]
    DependsOnTimestep {
        /// The adapter's file.
        adapter: String,
    },
    /// The base lacks a network that the adapter is for.
    #[error(
        "the adapter is for a {component} too, which this base does not have; load the base it was trained on"
    )]
    NoNetwork {
        /// The missing network.
        component: Component,
    },
    /// The adapter's noise schedule has fields that this build does not know.
    #[error("{adapter} has an unknown noise schedule")]
    UnknownSchedule {
        /// The adapter's file.
        adapter: String,
        /// The reason from the parser.
        source: serde_json::Error,
    },
    /// The adapter was trained on prompts that were encoded otherwise.
    #[error(
        "{adapter} was trained with {expected}, and the base is loaded with {found}: load it with those of \
         the adapter"
    )]
    OtherPromptEncoding {
        /// The adapter's file.
        adapter: String,
        /// The encoding that the adapter was trained with.
        expected: PromptEncoding,
        /// The encoding of the pipeline.
        found: PromptEncoding,
    },
    /// Two adapters to merge need different noise schedules.
    #[error(
        "{first} and {second} are trained for different noise schedules; train both with the same `objective`"
    )]
    DifferentSchedules {
        /// The file of the first adapter.
        first: String,
        /// The file of the second adapter.
        second: String,
    },
    /// The pipeline cannot take an embedding of the adapter.
    #[error("cannot add the embeddings of {adapter}")]
    Embedding {
        /// The adapter's file.
        adapter: String,
        /// The reason.
        source: ModelError,
    },
    /// An embedding lacks its vectors for the text encoder.
    #[error("{adapter}: it has no vectors of `{token}` for the text encoder")]
    IncompleteEmbedding {
        /// The adapter's file.
        adapter: String,
        /// The token, as prompts have it.
        token: String,
    },
    /// Two adapters to merge have different embeddings of one token.
    #[error(
        "{first} and {second} both have the word `{token}`, with other vectors; train one of them with another word"
    )]
    EmbeddingClash {
        /// The token, as prompts have it.
        token: String,
        /// The file of the first adapter.
        first: String,
        /// The file of the second adapter.
        second: String,
    },
    /// An option of loading or merging is out of range.
    #[error("{option} must be {expected}, not {found}")]
    InvalidOption {
        /// Name of the option.
        option: &'static str,
        /// The allowed values.
        expected: &'static str,
        /// The value that was given.
        found: f64,
    },
}

impl PipelineError {
    /// Whether the adapter was trained on another base model, or on these weights in another precision.
    ///
    /// A base loaded in f16 or bf16 differs from the f32 weights that an adapter was trained on.
    pub fn is_other_base(&self) -> bool {
        match self {
            Self::Adapter(AdapterError::State(StateError::OtherBase { .. })) => true,
            Self::DoesNotFit { source, .. } => source.is_other_base(),
            _ => false,
        }
    }
}

/// An error of an adapter file, or of another safetensors file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The operating system refuses to read or write the file.
    #[error("cannot {action} adapter file {path}: {source}", path = path.display())]
    Io {
        /// "read", "write" or "create".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The reason from the operating system.
        source: std::io::Error,
    },
    /// A directory is given where an adapter file is expected.
    #[error("{path} is a directory, and an adapter file is expected there: {remedy}", path = path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What to give instead, by what the directory has.
        remedy: String,
    },
    /// The file is of another format than safetensors.
    #[error(
        "{path} is not a safetensors file: weights and adapters are read from no other files",
        path = path.display()
    )]
    NotSafetensors {
        /// The file.
        path: PathBuf,
    },
    /// The file is a pickle.
    #[error(
        "{path} is a pickle, which can run any code when it is read; convert it to safetensors in the tool that made it",
        path = path.display()
    )]
    Pickle {
        /// The file.
        path: PathBuf,
    },
    /// The file is truncated or damaged.
    #[error(
        "{path} is not a complete safetensors file ({reason}); copy or train it again",
        path = path.display()
    )]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The reason from the parser.
        reason: String,
    },
    /// The safetensors file is not an adapter file of SODA.
    #[error(
        "{path} is not a SODA adapter; if another tool made it, `soda import {path} --base BASE --out \
         adapter.safetensors` converts it",
        path = path.display()
    )]
    NotAnAdapter {
        /// The file.
        path: PathBuf,
    },
    /// An adapter file lacks a field of its metadata, or the field cannot be read.
    #[error(
        "{path} is a damaged SODA adapter: its metadata has no usable `{field}`; copy or train it again",
        path = path.display()
    )]
    Metadata {
        /// The file.
        path: PathBuf,
        /// The metadata field that is missing or unreadable.
        field: &'static str,
    },
    /// An adapter file has a tensor that its metadata does not describe.
    #[error(
        "{path} is a damaged SODA adapter: its metadata does not describe its tensor {key}; copy it again",
        path = path.display()
    )]
    UnknownTensor {
        /// The file.
        path: PathBuf,
        /// Name of the tensor.
        key: String,
    },
    /// The file has another version of the format.
    #[error(
        "{path} has adapter format version {found}, this build reads versions {supported}; update soda or retrain",
        path = path.display()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// The version of the file.
        found: String,
        /// The versions that this build reads.
        supported: &'static str,
    },
    /// The values belong to decompositions with another sign rule.
    #[error(
        "{path} counts on decompositions by another rule of signs ({found}; this build's is {supported}); update soda or retrain",
        path = path.display()
    )]
    SignRule {
        /// The file.
        path: PathBuf,
        /// The rule of the file.
        found: String,
        /// The rule of this build.
        supported: &'static str,
    },
    /// This build does not know the method or its settings.
    #[error(
        "{path} holds a `{method}` adapter with settings this build cannot read ({reason}); update soda or retrain",
        path = path.display()
    )]
    Settings {
        /// The file.
        path: PathBuf,
        /// The name of the method.
        method: String,
        /// The reason from the parser.
        reason: String,
    },
    /// A tensor does not hold floating-point values.
    #[error("{path}: tensor {key} has type {found}, expected F32, F16 or BF16", path = path.display())]
    DType {
        /// The file.
        path: PathBuf,
        /// Name of the tensor.
        key: String,
        /// Type of the tensor.
        found: String,
    },
    /// A tensor holds NaN or infinity.
    #[error(
        "{path}: tensor {key} holds NaN or infinity; the training that wrote it diverged",
        path = path.display()
    )]
    NonFinite {
        /// The file.
        path: PathBuf,
        /// Name of the tensor.
        key: String,
    },
    /// A tensor holds a value that the type of the file cannot hold.
    #[error(
        "{path}: tensor {key} holds {value:e}, which {dtype} cannot hold; export it as bf16 or f32",
        path = path.display()
    )]
    OutOfRange {
        /// The file.
        path: PathBuf,
        /// Name of the tensor.
        key: String,
        /// The value.
        value: f32,
        /// The type of the file, such as `f16`.
        dtype: &'static str,
    },
}

/// An error of converting a file of another tool, or to one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InteropError {
    /// A configuration of PEFT is broken.
    #[error(
        "{path} is no configuration of PEFT that this build can read: {reason}",
        path = path.display()
    )]
    PeftConfig {
        /// The file.
        path: PathBuf,
        /// The reason from the parser.
        reason: String,
    },
    /// A file has tensors with PEFT's names, and the configuration with their scale is not beside it.
    #[error(
        "{path} has PEFT's names, and their scale is in adapter_config.json, which is not beside it; \
         give the directory that has both",
        path = path.display()
    )]
    NoPeftConfig {
        /// The file.
        path: PathBuf,
    },
    /// The file is an adapter of SODA.
    #[error("{path} is an adapter of SODA already; give it to `--adapter` as it is", path = path.display())]
    OwnFormat {
        /// The file.
        path: PathBuf,
    },
    /// A field of a PEFT configuration has a value that is not supported.
    #[error("{path}: `{field}` is {value}: {remedy}", path = path.display())]
    PeftField {
        /// The file.
        path: PathBuf,
        /// The name of the field.
        field: String,
        /// Its value.
        value: String,
        /// Why it is refused, and the remedy.
        remedy: &'static str,
    },
    /// The file is for a base of another architecture.
    #[error(
        "{path} is for {file}, and the base is {base}; import it on a base of its own kind",
        path = path.display()
    )]
    OtherArchitecture {
        /// The file.
        path: PathBuf,
        /// The architecture of the file, such as `SDXL`.
        file: &'static str,
        /// The architecture of the base.
        base: String,
    },
    /// A tensor of the file has another shape than its weight needs.
    #[error(
        "{key} has shape {found:?}, and {weight} of this base needs {expected}; is the file for another base?"
    )]
    TensorShape {
        /// Name of the tensor.
        key: String,
        /// Its shape.
        found: Vec<usize>,
        /// Path of the weight.
        weight: String,
        /// The shape that is needed.
        expected: String,
    },
    /// Two tensors of the file have one meaning.
    #[error("{first} and {second} are the same tensor of {weight}; remove one of them")]
    SameRole {
        /// Path of the weight.
        weight: String,
        /// Name of the one tensor.
        first: String,
        /// Name of the other tensor.
        second: String,
    },
    /// The file has tensors of two methods for one weight.
    #[error(
        "{key} is of another method than the other tensors of {weight}; merge it into a model with the tool \
         that made it"
    )]
    MixedLayer {
        /// Path of the weight.
        weight: String,
        /// Name of the tensor.
        key: String,
    },
    /// The file has no tensor of a method for a weight, but one that goes with them.
    #[error("the file has {key} for {weight}, without the tensors it belongs to; it is incomplete")]
    LoneTensor {
        /// Path of the weight.
        weight: String,
        /// Name of the tensor.
        key: String,
    },
    /// The tensors of a layer do not give an adapter of their method.
    #[error("the tensors for {weight} do not fit their method")]
    Layer {
        /// Path of the weight.
        weight: String,
        /// The reason.
        source: Box<AdapterError>,
    },
    /// The settings of a method have no equivalent in the other format.
    #[error("the {method} configuration is unusable: {reason}")]
    Settings {
        /// Name of the method.
        method: &'static str,
        /// What is not supported, and the remedy.
        reason: &'static str,
    },
    /// No tensor of the file belongs to a weight of the networks.
    #[error(
        "nothing in {path} belongs to a weight of this base ({}); \
         is it for another base, or of a method other than LoRA, DoRA, LoHa, LoKr, OFT, BOFT, HRA and diff?",
        .example.as_ref().map_or("it has no tensors".to_owned(), |name| format!("it has names like {name}")),
        path = path.display()
    )]
    NothingMatched {
        /// The file.
        path: PathBuf,
        /// A tensor name of the file, if it has tensors.
        example: Option<String>,
    },
    /// The file has some tensors of a layer but lacks another.
    #[error("the file has tensors for {weight}, but not its {tensor}; it is incomplete")]
    MissingTensor {
        /// Path of the weight.
        weight: String,
        /// The missing tensor.
        tensor: &'static str,
    },
    /// The file has a tensor that no method here can represent.
    #[error(
        "the file has a {tensor} for {weight}, which no method here can represent; merge it into a model with the tool \
         that made it, or train without it"
    )]
    UnsupportedTensor {
        /// Path of the weight.
        weight: String,
        /// The unsupported tensor.
        tensor: &'static str,
    },
}
