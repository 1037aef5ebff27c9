//! The settings of a new run: the fields of the form over a preset, and TOML over both.

use serde::Deserialize;
use soda_train::{RunFolder, TrainConfig, apply_setting, merge_settings, preset};
use toml::Table;

/// The most characters of a run's name.
const MAX_NAME: usize = 80;

/// The form of a new run. A field that is empty or absent keeps the preset's value.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RunForm {
    pub(crate) name: String,
    preset: String,
    base: String,
    data: String,
    method: String,
    prompt: String,
    trigger: String,
    steps: Option<i64>,
    batch_size: Option<i64>,
    seed: Option<i64>,
    /// The interval of samples in steps.
    samples_every: Option<i64>,
    /// The interval of the validation in steps.
    validation_every: Option<i64>,
    /// All other settings, TOML.
    toml: String,
    /// Whether the run waits until no other one goes on.
    pub(crate) queue: bool,
}

impl RunForm {
    /// The settings, read and checked by the parser of `soda train --config`.
    ///
    /// # Errors
    /// A sentence that names the setting.
    pub(crate) fn config(&self) -> Result<TrainConfig, String> {
        let sentence = |error: soda_train::TrainError| error.to_string();
        let name = if self.preset.is_empty() { "toybox" } else { &self.preset };
        let mut table = preset(name).map_err(sentence)?;
        for (field, value) in [("base", &self.base), ("data", &self.data)] {
            if value.trim().is_empty() {
                return Err(format!("`{field}` is empty: give a folder"));
            }
            table.insert(field.to_owned(), value.trim().into());
        }
        if !self.method.is_empty() {
            apply_setting(&mut table, &format!("method={}", self.method)).map_err(sentence)?;
        }
        for (field, value) in [("prompt", &self.prompt), ("trigger", &self.trigger)] {
            if !value.trim().is_empty() {
                table.insert(field.to_owned(), value.trim().into());
            }
        }
        for (field, value) in
            [("steps", self.steps), ("batch_size", self.batch_size), ("seed", self.seed)]
        {
            if let Some(value) = value {
                table.insert(field.to_owned(), value.into());
            }
        }
        for (field, value) in
            [("samples", self.samples_every), ("validation", self.validation_every)]
        {
            if let Some(value) = value {
                let entry = table.entry(field).or_insert_with(|| Table::new().into());
                if let Some(entry) = entry.as_table_mut() {
                    entry.insert("every".to_owned(), value.into());
                }
            }
        }
        let others: Table =
            toml::from_str(&self.toml).map_err(|error| soda_train::toml_message(&error))?;
        merge_settings(&mut table, others);
        let config = TrainConfig::from_table(table).map_err(sentence)?;
        config.check().map_err(sentence)?;
        Ok(config)
    }

    /// Checks the name of the run. Empty if it is to be chosen.
    ///
    /// # Errors
    /// A sentence that says which names are allowed.
    pub(crate) fn checked_name(&self) -> Result<&str, String> {
        let name = self.name.trim();
        if name.is_empty() {
            return Ok(name);
        }
        let allowed = |c: char| c.is_alphanumeric() || " -_.".contains(c);
        let fits = name.chars().count() <= MAX_NAME && name.chars().all(allowed);
        if !fits || name.starts_with('.') {
            return Err(format!(
                "`name` must have at most {MAX_NAME} letters, digits, blanks, `-`, `_` and `.`, and must \
                 not begin with `.`"
            ));
        }
        RunFolder::check_name(name).map_err(|error| error.to_string())?;
        Ok(name)
    }
}

/// The start of the name of a run on `data`.
pub(crate) fn stem(config: &TrainConfig) -> String {
    let name = config.data.file_name().and_then(|name| name.to_str()).unwrap_or("run");
    let kept = |c: char| if c.is_alphanumeric() || "-_".contains(c) { c } else { '_' };
    name.chars().take(MAX_NAME - 8).map(kept).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use soda_adapters::Method as _;

    use super::*;

    fn form(json: serde_json::Value) -> RunForm {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn toml_is_over_the_form_and_the_form_over_the_preset() {
        let config = form(serde_json::json!({
            "base": " models/toy ", "data": "photos/mug", "method": "lora", "steps": 7,
            "samples_every": 3, "toml": "seed = 5\n[samples]\nsteps = 2\n[method]\nrank = 3",
        }));
        let config = config.config().unwrap();
        assert_eq!((config.steps, config.seed, config.method.name()), (7, 5, "lora"));
        assert_eq!((config.samples.every, config.samples.steps), (3, 2));
        assert_eq!(config.base, std::path::Path::new("models/toy"));
        // What the form gives is what the command line gives.
        let mut table = preset("toybox").unwrap();
        for setting in [
            "base=models/toy",
            "data=photos/mug",
            "method=lora",
            "method.rank=3",
            "steps=7",
            "seed=5",
            "samples.every=3",
            "samples.steps=2",
        ] {
            apply_setting(&mut table, setting).unwrap();
        }
        assert_eq!(config, TrainConfig::from_table(table).unwrap());
    }

    #[test]
    fn a_wrong_setting_is_named() {
        for (field, value, needle) in [
            ("base", "", "`base`"),
            ("preset", "nothing", "nothing"),
            ("method", "lorra", "lorra"),
            ("toml", "stepz = 3", "steps"),
            ("toml", "steps = ", "line 1"),
            ("toml", "batch_size = 0", "batch_size"),
        ] {
            let mut json = serde_json::json!({"base": "b", "data": "d"});
            json[field] = value.into();
            let error = form(json).config().unwrap_err();
            assert!(error.contains(needle), "{field}: {error}");
        }
        let unknown = serde_json::json!({"base": "b", "path": "c"});
        assert!(serde_json::from_value::<RunForm>(unknown).is_err());
    }

    #[test]
    fn a_name_is_no_path() {
        for name in ["../a", "a/b", "a\\b", ".ui", ".", "a\nb", "a:b", "a\0", &"a".repeat(81)] {
            let form = RunForm { name: name.to_owned(), ..RunForm::default() };
            assert!(form.checked_name().is_err(), "{name:?}");
        }
        for name in ["", "mug-1", "Krug 2.0_ü"] {
            let form = RunForm { name: name.to_owned(), ..RunForm::default() };
            assert_eq!(form.checked_name().unwrap(), name);
        }
    }
}
