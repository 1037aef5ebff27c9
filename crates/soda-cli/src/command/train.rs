//! `soda train`

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use burn::tensor::Device;
use clap::{Args, ValueEnum};
use soda_adapters::{AdapterError, TargetError};
use soda_models::ModelError;
use soda_pipeline::counted;
use soda_train::{
    Event, MemoryMeter as _, Personalisation, Ranks, RunFolder, RunFolderError, RunSummary,
    RunTarget, TrainConfig, TrainError,
};

use crate::args::{CacheArg, DeviceArg, SettingsArgs, ToArgv as _, option};
use crate::base_model::find_base;
use crate::child::{INTERRUPTED, on_signal_of_parent};
use crate::device::{DeviceChoice, is_processor, shards};
use crate::launcher;
use crate::memory_meter::DeviceMemory;
use crate::progress::{Progress, print_result, print_stderr};
use crate::ranks::{self, Membership};
use crate::remedy::note_savings;
use crate::usage::{UsageError, require};

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
  soda train --base models/sdxl --preset sdxl --data photos/mug --gpus 0,1,2,3
  torchrun --nproc-per-node 4 --no-python soda train --base models/sdxl --data photos/mug

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
    /// Train on several CUDA devices of this machine, by their numbers in `nvidia-smi -L`, with one process
    /// each. A step then learns --batch-size images on each of them
    #[arg(long, value_name = "0,1,...", value_delimiter = ',', conflicts_with = "ranks")]
    pub(crate) gpus: Vec<u32>,
    /// Train with this many processes of this machine, which share its cores
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) ranks: Option<u32>,
    /// The longest time in seconds that a process of several may say nothing before all of them end
    #[arg(
        long, value_name = "SECONDS", default_value_t = 300,
        value_parser = clap::value_parser!(u32).range(1..=86_400),
    )]
    pub(crate) rank_timeout: u32,
    /// How several processes add their gradients: nccl on their GPUs, tcp over rank 0, or auto for nccl where
    /// every process has it and a GPU of its own
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    pub(crate) collectives: Collectives,
    /// Predict the memory of the run, without training: reads the base and the pictures, makes the adapters,
    /// and measures steps on smaller pictures
    #[arg(long, conflicts_with_all = ["resume", "gpus", "ranks", "name"])]
    pub(crate) plan: bool,
    #[command(flatten)]
    pub(crate) cache: CacheArg,
    #[command(flatten)]
    pub(crate) device: DeviceArg,
}

pub(crate) fn run(args: TrainArgs) -> Result<()> {
    if let Some(world) = args.ranks_to_launch()? {
        return launcher::run(world, &args.gpus);
    }
    let ranks = ranks::join(Duration::from_secs(args.rank_timeout.into()))?;
    let (device, job, target) = ranks.while_others_wait(|| open(&args, &ranks))?;
    let job = job.with_cache(args.cache.folder()?).with_graph();
    let job = job.with_ranks(add_gradients(&args, &ranks, &device)?);
    note_savings(job.memory_savings());
    if args.plan {
        return print_plan(job, &device).map_err(|error| with_blame(error, &args.settings));
    }
    let mut memory = DeviceMemory::of(&device);
    let interrupt = Interrupt::listen(ranks.is_first())?;
    let blame = |error| with_blame(error, &args.settings);
    let Some(target) = target else {
        return job.follow(&interrupt.stop, &mut |event| interrupt.observe(event)).map_err(blame);
    };
    let mut progress = Progress::default();
    let summary = job.run(target, &interrupt.stop, &mut |event| {
        interrupt.observe(event);
        progress.show(event);
    });
    progress.finish();
    let summary = summary.map_err(blame)?;
    print_summary(&summary, memory.peak().max(summary.device_memory));
    Ok(())
}

/// Predicts the memory of a run and prints it.
fn print_plan(job: Personalisation, device: &Device) -> Result<(), TrainError> {
    let mut progress = Progress::default();
    let mut memory = DeviceMemory::of(device);
    let plan = job.plan_memory(&mut memory, &mut |event| progress.show(event));
    progress.finish();
    let plan = plan?;
    let lines = [
        ("weights on the device", plan.weights.device as u64),
        ("adapter and its gradients", plan.adapter),
        ("optimizer", plan.optimizer),
        ("activations of a step, and workspace", plan.activations()),
        ("peak of a step", plan.step),
        ("peak until the first step", plan.preparation),
        ("peak of decoding a picture", plan.images),
        ("peak of the run", plan.peak()),
        ("weights in host memory", plan.weights.host as u64),
    ];
    for (name, bytes) in lines {
        print_result(&format!("{name:<42} {:>7} MiB", bytes >> 20));
    }
    Ok(())
}

/// How several processes add their gradients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Collectives {
    #[default]
    Auto,
    Tcp,
    Nccl,
}

/// Connects the GPUs of the ranks if they can be, and says so.
fn add_gradients(args: &TrainArgs, ranks: &Membership, device: &Device) -> Result<Ranks> {
    let own = Ranks::new(Arc::clone(&ranks.reduce));
    let is_wanted = args.collectives != Collectives::Tcp && !is_processor(device);
    let patience = Duration::from_secs(args.rank_timeout.into());
    let (own, refusal) = own.with_collective(device, is_wanted, patience)?;
    if own.world() == 1 || own.has_collective() {
        return Ok(own);
    }
    let reason = match refusal {
        Some(refusal) => refusal.to_string(),
        None if is_processor(device) => "this rank computes on a processor".to_owned(),
        None => "another rank has no NCCL or no GPU of its own".to_owned(),
    };
    if args.collectives == Collectives::Nccl {
        bail!("--collectives nccl: {reason}; give each rank NCCL and a GPU, or --collectives tcp");
    }
    if is_wanted {
        print_stderr(&format!("gradients are added over TCP: {reason}"));
    }
    Ok(own)
}

