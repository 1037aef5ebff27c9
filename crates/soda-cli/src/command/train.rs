//! `soda train`

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result};
use clap::Args;
use soda_adapters::{AdapterError, TargetError};
use soda_pipeline::counted;
use soda_train::{
    Event, Personalisation, RunFolder, RunFolderError, RunSummary, RunTarget, TrainError,
};

use crate::args::{CacheArg, DeviceArg, SettingsArgs, ToArgv as _, option};
use crate::base_model::find_base;
use crate::device::shards;
use crate::progress::{Progress, print_result, print_stderr};
use crate::usage::UsageError;

#[derive(Debug, Args)]
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
scores.json and report.html. Captions come from metadata.jsonl, .txt files beside the images, or --prompt.
Ctrl-C stores a checkpoint and stops after the step; a second Ctrl-C stops at once.")]
pub(crate) struct TrainArgs {
    /// Resume an interrupted run with its own settings
    #[arg(
        long,
        value_name = "RUN",
        conflicts_with_all = [
            "config", "preset", "set", "base", "data", "judges", "prompt", "name", "steps",
            "batch_size", "seed", "rotation_lr", "spectrum_lr", "target", "method", "factors",
            "no_rotation", "no_spectrum", "sample", "train_text_encoder", "text_encoder_lr",
            "token", "token_lr", "trigger", "runs",
        ],
    )]
    pub(crate) resume: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) settings: SettingsArgs,
    /// Name of the run; by default the name of the data folder and a number
    #[arg(long, value_parser = run_name)]
    pub(crate) name: Option<String>,
    /// Folder of the runs
    #[arg(long, value_name = "DIR", default_value = "runs")]
    pub(crate) runs: PathBuf,
    #[command(flatten)]
    pub(crate) cache: CacheArg,
    #[command(flatten)]
    pub(crate) device: DeviceArg,
}

pub(crate) fn run(args: TrainArgs) -> Result<()> {
    let device = args.device.device.open()?;
    let (job, target) = match &args.resume {
        Some(folder) => {
            let (job, folder) = Personalisation::resume(folder, &device)?;
            (job, RunTarget::Resumed(folder))
        }
        None => {
            let mut config = args.settings.train_config()?;
            config.base = find_base(&config.base, None)?;
            config.shards.get_or_insert(shards(&device));
            let target = RunTarget::New { root: &args.runs, name: args.name.as_deref() };
            let job = Personalisation::new(config, &device);
            (job.map_err(|error| with_blame(error, &args.settings))?, target)
        }
    };
    let interrupt = Interrupt::listen()?;
    let mut progress = Progress::default();
    let job = job.with_cache(args.cache.cache).with_graph();
    let summary = job.run(target, &interrupt.stop, &mut |event| {
        interrupt.observe(event);
        progress.show(event);
    });
    progress.finish();
    print_summary(&summary.map_err(|error| with_blame(error, &args.settings))?);
    Ok(())
}

/// Adapters that cannot be made are a mistake of the command line, if that describes them.
fn with_blame(error: TrainError, settings: &SettingsArgs) -> anyhow::Error {
    let of_adapters = matches!(
        &error,
        TrainError::Adapter(
            AdapterError::Target(
                TargetError::InvalidPattern { .. } | TargetError::NoPattern { .. }
            ) | AdapterError::Config { .. }
        )
    );
    match of_adapters && settings.describe_adapters() {
        true => UsageError::new(error).into(),
        false => error.into(),
    }
}

/// The command line that trains the configuration file `config` as the run `name` in the folder `runs`.
pub(crate) fn train_argv(
    config: &Path,
    runs: &Path,
    name: &str,
    cache: &CacheArg,
    device: &DeviceArg,
) -> Vec<OsString> {
    let mut argv = vec!["train".into()];
    argv.extend([option("config", config), option("runs", runs), option("name", name)]);
    cache.append_to(&mut argv);
    device.append_to(&mut argv);
    argv
}

/// Reads the name of a run.
fn run_name(text: &str) -> Result<String, RunFolderError> {
    RunFolder::check_name(text)?;
    Ok(text.to_owned())
}

/// What Ctrl-C, a hangup and a request to terminate do to a run.
struct Interrupt {
    /// Asks the run to store what it has and to stop.
    stop: Arc<AtomicBool>,
    /// Whether the run looks at `stop` in its current stage.
    is_stoppable: Arc<AtomicBool>,
}

impl Interrupt {
    /// The first signal sets `stop`, if the run looks at it. Otherwise, and a second time, a signal ends the
    /// process: nothing is lost before the first step, and a file that cannot be read to its end, such as a
    /// named pipe, must not keep the process.
    fn listen() -> Result<Self> {
        let [stop, is_stoppable] = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
        let (set, may_set) = (Arc::clone(&stop), Arc::clone(&is_stoppable));
        ctrlc::set_handler(move || {
            if !may_set.load(Ordering::Relaxed) || set.swap(true, Ordering::Relaxed) {
                std::process::exit(INTERRUPTED);
            }
            print_stderr("stopping after this step; Ctrl-C again stops at once");
        })
        .context("cannot listen for Ctrl-C")?;
        Ok(Self { stop, is_stoppable })
    }

    /// Follows the stages of the run.
    fn observe(&self, event: Event<'_>) {
        if let Some(is_stoppable) = event.begins_stoppable_stage() {
            self.is_stoppable.store(is_stoppable, Ordering::Relaxed);
        }
    }
}

/// The exit code of shells for a command that Ctrl-C ended.
const INTERRUPTED: i32 = 130;

fn print_summary(summary: &RunSummary) {
    print_result(&format!(
        "{}: {} on {}, {} in {:.0} s",
        summary.folder.display(),
        counted(summary.num_params, "trained parameter"),
        counted(summary.num_layers, "layer"),
        counted(summary.history.steps.len(), "step"),
        summary.seconds,
    ));
    if let (Some(before), Some(after)) = (summary.before, summary.after) {
        for (name, before, after) in [
            ("CLIP-T", before.clip_t, after.clip_t),
            ("CLIP-I", before.clip_i, after.clip_i),
            ("DINO", before.dino, after.dino),
        ] {
            print_result(&format!("  {name:<7} {before:.3} -> {after:.3}"));
        }
        if let (Some(before), Some(after)) = (before.truth_dino, after.truth_dino) {
            print_result(&format!("  DINO to the truth of each prompt {before:.3} -> {after:.3}"));
        }
        if let Some(drift) = after.drift {
            print_result(&format!("  drift of unrelated prompts {drift:.3}"));
        }
    }
    print_result(&format!("  see {}", summary.folder.join(RunFolder::REPORT).display()));
}
