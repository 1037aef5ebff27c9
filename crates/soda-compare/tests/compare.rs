//! A comparison from plan to report. A formula replaces the training.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{PLAN, metrics, plan};
use soda_compare::{
    AdjustedTest, CompareError, Evaluation, EvaluationKind, EvaluationScores, PlanError,
    ReportInput, ResultsFile, Run, RunMetrics, RunResult, execute, report, score_table,
    strength_table,
};
use soda_train::{Scores, StepScores};

/// Writes the image grid of a run, as `soda train` does.
fn write_samples(folder: &Path, run: &Run) {
    let folder = folder.join(&run.id);
    std::fs::create_dir_all(&folder).unwrap();
    image::RgbImage::new(4, 6).save(folder.join("samples.png")).unwrap();
}

#[test]
fn settings_are_chosen_on_search_data_and_every_run_is_executed_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("results.jsonl");
    let plan = plan(PLAN).unwrap();
    let trained = AtomicUsize::new(0);
    let train = |_: usize, run: &Run| {
        trained.fetch_add(1, Ordering::Relaxed);
        write_samples(folder.path(), run);
        Ok(metrics(run))
    };
    for again in [false, true] {
        let mut results = ResultsFile::open(&path).unwrap();
        let search = plan.search_runs(&results);
        assert_eq!(search.len(), 3, "an arm without candidates is not searched");
        assert!(execute(&search, 2, &mut results, train, |_| ()).unwrap().is_empty());
        let runs = plan.score_runs(&results);
        assert_eq!(runs.len(), 8);
        let paired =
            |pair: &[Run]| pair[0].config.seed == pair[1].config.seed && pair[0].arm != pair[1].arm;
        assert!(runs.chunks(2).all(paired), "an interrupted comparison has both arms");
        assert!(runs.is_sorted_by_key(|run| run.config.seed), "runs are sorted by seed");
        assert!(runs.iter().filter(|run| run.arm == "two").all(|run| run.config.steps == 30));
        assert!(execute(&runs, 3, &mut results, train, |_| ()).unwrap().is_empty());
        assert_eq!(trained.load(Ordering::Relaxed), 11, "again: {again}");

        let rows = score_table(&runs, &results);
        assert_eq!(rows[0].against_first, vec![None; 6]);
        let AdjustedTest { test, adjusted_p } = rows[1].against_first[1].unwrap();
        assert!((test.difference - 0.2).abs() < 1e-6 && test.to_string() == "2 data sets");
        // Two seeds on two data sets count as two units.
        assert_eq!((test.p, adjusted_p), (2.0 / 4.0, 2.0 / 4.0), "{rows:?}");
        let evaluation_results = ResultsFile::open(&folder.path().join("probes.jsonl")).unwrap();
        let html = report(&ReportInput {
            plan: &plan,
            runs: &runs,
            results: &results,
            evaluations: &[],
            evaluation_results: &evaluation_results,
            folders: &[folder.path().to_owned()],
        })
        .unwrap();
        assert!(html.contains("0.810 ± 0.012") && html.contains("p 0.500, Holm 0.500"), "{html}");
        assert_eq!(html.matches("<svg").count(), 3, "two figures of scores, one of the loss");
        assert_eq!(html.matches("<img").count(), 2 * 3, "base model and two arms on two data sets");
    }
}

