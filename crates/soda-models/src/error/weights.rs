//! Errors of weight files.

use std::path::PathBuf;

/// Why a weight file was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// The file is truncated or damaged.
    #[error("{} is no valid safetensors file ({reason}): download or export it again", .path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// The parser's reason.
        reason: String,
    },

    /// The file is of another format.
    #[error("{} is not a safetensors file: weights and adapters are read from no other files", .path.display())]
    NotSafetensors {
        /// The file.
        path: PathBuf,
    },

    /// The file is a pickle, which runs code when it is read.
    #[error(
        "{} is a pickle, which can run any code when it is read: convert it in Python, with from_pretrained(...).save_pretrained(..., safe_serialization=True) or from_single_file",
        .path.display()
    )]
    Pickle {
        /// The file.
        path: PathBuf,
    },

    /// The file holds another kind of model than the one asked for.
    #[error("{} cannot be read as this model: {reason}", .path.display())]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },

    /// The file lacks tensors that the network needs.
    #[error(
        "{} lacks {} of the network's tensors ({}): it belongs to another model or to another config.json",
        .path.display(), .keys.len(), first_keys(.keys)
    )]
    MissingKeys {
        /// The file.
        path: PathBuf,
        /// The missing keys, as the checkpoint names them.
        keys: Vec<String>,
    },

    /// The file holds tensors that the network does not have.
    #[error(
        "{} holds tensors that the network has no place for, {} in all ({}): it belongs to another model or to another config.json",
        .path.display(), .keys.len(), first_keys(.keys)
    )]
    UnusedKeys {
        /// The file.
        path: PathBuf,
        /// The unused keys, as the checkpoint names them.
        keys: Vec<String>,
    },

    /// A tensor has another shape than the config asks for.
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

    /// A tensor has an element type that is not a float.
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
        /// The position of the first bad element, in row-major order.
        index: usize,
        /// The first bad element.
        value: f64,
    },

    /// The model cannot be written as a file of this kind.
    #[error("{} was not written: {reason}", .path.display())]
    NoSingleFile {
        /// The file.
        path: PathBuf,
        /// What such a file cannot hold, and the remedy.
        reason: &'static str,
    },

    /// A weight would be written as NaN or infinity.
    #[error(
        "{} was not written: `{key}` would not be finite in {dtype} at position {index}; {}",
        .path.display(), finite_remedy(*.dtype)
    )]
    NotWritten {
        /// The file.
        path: PathBuf,
        /// The tensor's key.
        key: String,
        /// The position of the first bad element, in row-major order of the file.
        index: usize,
        /// The element type of the file.
        dtype: safetensors::Dtype,
    },
}

/// How a weight becomes finite that is not in `dtype`.
fn finite_remedy(dtype: safetensors::Dtype) -> &'static str {
    match dtype {
        safetensors::Dtype::F16 => "write it as bf16 or f32",
        _ => "lower the strength of its adapters",
    }
}

/// The first three keys as text. A list of hundreds of keys would hide the rest of the message.
fn first_keys(keys: &[String]) -> String {
    let shown = keys.iter().take(3).map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
    if keys.len() > 3 { format!("{shown}, ...") } else { shown }
}
