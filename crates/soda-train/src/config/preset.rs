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
    /// Its method, as single settings.
    method: &'static [&'static str],
    /// Its other settings, TOML.
    settings: &'static str,
}

/// All presets.
pub const PRESETS: &[Preset] = &[
    Preset {
        name: "toybox",
        about: "the bundled 64-pixel model: 300 steps of five pictures, minutes on two cores",
        method: &[],
        settings: "steps = 300\nbatch_size = 5\n[validation]\nevery = 50\n",
    },
    Preset {
        name: "sd15",
        about: "a subject on Stable Diffusion 1.5: 1000 steps of one picture in f32, warm-up, moving average",
        method: &[],
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
        name: "sd15-8gb",
        about: "the same for a card of 8 GB: LoRA of rank 16, bf16 (docs/guide-memory.md)",
        method: &["method=lora", "method.rank=16"],
        settings: "\
steps = 1000
batch_size = 1
precision = \"bf16\"
[optimizer]
spectrum_lr = 1e-4
warmup_steps = 20
[validation]
every = 100
timesteps = 4
[samples]
every = 250
guidance = 7.5
",
    },
    Preset {
        name: "sdxl",
        about: "a subject on SDXL, for a card of 24 GB: LoRA of rank 32, bf16 (docs/guide-memory.md)",
        method: &["method=lora", "method.rank=32"],
        settings: "\
steps = 1000
batch_size = 1
precision = \"bf16\"
[optimizer]
spectrum_lr = 1e-4
warmup_steps = 20
[validation]
every = 250
timesteps = 4
[samples]
every = 500
guidance = 5.0
",
    },
    Preset {
        name: "sdxl-12gb",
        about: "the same for a card of 12 GB: rank 16, all networks in bf16, blocks recomputed, 8-bit AdamW",
        method: &["method=lora", "method.rank=16"],
        settings: "\
steps = 1000
batch_size = 1
precision = \"bf16\"
encoder_precision = \"bf16\"
checkpointing = \"block\"
[optimizer]
flat = \"adamw-8bit\"
spectrum_lr = 1e-4
warmup_steps = 20
[validation]
every = 250
timesteps = 4
[samples]
every = 500
guidance = 5.0
",
    },
    Preset {
        name: "paper",
        about: "the released SODA recipe: DCO with beta 1000, constant rates, 1000 steps of one picture",
        method: &["method=soda-paper"],
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
    for setting in preset.method {
        super::edit::apply_setting(&mut table, setting)?;
    }
    Ok(table)
}
