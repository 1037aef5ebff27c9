//! The options of a training configuration.

use std::path::PathBuf;

use anyhow::{Context as _, Error, Result};
use clap::Args;
use soda_adapters::soda::{Parametrization, RotationConfig, Structure};
use soda_adapters::{MethodConfig, Targets};
use soda_models::input_file::SizeLimit;
use soda_train::{TrainConfig, apply_setting, merge_settings, preset, read_text};
use toml::{Table, Value};

use super::number::{finite, seed};
use crate::usage::{UsageError, require};

/// The sources of a training configuration: a preset, a file, then `--set`, then the other options.
#[derive(Debug, Args)]
pub(crate) struct SettingsArgs {
    /// Settings in a file; they override those of --preset, and other options override them. Without
    /// --preset the file has all settings that have no default
    #[arg(long, value_name = "TOML")]
    pub(crate) config: Option<PathBuf>,
    /// Start from a preset (`soda config presets` lists them) [default: toybox, or none with --config]
    #[arg(long, value_name = "NAME")]
    pub(crate) preset: Option<String>,
    /// Any setting of `soda config show`, such as optimizer.rotation_lr=1e-3; may be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// The base model: a diffusers directory, or a name on a hub
    #[arg(long, value_name = "DIR|NAME")]
    pub(crate) base: Option<PathBuf>,
    /// The folder of training images
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// Evaluation models (clip/ and dino/); scores are given only with them
    #[arg(long, value_name = "DIR")]
    pub(crate) judges: Option<PathBuf>,
    /// Caption of images that have none
    #[arg(long, value_name = "TEXT")]
    pub(crate) prompt: Option<String>,
    /// Optimizer steps
    #[arg(long)]
    pub(crate) steps: Option<usize>,
    /// Images in a batch of each process
    #[arg(long)]
    pub(crate) batch_size: Option<usize>,
    /// Seed of data order, noise and samples
    #[arg(long, value_parser = seed)]
    pub(crate) seed: Option<u64>,
    /// Learning rate of the rotations
    #[arg(long, value_name = "LR", value_parser = finite)]
    pub(crate) rotation_lr: Option<f64>,
    /// Learning rate of the spectrum, and of every parameter that is no rotation
    #[arg(long, value_name = "LR", value_parser = finite)]
    pub(crate) spectrum_lr: Option<f64>,
    /// Adapted weights: a preset (attention, cross-attention, attention+ff, all-linear, conv) or a
    /// regular expression over weight paths; may be given several times
    #[arg(long, value_name = "PATTERN")]
    pub(crate) target: Vec<String>,
    /// How weights are adapted: soda, soda-qr, svdiff, lora, dora, oft, ... (a wrong name lists all)
    #[arg(long, value_name = "NAME")]
    pub(crate) method: Option<String>,
    /// Train adapters of the text encoders besides those of the denoiser (docs/guide/text-encoder.md)
    #[arg(long)]
    pub(crate) train_text_encoder: bool,
    /// Train the text encoders with this learning rate instead of that of the denoiser
    #[arg(long, value_name = "LR", value_parser = finite)]
    pub(crate) text_encoder_lr: Option<f64>,
    /// Textual inversion: a new word, and the words that its embedding starts from, as in `<mug>=mug`; may be
    /// given several times (docs/guide/textual-inversion.md)
    #[arg(long, value_name = "WORD=WORDS")]
    pub(crate) token: Vec<String>,
    /// Learning rate of the new words instead of --spectrum-lr
    #[arg(long, value_name = "LR", value_parser = finite, requires = "token")]
    pub(crate) token_lr: Option<f64>,
    /// The trigger words, which replace `[trigger]` in captions and prompts
    #[arg(long, value_name = "WORDS")]
    pub(crate) trigger: Option<String>,
    /// Number of Kronecker factors of each rotation
    #[arg(long, value_name = "M", conflicts_with = "no_rotation")]
    pub(crate) factors: Option<usize>,
    /// Train the spectrum only (SVDiff)
    #[arg(long, conflicts_with = "no_spectrum")]
    pub(crate) no_rotation: bool,
    /// Train the rotations only
    #[arg(long)]
    pub(crate) no_spectrum: bool,
    /// Prompt of images before and after the training; may be given several times
    #[arg(long, value_name = "TEXT")]
    pub(crate) sample: Vec<String>,
}

impl SettingsArgs {
    /// Makes the configuration: defaults, then the preset, then the file, then the options.
    ///
    /// # Errors
    /// A file that cannot be read or that is wrong by itself. A [`UsageError`] for an unknown setting, one
    /// that is out of its range, or a setting of another method.
    pub(crate) fn train_config(&self) -> Result<TrainConfig> {
        let file = self.file()?;
        let table = self.table(file.as_ref())?;
        let mut config = TrainConfig::from_table(table).map_err(|error| match &self.config {
            Some(path) if self.preset.is_none() => UsageError::new(format!(
                "{error}; --preset gives what {} leaves out",
                path.display()
            )),
            _ => UsageError::new(error),
        })?;
        self.override_rates(&mut config);
        config.steps = self.steps.unwrap_or(config.steps);
        config.batch_size = self.batch_size.unwrap_or(config.batch_size);
        config.seed = self.seed.unwrap_or(config.seed);
        if !self.target.is_empty() {
            config.targets = Targets(self.target.clone());
        }
        if !self.sample.is_empty() {
            config.samples.prompts.clone_from(&self.sample);
        }
        config.trigger = self.trigger.clone().or(config.trigger);
        for word in &self.token {
            let (word, like) = word.split_once('=').unwrap_or((word, ""));
            let (word, like) = (word.trim(), like.trim());
            let tokens = config.tokens.get_or_insert_default();
            tokens.words.insert(word.to_owned(), like.to_owned());
            tokens.learning_rate = self.token_lr.or(tokens.learning_rate);
        }
        self.override_soda(&mut config)?;
        require(
            self.rotation_lr.is_none() || trains_rotations(&config.method),
            "--rotation-lr belongs to rotations that stay on their manifold, which this method does not \
             train; give --spectrum-lr",
        )?;
        let Err(error) = config.check() else { return Ok(config) };
        // The file is to blame if it is wrong without the options too.
        let own = file.and_then(|file| TrainConfig::from_table(file).ok());
        match (own.map(|file| file.check()), &self.config) {
            (Some(Err(own)), Some(path)) if own.to_string() == error.to_string() => {
                Err(Error::from(error).context(path.display().to_string()))
            }
            _ => Err(UsageError::new(error).into()),
        }
    }

