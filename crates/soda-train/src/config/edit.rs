//! Single settings such as `optimizer.rotation_lr=1e-3`, and suggestions for misspelt ones.

use soda_adapters::MethodConfig;
use toml::{Table, Value};

use crate::error::{ConfigError, TrainError};

/// Sets one value in a table of settings, such as `optimizer.rotation_lr=1e-3`.
///
/// - Dots in the key descend into tables, which are created where they are missing.
/// - The value is TOML, or else a string: `optimizer.schedule=constant` needs no quotes.
/// - `method=NAME` inserts the method's default settings, which `method.rank=8` can change afterwards.
///
/// An unknown key is reported by [`TrainConfig::from_table`](crate::TrainConfig::from_table).
///
/// # Errors
/// Returns an error if `assignment` is not `key=value` or names an unknown method.
///
/// ```
/// use soda_train::{TrainConfig, apply_setting, preset};
///
/// let mut table = preset("sd15")?;
/// for setting in ["base=models/sd15", "data=photos", "method=lora", "method.rank=8"] {
///     apply_setting(&mut table, setting)?;
/// }
/// let config = TrainConfig::from_table(table)?;
/// assert_eq!(config.steps, 1000);
/// # Ok::<(), soda_train::TrainError>(())
/// ```
pub fn apply_setting(table: &mut Table, assignment: &str) -> Result<(), TrainError> {
    let malformed = || ConfigError::Assignment(assignment.to_owned());
    let (key, value) = assignment.split_once('=').ok_or_else(malformed)?;
    let (key, text) = (key.trim(), value.trim());
    let value = toml::from_str::<Table>(&format!("value = {text}"))
        .ok()
        .and_then(|mut parsed| parsed.remove("value"))
        .unwrap_or_else(|| Value::String(text.to_owned()));
    let value = match value {
        Value::String(name) if key == "method" => Value::try_from(MethodConfig::preset(&name)?)
            .map_err(|error| ConfigError::Write { reason: error.to_string() })?,
        value => value,
    };
    let mut tables: Vec<&str> = key.split('.').collect();
    let last = tables.pop().filter(|last| !last.is_empty()).ok_or_else(malformed)?;
    let mut below = table;
    for name in tables {
        let entry = below.entry(name).or_insert_with(|| Value::Table(Table::new()));
        below = entry.as_table_mut().ok_or_else(malformed)?;
    }
    below.insert(last.to_owned(), value);
    Ok(())
}

/// Puts the values of `others` over those of `table`, table by table. A method is replaced whole where it is
/// another one.
pub fn merge_settings(table: &mut Table, others: Table) {
    for (key, value) in others {
        match (table.get_mut(&key), value) {
            (Some(Value::Table(own)), Value::Table(other)) if !is_other_method(own, &other) => {
                merge_settings(own, other);
            }
            (_, value) => {
                table.insert(key, value);
            }
        }
    }
}

/// Whether both tables name a method, and not the same one.
fn is_other_method(own: &Table, other: &Table) -> bool {
    other.get("name").is_some_and(|name| own.get("name") != Some(name))
}

/// Adds to the parser's message the nearest of the names that the message lists.
pub(super) fn explain(message: &str) -> ConfigError {
    // The message of serde: "unknown field `stepz`, expected one of `base`, `data`, ...".
    let hint = message.find("unknown ").map_or_else(String::new, |start| {
        let mut quoted = message[start..].split('`').skip(1).step_by(2);
        let found = quoted.next().unwrap_or_default();
        nearest(found, quoted)
    });
    ConfigError::Read { reason: format!("{}{hint}", in_words(message)) }
}

/// A message of serde without names of types of Rust: `expected usize` becomes `expected a whole number of at
/// least 0`.
///
/// ```
/// let message = "invalid type: string \"4\", expected usize at line 2 column 9";
/// assert_eq!(
///     soda_train::in_words(message),
///     "invalid type: string \"4\", expected a whole number of at least 0 at line 2 column 9"
/// );
/// ```
pub fn in_words(message: &str) -> String {
    const EXPECTED: &str = "expected ";
    const TYPES: [(&[&str], &str); 4] = [
        (&["usize", "u8", "u16", "u32", "u64", "u128"], "a whole number of at least 0"),
        (&["isize", "i8", "i16", "i32", "i64", "i128"], "a whole number"),
        (&["f32", "f64"], "a number"),
        (&["bool"], "true or false"),
    ];
    // Of an integer that no type holds, serde says `123 as i128`.
    let message = message.replace("` as i128", "`").replace("` as u128", "`");
    let mut parts = message.split(EXPECTED);
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(part.len());
        let (name, rest) = part.split_at(end);
        let words = TYPES.iter().find(|(names, _)| names.contains(&name));
        text.extend([EXPECTED, words.map_or(name, |(_, words)| words), rest]);
    }
    text
}

/// The place and the message of a TOML error in one line, such as "line 5, column 1: unknown field `stepz`".
/// The error itself displays as several lines with an excerpt.
pub fn toml_message(error: &toml::de::Error) -> String {
    let text = error.to_string();
    // "TOML parse error at line 5, column 1", the excerpt, the message.
    let place =
        text.lines().next().and_then(|line| line.split_once(" at ")).map(|(_, place)| place);
    let message = error.message().lines().collect::<Vec<_>>().join("; ");
    match place {
        Some(place) if error.span().is_some() => format!("{place}: {message}"),
        _ => message,
    }
}

/// The setting and the message of an error in a table, such as "`samples.steps`: invalid type: ...".
///
/// Of a wrong setting of a method, the name is `method`, since serde reads methods by their names first.
pub(super) fn table_message(error: &toml::de::Error) -> String {
    let (text, message) = (error.to_string(), toml_message(error));
    // The message, and "in `samples.steps`" in a line of its own.
    match text.lines().last().and_then(|line| line.strip_prefix("in `")?.strip_suffix('`')) {
        Some(setting) => format!("`{setting}`: {message}"),
        None => message,
    }
}

/// The clause "; did you mean ...?" with the known name nearest to `found`. Empty if no name is near.
pub(super) fn nearest<'a>(found: &str, known: impl Iterator<Item = &'a str>) -> String {
    known
        .map(|name| (strsim::damerau_levenshtein(found, name), name))
        .min()
        .filter(|(distance, name)| *distance <= name.len().max(3) / 2)
        .map_or_else(String::new, |(_, name)| format!("; did you mean `{name}`?"))
}
