//! `soda compare`

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use clap::{Args, Subcommand};
use soda_compare::{
    ComparisonConfig, ComparisonPlan, Evaluation, EvaluationKind, EvaluationScores, MergeMode,
    ResultsFile, Run, RunMetrics, StrengthPath, Task, TaskEvent, downsampled, execute,
};
use soda_models::input_file::SizeLimit;
use soda_pipeline::interop::iso_8601;
use soda_pipeline::{AdapterFile, counted};
use soda_train::{
    Dataset, Event, RunFolder, RunScores, RunSpan, TrainConfig, check_method, read_step_scores,
    read_text, write_file,
};

use crate::args::{CacheArg, DeviceArg, MergeModeName, MergedArgs, WeightsArgs};
use crate::base_model::{find_base, is_path_or_name};
use crate::child::ChildPool;
use crate::command::evaluate::EvaluateArgs;
use crate::command::train::train_argv;
use crate::comparison_report::Done;
use crate::device::host;
use crate::progress::{Progress, print_result, sentence};
use crate::remedy::{Failed, remedy};
use crate::shards::{ShardChoice, include_others, lock, open_results, own, shard_choice};
use crate::usage::require;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  soda compare examples/compare/ablations.toml --out comparisons/ablations --jobs 2
  soda compare examples/compare/dreambooth.toml --check
  soda compare examples/compare/dreambooth.toml --out comparisons/dreambooth --device cuda \\
      --jobs 4 --gpus 0,1,2,3
  soda compare examples/compare/dreambooth.toml --out shared/dreambooth --shard 1/4
  soda compare report shared/dreambooth

Writes report.html, and in runs/ a folder for each run and evaluation. Started again, it continues.
  results.jsonl  one line per finished run
  probes.jsonl   one line per evaluation of a finished run: other strengths, merged adapters
  peft.jsonl     the scored runs in the format of PEFT's method comparison")]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct CompareArgs {
    #[command(subcommand)]
    pub(crate) action: Option<CompareAction>,
    /// The plan: arms x data sets x seeds
    #[arg(value_name = "TOML", required = true)]
    pub(crate) plan: Option<PathBuf>,
    /// Folder for results and report
    #[arg(long, value_name = "DIR", required_unless_present = "check")]
    pub(crate) out: Option<PathBuf>,
    /// Print the number of runs and the missing files of the plan, and run nothing
    #[arg(long)]
    pub(crate) check: bool,
    /// Number of runs at once, each with its share of the cores
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) jobs: u32,
    /// CUDA devices that the runs are spread over, by their numbers in `nvidia-smi -L`; by default the first
    #[arg(long, value_name = "0,1,...", value_delimiter = ',')]
    pub(crate) gpus: Vec<u32>,
    /// Do one of several parts, such as 2/4, or that of a Slurm array with auto. The parts may share --out.
    /// `soda compare report` joins them
    #[arg(long, value_name = "I/N|auto", value_parser = shard_choice, conflicts_with = "check")]
    pub(crate) shard: Option<ShardChoice>,
    #[command(flatten)]
    pub(crate) cache: CacheArg,
    #[command(flatten)]
    pub(crate) device: DeviceArg,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CompareAction {
    /// Write the report of what several machines have done, and run nothing
    Report(CompareReportArgs),
}

#[derive(Debug, Args)]
pub(crate) struct CompareReportArgs {
    /// Folders of results, of one plan. The report is written into the first
    #[arg(value_name = "DIR", required = true)]
    pub(crate) folders: Vec<PathBuf>,
}

pub(crate) fn run(args: &CompareArgs) -> Result<()> {
    match (&args.action, &args.plan) {
        (Some(CompareAction::Report(args)), _) => join(args),
        (None, Some(plan)) => compare(args, plan),
        // clap requires one of the two.
        (None, None) => Ok(()),
    }
}

/// The copy of the plan in a folder of results.
const PLAN: &str = "plan.toml";

/// Reads a plan. `path` names it in messages.
fn read_plan(text: &str, path: &Path) -> Result<ComparisonPlan> {
    let named = || path.display().to_string();
    let plan =
        ComparisonConfig::from_toml(text).and_then(ComparisonConfig::check).with_context(named)?;
    check_methods(&plan).with_context(named)?;
    Ok(plan)
}

