//! Single settings, `optimizer.rotation_lr=1e-3`, and what was meant by one that is not known.

use soda_adapters::MethodConfig;
use toml::{Table, Value};

use crate::error::TrainError;

/// Sets one value in a table of settings: dots go down into tables that appear as needed. A value is TOML
/// or else a string, so that `optimizer.schedule=constant` needs no quotes. `method=NAME` takes a
/// method's own defaults; its settings follow as `method.rank=8`.
///
/// Whether the key is known shows in [`TrainConfig::from_table`](crate::TrainConfig::from_table).
///
/// # Errors
/// No `key=value`, or an unknown method.
pub fn apply_setting(table: &mut Table, assignment: &str) -> Result<(), TrainError> {
    let wrong = || TrainError::Assignment(assignment.to_owned());
    let (key, value) = assignment.split_once('=').ok_or_else(wrong)?;
    let (key, text) = (key.trim(), value.trim());
    let value = toml::from_str::<Table>(&format!("value = {text}"))
        .ok()
        .and_then(|mut parsed| parsed.remove("value"))
        .unwrap_or_else(|| Value::String(text.to_owned()));
    let value = match value {
        Value::String(name) if key == "method" => Value::try_from(MethodConfig::preset(&name)?)
            .map_err(|error| TrainError::WriteConfig { reason: error.to_string() })?,
        value => value,
    };
    let mut parts: Vec<&str> = key.split('.').collect();
    let last = parts.pop().filter(|last| !last.is_empty()).ok_or_else(wrong)?;
    let mut below = table;
    for part in parts {
        let entry = below.entry(part).or_insert_with(|| Value::Table(Table::new()));
        below = entry.as_table_mut().ok_or_else(wrong)?;
    }
    below.insert(last.to_owned(), value);
    Ok(())
}

/// The parser's message, and the nearest of the names that it lists.
pub(super) fn explain(message: &str) -> TrainError {
    // serde's words: "unknown field `stepz`, expected one of `base`, `data`, ...".
    let hint = message.find("unknown ").map_or_else(String::new, |start| {
        let mut quoted = message[start..].split('`').skip(1).step_by(2);
        let found = quoted.next().unwrap_or_default();
        nearest(found, quoted)
    });
    TrainError::ReadConfig { reason: format!("{message}{hint}") }
}

/// ", did you mean ...?", or nothing where nothing is near.
pub(super) fn nearest<'a>(found: &str, known: impl Iterator<Item = &'a str>) -> String {
    known
        .map(|name| (strsim::damerau_levenshtein(found, name), name))
        .min()
        .filter(|(distance, name)| *distance <= name.len().max(3) / 2)
        .map_or_else(String::new, |(_, name)| format!("; did you mean `{name}`?"))
}
