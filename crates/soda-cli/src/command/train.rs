//! `soda train`

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::args::{CacheArg, DeviceArg};
use crate::command::settings::SettingsArgs;
use anyhow::{Context as _, Result};
use clap::Args as ClapArgs;
use soda_train::{Outcome, Personalisation, Place};

use crate::base::find;
use crate::command::settings::resolve;
use crate::device::shards;
use crate::progress::{Progress, say_result};

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  soda train --base models/toy --data photos/mug --prompt \"a photo of a sks mug\"
  soda train --base models/toy --data photos/mug --steps 600 --rotation-lr 2e-3 --name mug-slow
  soda train --config runs/mug-1/config.toml --seed 7
  soda train --base models/toy --data photos/mug --set objective.loss=dco --set method=lora
  soda train --base models/sdxl --preset sdxl --data photos/mug --set 'buckets={}' --cache caches
  soda train --base models/toy --data photos/mug --set masks.source=alpha
  soda train --base models/toy --data photos/mug --text-encoder-lr 1e-3
  soda train --base models/toy --data photos/mug --prompt \"a photo of a <mug>\" --token \"<mug>=mug\"
  soda train --resume runs/mug-1

A run writes runs/<name>/: adapter.safetensors, config.toml, samples.png, loss.csv, loss.svg,
scores.json and report.html. Captions come from metadata.jsonl, .txt files beside the pictures, or
--prompt. Ctrl-C stores a checkpoint and stops; a second one stops at once.")]
pub(crate) struct TrainArgs {
    /// Go on with a run that was stopped; its own settings apply
    #[arg(
        long,
        value_name = "RUN",
        conflicts_with_all = [
            "config", "preset", "set", "base", "data", "judges", "prompt", "name", "steps",
            "batch_size", "seed", "rotation_lr", "spectrum_lr", "target", "method", "factors",
            "no_rotation", "no_spectrum", "sample", "train_text_encoder", "text_encoder_lr",
            "token", "token_lr", "trigger",
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
    pub(crate) cache: CacheArg,
    #[command(flatten)]
    pub(crate) device: DeviceArg,
}

pub(crate) fn run(args: TrainArgs) -> Result<()> {
    let device = args.device.device.open()?;
    let (job, place) = match &args.resume {
        Some(folder) => {
            let (job, folder) = Personalisation::resume(folder, &device)?;
            (job, Place::Stopped(folder))
        }
        None => {
            let mut config = resolve(&args.settings)?;
            config.base = find(&config.base, None)?;
            config.shards.get_or_insert(shards(&device));
            let place = Place::New { root: &args.runs, name: args.name.as_deref() };
            (Personalisation::new(config, &device)?, place)
        }
    };
    let stop = on_interrupt()?;
    let mut progress = Progress::default();
    let job = job.with_cache(args.cache.cache).with_recording();
    let outcome = job.run(place, &stop, &mut |event| progress.show(event));
    progress.finish();
    summarise(&outcome?);
    Ok(())
}

/// Set by the first Ctrl-C; the second ends the process.
fn on_interrupt() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let set = Arc::clone(&stop);
    ctrlc::set_handler(move || {
        if set.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    })
    .context("cannot listen for Ctrl-C")?;
    Ok(stop)
}

fn summarise(outcome: &Outcome) {
    say_result(&format!(
        "{}: {} trained numbers on {} layers, {} steps in {:.0} s",
        outcome.folder.display(),
        outcome.num_params,
        outcome.num_layers,
        outcome.config.steps,
        outcome.seconds,
    ));
    if let (Some(before), Some(after)) = (outcome.before, outcome.after) {
        for (name, before, after) in [
            ("CLIP-T", before.clip_t, after.clip_t),
            ("CLIP-I", before.clip_i, after.clip_i),
            ("DINO", before.dino, after.dino),
        ] {
            say_result(&format!("  {name:<7} {before:.3} -> {after:.3}"));
        }
        if let (Some(before), Some(after)) = (before.truth_dino, after.truth_dino) {
            say_result(&format!("  DINO to the truth of each prompt {before:.3} -> {after:.3}"));
        }
        if let Some(drift) = after.drift {
            say_result(&format!("  drift of unrelated prompts {drift:.3}"));
        }
    }
    say_result(&format!("  see {}", outcome.folder.join("report.html").display()));
}
