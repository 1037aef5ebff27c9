//! `soda export`

use crate::args::{CacheArg, DeviceArg};
use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Args as ClapArgs;
use soda_adapters::interop::{
    Budget, Compressed, compress, write_diff, write_diffusers, write_embeddings, write_kohya,
    write_peft,
};

use soda_models::pipeline::LoadOptions;

use crate::base::find;
use crate::command::load_plan;
use crate::progress::{Progress, say_result};

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  soda export --base models/toy --adapter mug.safetensors --format kohya --out mug-lora.safetensors
  soda export --base models/toy --adapter mug.safetensors --format diff --out mug-diff.safetensors
  soda export --base models/toy --adapter mug.safetensors --format peft --error 0.01 --out mug-peft
  soda export --base models/toy --adapter mug.safetensors --format embeddings --out mug-words

kohya and diffusers files are LoRAs: each layer's delta is cut to the least rank that keeps
|delta - LoRA| / |delta| within --error, and the report says what every layer lost. diff keeps deltas
whole; peft keeps LoRA, DoRA and OFT as they are, of an adapter with text encoders in a directory for each
network. embeddings writes the words that were learnt, a file each, which no other format holds. For a
whole checkpoint use `soda merge`.")]
pub(crate) struct ExportArgs {
    /// The base model: a diffusers directory, or a name on a hub
    #[arg(long, value_name = "DIR|NAME")]
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
    /// The file (of peft and embeddings: the directory) to write; it must not exist
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
    /// Every delta whole, for ComfyUI and A1111
    Diff,
    /// New words, for diffusers (load_textual_inversion), ComfyUI and A1111; a directory with a file for each
    Embeddings,
}

pub(crate) fn run(args: ExportArgs) -> Result<()> {
    ensure!(!args.out.exists(), "{} exists; give another --out", args.out.display());
    ensure!(
        args.error.is_finite() && args.error >= 0.0,
        "--error must be a number from 0 (lossless) up"
    );
    let base = find(&args.base, None)?;
    let device = args.device.device.open()?;
    let (pipeline, file, plan) = load_plan(
        &base,
        &LoadOptions::default(),
        &args.adapter,
        args.strength,
        args.cache.open().as_ref(),
        &device,
    )?;
    if args.format == ExportFormat::Embeddings {
        ensure!(
            !file.words.is_empty(),
            "{} has no new words; those of a run are `tokens.words`",
            args.adapter.display()
        );
        for path in write_embeddings(&file.words, &args.out)? {
            say_result(&path.display().to_string());
        }
        return Ok(());
    }
    for word in file.words.keys() {
        Progress::default().say(&format!(
            "warning: the word {word} is not in this file: export it with --format embeddings beside it"
        ));
    }
    let (networks, two_encoders) = (pipeline.networks(), pipeline.second.is_some());
    if args.format == ExportFormat::Diff {
        write_diff(&plan, &networks, two_encoders, &args.out)?;
        say_result(&format!("{}: {} deltas, exact", args.out.display(), plan.paths().len()));
        return Ok(());
    }
    let budget = Budget { error: args.error, max_rank: args.max_rank };
    let lora = compress(&plan, &networks, budget)?;
    match args.format {
        ExportFormat::Kohya => write_kohya(&lora, &file.header.trigger, two_encoders, &args.out)?,
        ExportFormat::Diffusers => write_diffusers(&lora, &args.out)?,
        ExportFormat::Peft => {
            // A strength is a point, not a parameter: then only the LoRA says it.
            ensure!(
                args.strength == 1.0,
                "PEFT keeps adapters as they were trained; leave --strength to it, or export as kohya"
            );
            let methods = file.parts.iter().map(|(of, part)| (*of, &part.recipe.method)).collect();
            write_peft(&methods, &plan, &lora, &args.out)?;
        }
        ExportFormat::Diff | ExportFormat::Embeddings => {}
    }
    report(&lora);
    say_result(&format!(
        "{}: {} layers, ranks up to {}, relative error {:.2e} over all",
        args.out.display(),
        lora.losses.len(),
        lora.losses.iter().map(|loss| loss.rank).max().unwrap_or_default(),
        lora.error
    ));
    Ok(())
}

fn report(lora: &Compressed) {
    say_result("  rank     error  |delta|/|weight|  weight");
    for loss in &lora.losses {
        say_result(&format!(
            "  {:>4}  {:>8.2e}  {:>16.2e}  {}",
            loss.rank, loss.error, loss.delta, loss.path
        ));
    }
}
