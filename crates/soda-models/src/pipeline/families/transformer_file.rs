//! A transformer from a file of its own, in the names of the original code.

use std::path::Path;

use burn::tensor::{Device, FloatDType};

use super::qwen3_and_transformer::Qwen3AndTransformer;
use crate::error::ModelError;
use crate::pipeline::family::{Configs, DIFFUSERS, Family, Found, LoadOptions};
use crate::pipeline::family_name::{FamilyName, model_index};
use crate::pipeline::load_warning::LoadWarning;
use crate::pipeline::model::Pipeline;
use crate::pipeline::prompt_encoding::PromptEncoding;
use crate::weights::Checkpoint;
use crate::weights::ldm::Layout;

/// What all keys of a single file may begin with: nothing, as in the published files, or the names of the
/// transformer in larger files of ComfyUI.
const PREFIXES: [&str; 3] = ["", "model.diffusion_model.", "diffusion_model."];

/// A family whose single files are the transformer alone.
pub(in crate::pipeline) trait TransformerFamily:
    Family<Weights = Qwen3AndTransformer>
{
    /// The layout of the transformer in a file in which all keys begin with `prefix`.
    fn original_layout(&self, prefix: &'static str) -> Layout;
}

/// An open file of a transformer in the original names.
#[derive(Debug)]
pub(in crate::pipeline) struct TransformerFile<'a> {
    /// The family that has the names.
    pub(in crate::pipeline) family: FamilyName,
    /// What the keys of the transformer begin with.
    prefix: &'static str,
    checkpoint: &'a Checkpoint,
}

impl<'a> TransformerFile<'a> {
    /// Recognises a transformer in the original names. `None` for another file.
    pub(in crate::pipeline) fn of(checkpoint: &'a Checkpoint) -> Option<Self> {
        let has =
            |prefix: &str, mark: &str| checkpoint.entries.contains_key(&format!("{prefix}{mark}"));
        FamilyName::TRANSFORMERS.into_iter().find_map(|family| {
            let all = |prefix: &&str| family.marks().iter().all(|mark| has(prefix, mark));
            let prefix = PREFIXES.into_iter().find(all)?;
            Some(Self { family, prefix, checkpoint })
        })
    }

    /// Loads the transformer, and all else from the directory `source`.
    ///
    /// Tensors of other networks are left out with a warning.
    pub(in crate::pipeline) fn load<F: TransformerFamily>(
        &self,
        source: &Path,
        dtype: FloatDType,
        device: &Device,
    ) -> Result<Pipeline, ModelError> {
        let configs =
            Configs::<F>::read(source, &model_index(source)?, &PromptEncoding::default())?;
        let mut found = Found::new(source, None);
        let transformer = configs.family.original_layout(self.prefix).read(self.checkpoint);
        let weights = Qwen3AndTransformer::with_transformer(&mut found, transformer)?;
        let vae = found.open("vae", DIFFUSERS)?;
        let mut warnings = found.warnings()?;
        let keys = self.checkpoint.entries.keys();
        let mut others = keys.filter(|key| !key.starts_with(self.prefix));
        if let Some(first) = others.next().cloned() {
            let (file, count) = (self.checkpoint.path.clone(), 1 + others.count());
            warnings.push(LoadWarning::UnreadTensors { file, count, first });
        }
        let options = LoadOptions { dtype, ..LoadOptions::default() };
        let mut pipeline = Pipeline::assemble(source, configs, weights, vae, &options, device)?;
        pipeline.warnings = warnings;
        Ok(pipeline)
    }
}
