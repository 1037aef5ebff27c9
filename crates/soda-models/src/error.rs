//! Everything that can go wrong when a model is read, checked or written: one enum for the crate.
//!
//! A message is one sentence that names the file and says what to do about it, since the reader is
//! as often a person at a command line as a programmer.

use std::path::PathBuf;

use burn::tensor::FloatDType;

/// Why a model could not be read, used or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A file or directory of the model is not there.
    #[error("{} does not exist: {what} is expected there; check the model directory", .path.display())]
    Missing {
        /// What was looked for.
        path: PathBuf,
        /// What it is, for example "the UNet's config.json".
        what: &'static str,
    },

    /// The operating system refused to read or write a file.
    #[error("{} cannot be read or written: {source}", .path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },

    /// A field of a config has a value of the wrong type.
    #[error("{}: the field `{field}` is wrong: {source}", .path.display())]
    Field {
        /// The config file.
        path: PathBuf,
        /// The field's name.
        field: String,
        /// What is wrong with its value.
        source: serde_json::Error,
    },

    /// A JSON file does not parse, lacks a field, or has one that is unknown.
    #[error("{} is not a config that this version reads: {source}", .path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The position and reason.
        source: serde_json::Error,
    },

    /// A field of a config has a value that is not implemented; ignoring it would change the model.
    #[error("{} sets `{field}` to {value}, which is not supported: use {supported}", .path.display())]
    UnsupportedField {
        /// The config file.
        path: PathBuf,
        /// The field's name.
        field: String,
        /// The value found, as JSON.
        value: String,
        /// What would be accepted.
        supported: String,
    },

    /// The device does not compute in the type asked for.
    #[error("this device does not compute in {dtype:?}: use f32")]
    UnsupportedPrecision {
        /// What was asked for.
        dtype: FloatDType,
    },

    /// A weight file is truncated or is no safetensors file.
    #[error("{} is no valid safetensors file ({reason}): download or export it again", .path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        reason: String,
    },

    /// A checkpoint that can only be read by running what is in it.
    #[error(
        "{} is a pickle, which can run any code when it is read: convert it in Python, with from_pretrained(...).save_pretrained(..., safe_serialization=True) or from_single_file",
        .path.display()
    )]
    Pickle {
        /// The file.
        path: PathBuf,
    },

    /// A single file of another model than the one asked for.
    #[error("{} cannot be read as this model: {reason}", .path.display())]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },

    /// Tensors that the network needs are not in the file.
    #[error(
        "{} lacks {} of the network's tensors ({}): it belongs to another model or to another config.json",
        .path.display(), .keys.len(), few(.keys)
    )]
    MissingKeys {
        /// The file.
        path: PathBuf,
        /// The missing keys, in the checkpoint's names.
        keys: Vec<String>,
    },

    /// The file holds tensors that the network does not have.
    #[error(
        "{} holds {} tensors that the network has no place for ({}): it belongs to another model or to another config.json",
        .path.display(), .keys.len(), few(.keys)
    )]
    UnusedKeys {
        /// The file.
        path: PathBuf,
        /// The unused keys, in the checkpoint's names.
        keys: Vec<String>,
    },

    /// A tensor has another shape than the config says.
    #[error(
        "{}: `{key}` has the shape {found:?} where config.json asks for {expected:?}: the two do not belong together",
        .path.display()
    )]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor's key.
        key: String,
        /// The shape that the config asks for.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },

    /// A tensor is stored as something other than floating-point numbers.
    #[error("{}: `{key}` is stored as {dtype}: only float weights are read; export the model as float16 or float32", .path.display())]
    DType {
        /// The file.
        path: PathBuf,
        /// The tensor's key.
        key: String,
        /// The element type found.
        dtype: String,
    },

    /// A weight is NaN or infinite.
    #[error("{}: `{key}` contains a {value} at position {index}: the weights are damaged; download or export the file again", .path.display())]
    NonFinite {
        /// The file.
        path: PathBuf,
        /// The tensor's key.
        key: String,
        /// Its first bad element, in row-major order.
        index: usize,
        /// That element.
        value: f64,
    },

    /// A tokenizer file was refused.
    #[error("{} is no usable CLIP tokenizer: {reason}", .path.display())]
    Tokenizer {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },

    /// A new word cannot be added to the vocabulary, or not be written.
    #[error("the new word `{word}` cannot be used: {reason}")]
    Word {
        /// The word.
        word: String,
        /// Why not.
        reason: String,
    },

    /// A file is not a picture, or not one in a known format.
    #[error("{} cannot be read as an image: {source}", .path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// The decoder's reason.
        source: image::ImageError,
    },

    /// A picture's file has no content.
    #[error("{} is an empty file, not an image: copy it again or remove it", .path.display())]
    EmptyImage {
        /// The file.
        path: PathBuf,
    },

    /// A JPEG without its end, of which decoders make a picture with a grey part.
    #[error("{} ends in the middle of the image: copy it again or remove it", .path.display())]
    CutImage {
        /// The file.
        path: PathBuf,
    },

    /// A picture that would take gigabytes to decode.
    #[error(
        "{} has {width} x {height} pixels, more than {most} million: make it smaller or remove it",
        .path.display(), most = crate::image::MAX_PIXELS / 1_000_000
    )]
    HugeImage {
        /// The file.
        path: PathBuf,
        /// Columns.
        width: u32,
        /// Rows.
        height: u32,
    },

    /// More threads than the system gives.
    #[error("cannot start {count} threads: {reason}; set a smaller `shards`")]
    Threads {
        /// How many shards.
        count: usize,
        /// The system's reason.
        reason: String,
    },

    /// Latents or an image are NaN or infinite, so that no picture can be made of them.
    #[error(
        "the {what} of image {index} are not finite numbers: the precision overflowed or the weights are damaged; use f32 or bf16, or another scheduler"
    )]
    NonFiniteImage {
        /// What was not finite: "latents" or "pixels".
        what: &'static str,
        /// The image's position in its batch.
        index: usize,
    },

    /// A request to generate pictures cannot be met.
    #[error("`{field}` is {value}, but {expected}")]
    InvalidRequest {
        /// The setting.
        field: &'static str,
        /// What was asked for.
        value: String,
        /// What would be accepted.
        expected: String,
    },
}

impl ModelError {
    /// Sorts an IO error: a file that is not there deserves another sentence than a broken disk.
    pub(crate) fn io(path: &std::path::Path, what: &'static str, source: std::io::Error) -> Self {
        let path = path.to_path_buf();
        match source.kind() {
            std::io::ErrorKind::NotFound => Self::Missing { path, what },
            _ => Self::Io { path, source },
        }
    }
}

/// The first three keys: hundreds of them would bury the sentence.
fn few(keys: &[String]) -> String {
    let shown = keys.iter().take(3).map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
    if keys.len() > 3 { format!("{shown}, ...") } else { shown }
}
