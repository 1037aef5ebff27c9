//! Named starting points. What a preset does not name has the default that `soda config show` prints.

use toml::Table;

use super::edit::nearest;
use crate::error::TrainError;

/// A starting point for a base and a purpose.
#[derive(Clone, Copy, Debug)]
pub struct Preset {
    /// Its name.
    pub name: &'static str,
    /// What it is for, in a line.
    pub about: &'static str,
    /// Its settings, TOML.
    settings: &'static str,
}

/// All presets.
pub const PRESETS: &[Preset] = &[
    Preset {
        name: "toybox",
        about: "the bundled 64-pixel model: 300 steps of five pictures, minutes on two cores",
        settings: "steps = 300\nbatch_size = 5\n[validation]\nevery = 50\n",
    },
    Preset {
        name: "sd15",
        about: "a subject on Stable Diffusion 1.5: 1000 steps of one picture, warm-up, moving average",
        settings: "\
steps = 1000
batch_size = 1
[optimizer]
rotation_lr = 1e-3
spectrum_lr = 1e-3
warmup_steps = 20
ema_decay = 0.99
[validation]
every = 100
[samples]
every = 250
guidance = 7.5
",
    },
    Preset {
        name: "paper",
        about: "the released SODA recipe: DCO with beta 1000, constant rates, 1000 steps of one picture",
        settings: "\
steps = 1000
batch_size = 1
[objective]
loss = \"dco\"
dco_beta = 1000.0
[optimizer]
schedule = \"constant\"
[samples]
guidance = 7.5
",
    },
];

/// The settings of a preset, without `base` and `data`.
///
/// # Errors
/// A name that is not there; the message lists those that are.
pub fn preset(name: &str) -> Result<Table, TrainError> {
    let names = || PRESETS.iter().map(|preset| preset.name);
    let unknown = || TrainError::UnknownPreset {
        found: name.to_owned(),
        hint: nearest(name, names()),
        known: names().collect::<Vec<_>>().join(", "),
    };
    let preset = PRESETS.iter().find(|preset| preset.name == name).ok_or_else(unknown)?;
    let mut table: Table = toml::from_str(preset.settings)
        .map_err(|error| TrainError::ReadConfig { reason: error.to_string() })?;
    if name == "paper" {
        super::set(&mut table, "method=soda-paper")?;
    }
    Ok(table)
}
