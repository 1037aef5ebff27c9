//! `adapter_config.json`, as PEFT 0.21 writes and reads it: the fields that change the numbers.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::AdapterError;
use crate::tensors::write_whole;

/// File names in a PEFT directory.
pub(super) const CONFIG: &str = "adapter_config.json";
pub(super) const TENSORS: &str = "adapter_model.safetensors";

/// Whose rules these are; without it PEFT takes a directory for one of before 0.18, with another series.
const VERSION: &str = "0.21.0";

/// What a PEFT directory says of its tensors.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "peft_type")]
pub(super) enum PeftConfig {
    #[serde(rename = "LORA")]
    Lora(PeftLora),
    #[serde(rename = "OFT")]
    Oft(PeftOft),
}

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

/// A list of modules, or one regular expression.
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
    pub(super) fn read(folder: &Path) -> Result<Self, AdapterError> {
        let path = folder.join(CONFIG);
        let text = std::fs::read_to_string(&path).map_err(|source| AdapterError::Io {
            action: "read",
            path: path.clone(),
            source,
        })?;
        serde_json::from_str(&text)
            .map_err(|error| AdapterError::PeftConfig { path, reason: error.to_string() })
    }

    pub(super) fn write(&self, folder: &Path) -> Result<(), AdapterError> {
        let path = folder.join(CONFIG);
        let text = serde_json::to_string_pretty(self).map_err(|error| {
            AdapterError::PeftConfig { path: path.clone(), reason: error.to_string() }
        })?;
        write_whole(&path, text.as_bytes())
    }
}

impl PeftLora {
    /// `s` of the module: PEFT matches a pattern against the end of the module's path.
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