/// Writes the report of the results in several folders.
fn join(args: &CompareReportArgs) -> Result<()> {
    let CompareReportArgs { folders } = args;
    let out = &folders[0];
    let path = out.join(PLAN);
    let text = read_text(&path, SizeLimit::SETTINGS)
        .with_context(|| format!("{} holds no comparison", out.display()))?;
    let plan = read_plan(&text, &path)?;
    let (mut results, mut evaluation_results) =
        (ResultsFile::in_memory(), ResultsFile::in_memory());
    include_others(&mut results, folders, RESULTS)?;
    include_others(&mut evaluation_results, folders, EVALUATIONS)?;
    let runs = plan.score_runs(&results);
    let finished = runs.iter().filter(|run| results.get(&run.id).is_some()).count();
    print_result(&format!("{finished} of {} are finished", counted(runs.len(), "run")));
    if let arms @ [_, ..] = &plan.waiting_arms(&results)[..] {
        print_result(&unscored(arms));
    }
    let runs_folders: Vec<PathBuf> = folders.iter().map(|folder| folder.join("runs")).collect();
    let done = Done { plan: &plan, runs: &runs, results: &results };
    let evaluations = plan.evaluations(&runs, &results);
    done.write_report(&evaluations, &evaluation_results, &runs_folders, out)
}

/// The stems of the results files.
const RESULTS: &str = "results";
const EVALUATIONS: &str = "probes";

fn compare(args: &CompareArgs, path: &Path) -> Result<()> {
    let one_choice =
        args.gpus.is_empty() || args.device.device == args.device.device.without_index();
    require(one_choice, "--gpus and --device both choose a GPU; give --device without an index")?;
    let text = read_text(path, SizeLimit::SETTINGS)?;
    let plan = read_plan(&text, path)?;
    let shard = args.shard.map(ShardChoice::shard).transpose()?;
    let out = match &args.out {
        Some(out) if !args.check => out,
        _ => return check(&plan),
    };
    // Base models are downloaded here once, and not by several runs at the same time.
    for base in plan.bases() {
        find_base(base, None)?;
    }
    let runs_folder = out.join("runs");
    std::fs::create_dir_all(&runs_folder)
        .with_context(|| format!("cannot create {}", runs_folder.display()))?;
    let _lock = lock(out, shard)?;
    write_file(&out.join(PLAN), text.as_bytes())?;
    let mut results = open_results(out, RESULTS, shard)?;
    let mut evaluation_results = open_results(out, EVALUATIONS, shard)?;

    let jobs = args.jobs as usize;
    let worker = Worker {
        folder: &runs_folder,
        pool: ChildPool { jobs, gpus: args.gpus.clone() },
        cache: &args.cache,
        device: &args.device,
    };
    let train = |index: usize, run: &Run| worker.train(run, index);
    let evaluate = |index: usize, evaluation: &Evaluation| worker.evaluate(evaluation, index);
    let mut searched = Ok(());
    // The runs of a search may depend on the results of earlier ones.
    while searched.is_ok() && !plan.search_is_finished(&results) {
        let runs = own(plan.search_runs(&results), shard);
        if runs.iter().all(|run| results.get(&run.id).is_some()) {
            // The rest belongs to other shards.
            break;
        }
        searched = execute_all("searching", &runs, jobs, &mut results, train);
        include_others(&mut results, std::slice::from_ref(out), RESULTS)?;
    }
    let waiting = plan.waiting_arms(&results);
    let searched = match &waiting[..] {
        [] => searched,
        arms if searched.is_ok() && shard.is_some() => Err(anyhow!("{}", unfinished_search(arms))),
        arms => searched.with_context(|| unscored(arms)),
    };
    let runs = plan.score_runs(&results);
    let scored = execute_all("training", &own(runs.clone(), shard), jobs, &mut results, train);
    include_others(&mut results, std::slice::from_ref(out), RESULTS)?;
    let evaluations = plan.evaluations(&runs, &results);
    let evaluated = execute_all(
        "evaluating",
        &own(evaluations.clone(), shard),
        jobs,
        &mut evaluation_results,
        evaluate,
    );
    match shard {
        Some(shard) => print_result(&format!(
            "shard {shard} is done; `soda compare report {}` joins the shards",
            out.display()
        )),
        None => {
            let done = Done { plan: &plan, runs: &runs, results: &results };
            done.write_report(&evaluations, &evaluation_results, &[runs_folder], out)?;
        }
    }
    searched.and(scored).and(evaluated)
}

/// What a shard says whose arms wait for others.
fn unfinished_search(arms: &[&str]) -> String {
    format!(
        "the candidates of {} in this shard are done; start it again when the other shards have done theirs",
        counted(arms.len(), "arm")
    )
}

/// Why the runs of these arms are not scored.
fn unscored(arms: &[&str]) -> String {
    format!(
        "{} not scored before all its candidates have run; take a candidate that always fails out of the \
         plan",
        match arms {
            [arm] => format!("arm `{arm}` is"),
            arms => format!("each of the arms `{}` is", arms.join("`, `")),
        }
    )
}

