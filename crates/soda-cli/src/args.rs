//! What was typed.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

use crate::command::convert::ConvertArgs;
use crate::command::generate::SamplerName;
use crate::device::{DeviceKind, Precision};

/// Personalise Stable Diffusion to a subject or a style with SODA adapters.
#[derive(Debug, Parser)]
#[command(name = "soda", version, max_term_width = 100)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Learn a subject or a style from a folder of pictures
    Train(Box<TrainArgs>),
    /// Say which settings a run would have, which presets there are, or what is wrong with a file
    Config(Box<ConfigArgs>),
    /// Draw pictures, with or without an adapter
    Generate(GenerateArgs),
    /// Fold an adapter into its base: a diffusers directory for other tools
    Merge(MergeArgs),
    /// Read a LoRA, DoRA or OFT of PEFT, diffusers or kohya as an adapter
    Import(ImportArgs),
    /// Write an adapter for other tools: kohya, diffusers, PEFT, or whole deltas
    Export(ExportArgs),
    /// Say what a model directory or an adapter file holds
    Inspect(InspectArgs),
    /// Compare ways to train over subjects and seeds, and report
    Compare(CompareArgs),
    /// Time training steps on this machine, with random weights
    Bench(BenchArgs),
    /// Write a model in another layout or precision
    Convert(ConvertArgs),
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  soda train --base models/toy --data photos/mug --prompt \"a photo of a sks mug\"
  soda train --base models/toy --data photos/mug --steps 600 --rotation-lr 2e-3 --name mug-slow
  soda train --config runs/mug-1/config.toml --seed 7
  soda train --base models/toy --data photos/mug --set objective.loss=dco --set method=lora
  soda train --resume runs/mug-1

Ctrl-C stores a checkpoint and stops; a second one stops at once. A run writes runs/<name>/: adapter.safetensors, config.toml, samples.png, loss.csv, loss.svg,
scores.json and report.md. Captions come from metadata.jsonl, .txt files beside the pictures, or
--prompt.")]
pub(crate) struct TrainArgs {
    /// Go on with a run that was stopped; its own settings apply
    #[arg(
        long,
        value_name = "RUN",
        conflicts_with_all = [
            "config", "preset", "set", "base", "data", "judges", "prompt", "name", "steps",
            "batch_size", "seed", "rotation_lr", "spectrum_lr", "target", "method", "factors",
            "no_rotation", "no_spectrum", "sample",
        ],
    )]
    pub(crate) resume: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) settings: SettingsArgs,
    /// Name of the run; by default the data folder's name and a number
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Where runs are kept
    #[arg(long, value_name = "DIR", default_value = "runs")]
    pub(crate) runs: PathBuf,
    #[command(flatten)]
    pub(crate) device: DeviceArg,
}

#[derive(Debug, ClapArgs)]
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
    /// Print every setting as TOML, defaults and all
    Show(Box<SettingsArgs>),
    /// List the presets
    Presets,
    /// Read a configuration and everything that it names
    Check {
        /// The configuration
        config: PathBuf,
        #[command(flatten)]
        device: DeviceArg,
    },
}

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
    /// The base model, a diffusers directory
    #[arg(long, value_name = "DIR")]
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
    /// Adapted weights: a preset (attention, cross-attention, attention+ff, all-linear,
    /// conv) or a regular expression
    /// over weight paths; may be given several times
    #[arg(long, value_name = "PATTERN")]
    pub(crate) target: Vec<String>,
    /// How weights are adapted: soda, soda-qr, svdiff, lora, dora, oft, ... (a wrong name lists all)
    #[arg(long, value_name = "NAME")]
    pub(crate) method: Option<String>,
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

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  soda generate --base models/toy --prompt \"a photo of a red mug on a beach\"
  soda generate --base models/toy --adapter runs/mug-1/adapter.safetensors \\
      --prompt \"a sks mug in the snow\" --prompt \"pixel art of a sks mug\" --count 4 --out pictures
  soda generate --base models/toy --adapter mug.safetensors --strength 0.6 --prompt \"a sks mug\"
  soda generate --base models/sdxl --dtype f16 --scheduler dpm++ --karras --steps 20 --width 1216 \\
      --height 832 --prompt \"a lighthouse in a storm\"
  soda generate --base models/toy --init photo.png --strength-of-init 0.5 --prompt \"a blue mug\"