#[test]
fn the_arms_tested_by_one_score_are_a_family() {
    let more = r#"
[[arm]]
name = "same"

[[arm]]
name = "better"
train.steps = 30

[[arm]]
name = "elsewhere"
data = ["styles/s"]
"#;
    let folder = tempfile::tempdir().unwrap();
    let mut results = ResultsFile::open(&folder.path().join("results.jsonl")).unwrap();
    let subjects = r#"["s/1", "s/2", "s/3", "s/4", "s/5", "s/6"]"#;
    let text = PLAN.replacen(r#"["subjects/a", "subjects/b"]"#, subjects, 1) + more;
    let plan = plan(&text).unwrap();
    let search = plan.search_runs(&results);
    execute(&search, 1, &mut results, |_, run| Ok(metrics(run)), |_| ()).unwrap();
    let runs = plan.score_runs(&results);
    execute(&runs, 1, &mut results, |_, run| Ok(metrics(run)), |_| ()).unwrap();
    let rows = score_table(&runs, &results);
    let found: Vec<_> = rows
        .iter()
        .map(|row| row.against_first[1].map(|against| (against.test.p, against.adjusted_p)))
        .collect();
    // The p value of six equal signs. Three arms are tested; the fourth shares no data set with the first.
    let least = 2.0 / 64.0;
    let (two, same, better) = ((least, 3.0 * least), (1.0, 1.0), (least, 3.0 * least));
    assert_eq!(found, [None, Some(two), Some(same), Some(better), None]);
    let data_sets = |row: usize| rows[row].over_data_sets[1].unwrap().n;
    assert_eq!((rows[0].runs, data_sets(0), data_sets(4)), (12, 6, 1));
}

const EVALUATIONS: &str = r#"
[[arm]]
name = "style"
data = ["styles/s"]

[[strength]]
arm = "one"
at = [0.5, 1.0]

[[strength]]
arm = "one"
path = "linear"
at = [0.5]

[[merge]]
subject = "one"
style = "style"
phrase = "in s style"
modes = ["residual", "compose"]
weights = [[1.0, 1.0], [0.8, 0.6]]
"#;

#[test]
fn finished_runs_are_evaluated_at_other_strengths_and_merged() {
    let folder = tempfile::tempdir().unwrap();
    let mut results = ResultsFile::open(&folder.path().join("results.jsonl")).unwrap();
    let plan = plan(&format!("{PLAN}{EVALUATIONS}")).unwrap();
    let train = |_: usize, run: &Run| {
        write_samples(folder.path(), run);
        Ok(metrics(run))
    };
    let search = plan.search_runs(&results);
    execute(&search, 2, &mut results, train, |_| ()).unwrap();
    let runs = plan.score_runs(&results);
    assert_eq!(runs.len(), 10, "the arm of styles has its own data set");
    assert!(plan.evaluations(&runs, &results).is_empty(), "no run has finished");
    execute(&runs, 2, &mut results, train, |_| ()).unwrap();

    let evaluations = plan.evaluations(&runs, &results);
    // Four runs of subjects, each at three strengths and merged with the style in four ways.
    assert_eq!(evaluations.len(), 4 * 3 + 4 * 4);
    let same_seed = |evaluation: &Evaluation| match &evaluation.kind {
        EvaluationKind::Merge { style, .. } => style.config.seed == evaluation.run.config.seed,
        EvaluationKind::Strength { .. } => true,
    };
    assert!(evaluations.iter().all(same_seed));

    let mut evaluated = ResultsFile::open(&folder.path().join("probes.jsonl")).unwrap();
    let evaluate = |_: usize, evaluation: &Evaluation| {
        let folder = folder.path().join(&evaluation.id);
        std::fs::create_dir_all(&folder).unwrap();
        image::RgbImage::new(4, 4).save(folder.join("samples.png")).unwrap();
        let scores = Scores { clip_t: evaluation.at[0] as f32, ..metrics(&evaluation.run).after };
        let (prompts, identifier, held_out) = (vec![], None, vec![]);
        Ok(EvaluationScores { prompts, identifier, held_out, scores, style_clip_i: Some(0.25) })
    };
    execute(&evaluations, 3, &mut evaluated, evaluate, |_| ()).unwrap();
    let again = |_: usize, _: &Evaluation| Err("evaluated twice".to_owned());
    assert!(execute(&evaluations, 3, &mut evaluated, again, |_| ()).unwrap().is_empty());

    let rows = strength_table(&evaluations, &evaluated);
    let found: Vec<_> =
        rows.iter().map(|row| (row.series.as_str(), &row.at[..], row.evaluations)).collect();
    assert_eq!(found[0], ("one, geodesic", &[0.5][..], 4));
    assert_eq!(found[4], ("one in style, residual", &[0.8, 0.6][..], 4));
    assert_eq!(found.len(), 3 + 4);
    assert!((rows[1].scores[0].unwrap().mean - 1.0).abs() < 1e-12);

    let html = report(&ReportInput {
        plan: &plan,
        runs: &runs,
        results: &results,
        evaluations: &evaluations,
        evaluation_results: &evaluated,
        folders: &[folder.path().to_owned()],
    })
    .unwrap();
    assert!(html.contains("one in style, compose at 0.8, 0.6"), "{html}");
    assert_eq!(html.matches("<svg").count(), 3 + 2, "two more curves over the strength");
}

#[test]
fn an_incomplete_last_line_is_dropped_and_an_invalid_line_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("results.jsonl");
    let plan = plan(PLAN).unwrap();
    let mut results = ResultsFile::open(&path).unwrap();
    let runs = plan.search_runs(&results);
    execute(&runs, 1, &mut results, |_, run| Ok(metrics(run)), |_| ()).unwrap();

    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, &text[..text.len() - 5]).unwrap();
    let mut results = ResultsFile::open(&path).unwrap();
    let left = runs.iter().filter(|run| results.get(&run.id).is_some()).count();
    assert_eq!(left, runs.len() - 1);
    execute(&runs, 1, &mut results, |_, run| Ok(metrics(run)), |_| ()).unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);

    std::fs::write(&path, text.replacen("\"id\"", "\"di\"", 1)).unwrap();
    assert!(matches!(
        ResultsFile::<RunResult>::open(&path),
        Err(CompareError::ReadResults { line: 1, .. })
    ));
}

