//! From what was typed to a configuration.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Args as ClapArgs;
use soda_adapters::soda::RotationConfig;
use soda_adapters::{MethodConfig, Targets};
use soda_train::{TrainConfig, preset, set};

/// What a run's settings are made of: a preset or a file, then options, then `--set`.
#[derive(Debug, ClapArgs)]
pub(crate) struct SettingsArgs {
    /// Start from this configuration; other options override it
    #[arg(long, value_name = "TOML")]
    pub(crate) config: Option<PathBuf>,
    /// Start from a preset (`soda config presets` lists them) [default: toybox]
    #[arg(long, value_name = "NAME", conflicts_with = "config")]
    pub(crate) preset: Option<String>,
    /// Any setting of `soda config show`, such as optimizer.rotation_lr=1e-3; may be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// The base model: a diffusers directory, or a name on a hub
    #[arg(long, value_name = "DIR|NAME")]
    pub(crate) base: Option<PathBuf>,
    /// The pictures to learn from
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// Evaluation models (clip/ and dino/); scores are given only with them
    #[arg(long, value_name = "DIR")]
    pub(crate) judges: Option<PathBuf>,
    /// Caption of pictures that have none
    #[arg(long, value_name = "TEXT")]
    pub(crate) prompt: Option<String>,
    /// Optimizer steps
    #[arg(long)]
    pub(crate) steps: Option<usize>,
    /// Pictures per step
    #[arg(long)]
    pub(crate) batch_size: Option<usize>,
    /// Seed of data order, noise and samples
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// Learning rate of the rotations
    #[arg(long, value_name = "LR")]
    pub(crate) rotation_lr: Option<f64>,
    /// Learning rate of the spectral shifts
    #[arg(long, value_name = "LR")]
    pub(crate) spectrum_lr: Option<f64>,
    /// Adapted weights: a preset (attention, cross-attention, attention+ff, all-linear, conv) or a
    /// regular expression over weight paths; may be given several times
    #[arg(long, value_name = "PATTERN")]
    pub(crate) target: Vec<String>,
    /// How weights are adapted: soda, soda-qr, svdiff, lora, dora, oft, ... (a wrong name lists all)
    #[arg(long, value_name = "NAME")]
    pub(crate) method: Option<String>,
    /// Train adapters of the text encoders beside the UNet's (docs/guide-text-encoder.md)
    #[arg(long)]
    pub(crate) train_text_encoder: bool,
    /// Their learning rate, if it is another than the UNet's; trains them
    #[arg(long, value_name = "LR")]
    pub(crate) text_encoder_lr: Option<f64>,
    /// A new word that is learnt beside, and the words that it starts from: `<mug>=mug`; may be given several times
    /// (docs/guide-words.md)
    #[arg(long, value_name = "WORD=WORDS")]
    pub(crate) token: Vec<String>,
    /// The learning rate of new words, if it is another than that of everything flat
    #[arg(long, value_name = "LR", requires = "token")]
    pub(crate) token_lr: Option<f64>,
    /// Words that call the subject up: what `[trigger]` in captions and prompts stands for
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
    /// Prompt to draw before and after; may be given several times
    #[arg(long, value_name = "TEXT")]
    pub(crate) sample: Vec<String>,
}

/// What was typed over what the file or the preset says over the defaults.
///
/// # Errors
/// A file that cannot be read, an unknown setting, a setting of another method.
pub(crate) fn resolve(args: &SettingsArgs) -> Result<TrainConfig> {
    let mut table = match &args.config {
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read the configuration {}", path.display()))?;
            // Read as what it should be, so that a mistake is told with its line.
            let config =
                TrainConfig::from_toml(&text).with_context(|| path.display().to_string())?;
            toml::Table::try_from(config)?
        }
        None => preset(args.preset.as_deref().unwrap_or("toybox"))?,
    };
    for (key, path) in [("base", &args.base), ("data", &args.data), ("judges", &args.judges)] {
        if let Some(path) = path {
            let path = path.to_str().with_context(|| format!("--{key} is no UTF-8"))?;
            table.insert(key.to_owned(), path.into());
        }
    }
    if let Some(prompt) = &args.prompt {
        table.insert("prompt".to_owned(), prompt.as_str().into());
    }
    if let Some(name) = &args.method {
        set(&mut table, &format!("method={name}"))?;
    }
    for setting in &args.set {
        set(&mut table, setting)?;
    }
    if !(table.contains_key("base") && table.contains_key("data")) {
        anyhow::bail!("give --config, or --base and --data");
    }
    let mut config = TrainConfig::from_table(table)?;
    let rate = |field: &mut f64, value: Option<f64>| *field = value.unwrap_or(*field);
    rate(&mut config.optimizer.rotation_lr, args.rotation_lr);
    rate(&mut config.optimizer.spectrum_lr, args.spectrum_lr);
    config.steps = args.steps.unwrap_or(config.steps);
    config.batch_size = args.batch_size.unwrap_or(config.batch_size);
    config.seed = args.seed.unwrap_or(config.seed);
    if !args.target.is_empty() {
        config.targets = Targets(args.target.clone());
    }
    if !args.sample.is_empty() {
        config.samples.prompts.clone_from(&args.sample);
    }
    if args.train_text_encoder || args.text_encoder_lr.is_some() {
        let text_encoder = config.text_encoder.get_or_insert_default();
        text_encoder.enabled = true;
        text_encoder.learning_rate = args.text_encoder_lr.or(text_encoder.learning_rate);
    }
    config.trigger = args.trigger.clone().or(config.trigger);
    for word in &args.token {
        let (word, like) = word.split_once('=').unwrap_or((word, ""));
        let tokens = config.tokens.get_or_insert_default();
        tokens.words.insert(word.to_owned(), like.to_owned());
        tokens.learning_rate = args.token_lr.or(tokens.learning_rate);
    }
    soda_options(args, &mut config)?;
    Ok(config)
}

fn soda_options(args: &SettingsArgs, config: &mut TrainConfig) -> Result<()> {
    if args.factors.is_none() && !args.no_rotation && !args.no_spectrum {
        return Ok(());
    }
    let MethodConfig::Soda(soda) = &mut config.method else {
        anyhow::bail!("--factors, --no-rotation and --no-spectrum are settings of SODA");
    };
    if let Some(factors) = args.factors {
        soda.rotation =
            Some(RotationConfig { factors, ..soda.rotation.take().unwrap_or_default() });
    }
    if args.no_rotation {
        soda.rotation = None;
    }
    if args.no_spectrum {
        soda.spectrum = None;
    }
    Ok(())
}