Each picture is a PNG that says in `parameters` how it was made.")]
pub(crate) struct GenerateArgs {
    /// The base model, a diffusers directory
    #[arg(long, value_name = "DIR")]
    pub(crate) base: PathBuf,
    /// What to draw; may be given several times
    #[arg(long, value_name = "TEXT", required = true)]
    pub(crate) prompt: Vec<String>,
    /// What to avoid
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(crate) negative: String,
    /// Pictures of each prompt
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) count: u32,
    /// Seed of the starting noise
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Steps of the sampler
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) steps: u32,
    /// Classifier-free guidance; 1 leaves it out
    #[arg(long, default_value_t = 5.0)]
    pub(crate) guidance: f64,
    /// The sampler; by default the model's own
    #[arg(long, value_enum)]
    pub(crate) scheduler: Option<SamplerName>,
    /// Space the noise levels as Karras et al.: euler, dpm++ and dpm++-sde
    #[arg(long)]
    pub(crate) karras: bool,
    /// Width of the pictures in pixels; by default what the model was trained on
    #[arg(long)]
    pub(crate) width: Option<u32>,
    /// Height of the pictures in pixels
    #[arg(long)]
    pub(crate) height: Option<u32>,
    /// A picture to start from instead of noise alone
    #[arg(long, value_name = "FILE")]
    pub(crate) init: Option<PathBuf>,
    /// How much of it is drawn again: above 0, and at 1 nothing of it is left
    #[arg(long, default_value_t = 0.6, requires = "init")]
    pub(crate) strength_of_init: f64,
    /// Layers of the text encoder left out at the end
    #[arg(long, default_value_t = 0)]
    pub(crate) clip_skip: u32,
    /// Code pictures larger than those of training in tiles, which bounds memory
    #[arg(long)]
    pub(crate) tiling: bool,
    /// Precision of the weights in memory
    #[arg(long, value_enum, default_value_t)]
    pub(crate) dtype: Precision,
    /// Variant of the model's files, such as fp16
    #[arg(long)]
    pub(crate) variant: Option<String>,
    #[command(flatten)]
    pub(crate) adapter: AdapterArg,
    /// Folder for the pictures
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(crate) out: PathBuf,
    #[command(flatten)]
    pub(crate) device: DeviceArg,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  soda merge --base models/toy --adapter runs/mug-1/adapter.safetensors --out models/toy-mug
  soda merge --base models/toy --subject mug.safetensors --style chalk.safetensors \\
      --weights 0.8,0.6 --out models/chalk-mug
  soda merge --base models/toy --subject mug.safetensors --style chalk.safetensors \\
      --mode geodesic --restore 1 --out models/chalk-mug

residual adds the weighted changes and takes any two adapters. geodesic and compose stay on the rotations'
manifold and need two of one method: geodesic is their weighted mean, compose applies one after the other.

Then, in Python: StableDiffusionPipeline.from_pretrained(\"models/toy-mug\")")]
pub(crate) struct MergeArgs {
    /// The base model, a diffusers directory
    #[arg(long, value_name = "DIR")]
    pub(crate) base: PathBuf,
    /// The adapter file
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present = "subject",
        conflicts_with = "subject"
    )]
    pub(crate) adapter: Option<PathBuf>,
    /// How much of the adapter: 0 is the base, 1 is what was trained
    #[arg(long, default_value_t = 1.0, conflicts_with = "subject")]
    pub(crate) strength: f64,
    /// The first of two adapter files to merge
    #[arg(long, value_name = "FILE", requires = "style")]
    pub(crate) subject: Option<PathBuf>,
    /// The second
    #[arg(long, value_name = "FILE", requires = "subject")]
    pub(crate) style: Option<PathBuf>,
    /// How much of the subject and of the style
    #[arg(long, value_name = "A,B", value_delimiter = ',', default_values_t = [1.0, 1.0])]
    pub(crate) weights: Vec<f64>,
    /// How the two become one
    #[arg(long, value_enum, default_value_t)]
    pub(crate) mode: MergeMode,
    /// Of geodesic: give the mean the turn that its parts lose by cancelling, from 0 (none) to 1 (all)
    #[arg(long, default_value_t = 0.0)]
    pub(crate) restore: f64,
    /// The directory to write; it must not exist
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    #[command(flatten)]
    pub(crate) device: DeviceArg,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum MergeMode {
    /// W0 + a (W1 - W0) + b (W2 - W0)
    #[default]
    Residual,
    /// exp(a log R1 + b log R2)
    Geodesic,
    /// R1^a R2^b
    Compose,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  soda import mug-lora.safetensors --base models/toy --out mug.safetensors
  soda import peft-directory --base models/toy --out mug.safetensors --trigger \"sks mug\"")]
