//! Presets: named settings to start from. `soda config show` prints the defaults of all settings that a
//! preset leaves out.

use toml::Table;

use crate::config::edit::{apply_setting, merge_settings, nearest};
use crate::error::{ConfigError, TrainError};

/// Settings for a base model and a purpose.
#[derive(Clone, Copy, Debug)]
pub struct Preset {
    /// The name of the preset.
    pub name: &'static str,
    /// The purpose of the preset in one line.
    pub about: &'static str,
    /// The settings, TOML. Each part overrides those before it.
    settings: &'static [&'static str],
    /// The method and what differs from presets with the same settings, for
    /// [`apply_setting`](crate::apply_setting).
    changes: &'static [&'static str],
}

/// The settings of the presets for transformers.
const TRANSFORMER: &str = "\
steps = 1000
batch_size = 1
resolution = 512
precision = \"bf16\"
encoder_precision = \"bf16\"
checkpointing = \"block\"
targets = [\"attention+ff\"]
[optimizer]
spectrum_lr = 1e-4
warmup_steps = 20
[validation]
every = 250
timesteps = 4
[samples]
every = 500
guidance = 4.0
";

/// The settings of the presets for SDXL.
const SDXL: &str = "\
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
";

/// What SDXL has besides on cards of up to 12 GB.
const SMALL_SDXL: &str = "\
encoder_precision = \"bf16\"
checkpointing = \"block\"
[optimizer]
flat = \"adamw-8bit\"
";

/// All presets.
pub const PRESETS: &[Preset] = &[
    Preset {
        name: "toybox",
        about: "the bundled 64-pixel model: 300 steps of five images, minutes on two cores",
        changes: &[],
        settings: &["steps = 300\nbatch_size = 5\n[validation]\nevery = 50\n"],
    },
    Preset {
        name: "sd15",
        about: "a subject on Stable Diffusion 1.5: 1000 steps of one image in f32, warm-up, moving average",
        changes: &[],
        settings: &["\
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
"],
    },
    Preset {
        name: "sd15-8gb",
        about: "a subject on Stable Diffusion 1.5 with 8 GB of GPU memory: LoRA of rank 16, bf16",
        changes: &["method=lora", "method.rank=16"],
        settings: &["\
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
"],
    },
    Preset {
        name: "sdxl",
        about: "a subject on SDXL with 24 GB of GPU memory: LoRA of rank 32, bf16",
        changes: &["method=lora", "method.rank=32"],
        settings: &[SDXL],
    },
    Preset {
        name: "sdxl-8gb",
        about: "a subject on SDXL with 8 GB of GPU memory: as sdxl-12gb, nf4 base, pictures decoded in tiles",
        changes: &["method=lora", "method.rank=16", "base_precision=nf4", "samples.tile_size=512"],
        settings: &[SDXL, SMALL_SDXL],
    },
    Preset {
        name: "sdxl-12gb",
        about: "a subject on SDXL with 12 GB of GPU memory: rank 16, all networks in bf16, gradient checkpointing, 8-bit AdamW",
        changes: &["method=lora", "method.rank=16"],
        settings: &[SDXL, SMALL_SDXL],
    },
    Preset {
        name: "flux2-klein-4b",
        about: "a subject on FLUX.2 klein base 4B at 512 pixels: LoRA of rank 32, all networks in bf16, gradient checkpointing",
        changes: &["method=lora", "method.rank=32"],
        settings: &[TRANSFORMER],
    },
    Preset {
        name: "flux2-klein-4b-8gb",
        about: "the same with 8 GB of GPU memory: LoRA of rank 32, nf4 base, 8-bit AdamW",
        changes: &[
            "method=lora",
            "method.rank=32",
            "base_precision=nf4",
            "optimizer.flat=adamw-8bit",
        ],
        settings: &[TRANSFORMER],
    },
    Preset {
        name: "flux2-klein-4b-12gb",
        about: "the same with 12 GB of GPU memory: LoRA of rank 32, int8 base",
        changes: &["method=lora", "method.rank=32", "base_precision=int8"],
        settings: &[TRANSFORMER],
    },
    Preset {
        name: "flux2-klein-4b-16gb",
        about: "the same with 16 GB of GPU memory, in fewer milliseconds a step: LoRA of rank 32, int8 base, nothing is recomputed",
        changes: &[
            "method=lora",
            "method.rank=32",
            "base_precision=int8",
            "checkpointing=none",
            "optimizer.flat=adamw-8bit",
        ],
        settings: &[TRANSFORMER],
    },
    Preset {
        name: "z-image",
        about: "a subject on Z-Image at 512 pixels: LoRA of rank 32, all networks in bf16, gradient checkpointing",
        changes: &["method=lora", "method.rank=32", "objective.timestep_shift=2.0"],
        settings: &[TRANSFORMER],
    },
    Preset {
        name: "paper",
        about: "the released SODA recipe: DCO with beta 1000, constant rates, 1000 steps of one image",
        changes: &["method=soda-paper"],
        settings: &["\
steps = 1000
batch_size = 1
[objective]
loss = \"dco\"
dco_beta = 1000.0
[optimizer]
schedule = \"constant\"
[samples]
guidance = 7.5
"],
    },
];

/// The settings of the preset `name`. `base` and `data` are missing and must be added.
///
/// # Errors
/// Returns an error if the name is unknown. The message lists the known names.
pub fn preset(name: &str) -> Result<Table, TrainError> {
    let names = || PRESETS.iter().map(|preset| preset.name);
    let unknown = || ConfigError::UnknownPreset {
        found: name.to_owned(),
        hint: nearest(name, names()),
        known: names().collect::<Vec<_>>().join(", "),
    };
    let preset = PRESETS.iter().find(|preset| preset.name == name).ok_or_else(unknown)?;
    let mut table = Table::new();
    for part in preset.settings {
        let part = toml::from_str(part);
        let part = part.map_err(|error| ConfigError::Read { reason: error.to_string() })?;
        merge_settings(&mut table, part);
    }
    for setting in preset.changes {
        apply_setting(&mut table, setting)?;
    }
    Ok(table)
}