    /// Whether the command line, rather than a file, says which adapters are trained.
    pub(crate) fn describe_adapters(&self) -> bool {
        let changed = !self.set.is_empty() || !self.target.is_empty();
        self.config.is_none() || changed || self.method.is_some() || self.factors.is_some()
    }

    /// Reads the configuration file, if one is given. It may lack settings, but has no wrong ones.
    fn file(&self) -> Result<Option<Table>> {
        let Some(path) = &self.config else { return Ok(None) };
        let text = read_text(path, SizeLimit::SETTINGS)?;
        // The text is parsed as a configuration, so that an error names its line.
        let whole = TrainConfig::from_toml(&text).map(|_| ());
        let mut table: Table = match toml::from_str(&text) {
            Ok(table) => table,
            Err(_) => return whole.map(|()| None).with_context(|| path.display().to_string()),
        };
        // A method that is given by its name gets its settings, so that --set can change one.
        if let Some(name) = table.get("method").and_then(Value::as_str) {
            let method = format!("method={name}");
            apply_setting(&mut table, &method).with_context(|| path.display().to_string())?;
        }
        let mut tried = self.preset_table()?;
        apply_setting(&mut tried, "base=base")?;
        apply_setting(&mut tried, "data=data")?;
        merge_settings(&mut tried, table.clone());
        // A file that is right over a preset lacks settings, and no more.
        if TrainConfig::from_table(tried).is_err() {
            whole.with_context(|| path.display().to_string())?;
        }
        Ok(Some(table))
    }

    /// The settings of the preset.
    fn preset_table(&self) -> Result<Table, UsageError> {
        preset(self.preset.as_deref().unwrap_or("toybox")).map_err(UsageError::new)
    }

    /// The options that are settings of the TOML form, over those of the file and of the preset.
    fn table(&self, file: Option<&Table>) -> Result<Table> {
        let mut table = match (&self.preset, file) {
            (None, Some(file)) => file.clone(),
            (_, file) => {
                let mut table = self.preset_table()?;
                merge_settings(&mut table, file.cloned().unwrap_or_default());
                table
            }
        };
        for (key, path) in [("base", &self.base), ("data", &self.data), ("judges", &self.judges)] {
            if let Some(path) = path {
                let path = path.to_str().with_context(|| format!("--{key} is no UTF-8"))?;
                table.insert(key.to_owned(), path.into());
            }
        }
        if let Some(prompt) = &self.prompt {
            table.insert("prompt".to_owned(), prompt.as_str().into());
        }
        if let Some(name) = &self.method {
            apply_setting(&mut table, &format!("method={name}")).map_err(UsageError::new)?;
        }
        for setting in &self.set {
            apply_setting(&mut table, setting).map_err(UsageError::new)?;
        }
        let complete = table.contains_key("base") && table.contains_key("data");
        require(complete, "give --base and --data, or a --config that has both")?;
        Ok(table)
    }

    fn override_rates(&self, config: &mut TrainConfig) {
        let optimizer = &mut config.optimizer;
        optimizer.rotation_lr = self.rotation_lr.unwrap_or(optimizer.rotation_lr);
        optimizer.spectrum_lr = self.spectrum_lr.unwrap_or(optimizer.spectrum_lr);
        if self.train_text_encoder || self.text_encoder_lr.is_some() {
            let text_encoder = config.text_encoder.get_or_insert_default();
            text_encoder.enabled = true;
            text_encoder.learning_rate = self.text_encoder_lr.or(text_encoder.learning_rate);
        }
    }

    fn override_soda(&self, config: &mut TrainConfig) -> Result<(), UsageError> {
        if self.factors.is_none() && !self.no_rotation && !self.no_spectrum {
            return Ok(());
        }
        let MethodConfig::Soda(soda) = &mut config.method else {
            return Err(UsageError::new(
                "--factors, --no-rotation and --no-spectrum are settings of SODA",
            ));
        };
        if let Some(factors) = self.factors {
            soda.rotation =
                Some(RotationConfig { factors, ..soda.rotation.take().unwrap_or_default() });
        }
        if self.no_rotation {
            soda.rotation = None;
        }
        if self.no_spectrum {
            soda.spectrum = None;
        }
        Ok(())
    }
}

/// Whether a method has parameters that `optimizer.rotation_lr` is for.
fn trains_rotations(method: &MethodConfig) -> bool {
    let MethodConfig::Soda(soda) = method else { return false };
    soda.rotation.as_ref().is_some_and(|rotation| {
        rotation.parametrization == Parametrization::Stiefel
            && rotation.structure != Structure::Householder
    })
}
