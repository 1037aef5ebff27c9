//! `soda export`

use std::path::PathBuf;

use anyhow::{Result, ensure};
use burn::tensor::FloatDType;
use clap::Args;
use serde_json::Value;
use soda_adapters::{AnyAdapter, Plan};
use soda_models::pipeline::{LoadOptions, Networks, Pipeline};
use soda_pipeline::interop::{
    AlphaRule, CompressedLora, CompressionBudget, ExportSettings, compress_to_lora, round_for_peft,
    write_diff, write_diffusers, write_embeddings, write_kohya, write_peft,
};
use soda_pipeline::{AdapterFile, counted};

use crate::adapter_loading::BaseModel;
use crate::args::{CacheArg, DeviceArg, finite};
use crate::base_model::{find_base, warn_of_encoding, warn_of_schedule};
use crate::device::Precision;
use crate::progress::{Progress, print_result};
use crate::usage::{has_suffix, require, require_folder_name};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  soda export --base models/toy --adapter mug.safetensors --format kohya --out mug-lora.safetensors
  soda export --base models/toy --adapter mug.safetensors --format diff --out mug-diff.safetensors
  soda export --base models/toy --adapter mug.safetensors --format peft --error 0.01 --out mug-peft
  soda export --base models/toy --adapter mug.safetensors --format embeddings --out mug-words

kohya and diffusers files are LoRAs. The delta of each layer is truncated to the smallest rank with
|delta - LoRA| / |delta| <= --error; the output lists the error of every layer. diff keeps full deltas. peft
keeps LoRA, DoRA and OFT as they are; an adapter with text encoders gets a directory for each network.
embeddings writes the new words of textual inversion, one file per word; no other format holds them.

kohya and diffusers files are f16, as most LoRAs are, unless --error 0 asks for all digits. diff and peft are
exact, and f32. --dtype chooses otherwise; the errors that are listed are those of the file as it is written.

For FLUX.2 and Z-Image, kohya and diff have the names of the original code, in which queries, keys and values
are one layer.
For a whole checkpoint, use `soda merge`.")]
pub(crate) struct ExportArgs {
    /// The base model: a diffusers directory, or a name on a hub
    #[arg(long, value_name = "DIR|NAME")]
    pub(crate) base: PathBuf,
    /// The adapter file
    #[arg(long, value_name = "FILE")]
    pub(crate) adapter: PathBuf,
    /// The format to write
    #[arg(long, value_enum)]
    pub(crate) format: ExportFormat,
    /// Largest relative error of a layer [default: 0.05]
    #[arg(long, value_name = "E", value_parser = finite)]
    pub(crate) error: Option<f64>,
    /// Largest rank of a layer, whatever its error
    #[arg(long, value_name = "R", value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    pub(crate) max_rank: Option<usize>,
    /// Precision of the file: by default f16 for kohya and diffusers, f32 for the others and for --error 0
    #[arg(long, value_enum)]
    pub(crate) dtype: Option<Precision>,
    /// Strength of the adapter: 0 is the base, 1 the trained adapter
    #[arg(long, default_value_t = 1.0, value_parser = finite)]
    pub(crate) strength: f64,
    /// The file to write (for peft and embeddings, the directory); it must not exist
    #[arg(long, value_name = "PATH")]
    pub(crate) out: PathBuf,
    #[command(flatten)]
    pub(crate) cache: CacheArg,
    #[command(flatten)]
    pub(crate) device: DeviceArg,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ExportFormat {
    /// A LoRA for ComfyUI, A1111 and diffusers
    Kohya,
    /// A LoRA for diffusers
    Diffusers,
    /// A directory for PEFT, or one for each network
    Peft,
    /// The full delta of every layer, for ComfyUI and A1111
    Diff,
    /// New words of textual inversion, for diffusers (load_textual_inversion), ComfyUI and A1111: a
    /// directory with one file per word
    Embeddings,
}

/// The largest relative error of a layer where `--error` is not given.
const MAX_ERROR: f64 = 0.05;

impl ExportArgs {
    /// The largest relative error of a layer.
    fn max_error(&self) -> f64 {
        self.error.unwrap_or(MAX_ERROR)
    }

