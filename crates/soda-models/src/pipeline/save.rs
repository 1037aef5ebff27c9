//! Saving a directory in diffusers' layout.

use std::fs;
use std::path::Path;

use burn::tensor::FloatDType;
use serde_json::json;
use soda_files::StagedFolder;

use super::family::{DIFFUSERS, TRANSFORMERS};
use super::family_name::model_index;
use super::json;
use super::model::Pipeline;
use super::text_encoders::TextEncoders;
use super::textual_inversion;
use crate::clip::ClipTextModel;
use crate::config;
use crate::error::{ConfigError, ModelError};
use crate::input_file::{self, SizeLimit};
use crate::scheduler::SchedulerConfig;
use crate::tokenizer::Tokenizer;
use crate::weights;

/// The error of the file or folder at `path`.
fn io(path: &Path) -> impl FnOnce(std::io::Error) -> ModelError {
    let path = path.to_path_buf();
    move |source| ModelError::Io { path, source }
}

impl Pipeline {
    /// Saves a directory that diffusers and [`Pipeline::load`] read, as f32. Merged weights are therefore not
    /// rounded.
    ///
    /// # Errors
    ///
    /// The errors of [`Pipeline::save_as`].
    pub fn save(&self, dir: &Path) -> Result<(), ModelError> {
        self.save_as(dir, FloatDType::F32)
    }

    /// Saves a directory that diffusers and [`Pipeline::load`] read, with weights of `dtype`.
    ///
    /// Configs and tokenizers are copied from [`Pipeline::source`], and the weights are those in memory. A
    /// language model as text encoder is copied too, in its own dtype. The directory appears whole or not at
    /// all.
    ///
    /// # Errors
    ///
    /// [`ModelError::Io`] if `dir` exists already or the system refuses to write. [`ModelError`] for files of
    /// the source that cannot be read, and for a weight that is not finite as `dtype`.
    pub fn save_as(&self, dir: &Path, dtype: FloatDType) -> Result<(), ModelError> {
        if dir.exists() {
            return Err(io(dir)(std::io::ErrorKind::AlreadyExists.into()));
        }
        self.check_writable(dir, dtype)?;
        let staged = StagedFolder::new(dir).map_err(io(dir))?;
        self.fill(staged.path(), dtype).map_err(|error| match error {
            ModelError::Io { path, source } => {
                ModelError::Io { path: staged.committed(&path), source }
            }
            other => other,
        })?;
        staged.commit().map_err(io(dir))
    }

    /// Writes all files into the empty folder `to`.
    fn fill(&self, to: &Path, dtype: FloatDType) -> Result<(), ModelError> {
        fs::write(to.join("model_index.json"), self.model_index()?).map_err(io(to))?;
        for part in self.parts() {
            let (from, to) = (self.source.join(part), to.join(part));
            fs::create_dir(&to).map_err(io(&to))?;
            for entry in fs::read_dir(&from).map_err(io(&from))? {
                let name = entry.map_err(io(&from))?.file_name();
                let file = from.join(&name);
                let settings = file
                    .extension()
                    .is_some_and(|e| ["json", "txt", "jinja"].iter().any(|known| e == *known));
                // An index of shards would mislead beside weights that are written as one file.
                let index = name.to_string_lossy().contains(".safetensors.index.");
                if settings && !index {
                    // A copy of the bytes alone: the permissions of the source may forbid later edits.
                    let bytes = input_file::read(&file, SizeLimit::TOKENIZER).map_err(io(&file))?;
                    fs::write(to.join(&name), bytes).map_err(io(&to))?;
                }
            }
        }
        self.write_schedule(&to.join("scheduler/scheduler_config.json"))?;
        let save = |part: &str, stem: &str| to.join(part).join(format!("{stem}.safetensors"));
        let save_text = |tokenizer: &Tokenizer, encoder: &ClipTextModel, suffix: &str| {
            let encoder = encoder.clone().with_merged_tokens();
            let [own, of_tokenizer] =
                ["text_encoder", "tokenizer"].map(|part| format!("{part}{suffix}"));
            textual_inversion::save(tokenizer, &encoder, &to.join(of_tokenizer), &to.join(&own))?;
            weights::save(&encoder, &save(&own, TRANSFORMERS), dtype)
        };
        match &self.text {
            // Only some layers are in memory, and nothing changes them.
            TextEncoders::Qwen3(_) => self.copy_weights("text_encoder", to)?,
            TextEncoders::Clip(clip) => {
                save_text(&clip.tokenizer, &clip.text_encoder, "")?;
                if let Some(second) = &clip.second {
                    save_text(&second.tokenizer, &second.text_encoder, "_2")?;
                }
            }
        }
        weights::save(&self.denoiser, &save(self.denoiser.folder(), DIFFUSERS), dtype)?;
        weights::save(&self.vae, &save("vae", DIFFUSERS), dtype)
    }