/// Reads what the command line names. Only rank 0 gets a folder to write to.
fn open<'a>(
    args: &'a TrainArgs,
    ranks: &Membership,
) -> Result<(Device, Personalisation, Option<RunTarget<'a>>)> {
    let choice = if args.gpus.is_empty() { args.device.device } else { DeviceChoice::Cuda(None) };
    let device = choice.of_rank(ranks.local_rank).open()?;
    #[cfg(all(feature = "cpu", feature = "wgpu"))]
    if crate::device::is_wgpu(&device) {
        crate::gradient_check::check(&device)?;
    }
    let Some(folder) = &args.resume else {
        let mut config = args.settings.train_config()?;
        config.base = ranks.first_on_rank_0(|| find_base(&config.base, None))?;
        config.shards.get_or_insert(shards(&device));
        let world = ranks.reduce.world();
        config.ranks = config.ranks.or((world > 1).then_some(world));
        let job = Personalisation::new(config, &device);
        let job = job.map_err(|error| with_blame(error, &args.settings))?;
        let target = RunTarget::New { root: &args.runs, name: args.name.as_deref() };
        return Ok((device, job, ranks.is_first().then_some(target)));
    };
    if ranks.is_first() {
        let (job, folder) = Personalisation::resume(folder, &device)?;
        ranks.text_of_rank_0(job.config().to_toml()?)?;
        return Ok((device, job, Some(RunTarget::Resumed(folder))));
    }
    // The folder may be one of rank 0's machine only.
    let config = TrainConfig::from_toml(&ranks.text_of_rank_0(String::new())?)?;
    let job = Personalisation::new(config, &device)?;
    Ok((device, job, None))
}

impl TrainArgs {
    /// The number of processes to start; `None` in a process that is one itself.
    fn ranks_to_launch(&self) -> Result<Option<usize>> {
        if launcher::is_launched() {
            return Ok(None);
        }
        let world = match (self.ranks, self.gpus.len()) {
            (Some(ranks), _) => ranks as usize,
            (None, 0) => return Ok(None),
            (None, gpus) => gpus,
        };
        let option = if self.ranks.is_some() { "--ranks" } else { "--gpus" };
        require(
            ranks::launch()?.is_none(),
            &format!(
                "{option} starts its own processes, and the variables RANK and WORLD_SIZE say that this is one \
                of several; give one of the two"
            ),
        )?;
        let one_choice = self.device.device == self.device.device.without_index();
        require(
            self.gpus.is_empty() || one_choice,
            "--gpus and --device both choose a GPU; give --device without an index",
        )?;
        require(
            self.gpus.is_empty()
                || matches!(self.device.device, DeviceChoice::Auto | DeviceChoice::Cuda(_)),
            "--gpus chooses CUDA devices and --device others; give one of the two, or --ranks",
        )?;
        // One process needs no others.
        Ok((world > 1 || !self.gpus.is_empty()).then_some(world))
    }
}

/// Adapters and new words that cannot be made are a mistake of the command line, if that describes them.
fn with_blame(error: TrainError, settings: &SettingsArgs) -> anyhow::Error {
    let of_adapters = matches!(
        &error,
        TrainError::Adapter(
            AdapterError::Target(
                TargetError::InvalidPattern { .. } | TargetError::NoPattern { .. }
            ) | AdapterError::Config { .. }
        )
    );
    let of_token = matches!(&error, TrainError::Model(ModelError::Token { .. }));
    match of_adapters && settings.describe_adapters() || of_token && !settings.token.is_empty() {
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
    /// named pipe, must not keep the process. `speaks` says whether the user is told.
    fn listen(speaks: bool) -> Result<Self> {
        let [stop, is_stoppable] = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
        let (set, may_set) = (Arc::clone(&stop), Arc::clone(&is_stoppable));
        let on_signal = move || {
            if !may_set.load(Ordering::Relaxed) || set.swap(true, Ordering::Relaxed) {
                std::process::exit(INTERRUPTED);
            }
            if speaks {
                print_stderr("stopping after this step; Ctrl-C again stops at once");
            }
        };
        let listening = match launcher::is_launched() {
            // The launcher passes each signal on once.
            true => {
                on_signal_of_parent(on_signal);
                ctrlc::set_handler(|| ())
            }
            false => ctrlc::set_handler(on_signal),
        };
        listening.context("cannot listen for Ctrl-C")?;
        Ok(Self { stop, is_stoppable })
    }

    /// Follows the stages of the run.
    fn observe(&self, event: Event<'_>) {
        if let Some(is_stoppable) = event.begins_stoppable_stage() {
            self.is_stoppable.store(is_stoppable, Ordering::Relaxed);
        }
    }
}

fn print_summary(summary: &RunSummary, memory: Option<u64>) {
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
    if let Some(bytes) = memory {
        print_result(&format!("  {} MiB of memory at most", bytes >> 20));
    }
    print_result(&format!("  see {}", summary.folder.join(RunFolder::REPORT).display()));
}
