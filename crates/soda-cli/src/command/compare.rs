//! `soda compare`

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use soda_compare::{
    ComparisonConfig, ComparisonPlan, Evaluation, EvaluationKind, EvaluationResult,
    EvaluationScores, MergeMode, ReportInput, ResultsFile, Run, RunMetrics, RunResult,
    StrengthPath, Task, TaskEvent, downsampled, execute, peft_jsonl, report, score_table,
    strength_table,
};
use soda_files::Lock;
use soda_models::input_file::SizeLimit;
use soda_pipeline::{AdapterFile, counted};
use soda_train::{
    Dataset, Event, RunFolder, RunScores, TrainConfig, check_method, read_step_scores, read_text,
    write_file,
};

use crate::args::{CacheArg, DeviceArg, MergeModeName, MergedArgs};
use crate::base_model::{find_base, is_path_or_name};
use crate::child::ChildPool;
use crate::command::evaluate::EvaluateArgs;
use crate::command::train::train_argv;
use crate::device::host;
use crate::progress::{Progress, print_result, sentence};
use crate::remedy::{Failed, remedy};
use crate::usage::require;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  soda compare examples/compare/ablations.toml --out comparisons/ablations --jobs 2
  soda compare examples/compare/dreambooth.toml --check
  soda compare examples/compare/dreambooth.toml --out comparisons/dreambooth --device cuda \\
      --jobs 4 --gpus 0,1,2,3

Writes report.html, and in runs/ a folder for each run and evaluation. Started again, it continues.
  results.jsonl  one line per finished run
  probes.jsonl   one line per evaluation of a finished run: other strengths, merged adapters
  peft.jsonl     the scored runs in the format of PEFT's method comparison")]
pub(crate) struct CompareArgs {
    /// The plan: arms x data sets x seeds
    #[arg(value_name = "TOML")]
    pub(crate) plan: PathBuf,
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
    #[command(flatten)]
    pub(crate) cache: CacheArg,
    #[command(flatten)]
    pub(crate) device: DeviceArg,
}

pub(crate) fn run(args: &CompareArgs) -> Result<()> {
    let one_choice =
        args.gpus.is_empty() || args.device.device == args.device.device.without_index();
    require(one_choice, "--gpus and --device both choose a GPU; give --device without an index")?;
    let text = read_text(&args.plan, SizeLimit::SETTINGS)?;
    let named = || args.plan.display().to_string();
    let plan =
        ComparisonConfig::from_toml(&text).and_then(ComparisonConfig::check).with_context(named)?;
    check_methods(&plan).with_context(named)?;
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
    let _lock = lock(out)?;
    let mut results = ResultsFile::open(&out.join("results.jsonl"))?;
    let mut evaluation_results = ResultsFile::open(&out.join("probes.jsonl"))?;

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
        searched = execute_all("searching", &plan.search_runs(&results), jobs, &mut results, train);
    }
    let waiting = plan.waiting_arms(&results);
    let searched = match &waiting[..] {
        [] => searched,
        arms => searched.with_context(|| unscored(arms)),
    };
    let runs = plan.score_runs(&results);
    let scored = execute_all("training", &runs, jobs, &mut results, train);
    let evaluations = plan.evaluations(&runs, &results);
    let evaluated =
        execute_all("evaluating", &evaluations, jobs, &mut evaluation_results, evaluate);

    let page = report(&ReportInput {
        plan: &plan,
        runs: &runs,
        results: &results,
        evaluations: &evaluations,
        evaluation_results: &evaluation_results,
        folder: &runs_folder,
    })?;
    write_file(&out.join("report.html"), page.as_bytes())?;
    write_file(&out.join("peft.jsonl"), peft_jsonl(&runs, &results).as_bytes())?;
    print_scores(&runs, &results);
    print_strengths(&evaluations, &evaluation_results);
    print_result(&format!("see {}", out.join("report.html").display()));
    searched.and(scored).and(evaluated)
}

/// The time that the processes of a killed comparison have to end.
const PATIENCE: Duration = Duration::from_secs(5);

/// Locks the folder of the results against a second comparison.
fn lock(out: &Path) -> Result<Lock> {
    let lock = Lock::wait(&out.join(".lock"), PATIENCE)
        .with_context(|| format!("cannot lock {}", out.join(".lock").display()))?;
    lock.with_context(|| {
        format!("another comparison is working on {}; wait for it, or stop it", out.display())
    })
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
        act(worker, task).map_err(|error| sentence(&error, remedy(&error, Failed::Child)))
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
            guidance: config.samples.guidance,
            resolution: config.resolution,
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
    let seconds = adapter.header.training["seconds"].as_f64().unwrap_or_default();
    let path_of_losses = folder.join(RunFolder::LOSS_CSV);
    let losses = read_text(&path_of_losses, SizeLimit::LIST)
        .with_context(|| format!("cannot read {}", path_of_losses.display()))?;
    let losses: Vec<f32> =
        losses.lines().filter_map(|line| line.split(',').nth(1)?.parse().ok()).collect();
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
    })
}

fn print_scores(runs: &[Run], results: &ResultsFile<RunResult>) {
    for row in score_table(runs, results) {
        let show = |index: usize| {
            let score = row.scores[index];
            score.map_or("-".to_owned(), |s| format!("{:.3} ± {:.3}", s.mean, s.std_dev))
        };
        let (similarity, dino) = match row.scores[1] {
            Some(_) => ("DINO to truth", show(1)),
            None => ("DINO to subject", show(3)),
        };
        print_result(&format!(
            "{:<16} {}  CLIP-T {}  {similarity} {dino}  {:.3} s a step",
            row.arm,
            counted(row.runs, "run"),
            show(0),
            row.seconds_per_step,
        ));
    }
}

fn print_strengths(evaluations: &[Evaluation], results: &ResultsFile<EvaluationResult>) {
    for row in strength_table(evaluations, results) {
        let at = row.at.iter().map(f64::to_string).collect::<Vec<_>>().join(", ");
        let mean = |index: usize| {
            row.scores[index].map_or("-".to_owned(), |score| format!("{:.3}", score.mean))
        };
        print_result(&format!(
            "{} at {at}: CLIP-T {}  DINO to truth {}  to subject {}  CLIP-I to style {}  drift {}",
            row.series,
            mean(0),
            mean(1),
            mean(2),
            mean(4),
            mean(5),
        ));
    }
}
