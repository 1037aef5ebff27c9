//! Why a model cannot be had by its name: one enum for the crate, one sentence a case.

use std::path::PathBuf;

/// Why a model cannot be had by its name.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// A text that is no name.
    #[error("{0} is no name of a model: it has the form owner/name or owner/name@revision")]
    NotAName(String),

    /// No place for the cache.
    #[error("there is no home directory to keep models in: set HF_HOME to a folder")]
    NoHome,

    /// The server does not know the model.
    #[error("{name} is neither a path here nor a model of {endpoint} (404): check the spelling")]
    NotFound {
        /// The name.
        name: String,
        /// The server.
        endpoint: String,
    },

    /// The server does not show the model to this user.
    #[error(
        "{endpoint} does not let you read {name}: check the spelling, set HF_TOKEN to a token that may read it, and accept its terms at {endpoint}/{name} if it is gated"
    )]
    Denied {
        /// The name.
        name: String,
        /// The server.
        endpoint: String,
    },

    /// No connection, and the cache does not have the model either.
    #[error(
        "{name} is no path here, and {endpoint} cannot be reached ({reason}): check the network and HF_ENDPOINT, or give a directory"
    )]
    Unreachable {
        /// The name.
        name: String,
        /// The server.
        endpoint: String,
        /// What the connection says.
        reason: String,
    },

    /// An answer that is none, or a transfer that broke off.
    #[error("{name} cannot be downloaded from {endpoint}: {reason}; start again to go on")]
    Transfer {
        /// The name.
        name: String,
        /// The server.
        endpoint: String,
        /// What is wrong.
        reason: String,
    },

    /// Only the cache may be used, and it does not have the model.
    #[error(
        "{name} is not in the cache {}, or not this variant of it: unset HF_HUB_OFFLINE to download it",
        .cache.display()
    )]
    NotCached {
        /// The name.
        name: String,
        /// The cache.
        cache: PathBuf,
    },

    /// A repository of something else.
    #[error("{0} is no model in diffusers' layout: it has no model_index.json")]
    NoPipeline(String),

    /// A `model_index.json` that is no JSON object.
    #[error("{name} has a broken model_index.json: {source}")]
    Index {
        /// The name.
        name: String,
        /// Where, and what is wrong.
        source: serde_json::Error,
    },

    /// Only weights that run code when they are read.
    #[error(
        "{name} has its {part} as a pickle only, which can run any code when it is read: convert it in Python, with from_pretrained(\"{name}\").save_pretrained(folder, safe_serialization=True)"
    )]
    Pickle {
        /// The name.
        name: String,
        /// The folder.
        part: String,
    },

    /// No weights of the variant that was asked for.
    #[error("{name} has no {part} {}: {}", asked(.variant.as_deref()), choices(.found))]
    NoWeights {
        /// The name.
        name: String,
        /// The folder.
        part: String,
        /// The variant, if one was asked for.
        variant: Option<String>,
        /// The files of weights that there are.
        found: Vec<String>,
    },

    /// The cache cannot be written or read.
    #[error("{} cannot be written or read: {source}", .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
}

fn asked(variant: Option<&str>) -> String {
    match variant {
        Some(variant) => format!("of the variant {variant}"),
        None => "without a variant".to_owned(),
    }
}

fn choices(found: &[String]) -> String {
    match found {
        [] => "it has no weights there at all".to_owned(),
        found => format!("choose another --variant; it has {}", found.join(", ")),
    }
}