#[test]
fn intermediate_scores_are_stored_and_may_be_absent() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("results.jsonl");
    let plan = plan(PLAN).unwrap();
    let mut results = ResultsFile::open(&path).unwrap();
    let runs = plan.search_runs(&results);
    let train = |_: usize, run: &Run| {
        let metrics = metrics(run);
        let scored = StepScores { step: 10, scores: metrics.before };
        let trace = if run.config.steps == 20 { vec![scored] } else { vec![] };
        Ok(RunMetrics { trace, ..metrics })
    };
    execute(&runs, 1, &mut results, train, |_| ()).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(text.matches("\"trace\":[{\"step\":10,\"scores\":{").count(), 1, "{text}");
    assert_eq!(text.matches("trace").count(), 1, "an empty trace is not stored");
    let again: ResultsFile<RunResult> = ResultsFile::open(&path).unwrap();
    assert!(runs.iter().all(|run| again.get(&run.id) == results.get(&run.id)));
}

#[test]
fn an_unfair_or_invalid_plan_is_refused() {
    let refused = |text: &str| match plan(text).unwrap_err() {
        CompareError::Plan(error) => error,
        error => panic!("{error}"),
    };
    let change = |from: &str, to: &str| refused(&PLAN.replacen(from, to, 1));
    assert!(matches!(change("subjects/c", "subjects/a"), PlanError::SearchOnScoredData(_)));
    assert!(matches!(change("\"two\"", "\"one\""), PlanError::DuplicateArm(_)));
    assert!(matches!(change("\"two\"", "\"t/o\""), PlanError::InvalidArmName(_)));
    assert!(matches!(change("[0, 1]", "[]"), PlanError::EmptyList("score.seeds")));
    let twice = change("[0, 1]", "[0, 1, 0]").to_string();
    assert!(twice.contains("`score.seeds` has 0 twice"), "{twice}");
    let long = change("\"two\"", &format!("\"{}\"", "t".repeat(101)));
    assert!(matches!(long, PlanError::InvalidArmName(_)));
    assert!(matches!(change("steps = 10", "stepz = 10"), PlanError::Arm { .. }));
    // The lines of an arm's settings are spread over a plan.
    let typed = change("batch_size = 2", "batch_size = 'x'").to_string();
    assert!(typed.contains("`batch_size`: invalid type") && !typed.contains("line"), "{typed}");
    assert!(matches!(change("batch_size = 2", "batch_size = 0"), PlanError::Arm { .. }));
    assert!(matches!(change("base", "[["), PlanError::Parse(_)));
    let early =
        "steps = 10\nvalidation = { every = 5, held_out = 0.5, early_stopping_patience = 1 }";
    assert!(matches!(change("steps = 10", early), PlanError::EarlyStopping(_)));
    let evaluating =
        |from: &str, to: &str| refused(&format!("{PLAN}{}", EVALUATIONS.replacen(from, to, 1)));
    let unknown = evaluating("arm = \"one\"", "arm = \"ten\"");
    assert!(unknown.to_string().contains("no arm `ten`"), "{unknown}");
    assert!(matches!(evaluating("[0.5, 1.0]", "[]"), PlanError::EmptyList("strength.at")));
    assert!(matches!(evaluating("[0.5, 1.0]", "[nan]"), PlanError::NotFinite("strength.at")));
    let scored = evaluating("styles/s", "subjects/c");
    assert!(matches!(scored, PlanError::SearchOnScoredData(_)));
    let without = PLAN.replace("[search]\ndata = [\"subjects/c\"]\nseeds = [0]\n", "");
    assert!(matches!(refused(&without), PlanError::NoSearchData(_)));
}

