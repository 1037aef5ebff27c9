//! The transformer of FLUX.2 from a file of its own, in the names of the original code.

use std::path::Path;

use burn::tensor::{Device, FloatDType};

use super::flux2_klein::Flux2KleinConfigs;
use super::qwen3_and_transformer::Qwen3AndTransformer;
use crate::error::ModelError;
use crate::pipeline::family::{Configs, DIFFUSERS, Found, LoadOptions};
use crate::pipeline::family_name::model_index;
use crate::pipeline::load_warning::LoadWarning;
use crate::pipeline::model::Pipeline;
use crate::pipeline::prompt_encoding::PromptEncoding;
use crate::weights::Checkpoint;
use crate::weights::ldm::Layout;

/// A key that every transformer of FLUX.2 has in the original names, and no other model.
pub(in crate::pipeline) const MARK: &str = "single_stream_modulation.lin.weight";

/// What all keys of a single file may begin with: nothing, as in the published files, or the names of the
/// transformer in larger files of ComfyUI.
const PREFIXES: [&str; 3] = ["", "model.diffusion_model.", "diffusion_model."];

/// Returns what the keys of a transformer in the original names begin with. `None` for another file.
pub(in crate::pipeline) fn prefix_of(checkpoint: &Checkpoint) -> Option<&'static str> {
    let has = |prefix: &&str| checkpoint.entries.contains_key(&format!("{prefix}{MARK}"));
    PREFIXES.into_iter().find(has)
}

impl Pipeline {
    /// Loads a transformer in the original names, and all else from the directory `source`.
    ///
    /// `prefix` is what the keys begin with. Tensors of other networks are left out with a warning.
    pub(in crate::pipeline) fn load_flux2_file(
        file: &Checkpoint,
        prefix: &'static str,
        source: &Path,
        dtype: FloatDType,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let configs = Configs::<Flux2KleinConfigs>::read(
            source,
            &model_index(source)?,
            &PromptEncoding::default(),
        )?;
        let mut found = Found::new(source, None);
        let transformer = Layout::flux2(configs.family.transformer(), prefix).read(file);
        let weights = Qwen3AndTransformer::with_transformer(&mut found, transformer)?;
        let vae = found.open("vae", DIFFUSERS)?;
        let mut warnings = found.warnings()?;
        let others = || file.entries.keys().filter(|key| !key.starts_with(prefix));
        if let Some(first) = others().next() {
            let (file, count, first) = (file.path.clone(), others().count(), first.clone());
            warnings.push(LoadWarning::UnreadTensors { file, count, first });
        }
        let options = LoadOptions { dtype, ..LoadOptions::default() };
        let mut pipeline = Self::assemble(source, configs, weights, vae, &options, device)?;
        pipeline.warnings = warnings;
        Ok(pipeline)
    }
}
