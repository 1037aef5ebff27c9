//! The reader of config files, and the trait of the structs that mirror them.

use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::{ConfigError, ModelError};
use crate::input_file::{SizeLimit, read_text};

/// A struct that mirrors a `config.json`.
///
/// Derive `Deserialize` with `#[serde(deny_unknown_fields)]`, so that an unknown field is an error.
pub trait ConfigFile: DeserializeOwned {
    /// A description of the file for error messages, for example "the UNet's config.json".
    const DESCRIPTION: &'static str;

    /// Fields that are not implemented, each with the JSON value at which it has no effect. A field may have
    /// several rows.
    const NO_EFFECT: &'static [(&'static str, &'static str)];

    /// Whether `_class_name` is a field of the struct. Other fields that start with `_` are notes about the
    /// file and skipped.
    const HAS_CLASS_NAME: bool = false;

    /// Rewrites the fields before they are parsed, such as those of older files. Fields that start with `_`
    /// are not the file's any more, except `_class_name`.
    ///
    /// # Errors
    ///
    /// The first field whose value is refused.
    fn prepare(_fields: &mut Map<String, Value>) -> Result<(), InvalidField> {
        Ok(())
    }

    /// Checks what types cannot express.
    ///
    /// # Errors
    ///
    /// The first field whose value is refused.
    fn validate(&self) -> Result<(), InvalidField> {
        Ok(())
    }
}

/// A field whose value is refused.
#[derive(Debug)]
pub struct InvalidField {
    /// The field's name.
    pub field: &'static str,
    /// The value found.
    pub value: String,
    /// The values that are accepted.
    pub supported: &'static str,
}

/// A value as config files write it, such as `null`, for the message of an [`InvalidField`].
pub(crate) fn json_text(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_else(|error| error.to_string())
}

/// Reads and checks a config file.
///
/// # Errors
///
/// [`ModelError`] if the file is missing or does not parse, or if a field is unknown or has an unsupported
/// value.
///
/// ```no_run
/// use std::path::Path;
///
/// use soda_models::config;
/// use soda_models::unet::UnetConfig;
///
/// let config: UnetConfig = config::read(Path::new("model/unet/config.json"))?;
/// # Ok::<(), soda_models::ModelError>(())
/// ```
pub fn read<C: ConfigFile>(path: &Path) -> Result<C, ModelError> {
    let text = read_text(path, SizeLimit::SETTINGS)
        .map_err(|e| ModelError::io(path, C::DESCRIPTION, e))?;
    let json = |source| ConfigError::Json { path: path.to_path_buf(), source };
    // Python writes a `lambda_min_clipped` of minus infinity, which is not JSON, for no bound.
    let text = text.replace(": -Infinity", ": null");
    let mut fields: Map<String, Value> = serde_json::from_str(&text).map_err(json)?;

    // `_diffusers_version` and `_name_or_path` say where the file comes from, not what it is.
    fields.retain(|field, _| {
        !field.starts_with('_') || (C::HAS_CLASS_NAME && field == "_class_name")
    });
    let unsupported = |refusal: InvalidField| ConfigError::UnsupportedField {
        path: path.to_path_buf(),
        field: refusal.field.to_string(),
        value: refusal.value,
        supported: refusal.supported.to_string(),
    };
    C::prepare(&mut fields).map_err(unsupported)?;
    for (field, _) in C::NO_EFFECT {
        let Some(value) = fields.remove(*field) else { continue };
        let neutral = || C::NO_EFFECT.iter().filter(|row| row.0 == *field).map(|row| row.1);
        if !neutral().any(|text| same(&value, text)) {
            return Err(ConfigError::UnsupportedField {
                path: path.to_path_buf(),
                field: (*field).to_string(),
                value: value.to_string(),
                supported: neutral().collect::<Vec<_>>().join(" or "),
            }
            .into());
        }
    }

    let config: C = loop {
        let source = match serde_json::from_value(Value::Object(fields.clone())) {
            Ok(config) => break config,
            Err(source) => source,
        };
        let path = path.to_path_buf();
        match culprit::<C>(&fields, &source) {
            // A later version of diffusers writes its new arguments, most of them as unset.
            Some(field) if is_unset_and_unknown(&fields, &field, &source) => {
                fields.remove(&field);
            }
            Some(field) => return Err(ConfigError::Field { path, field, source }.into()),
            None => return Err(ConfigError::Json { path, source }.into()),
        }
    };
    config.validate().map_err(unsupported)?;
    Ok(config)
}

/// Whether a field is none of the struct's, and `null`: an argument that was not given.
fn is_unset_and_unknown(
    fields: &Map<String, Value>,
    field: &str,
    error: &serde_json::Error,
) -> bool {
    fields.get(field) == Some(&Value::Null) && error.to_string().starts_with("unknown field")
}

/// The field at which parsing failed.
///
/// serde does not report the field, so each one is parsed alone. The one that fails with the same error is
/// the culprit.
fn culprit<C: ConfigFile>(
    fields: &Map<String, Value>,
    error: &serde_json::Error,
) -> Option<String> {
    let fails_alike = |(field, value): &(&String, &Value)| {
        let alone = Map::from_iter([((*field).clone(), (*value).clone())]);
        serde_json::from_value::<C>(Value::Object(alone))
            .is_err_and(|alone| alone.to_string() == error.to_string())
    };
    // If a field is missing, every other one fails with the same error, and none is to blame.
    let mut culprits = fields.iter().filter(fails_alike);
    match (culprits.next(), culprits.next()) {
        (Some((field, _)), None) => Some(field.clone()),
        _ => None,
    }
}

/// Compares a value with a JSON text. Numbers are compared as numbers, since exporters write both `0` and
/// `0.0`.
fn same(value: &Value, text: &str) -> bool {
    match serde_json::from_str::<Value>(text) {
        Ok(Value::Number(number)) => value.as_f64() == number.as_f64(),
        Ok(neutral) => *value == neutral,
        Err(_) => false,
    }
}