pub(crate) struct ImportArgs {
    /// A LoRA file of diffusers or kohya, or a directory of PEFT
    pub(crate) path: PathBuf,
    /// The base model it is for, a diffusers directory
    #[arg(long, value_name = "DIR")]
    pub(crate) base: PathBuf,
    /// The adapter file to write
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Words that call the subject up; may be given several times
    #[arg(long, value_name = "TEXT")]
    pub(crate) trigger: Vec<String>,
    #[command(flatten)]
    pub(crate) device: DeviceArg,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  soda export --base models/toy --adapter mug.safetensors --format kohya --out mug-lora.safetensors
  soda export --base models/toy --adapter mug.safetensors --format diff --out mug-diff.safetensors
  soda export --base models/toy --adapter mug.safetensors --format peft --error 0.01 --out mug-peft

kohya and diffusers files are LoRAs: each layer's delta is cut to the least rank that keeps
|delta - LoRA| / |delta| within --error, and the report says what every layer lost. diff keeps deltas
whole; peft keeps LoRA, DoRA and OFT as they are. For a whole checkpoint use `soda merge`.")]
pub(crate) struct ExportArgs {
    /// The base model, a diffusers directory
    #[arg(long, value_name = "DIR")]
    pub(crate) base: PathBuf,
    /// The adapter file
    #[arg(long, value_name = "FILE")]
    pub(crate) adapter: PathBuf,
    /// What to write
    #[arg(long, value_enum)]
    pub(crate) format: ExportFormat,
    /// Largest relative error of a layer
    #[arg(long, default_value_t = 0.05)]
    pub(crate) error: f64,
    /// Largest rank of a layer, whatever its error
    #[arg(long, value_name = "R", value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    pub(crate) max_rank: Option<usize>,
    /// How much of the adapter: 0 is the base, 1 is what was trained
    #[arg(long, default_value_t = 1.0)]
    pub(crate) strength: f64,
    /// The file (of peft: the directory) to write; it must not exist
    #[arg(long, value_name = "PATH")]
    pub(crate) out: PathBuf,
    #[command(flatten)]
    pub(crate) device: DeviceArg,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ExportFormat {
    /// A LoRA for ComfyUI, A1111 and diffusers
    Kohya,
    /// A LoRA for diffusers
    Diffusers,
    /// A directory for PEFT
    Peft,
    /// Every delta whole, for ComfyUI and A1111
    Diff,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  soda inspect runs/mug-1/adapter.safetensors
  soda inspect models/toy")]
pub(crate) struct InspectArgs {
    /// An adapter file, any safetensors file, or a diffusers directory
    pub(crate) path: PathBuf,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Example:
  soda compare examples/compare/rotations.toml --out comparisons/rotations --jobs 2

Writes results.jsonl (a line a finished run), report.html, and each run's folder in runs/. Started
again on the same folder it goes on where it stopped.")]
pub(crate) struct CompareArgs {
    /// The plan: arms x data x seeds
    #[arg(value_name = "TOML")]
    pub(crate) plan: PathBuf,
    /// Folder for results and report
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Runs at once, each with its share of the cores
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) jobs: u32,
    #[command(flatten)]
    pub(crate) device: DeviceArg,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct AdapterArg {
    /// An adapter trained on this base
    #[arg(long, value_name = "FILE")]
    pub(crate) adapter: Option<PathBuf>,
    /// How much of it: 0 is the base, 1 is what was trained; rotations turn along the geodesic
    #[arg(long, default_value_t = 1.0, requires = "adapter")]
    pub(crate) strength: f64,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct DeviceArg {
    /// Where to compute
    #[arg(long, value_enum, default_value_t)]
    pub(crate) device: DeviceKind,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  soda bench
  soda bench --arch sd15 --method lora --rank 32 --dtype bf16 --batch 4 --json")]
pub(crate) struct BenchArgs {
    /// The network
    #[arg(long, value_enum, default_value_t)]
    pub(crate) arch: Architecture,
    /// The method, by the name of its settings
    #[arg(long, default_value = "soda")]
    pub(crate) method: String,
    /// Rank of a LoRA
    #[arg(long)]
    pub(crate) rank: Option<usize>,
    /// Pictures per step
    #[arg(long, default_value_t = 1)]
    pub(crate) batch: usize,
    /// Side of the latents, an eighth of the picture's; by default what the network was trained on
    #[arg(long)]
    pub(crate) latents: Option<usize>,
    /// What the network computes in; adapters are f32
    #[arg(long, value_enum, default_value_t)]
    pub(crate) dtype: Precision,
    /// Steps that are timed, after three that are not
    #[arg(long, default_value_t = 10)]
    pub(crate) steps: usize,
    /// One line of JSON instead of a table
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) device: DeviceArg,
}

/// Networks that `bench` knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Architecture {
    /// The bundled one
    #[default]
    Toybox,
    /// Stable Diffusion 1.5
    Sd15,
    /// Stable Diffusion XL
    Sdxl,
}
