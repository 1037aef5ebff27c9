//! The configuration of an adapter in PEFT 0.21, with the fields that change its numbers.
//!
//! A PEFT directory has it as `adapter_config.json`. diffusers keeps it in the metadata of a LoRA's file.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use soda_models::input_file::{SizeLimit, read_text};

use crate::component::Component;
use crate::error::{FormatError, InteropError, PipelineError};
use crate::safetensors_file::write_atomically;

/// File name of the configuration in a PEFT directory.
pub(super) const CONFIG: &str = "adapter_config.json";
/// File name of the tensors in a PEFT directory.
pub(super) const TENSORS: &str = "adapter_model.safetensors";

/// Metadata key of diffusers 0.35 and later with the configuration of each network, as JSON with names such
/// as `unet.lora_alpha`.
const DIFFUSERS_METADATA: &str = "lora_adapter_metadata";

/// The version whose rules the files follow. Without it, PEFT assumes a version before 0.18 with another
/// Neumann series.
const VERSION: &str = "0.21.0";

/// The configuration of a PEFT adapter, by method.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "peft_type")]
pub(super) enum PeftConfig {
    #[serde(rename = "LORA")]
    Lora(PeftLora),
    #[serde(rename = "OFT")]
    Oft(PeftOft),
}

/// PEFT's `LoraConfig`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct PeftLora {
    pub(super) r: usize,
    pub(super) lora_alpha: f64,
    pub(super) rank_pattern: BTreeMap<String, usize>,
    pub(super) alpha_pattern: BTreeMap<String, f64>,
    pub(super) use_rslora: bool,
    pub(super) use_dora: bool,
    pub(super) target_modules: Modules,
    pub(super) bias: Option<String>,
    pub(super) task_type: Option<String>,
    pub(super) peft_version: Option<String>,
}

/// PEFT's `OFTConfig`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct PeftOft {
    pub(super) r: usize,
    pub(super) oft_block_size: usize,
    pub(super) coft: bool,
    pub(super) eps: f64,
    pub(super) block_share: bool,
    pub(super) use_cayley_neumann: bool,
    pub(super) num_cayley_neumann_terms: usize,
    pub(super) target_modules: Modules,
    pub(super) bias: Option<String>,
    pub(super) task_type: Option<String>,
    pub(super) peft_version: Option<String>,
}

/// PEFT's `target_modules`: a list of modules, or one regular expression.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Modules {
    List(Vec<String>),
    Pattern(String),
}

impl Default for Modules {
    fn default() -> Self {
        Self::List(Vec::new())
    }
}

impl Default for PeftLora {
    fn default() -> Self {
        Self {
            r: 8,
            lora_alpha: 8.0,
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            use_rslora: false,
            use_dora: false,
            target_modules: Modules::default(),
            bias: Some("none".to_owned()),
            task_type: None,
            peft_version: Some(VERSION.to_owned()),
        }
    }
}

impl Default for PeftOft {
    fn default() -> Self {
        Self {
            r: 0,
            oft_block_size: 32,
            coft: false,
            eps: 6e-5,
            block_share: false,
            use_cayley_neumann: true,
            num_cayley_neumann_terms: 5,
            target_modules: Modules::default(),
            bias: Some("none".to_owned()),
            task_type: None,
            peft_version: Some(VERSION.to_owned()),
        }
    }
}

impl PeftConfig {
    /// Reads `adapter_config.json` of a directory.
    pub(super) fn read(folder: &Path) -> Result<Self, PipelineError> {
        let path = folder.join(CONFIG);
        let text = read_text(&path, SizeLimit::SETTINGS).map_err(|source| FormatError::Io {
            action: "read",
            path: path.clone(),
            source,
        })?;
        serde_json::from_str(&text)
            .map_err(|error| InteropError::PeftConfig { path, reason: error.to_string() }.into())
    }

    /// Reads the configurations that diffusers keeps in the metadata of the file at `path`. Older files have
    /// none.
    pub(super) fn from_diffusers_metadata(
        path: &Path,
        metadata: &HashMap<String, String>,
    ) -> Result<BTreeMap<Component, Self>, InteropError> {
        let Some(text) = metadata.get(DIFFUSERS_METADATA) else { return Ok(BTreeMap::new()) };
        let unreadable = |error: serde_json::Error| InteropError::PeftConfig {
            path: path.to_owned(),
            reason: error.to_string(),
        };
        let mut networks: BTreeMap<Component, Map<String, Value>> = BTreeMap::new();
        for (name, value) in serde_json::from_str::<Map<String, Value>>(text).map_err(unreadable)? {
            let Some((component, field)) = Component::split_path(&name) else { continue };
            networks.entry(component).or_default().insert(field.to_owned(), value);
        }
        let config = |(component, mut fields): (Component, Map<String, Value>)| {
            fields.entry("peft_type").or_insert_with(|| json!("LORA"));
            Ok((component, serde_json::from_value(Value::Object(fields)).map_err(unreadable)?))
        };
        networks.into_iter().map(config).collect()
    }

    /// Writes `adapter_config.json` into a directory.
    pub(super) fn write(&self, folder: &Path) -> Result<(), PipelineError> {
        let path = folder.join(CONFIG);
        let text = serde_json::to_string_pretty(self).map_err(|error| {
            InteropError::PeftConfig { path: path.clone(), reason: error.to_string() }
        })?;
        Ok(write_atomically(&path, text.as_bytes())?)
    }
}

impl PeftLora {
    /// The scale of a module with this rank. A pattern matches the end of the module's path, as in PEFT.
    pub(super) fn scale(&self, module: &str, rank: usize) -> f64 {
        let ends = |pattern: &&String| {
            let pattern = pattern.trim_start_matches('^').trim_end_matches('$');
            module == pattern || module.ends_with(&format!(".{pattern}"))
        };
        let alpha = self.alpha_pattern.keys().find(ends).map(|key| self.alpha_pattern[key]);
        let root = if self.use_rslora { (rank as f64).sqrt() } else { rank as f64 };
        alpha.unwrap_or(self.lora_alpha) / root
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_network_in_the_metadata_has_its_own_settings() {
        let read = |text: &str| {
            let metadata = HashMap::from([(DIFFUSERS_METADATA.to_owned(), text.to_owned())]);
            PeftConfig::from_diffusers_metadata(Path::new("a.safetensors"), &metadata)
        };
        let networks = read(
            r#"{"unet.r": 4, "unet.lora_alpha": 2, "text_encoder.r": 2, "text_encoder.lora_alpha": 4,
                "text_encoder.alpha_pattern": {"mlp.fc1": 1.0}, "text_encoder.peft_type": "LORA"}"#,
        );
        let networks = networks.expect("two configurations");
        let scale = |component, module| match &networks[&component] {
            PeftConfig::Lora(config) => config.scale(module, config.r),
            PeftConfig::Oft(_) => panic!("no OFT"),
        };
        assert_eq!(scale(Component::Unet, "x.to_q"), 0.5);
        assert_eq!(scale(Component::TextEncoder, "x.mlp.fc1"), 0.5);
        assert_eq!(scale(Component::TextEncoder, "x.mlp.fc2"), 2.0);

        // Tensors of another method, read as a LoRA, would have another scale.
        for (text, named) in [(r#"{"unet.peft_type": "LOKR"}"#, "LOKR"), ("[]", "invalid type")] {
            let error = read(text).expect_err("no LoRA").to_string();
            assert!(error.contains(named) && error.contains("a.safetensors"), "{error}");
        }
    }
}
