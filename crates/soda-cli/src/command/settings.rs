//! From what was typed to a configuration.

use anyhow::{Context as _, Result};
use soda_adapters::soda::RotationConfig;
use soda_adapters::{MethodConfig, Targets};
use soda_train::{TrainConfig, preset, set};

use crate::args::SettingsArgs;

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