    /// Copies the weight files of the folder `part` as they are, with an index of shards.
    fn copy_weights(&self, part: &str, to: &Path) -> Result<(), ModelError> {
        let from = self.source.join(part);
        for entry in fs::read_dir(&from).map_err(io(&from))? {
            let name = entry.map_err(io(&from))?.file_name();
            if name.to_string_lossy().contains(".safetensors") {
                let file = from.join(&name);
                fs::copy(&file, to.join(part).join(&name)).map_err(io(&file))?;
            }
        }
        Ok(())
    }

    /// Refuses weights that are not finite as `dtype`, before anything is written.
    fn check_writable(&self, dir: &Path, dtype: FloatDType) -> Result<(), ModelError> {
        weights::check_writable(&self.denoiser, &dir.join(self.denoiser.folder()), dtype)?;
        match &self.text {
            TextEncoders::Qwen3(_) => {}
            TextEncoders::Clip(clip) => {
                weights::check_writable(&clip.text_encoder, &dir.join("text_encoder"), dtype)?;
                if let Some(second) = &clip.second {
                    let part = dir.join("text_encoder_2");
                    weights::check_writable(&second.text_encoder, &part, dtype)?;
                }
            }
        }
        weights::check_writable(&self.vae, &dir.join("vae"), dtype)
    }

    /// Writes what a fine-tune or a mark has changed of the schedule into the copied config. The rest of the
    /// config is kept as it is, also what is not implemented.
    fn write_schedule(&self, path: &Path) -> Result<(), ModelError> {
        let (file, own): (SchedulerConfig, _) = (config::read(path)?, &self.scheduler);
        if file.prediction_type == own.prediction_type
            && file.rescale_betas_zero_snr == own.rescale_betas_zero_snr
        {
            return Ok(());
        }
        let other_class = file.class != own.class || file.replaced != own.replaced;
        json::edit(path, |file| {
            file.insert("prediction_type".to_owned(), json!(own.prediction_type));
            file.insert("rescale_betas_zero_snr".to_owned(), json!(own.rescale_betas_zero_snr));
            if own.rescale_betas_zero_snr {
                file.insert("timestep_spacing".to_owned(), json!("trailing"));
            }
            if other_class {
                file.insert("_class_name".to_owned(), json!(own.class));
                for (field, value) in
                    [("clip_sample", own.clip_sample), ("set_alpha_to_one", own.set_alpha_to_one)]
                {
                    if let Some(value) = value {
                        file.insert(field.to_owned(), json!(value));
                    }
                }
            }
        })
    }

    /// The names of the directory's folders.
    fn parts(&self) -> Vec<&'static str> {
        let mut parts =
            vec!["scheduler", "tokenizer", "text_encoder", self.denoiser.folder(), "vae"];
        if self.text.clip().is_some_and(|clip| clip.second.is_some()) {
            parts.extend(["tokenizer_2", "text_encoder_2"]);
        }
        parts
    }

    /// The source's `model_index.json` without the parts that are not written, such as a safety checker.
    /// diffusers would look for them.
    fn model_index(&self) -> Result<String, ModelError> {
        let path = self.source.join("model_index.json");
        let mut index = model_index(&self.source)?;
        for (part, class) in &mut index {
            if class.is_array() && !self.parts().contains(&part.as_str()) {
                *class = json!([null, null]);
            }
        }
        // diffusers takes the class from here, and not from the scheduler's config.
        let file: SchedulerConfig =
            config::read(&self.source.join("scheduler/scheduler_config.json"))?;
        if file.class != self.scheduler.class || file.replaced != self.scheduler.replaced {
            let class = self.scheduler.class.class_name();
            index.insert("scheduler".to_string(), json!(["diffusers", class]));
        }
        if self.text.clip().is_some_and(|clip| clip.second.is_none()) {
            index.insert("requires_safety_checker".to_string(), json!(false));
        }
        serde_json::to_string_pretty(&index)
            .map_err(|source| ConfigError::Json { path, source }.into())
    }
}