    /// The dtype of the file's tensors.
    fn written_dtype(&self) -> FloatDType {
        self.dtype.unwrap_or_else(|| self.format.default_dtype(self.max_error())).into()
    }
}

impl ExportFormat {
    /// The precision of a file with this relative error.
    fn default_dtype(self, error: f64) -> Precision {
        match self {
            Self::Kohya | Self::Diffusers if error > 0.0 => Precision::F16,
            _ => Precision::F32,
        }
    }
}

pub(crate) fn run(args: ExportArgs) -> Result<()> {
    check(&args)?;
    let base = find_base(&args.base, None)?;
    let device = args.device.device.open()?;
    let base = BaseModel {
        path: &base,
        options: LoadOptions::default(),
        cache: args.cache.open()?,
        device: &device,
    };
    let (pipeline, file, plan) = base.load_plan(&args.adapter, args.strength)?;
    if args.format == ExportFormat::Embeddings {
        return write_words(&args, &file);
    }
    file.check_has_weights()?;
    for word in file.embeddings.keys() {
        Progress::default().warn(&format!(
            "the word {word} is not in this file: export it with --format embeddings beside it"
        ));
    }
    warn_of_encoding(&pipeline, &args.out);
    warn_of_schedule(&file.header.schedule, &args.out);
    let networks = pipeline.networks();
    let settings = settings(&args, &pipeline, &file);
    if args.format == ExportFormat::Diff {
        let error = write_diff(&plan, &networks, &settings, &args.out)?;
        let precision =
            if error == 0.0 { "exact".to_owned() } else { format!("relative error {error:.2e}") };
        let (out, deltas) = (args.out.display(), plan.paths().len());
        print_result(&format!("{out}: {}, {precision}", counted(deltas, "delta")));
        return Ok(());
    }
    write_lora(&args, &file, &plan, &networks, &settings)
}

/// Checks the settings and the path of the result.
fn check(args: &ExportArgs) -> Result<()> {
    require(args.max_error() >= 0.0, "--error must be a number from 0 (lossless) up")?;
    // PEFT has no field for the strength of these methods. Only the LoRA formats can express it.
    require(
        args.format != ExportFormat::Peft || args.strength == 1.0,
        "PEFT keeps adapters as they were trained; leave --strength to it, or export as kohya",
    )?;
    let words = args.format == ExportFormat::Embeddings;
    require(
        args.format != ExportFormat::Diff && !words
            || args.error.unwrap_or(0.0) == 0.0 && args.max_rank.is_none(),
        "diff and embeddings are not truncated to a rank; leave out --error and --max-rank",
    )?;
    require(
        !words || args.dtype.is_none() && args.strength == 1.0,
        "new words are written as they are; leave out --dtype and --strength",
    )?;
    if words || args.format == ExportFormat::Peft {
        let folder = "peft and embeddings are directories: give --out without a file's suffix";
        require_folder_name(&args.out, folder)?;
    } else {
        require(
            has_suffix(&args.out, "safetensors"),
            "what is written is a safetensors file: let --out end with .safetensors",
        )?;
    }
    ensure!(!args.out.exists(), "{} exists; give another --out", args.out.display());
    Ok(())
}

/// Writes the new words of an adapter.
fn write_words(args: &ExportArgs, file: &AdapterFile) -> Result<()> {
    ensure!(
        !file.embeddings.is_empty(),
        "{} has no new words; those of a run are `tokens.words`",
        args.adapter.display()
    );
    for path in write_embeddings(&file.embeddings, &args.out)? {
        print_result(&path.display().to_string());
    }
    Ok(())
}

/// What the file says of itself.
fn settings(args: &ExportArgs, pipeline: &Pipeline, file: &AdapterFile) -> ExportSettings {
    let mut settings = ExportSettings::new(pipeline);
    settings.title = args.out.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    settings.trigger.clone_from(&file.header.trigger);
    settings.base_name.clone_from(&file.header.base);
    settings.dtype = args.written_dtype();
    let number = |value: &Value| value.as_u64().and_then(|number| usize::try_from(number).ok());
    let training = &file.header.training;
    if let Some(side) = number(&training["config"]["resolution"]) {
        settings.set_resolution(side);
    }
    // Images of several sizes are not told by one.
    if training["config"]["buckets"].is_null() {
        settings.images = number(&training["images"]);
    }
    // The date is that of the adapter, so that an export gives the same bytes at any time.
    if let Ok(created) = args.adapter.metadata().and_then(|file| file.modified()) {
        settings.created = created;
    }
    settings
}

/// Writes the adapter as LoRA, of which it tells the error.
fn write_lora(
    args: &ExportArgs,
    file: &AdapterFile,
    plan: &Plan<AnyAdapter>,
    networks: &Networks,
    settings: &ExportSettings,
) -> Result<()> {
    let dtype = args.written_dtype();
    let budget = CompressionBudget { error: args.max_error(), max_rank: args.max_rank };
    let mut lora = compress_to_lora(plan, networks, budget)?;
    match args.format {
        ExportFormat::Kohya => {
            lora.round(plan, dtype, settings.kohya_alpha());
            write_kohya(&lora, settings, &args.out)?;
        }
        ExportFormat::Diffusers => {
            lora.round(plan, dtype, AlphaRule::OwnRank);
            write_diffusers(&lora, settings, &args.out)?;
        }
        ExportFormat::Peft => {
            let methods = file
                .adapters
                .iter()
                .map(|(component, adapter)| (*component, &adapter.recipe.method))
                .collect();
            write_peft(&methods, plan, &lora, dtype, &args.out)?;
            round_for_peft(&mut lora, plan, dtype);
        }
        ExportFormat::Diff | ExportFormat::Embeddings => {}
    }
    print_layers(&lora);
    print_result(&format!(
        "{}: {}, ranks up to {}, relative error {:.2e} over all",
        args.out.display(),
        counted(lora.reports.len(), "layer"),
        lora.reports.iter().map(|layer| layer.rank).max().unwrap_or_default(),
        lora.error
    ));
    Ok(())
}

fn print_layers(lora: &CompressedLora) {
    print_result("  rank     error  |delta|/|weight|  weight");
    for layer in &lora.reports {
        print_result(&format!(
            "  {:>4}  {:>8.2e}  {:>16.2e}  {}",
            layer.rank, layer.error, layer.delta, layer.path
        ));
    }
}