/// Refuses arms whose method no run could have.
fn check_methods(plan: &ComparisonPlan) -> Result<()> {
    let mut checked = None;
    for (arm, config) in plan.configs_by_arm() {
        // Most configurations of an arm differ in their data alone.
        if checked != Some(&config.method) {
            check_method(config, &host()).with_context(|| format!("arm `{arm}`"))?;
            checked = Some(&config.method);
        }
    }
    Ok(())
}

/// Prints the number of runs and the missing folders. Reads data sets as a run does before it opens an image.
fn check(plan: &ComparisonPlan) -> Result<()> {
    print_result(&format!(
        "{}: {} to choose settings, {} to be scored",
        counted(plan.arms().count(), "arm"),
        counted(plan.num_searched(), "run"),
        counted(plan.num_scored(), "run"),
    ));
    let (folders, bases) = (plan.folders(), plan.bases());
    let absent: Vec<&Path> = folders.iter().map(PathBuf::as_path).filter(|f| !f.is_dir()).collect();
    let unknown = bases.iter().copied().filter(|base| !is_path_or_name(base));
    let missing: Vec<&Path> = unknown.chain(absent).collect();
    for path in &missing {
        print_result(&format!("missing: {}", path.display()));
    }
    for config in plan.configs().filter(|config| config.data.is_dir()) {
        let mut data = Dataset::read(&config.data, config.prompt.as_deref())?;
        let named = || format!("{} cannot be used for training", config.data.display());
        data.hold_out(config.validation.held_out, config.seed).with_context(named)?;
    }
    match missing.len() {
        0 => Ok(()),
        count => {
            let verb = if count == 1 { "is" } else { "are" };
            let all = counted(folders.len() + bases.len(), "folder");
            bail!("{count} of the {all} of the plan {verb} missing")
        }
    }
}

/// Executes the unfinished `tasks` and shows progress.
fn execute_all<T: Task>(
    stage: &'static str,
    tasks: &[T],
    jobs: usize,
    results: &mut ResultsFile<T::Stored>,
    act: impl Fn(usize, &T) -> Result<T::Output> + Sync,
) -> Result<()> {
    if tasks.is_empty() {
        return Ok(());
    }
    let mut progress = Progress::default();
    progress.show(Event::Stage { name: stage });
    let act = |worker, task: &T| {
        // A full disk has the same remedy in this process as in those that it starts.
        act(worker, task).map_err(|error| sentence(&error, &remedy(&error, Failed::Child)))
    };
    let failures = execute(tasks, jobs, results, act, |event| match event {
        TaskEvent::Started(_) => {}
        TaskEvent::Finished { done, total, .. } => {
            progress.show(Event::Progress { done, total, loss: None });
        }
    })?;
    for failure in &failures {
        progress.print(&format!("{}: {}", failure.id, failure.reason));
    }
    progress.finish();
    match failures.len() {
        0 => Ok(()),
        count => bail!("{count} of {} runs failed; start again to repeat them", tasks.len()),
    }
}

/// Executes runs and evaluations, each in a child process.
struct Worker<'a> {
    /// The folder with one folder per run and per evaluation.
    folder: &'a Path,
    pool: ChildPool,
    cache: &'a CacheArg,
    device: &'a DeviceArg,
}

