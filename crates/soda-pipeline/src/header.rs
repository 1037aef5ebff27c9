//! The header of an adapter file: its metadata.
//!
//! | key | value |
//! |---|---|
//! | `format` | `soda-adapter` |
//! | `version` | `3` |
//! | `parts` | a [`Recipe`] for each adapted [`Component`], JSON |
//! | `base` | name of the base model |
//! | `trigger` | the words that the subject was trained with, JSON |
//! | `training` | a summary of the training, JSON |
//! | `schedule` | the changes of the noise schedule: fields of a diffusers scheduler config, JSON |
//! | `prompt_encoding` | a [`PromptEncoding`] that the text encoder has to have, JSON |
//! | `signs` | the sign rules of the decompositions that the values belong to |
//! | `factors` | sizes of the rotations' Kronecker factors by the rotated width, JSON; of SODA only |
//!
//! Version 2 has no embeddings. Version 1 has the UNet alone, with its recipe in `method`, `config`,
//! `targets` and `base_hash`. Both are read.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use soda_adapters::{Method, Recipe};
use soda_linalg::SIGN_CONVENTION;
use soda_models::pipeline::PromptEncoding;

use crate::component::Component;
use crate::error::FormatError;

const FORMAT: &str = "soda-adapter";
const VERSION: &str = "3";
/// The version without embeddings.
const WITHOUT_EMBEDDINGS: &str = "2";
/// The version without text encoders.
const UNET_ONLY: &str = "1";

/// The description that an adapter file has of itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Header {
    /// Name of the base model.
    pub base: String,
    /// The words that the subject was trained with, such as `sks mug`.
    pub trigger: Vec<String>,
    /// A summary of the training: steps, learning rates, loss.
    pub training: Value,
    /// The changes of the base's noise schedule: fields of a diffusers scheduler config, or `null` for none.
    pub schedule: Value,
    /// How prompts were encoded. The base has to be loaded with it.
    pub prompt_encoding: PromptEncoding,
}

/// The recipes of the adapted networks.
type Recipes<M> = BTreeMap<Component, Recipe<M>>;

/// Makes the metadata of a file in the current version.
pub(crate) fn to_metadata<M: Method>(
    header: &Header,
    recipes: &BTreeMap<Component, &Recipe<M>>,
    factor_sizes: &BTreeMap<usize, Vec<usize>>,
) -> HashMap<String, String> {
    let mut metadata = HashMap::from([
        ("format", FORMAT.to_owned()),
        ("version", VERSION.to_owned()),
        ("parts", json!(recipes).to_string()),
        ("base", header.base.clone()),
        ("trigger", json!(header.trigger).to_string()),
        ("training", header.training.to_string()),
        ("schedule", header.schedule.to_string()),
        ("prompt_encoding", json!(header.prompt_encoding).to_string()),
        ("signs", SIGN_CONVENTION.to_owned()),
    ]);
    if !factor_sizes.is_empty() {
        metadata.insert("factors", json!(factor_sizes).to_string());
    }
    metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// Whether the metadata of a file is that of an adapter of SODA, in any version.
pub(crate) fn is_own_format(metadata: &HashMap<String, String>) -> bool {
    metadata.get("format").is_some_and(|format| format == FORMAT)
}

/// Reads the metadata of the file at `path`.
///
/// # Errors
/// [`FormatError`] for a field that is missing or unreadable, for another version or sign rule, and for a
/// method that `M` does not have.
pub(crate) fn from_metadata<M: Method>(
    path: &Path,
    mut metadata: HashMap<String, String>,
) -> Result<(Header, Recipes<M>), FormatError> {
    if !is_own_format(&metadata) {
        return Err(FormatError::NotAnAdapter { path: path.to_owned() });
    }
    let unusable = |field| FormatError::Metadata { path: path.to_owned(), field };
    let mut field = |name| metadata.remove(name).ok_or_else(|| unusable(name));
    let version = field("version")?;
    // Files without this field have the same rules.
    if let Ok(found) = field("signs")
        && found != SIGN_CONVENTION
    {
        let path = path.to_owned();
        return Err(FormatError::SignRule { path, found, supported: SIGN_CONVENTION });
    }
    let settings = |method: String, error: serde_json::Error| FormatError::Settings {
        path: path.to_owned(),
        method,
        reason: error.to_string(),
    };
    let recipes = match version.as_str() {
        VERSION | WITHOUT_EMBEDDINGS => {
            let recipes = field("parts")?;
            serde_json::from_str(&recipes)
                .map_err(|error| settings(method_names(&recipes), error))?
        }
        UNET_ONLY => {
            let name = field("method")?;
            let recipe = Recipe {
                method: serde_json::from_str(&field("config")?)
                    .map_err(|error| settings(name, error))?,
                targets: from_json(&field("targets")?).ok_or_else(|| unusable("targets"))?,
                base_hash: field("base_hash")?,
            };
            BTreeMap::from([(Component::Unet, recipe)])
        }
        _ => {
            return Err(FormatError::Version {
                path: path.to_owned(),
                found: version,
                supported: "1 to 3",
            });
        }
    };
    let header = Header {
        base: field("base")?,
        trigger: from_json(&field("trigger")?).ok_or_else(|| unusable("trigger"))?,
        training: from_json(&field("training")?).ok_or_else(|| unusable("training"))?,
        // Older files have no schedule.
        schedule: field("schedule").ok().and_then(|text| from_json(&text)).unwrap_or_default(),
        // Older files have no encoding.
        prompt_encoding: match field("prompt_encoding") {
            Ok(text) => from_json(&text).ok_or_else(|| unusable("prompt_encoding"))?,
            Err(_) => PromptEncoding::default(),
        },
    };
    Ok((header, recipes))
}

/// The names of the methods in recipes that cannot be read, for the message.
fn method_names(recipes: &str) -> String {
    let recipes: BTreeMap<String, Value> = from_json(recipes).unwrap_or_default();
    let name = |recipe: &Value| recipe["method"]["name"].as_str().map(str::to_owned);
    recipes.values().filter_map(name).collect::<Vec<_>>().join(", ")
}

fn from_json<T: DeserializeOwned>(text: &str) -> Option<T> {
    serde_json::from_str(text).ok()
}