const KINDS: &str = r#"
[train]
base = "toy"
judges = "judges"
steps = 10
batch_size = 2
trigger = "sks {class}"
prompt = "a photo of a [trigger]"
samples.guidance = 3.0

[kind.live]
prior = { prompt = "a photo of a {class}", data = "class" }
samples.prompts = ["a [trigger] in a hat", "a wet {class}"]
samples.guidance = 4.0

[score]
data = [
    { folder = "set/dog2", class = "dog", kind = "live" },
    { folder = "set/bear", class = "stuffed animal" },
]
seeds = [0, 1]

[search]
data = [{ folder = "set/cat", class = "cat", kind = "live" }]
seeds = [0]

[[arm]]
name = "one"

[[arm]]
name = "two"
train.samples.guidance = 5.0
search = [{ steps = 20 }, { steps = 30 }]
"#;

#[test]
fn settings_depend_on_the_data_set_and_an_arm_overrides_them() {
    let folder = tempfile::tempdir().unwrap();
    let mut results = ResultsFile::open(&folder.path().join("results.jsonl")).unwrap();
    let plan = plan(KINDS).unwrap();
    let search = plan.search_runs(&results);
    assert!(search.iter().all(|run| run.config.trigger.as_deref() == Some("sks cat")));
    execute(&search, 1, &mut results, |_, run| Ok(metrics(run)), |_| ()).unwrap();
    let runs = plan.score_runs(&results);
    assert_eq!((runs.len(), plan.num_scored(), search.len()), (8, 8, 2));
    let config_of = |arm: &str, data: &str| {
        let wanted = |run: &&Run| run.arm == arm && run.config.data.ends_with(data);
        runs.iter().find(wanted).unwrap().config.clone()
    };
    let (dog, bear, two) =
        (config_of("one", "dog2"), config_of("one", "bear"), config_of("two", "dog2"));
    assert_eq!(dog.trigger.as_deref(), Some("sks dog"));
    assert_eq!(dog.samples.prompts, ["a [trigger] in a hat", "a wet dog"]);
    assert_eq!(dog.prior.unwrap().prompt, "a photo of a dog");
    assert_eq!((bear.trigger.as_deref(), bear.prior), (Some("sks stuffed animal"), None));
    assert!(bear.samples.prompts.is_empty());
    let guidance = [dog.samples.guidance, bear.samples.guidance, two.samples.guidance];
    assert_eq!(guidance, [4.0, 3.0, 5.0]);
    assert_eq!(two.samples.prompts.len(), 2, "the other settings of the kind stay");

    let folders = plan.folders();
    let expected = ["class", "judges/clip", "judges/dino", "set/bear", "set/cat", "set/dog2"];
    assert!(folders.iter().eq(expected.iter().map(Path::new)), "{folders:?}");

    let change = |from: &str, to: &str| refusal(&KINDS.replacen(from, to, 1));
    let unknown = change("class = \"cat\", kind = \"live\"", "class = \"cat\", kind = \"alive\"");
    assert!(unknown.contains("set/cat is of kind `alive`"), "{unknown}");
    let none = change("set/bear\", class = \"stuffed animal\"", "set/bear\"");
    assert!(none.contains("folder = \"set/bear\", class ="), "{none}");
    // The same folder with another class is still scored.
    let tuned = change("set/cat", "set/bear");
    assert!(tuned.contains("not chosen on what is scored"), "{tuned}");
}

fn refusal(text: &str) -> String {
    plan(text).unwrap_err().to_string()
}

/// A worker may hold a resource, such as a GPU, that serves one task at a time.
#[test]
fn a_worker_executes_one_task_at_a_time() {
    const WORKERS: usize = 3;
    let folder = tempfile::tempdir().unwrap();
    let mut results = ResultsFile::open(&folder.path().join("results.jsonl")).unwrap();
    let running: [AtomicUsize; WORKERS] = Default::default();
    let train = |worker: usize, run: &Run| {
        assert_eq!(running[worker].fetch_add(1, Ordering::SeqCst), 0, "worker {worker}");
        std::thread::sleep(std::time::Duration::from_millis(5));
        running[worker].fetch_sub(1, Ordering::SeqCst);
        Ok(metrics(run))
    };
    let runs = plan(PLAN).unwrap().search_runs(&results);
    assert!(execute(&runs, WORKERS, &mut results, train, |_| ()).unwrap().is_empty());
}
