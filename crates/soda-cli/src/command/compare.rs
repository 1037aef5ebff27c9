//! `soda compare`: each run is a process of its own, so that one that dies takes no other with it and
//! its memory can be told.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::args::{CacheArg, DeviceArg};
use anyhow::{Context as _, Result, bail};
use clap::Args as ClapArgs;
use clap::ValueEnum as _;
use serde::Deserialize;
use soda_adapters::AdapterFile;
use soda_compare::{
    Event, Look, Measured, Plan, PlanConfig, Probe, Record, Results, Run, Seen, Task, execute,
    peft, places, report, table, thinned,
};
use soda_train::{Dataset, Scores, TrainConfig, scored, write_file};

use crate::base::{find, is_known};
use crate::progress::{Progress, say_result};

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  soda compare examples/compare/ablations.toml --out comparisons/ablations --jobs 2
  soda compare examples/compare/dreambooth.toml --check
  soda compare examples/compare/dreambooth.toml --out comparisons/dreambooth --device cuda --jobs 4 --gpus 0,1,2,3

Writes results.jsonl (a line a finished run), probes.jsonl (a line a look at one again: other strengths,
merged with another), peft.jsonl (scored runs by the names of PEFT's method comparison), report.html,
and each one's folder in runs/. Started again on the same folder it goes on where it stopped.")]
pub(crate) struct CompareArgs {
    /// The plan: arms x data x seeds
    #[arg(value_name = "TOML")]
    pub(crate) plan: PathBuf,
    /// Folder for results and report
    #[arg(long, value_name = "DIR", required_unless_present = "check")]
    pub(crate) out: Option<PathBuf>,
    /// Say what the plan would do and what it names that is not there, and run nothing
    #[arg(long)]
    pub(crate) check: bool,
    /// Runs at once, each with its share of the cores
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) jobs: u32,
    /// CUDA devices that the runs are spread over, by the numbers of `nvidia-smi -L`; without it the first
    #[arg(long, value_name = "0,1,...", value_delimiter = ',')]
    pub(crate) gpus: Vec<u32>,
    #[command(flatten)]
    pub(crate) cache: CacheArg,
    #[command(flatten)]
    pub(crate) device: DeviceArg,
}

pub(crate) fn run(args: &CompareArgs) -> Result<()> {
    let text = std::fs::read_to_string(&args.plan)
        .with_context(|| format!("cannot read the plan {}", args.plan.display()))?;
    let named = || args.plan.display().to_string();
    let plan = PlanConfig::from_toml(&text).and_then(PlanConfig::check).with_context(named)?;
    let out = match &args.out {
        Some(out) if !args.check => out,
        _ => return check(&plan),
    };
    // Once, and not by several runs at the same time.
    for base in plan.bases() {
        find(base, None)?;
    }
    let runs_folder = out.join("runs");
    std::fs::create_dir_all(&runs_folder)
        .with_context(|| format!("cannot create {}", runs_folder.display()))?;
    let mut results = Results::open(&out.join("results.jsonl"))?;

    let mut seen = Results::open(&out.join("probes.jsonl"))?;

    let jobs = args.jobs as usize;
    let train = |place: usize, run: &Run| train(run, &runs_folder, args, place);
    let searched = all("choosing", &plan.search_runs(), jobs, &mut results, train);
    let runs = plan.score_runs(&results);
    let scored = all("scoring", &runs, jobs, &mut results, train);
    let probes = plan.probes(&runs, &results);
    let look = |place: usize, probe: &Probe| look(probe, &runs_folder, args, place);
    let looked = all("looking again", &probes, jobs, &mut seen, look);

    let page = report(&plan, &runs, &results, (&probes, &seen), &runs_folder)?;
    write_file(&out.join("report.html"), page.as_bytes())?;
    write_file(&out.join("peft.jsonl"), peft(&runs, &results).as_bytes())?;
    summarise(&runs, &results, &probes, &seen);
    say_result(&format!("see {}", out.join("report.html").display()));
    searched.and(scored).and(looked)
}

/// Says what the plan would do, and looks for everything that it names; what is there is read, as far as a run reads it
/// before it opens a picture.
fn check(plan: &Plan) -> Result<()> {
    say_result(&format!(
        "{} arms: {} runs that choose settings, {} that are scored",
        plan.arms().count(),
        plan.search_runs().len(),
        plan.num_scored(),
    ));
    let (folders, bases) = (plan.folders(), plan.bases());
    let absent: Vec<&Path> = folders.iter().map(PathBuf::as_path).filter(|f| !f.is_dir()).collect();
    let unknown = bases.iter().copied().filter(|base| !is_known(base));
    let missing: Vec<&Path> = unknown.chain(absent).collect();
    for path in &missing {
        say_result(&format!("missing: {}", path.display()));
    }
    for config in plan.configs().filter(|config| config.data.is_dir()) {
        let mut data = Dataset::read(&config.data, config.prompt.as_deref())?;
        let named = || format!("{} cannot be learnt", config.data.display());
        data.hold_out(config.validation.held_out, config.seed).with_context(named)?;
    }
    match missing.len() {
        0 => Ok(()),
        count => {
            bail!("{count} of the {} folders of the plan are missing", folders.len() + bases.len())
        }
    }
}

