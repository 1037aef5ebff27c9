//! The configuration of an adapter in PEFT 0.21, with the fields that change its numbers.
//!
//! A PEFT directory has it as `adapter_config.json`. diffusers keeps it in the metadata of a LoRA's file.

mod fields;

use std::path::Path;

use serde::Serialize;

use super::pattern_table::PatternTable;
use crate::error::{InteropError, PipelineError};
use crate::safetensors_file::write_atomically;

/// File name of the configuration in a PEFT directory.
pub(super) const CONFIG: &str = "adapter_config.json";
/// File name of the tensors in a PEFT directory.
pub(super) const TENSORS: &str = "adapter_model.safetensors";

/// The version whose rules the files follow. Without it, PEFT assumes a version before 0.18 with another
/// Neumann series.
const VERSION: &str = "0.21.0";

/// The configuration of a PEFT adapter, by method.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "peft_type")]
pub(super) enum PeftConfig {
    #[serde(rename = "LORA")]
    Lora(PeftLora),
    #[serde(rename = "OFT")]
    Oft(PeftOft),
    #[serde(rename = "LOHA")]
    Loha(PeftLycoris),
    #[serde(rename = "LOKR")]
    Lokr(PeftLycoris),
    /// All settings of a BOFT are in the shapes of its tensors.
    #[serde(rename = "BOFT")]
    Boft,
    #[serde(rename = "HRA")]
    Hra(PeftHra),
}

/// PEFT's `LoraConfig`.
#[derive(Clone, Debug, Serialize)]
pub(super) struct PeftLora {
    pub(super) r: usize,
    pub(super) lora_alpha: f64,
    pub(super) rank_pattern: PatternTable<usize>,
    pub(super) alpha_pattern: PatternTable<f64>,
    pub(super) use_rslora: bool,
    /// `None` for a configuration without this field.
    pub(super) use_dora: Option<bool>,
    /// Whether the configuration has `r`. Without it, the rank is that of the tensors.
    #[serde(skip)]
    pub(super) has_rank: bool,
    /// Whether initial values were taken off the base.
    #[serde(skip)]
    pub(super) init: PeftInit,
    pub(super) target_modules: Modules,
    pub(super) bias: Option<String>,
    pub(super) task_type: Option<String>,
    pub(super) peft_version: Option<String>,
}

/// What the initial values of a LoRA do to the base.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum PeftInit {
    /// Nothing.
    #[default]
    OnBase,
    /// The leading singular triples are taken off.
    Pissa,
}

/// PEFT's `OFTConfig`.
#[derive(Clone, Debug, Serialize)]
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

/// PEFT's `HRAConfig`. The number of reflections is also in the shapes of the tensors.
#[derive(Clone, Debug, Serialize)]
pub(super) struct PeftHra {
    pub(super) r: usize,
    #[serde(rename = "apply_GS")]
    pub(super) apply_gs: bool,
    pub(super) target_modules: Modules,
    pub(super) bias: Option<String>,
    pub(super) task_type: Option<String>,
    pub(super) peft_version: Option<String>,
}

/// PEFT's `LoHaConfig` and `LoKrConfig`.
#[derive(Clone, Debug, Serialize)]
pub(super) struct PeftLycoris {
    pub(super) r: usize,
    pub(super) alpha: f64,
    pub(super) rank_pattern: PatternTable<usize>,
    pub(super) alpha_pattern: PatternTable<f64>,
}

/// PEFT's `target_modules`.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Modules {
    /// The names of the modules.
    List(Vec<String>),
}

impl Default for PeftLora {
    fn default() -> Self {
        Self {
            r: 8,
            lora_alpha: 8.0,
            rank_pattern: PatternTable::default(),
            alpha_pattern: PatternTable::default(),
            use_rslora: false,
            use_dora: Some(false),
            has_rank: true,
            init: PeftInit::default(),
            target_modules: Modules::List(Vec::new()),
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
            target_modules: Modules::List(Vec::new()),
            bias: Some("none".to_owned()),
            task_type: None,
            peft_version: Some(VERSION.to_owned()),
        }
    }
}

impl PeftHra {
    /// Without Gram-Schmidt, which makes other vectors of the trained ones.
    pub(super) fn new(r: usize, target_modules: Modules) -> Self {
        Self {
            r,
            apply_gs: false,
            target_modules,
            bias: Some("none".to_owned()),
            task_type: None,
            peft_version: Some(VERSION.to_owned()),
        }
    }
}

impl PeftConfig {
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
    /// Checks that PEFT would make tensors of this rank for a module.
    ///
    /// # Errors
    /// [`InteropError::Settings`] for another rank, whose scale PEFT would not have.
    pub(super) fn check_rank(&self, module: &str, rank: usize) -> Result<(), InteropError> {
        let expected = self.rank_pattern.get(module).or(self.has_rank.then_some(self.r));
        if expected.is_none_or(|expected| expected == rank) {
            return Ok(());
        }
        let reason = "`r` or `rank_pattern` is another rank than that of the tensors; \
                      save the adapter again with the tool that made it";
        Err(InteropError::Settings { method: "LORA", reason })
    }

    /// Checks that a layer has a magnitude if the configuration says so, and none if it denies it.
    ///
    /// # Errors
    /// [`InteropError::Settings`].
    pub(super) fn check_magnitude(&self, has_magnitude: bool) -> Result<(), InteropError> {
        let reason = match (self.use_dora, has_magnitude) {
            (Some(true), false) => {
                "`use_dora` is true, and a layer has no magnitude; \
                 save the adapter again with the tool that made it"
            }
            (Some(false), true) => {
                "`use_dora` is false, and a layer has a magnitude; \
                 set it to true, or remove the magnitudes"
            }
            _ => return Ok(()),
        };
        Err(InteropError::Settings { method: "LORA", reason })
    }

    /// The scale of a module with this rank.
    pub(super) fn scale(&self, module: &str, rank: usize) -> f64 {
        let root = if self.use_rslora { (rank as f64).sqrt() } else { rank as f64 };
        self.alpha_pattern.get(module).unwrap_or(self.lora_alpha) / root
    }
}

impl PeftLycoris {
    /// The rank of a module, which is not in the shapes of two whole matrices.
    pub(super) fn rank(&self, module: &str) -> usize {
        self.rank_pattern.get(module).unwrap_or(self.r)
    }

    /// The scale of a module with this rank.
    pub(super) fn scale(&self, module: &str, rank: usize) -> f64 {
        self.alpha_pattern.get(module).unwrap_or(self.alpha) / rank.max(1) as f64
    }
}
