//! Reading `config.json` files: every field is honoured or refused, none is ignored.
//!
//! diffusers' configs list every argument of a constructor, most of them at the value that switches
//! a feature off. A port that skipped unknown fields would load a model with such a feature *on*
//! and draw something else. So a config struct here lists the fields that it honours, and a table
//! of the others with the values at which they do nothing.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::ModelError;

/// A config struct that mirrors a `config.json`.
///
/// The struct should derive `Deserialize` with `#[serde(deny_unknown_fields)]`.
pub trait ConfigFile: DeserializeOwned {
    /// What the file is, for messages.
    const WHAT: &'static str;

    /// Fields that are not implemented, each with the JSON value at which it does nothing.
    /// A field may have several rows.
    const NEUTRAL: &'static [(&'static str, &'static str)];

    /// Whether `_class_name` is a field of the struct rather than a note about the file.
    const CLASS: bool = false;

    /// Checks what types cannot say; an error is (field, its value, what is supported).
    fn check(&self) -> Result<(), Refusal> {
        Ok(())
    }
}

/// A field whose value is refused.
#[derive(Debug)]
pub struct Refusal {
    /// The field's name.
    pub field: &'static str,
    /// The value found.
    pub value: String,
    /// What would be accepted.
    pub supported: &'static str,
}

/// Reads and checks a config file.
pub fn read<C: ConfigFile>(path: &Path) -> Result<C, ModelError> {
    let text = std::fs::read_to_string(path).map_err(|e| ModelError::io(path, C::WHAT, e))?;
    let json = |source| ModelError::Json { path: path.to_path_buf(), source };
    // Python writes an infinity into `lambda_min_clipped`, which is no JSON: no bound.
    let text = text.replace(": -Infinity", ": null");
    let mut fields: Map<String, Value> = serde_json::from_str(&text).map_err(json)?;

    // `_diffusers_version`, `_name_or_path`: where the file comes from, not what it is.
    fields.retain(|field, _| !field.starts_with('_') || (C::CLASS && field == "_class_name"));
    for (field, _) in C::NEUTRAL {
        let Some(value) = fields.remove(*field) else { continue };
        let neutral = || C::NEUTRAL.iter().filter(|row| row.0 == *field).map(|row| row.1);
        if !neutral().any(|text| same(&value, text)) {
            return Err(ModelError::UnsupportedField {
                path: path.to_path_buf(),
                field: (*field).to_string(),
                value: value.to_string(),
                supported: neutral().collect::<Vec<_>>().join(" or "),
            });
        }
    }

    let config: C = serde_json::from_value(Value::Object(fields.clone())).map_err(|source| {
        let path = path.to_path_buf();
        match culprit::<C>(&fields, &source) {
            Some(field) => ModelError::Field { path, field, source },
            None => ModelError::Json { path, source },
        }
    })?;
    config.check().map_err(|refusal| ModelError::UnsupportedField {
        path: path.to_path_buf(),
        field: refusal.field.to_string(),
        value: refusal.value,
        supported: refusal.supported.to_string(),
    })?;
    Ok(config)
}

/// The field that a parse failed at, which serde does not say: the one that alone fails alike.
fn culprit<C: ConfigFile>(
    fields: &Map<String, Value>,
    error: &serde_json::Error,
) -> Option<String> {
    let fails_alike = |(field, value): &(&String, &Value)| {
        let alone = Map::from_iter([((*field).clone(), (*value).clone())]);
        serde_json::from_value::<C>(Value::Object(alone))
            .is_err_and(|alone| alone.to_string() == error.to_string())
    };
    // A field that is absent fails alike for every other one: then none is to blame.
    let mut culprits = fields.iter().filter(fails_alike);
    match (culprits.next(), culprits.next()) {
        (Some((field, _)), None) => Some(field.clone()),
        _ => None,
    }
}

/// Numbers are compared as numbers: exporters write both `0` and `0.0`.
fn same(value: &Value, text: &str) -> bool {
    match serde_json::from_str::<Value>(text) {
        Ok(Value::Number(number)) => value.as_f64() == number.as_f64(),
        Ok(neutral) => *value == neutral,
        Err(_) => false,
    }
}