impl Worker<'_> {
    /// The folder of a task. Removes what an interrupted attempt left there.
    fn fresh_folder(&self, id: &str) -> Result<PathBuf> {
        let folder = self.folder.join(id);
        RunFolder::remove(&folder)?;
        Ok(folder)
    }

    /// Trains with `soda train` and reads the metrics from the run's folder.
    fn train(&self, run: &Run, worker: usize) -> Result<RunMetrics> {
        let folder = self.fresh_folder(&run.id)?;
        let config = self.folder.join(format!("{}.toml", run.id));
        write_file(&config, run.config.to_toml()?.as_bytes())?;
        let argv = train_argv(&config, self.folder, &run.id, self.cache, self.device);
        let peak_memory = self.pool.run(&argv, worker)?;
        std::fs::remove_file(&config)
            .with_context(|| format!("cannot remove {}", config.display()))?;
        read_metrics(&folder, peak_memory)
    }

    /// Draws and scores with `soda evaluate`.
    fn evaluate(&self, evaluation: &Evaluation, worker: usize) -> Result<EvaluationScores> {
        let folder = self.fresh_folder(&evaluation.id)?;
        self.pool.run(&self.evaluate_args(evaluation, &folder)?.to_argv(), worker)?;
        let path = folder.join(RunFolder::SCORES);
        let text = read_text(&path, SizeLimit::LIST)
            .with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| path.display().to_string())
    }

    /// The options of `soda evaluate` for an evaluation.
    fn evaluate_args(&self, evaluation: &Evaluation, out: &Path) -> Result<EvaluateArgs> {
        let config = &evaluation.run.config;
        let judges = config.judges.clone();
        let adapter = |run: &Run| self.folder.join(&run.id).join(RunFolder::ADAPTER);
        let merged = MergedArgs { cache: self.cache.clone(), ..MergedArgs::default() };
        let own = adapter(&evaluation.run);
        let mut args = EvaluateArgs {
            base: config.base.clone(),
            judges: judges.context("an evaluation needs `judges` in [train]")?,
            data: config.data.clone(),
            trigger: config.trigger.clone(),
            held_out: config.validation.held_out,
            like: None,
            merged,
            prompt: Vec::new(),
            unrelated: Vec::new(),
            seed: config.seed,
            steps: u32::try_from(config.samples.steps).context("`samples.steps` is too large")?,
            guidance: Some(config.samples.guidance),
            resolution: config.resolution,
            weights: WeightsArgs::of_run(config),
            out: out.to_owned(),
            device: self.device.clone(),
        };
        match &evaluation.kind {
            EvaluationKind::Strength { path, unrelated } => {
                match path {
                    StrengthPath::Geodesic => {
                        args.merged.adapter = Some(own);
                        args.merged.strength = evaluation.at[0];
                    }
                    // The residual of an adapter with itself, with weight 0 for the second.
                    StrengthPath::Linear => {
                        args.merged.subject = Some(own.clone());
                        args.merged.style = Some(own);
                        args.merged.weights = vec![evaluation.at[0], 0.0];
                    }
                }
                args.prompt.clone_from(&config.samples.prompts);
                args.unrelated.clone_from(unrelated);
            }
            EvaluationKind::Merge { style, mode, phrase } => {
                args.merged.subject = Some(own);
                args.merged.style = Some(adapter(style));
                args.merged.weights.clone_from(&evaluation.at);
                args.merged.mode = merge_mode(*mode);
                args.like = Some(style.config.data.clone());
                let prompts = sample_prompts(config)?;
                args.prompt = prompts.iter().map(|prompt| format!("{prompt} {phrase}")).collect();
            }
        }
        Ok(args)
    }
}

fn merge_mode(mode: MergeMode) -> MergeModeName {
    match mode {
        MergeMode::Residual => MergeModeName::Residual,
        MergeMode::Geodesic => MergeModeName::Geodesic,
        MergeMode::Compose => MergeModeName::Compose,
    }
}

/// The prompts that a run draws: those of the configuration, otherwise those of the data set.
fn sample_prompts(config: &TrainConfig) -> Result<Vec<String>> {
    if !config.samples.prompts.is_empty() {
        return Ok(config.samples.prompts.clone());
    }
    Ok(Dataset::read(&config.data, Some(""))?.eval_prompts)
}

/// Reads the metrics of a finished run from its folder.
fn read_metrics(folder: &Path, peak_memory: Option<u64>) -> Result<RunMetrics> {
    let scores =
        RunScores::read(folder).context("a comparison needs `judges` in the plan's [train]")?;
    let path = folder.join(RunFolder::ADAPTER);
    let adapter: AdapterFile = AdapterFile::read(&path)?;
    let seconds = adapter.header.training["seconds"].as_f64();
    let seconds = seconds.with_context(|| format!("{} has no training time", path.display()))?;
    let path_of_losses = folder.join(RunFolder::LOSS_CSV);
    let losses = read_text(&path_of_losses, SizeLimit::LIST)
        .with_context(|| format!("cannot read {}", path_of_losses.display()))?;
    let losses: Vec<f32> =
        losses.lines().filter_map(|line| line.split(',').nth(1)?.parse().ok()).collect();
    let span = RunSpan::read(folder)?;
    Ok(RunMetrics {
        before: scores.before,
        after: scores.after,
        truth: scores.truth,
        trace: read_step_scores(folder)?,
        // A run may have ended before its last step.
        seconds_per_step: seconds / losses.len().max(1) as f64,
        losses: downsampled(&losses),
        num_params: adapter.num_params() as u64,
        file_size: std::fs::metadata(&path)?.len(),
        peak_memory,
        device_memory: span.and_then(|span| span.device_memory),
        start_time: span.map(|span| iso_8601(span.started)),
        total_seconds: span.map(|span| span.seconds),
    })
}