/// Does what of `tasks` is not done yet, with progress.
fn all<T: Task>(
    stage: &'static str,
    tasks: &[T],
    jobs: usize,
    results: &mut Results<T::Line>,
    act: impl Fn(usize, &T) -> Result<T::Measured> + Sync,
) -> Result<()> {
    if tasks.is_empty() {
        return Ok(());
    }
    let mut progress = Progress::default();
    progress.show(soda_train::Event::Stage { name: stage });
    let act = |place, task: &T| act(place, task).map_err(|error| format!("{error:#}"));
    let failures = execute(tasks, jobs, results, act, |event| match event {
        Event::Started(_) => {}
        Event::Finished { done, total, .. } => {
            progress.show(soda_train::Event::Progress { done, total, loss: None });
        }
    })?;
    for failure in &failures {
        progress.say(&format!("{}: {}", failure.id, failure.reason));
    }
    progress.finish();
    match failures.len() {
        0 => Ok(()),
        count => bail!("{count} of {} runs failed; start again to repeat them", tasks.len()),
    }
}

/// Trains in a process of its own, and reads what its folder says.
fn train(run: &Run, runs: &Path, args: &CompareArgs, place: usize) -> Result<Measured> {
    let folder = runs.join(&run.id);
    if folder.exists() {
        // Of a run that was stopped before its result was stored.
        std::fs::remove_dir_all(&folder)
            .with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    let config = runs.join(format!("{}.toml", run.id));
    write_file(&config, run.config.to_toml()?.as_bytes())?;
    let mut command = myself("train", args, place)?;
    command.arg("--config").arg(&config).arg("--runs").arg(runs).args(["--name", &run.id]);
    let peak_memory = wait(command.spawn().context("cannot start a run")?)?;
    std::fs::remove_file(&config).with_context(|| format!("cannot remove {}", config.display()))?;
    measure(&folder, run.config.steps, peak_memory)
}

/// Draws and judges in a process of its own, as `soda evaluate` does.
fn look(
    probe: &Probe,
    runs: &Path,
    args: &CompareArgs,
    place: usize,
) -> Result<(Scores, Option<f32>)> {
    #[derive(Deserialize)]
    struct ScoreFile {
        scores: Scores,
        style_clip_i: Option<f32>,
    }
    let folder = runs.join(&probe.id);
    if folder.exists() {
        std::fs::remove_dir_all(&folder)
            .with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    let config = &probe.run.config;
    let judges = config.judges.as_ref().context("a look at a run needs `judges` in [train]")?;
    let adapter = |run: &Run| runs.join(&run.id).join("adapter.safetensors");
    let mut command = myself("evaluate", args, place)?;
    command.arg("--base").arg(&config.base).arg("--judges").arg(judges);
    command.arg("--data").arg(&config.data).arg("--out").arg(&folder);
    command.args(["--seed", &config.seed.to_string()]);
    command.args(["--steps", &config.samples.steps.to_string()]);
    command.args(["--guidance", &config.samples.guidance.to_string()]);
    command.args(["--held-out", &config.validation.held_out.to_string()]);
    if let Some(trigger) = &config.trigger {
        command.args(["--trigger", trigger]);
    }
    let (first, at) = (adapter(&probe.run), &probe.at);
    let weights = || at.iter().map(f64::to_string).collect::<Vec<_>>().join(",");
    match &probe.look {
        Look::Strength { path, unrelated } => {
            match path {
                soda_compare::Path::Geodesic => {
                    command.arg("--adapter").arg(first).args(["--strength", &at[0].to_string()]);
                }
                // The residual of an adapter with itself, of which nothing is taken twice.
                soda_compare::Path::Linear => {
                    command.arg("--subject").arg(&first).arg("--style").arg(&first);
                    command.args(["--weights", &format!("{},0", at[0])]);
                }
            }
            for prompt in &config.samples.prompts {
                command.args(["--prompt", prompt]);
            }
            for prompt in unrelated {
                command.args(["--unrelated", prompt]);
            }
        }
        Look::Merge { style, mode, phrase } => {
            command.arg("--subject").arg(first).arg("--style").arg(adapter(style));
            command.args(["--weights", &weights(), "--mode", mode.name()]);
            command.arg("--like").arg(&style.config.data);
            for prompt in prompts(config)? {
                command.args(["--prompt", &format!("{prompt} {phrase}")]);
            }
        }
    }
    wait(command.spawn().context("cannot start a look")?)?;
    let path = folder.join("scores.json");
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let found: ScoreFile =
        serde_json::from_str(&text).with_context(|| path.display().to_string())?;
    Ok((found.scores, found.style_clip_i))
}

/// What a run draws to be judged.
fn prompts(config: &TrainConfig) -> Result<Vec<String>> {
    if !config.samples.prompts.is_empty() {
        return Ok(config.samples.prompts.clone());
    }
    Ok(Dataset::read(&config.data, Some(""))?.eval_prompts)
}

/// This program with what the child at a place of a comparison is given.
fn myself(command: &str, args: &CompareArgs, place: usize) -> Result<Command> {
    let device = args.device.device.to_possible_value();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut child = Command::new(std::env::current_exe().context("cannot find this program")?);
    child
        .args([command, "--device", device.as_ref().map_or("auto", |d| d.get_name())])
        .args(
            args.cache.cache.iter().flat_map(|folder| [OsStr::new("--cache"), folder.as_os_str()]),
        )
        .env("RAYON_NUM_THREADS", (cores / args.jobs as usize).max(1).to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    if let Some(gpu) = args.gpus.get(place % args.gpus.len().max(1)) {
        child.env("CUDA_VISIBLE_DEVICES", gpu.to_string());
    }
    Ok(child)
}

/// Waits for the run to end well; the most memory it held, where the system tells.
fn wait(mut child: Child) -> Result<Option<u64>> {
    let mut peak = None;
    while child.try_wait()?.is_none() {
        peak = peak.max(peak_memory(child.id()));
        std::thread::sleep(Duration::from_millis(100));
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        bail!("{}", message.trim().trim_start_matches("error: "));
    }
    Ok(peak)
}

/// `VmHWM` of Linux: the largest resident size so far, bytes.
fn peak_memory(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

fn measure(folder: &Path, steps: usize, peak_memory: Option<u64>) -> Result<Measured> {
    #[derive(Deserialize)]
    struct ScoreFile {
        before: Scores,
        after: Scores,
        truth: Option<Scores>,
    }
    let read = |name: &str| {
        let path = folder.join(name);
        std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let scores: ScoreFile = serde_json::from_str(
        &read("scores.json").context("a comparison needs `judges` in the plan's [train]")?,
    )?;
    let path = folder.join("adapter.safetensors");
    let adapter: AdapterFile = AdapterFile::read(&path)?;
    let seconds = adapter.header.training["seconds"].as_f64().unwrap_or_default();
    let losses: Vec<f32> =
        read("loss.csv")?.lines().filter_map(|line| line.split(',').nth(1)?.parse().ok()).collect();
    Ok(Measured {
        before: scores.before,
        after: scores.after,
        truth: scores.truth,
        trace: scored(folder)?,
        losses: thinned(&losses),
        num_params: adapter.num_params() as u64,
        file_size: std::fs::metadata(&path)?.len(),
        seconds_per_step: seconds / steps.max(1) as f64,
        peak_memory,
    })
}

fn summarise(runs: &[Run], results: &Results<Record>, probes: &[Probe], seen: &Results<Seen>) {
    for row in table(runs, results) {
        let show = |index: usize| {
            let score = row.scores[index];
            score.map_or("-".to_owned(), |s| format!("{:.3} ± {:.3}", s.mean, s.deviation))
        };
        let (likeness, dino) = match row.scores[1] {
            Some(_) => ("DINO to truth", show(1)),
            None => ("DINO to subject", show(3)),
        };
        say_result(&format!(
            "{:<16} {} runs  CLIP-T {}  {likeness} {dino}  {:.3} s a step",
            row.arm,
            row.runs,
            show(0),
            row.seconds_per_step,
        ));
    }
    for place in places(probes, seen) {
        let at = place.at.iter().map(f64::to_string).collect::<Vec<_>>().join(", ");
        let mean = |index: usize| {
            place.scores[index].map_or("-".to_owned(), |score| format!("{:.3}", score.mean))
        };
        say_result(&format!(
            "{} at {at}: CLIP-T {}  DINO to truth {}  to subject {}  CLIP-I to style {}  drift {}",
            place.series,
            mean(0),
            mean(1),
            mean(2),
            mean(4),
            mean(5),
        ));
    }
}
