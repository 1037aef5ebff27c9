//! `soda config`

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use soda_models::input_file::SizeLimit;
use soda_train::{PRESETS, Personalisation, TrainConfig, read_text};

use crate::args::{DeviceArg, SettingsArgs};
use crate::progress::print_result;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  soda config presets
  soda config show --preset paper
  soda config check mug.toml")]
pub(crate) struct ConfigArgs {
    #[command(subcommand)]
    pub(crate) action: ConfigAction,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigAction {
    /// Print every setting as TOML, including defaults
    Show(Box<SettingsArgs>),
    /// List the presets
    Presets,
    /// Read a configuration and every file that it names
    Check {
        /// The configuration
        config: PathBuf,
        #[command(flatten)]
        device: DeviceArg,
    },
}

pub(crate) fn run(args: ConfigArgs) -> Result<()> {
    match args.action {
        ConfigAction::Presets => {
            for preset in PRESETS {
                print_result(&format!("{:<10} {}", preset.name, preset.about));
            }
        }
        ConfigAction::Show(mut settings) => {
            // The other settings can be shown without these two.
            settings.base.get_or_insert_with(|| "path/to/base".into());
            settings.data.get_or_insert_with(|| "path/to/images".into());
            let config = settings.train_config()?;
            config.to_toml()?.lines().for_each(print_result);
        }
        ConfigAction::Check { config: path, device } => {
            let text = read_text(&path, SizeLimit::SETTINGS)?;
            let named = || path.display().to_string();
            let config = TrainConfig::from_toml(&text).with_context(named)?;
            Personalisation::new(config, &device.device.open()?).with_context(named)?;
            print_result(&format!("{}: nothing is wrong with it", path.display()));
        }
    }
    Ok(())
}
