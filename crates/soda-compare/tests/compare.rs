//! A comparison from plan to report, with a trainer that is a formula.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use soda_compare::{
    Against, CompareError, Look, Measured, Plan, PlanConfig, Probe, Record, Results, Run, execute,
    places, report, table,
};
use soda_train::{Scored, Scores};

const PLAN: &str = r#"
[train]
base = "toy"
steps = 10
batch_size = 2

[score]
data = ["subjects/a", "subjects/b"]
seeds = [0, 1]

[search]
data = ["subjects/c"]
seeds = [0]

[[arm]]
name = "one"

[[arm]]
name = "two"
search = [{ steps = 20 }, { steps = 30 }, { steps = 40 }]
"#;

fn plan(text: &str) -> Result<Plan, CompareError> {
    PlanConfig::from_toml(text)?.check()
}

/// Best at 30 steps.
fn measure(run: &Run) -> Measured {
    let dino = 1.0 - (run.config.steps as f32 - 30.0).abs() / 100.0 + run.config.seed as f32 / 50.0;
    let scores = |dino: f32| Scores {
        clip_t: 0.5,
        clip_i: 0.5,
        dino,
        truth_clip_i: Some(0.5),
        truth_dino: Some(dino),
        drift: None,
        drift_dino: None,
    };
    Measured {
        before: scores(0.1),
        after: scores(dino),
        truth: Some(scores(1.0)),
        trace: Vec::new(),
        losses: (1..40).map(|step| 1.0 / step as f32).collect(),
        num_params: 10,
        file_size: 100,
        seconds_per_step: 0.1,
        peak_memory: None,
    }
}

/// A run folder as `soda train` leaves it.
fn draw(folder: &Path, run: &Run) {
    let folder = folder.join(&run.id);
    std::fs::create_dir_all(&folder).unwrap();
    image::RgbImage::new(4, 6).save(folder.join("samples.png")).unwrap();
}

#[test]
fn settings_are_chosen_on_other_data_and_every_run_is_done_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("results.jsonl");
    let plan = plan(PLAN).unwrap();
    let trained = AtomicUsize::new(0);
    let train = |_: usize, run: &Run| {
        trained.fetch_add(1, Ordering::Relaxed);
        draw(folder.path(), run);
        Ok(measure(run))
    };
    for again in [false, true] {
        let mut results = Results::open(&path).unwrap();
        let search = plan.search_runs();
        assert_eq!(search.len(), 3, "an arm without a choice is not searched");
        assert!(execute(&search, 2, &mut results, train, |_| ()).unwrap().is_empty());
        let runs = plan.score_runs(&results);
        assert_eq!(runs.len(), 8);
        let met =
            |pair: &[Run]| pair[0].config.seed == pair[1].config.seed && pair[0].arm != pair[1].arm;
        assert!(runs.chunks(2).all(met), "stopped half way, both arms have met the same subjects");
        assert!(runs.is_sorted_by_key(|run| run.config.seed), "with the same seeds");
        assert!(runs.iter().filter(|run| run.arm == "two").all(|run| run.config.steps == 30));
        assert!(execute(&runs, 3, &mut results, train, |_| ()).unwrap().is_empty());
        assert_eq!(trained.load(Ordering::Relaxed), 11, "again: {again}");

        let rows = table(&runs, &results);
        assert_eq!(rows[0].against_first, vec![None; 6]);
        let Against { test, corrected } = rows[1].against_first[1].unwrap();
        assert!((test.difference - 0.2).abs() < 1e-6 && test.to_string() == "2 data sets");
        // Two seeds of two data sets are two data sets.
        assert_eq!((test.p, corrected), (2.0 / 4.0, 2.0 / 4.0), "{rows:?}");
        let none = Results::open(&folder.path().join("probes.jsonl")).unwrap();
        let html = report(&plan, &runs, &results, (&[], &none), folder.path()).unwrap();
        assert!(html.contains("0.810 ± 0.012") && html.contains("p 0.500, Holm 0.500"), "{html}");
        assert_eq!(html.matches("<svg").count(), 3, "two of the scores, one of the loss");
        assert_eq!(html.matches("<img").count(), 2 * 3, "before and two arms, of two data sets");
    }
}

#[test]
fn the_arms_of_a_score_are_one_family_of_tests() {
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
    let mut results = Results::open(&folder.path().join("results.jsonl")).unwrap();
    let subjects = r#"["s/1", "s/2", "s/3", "s/4", "s/5", "s/6"]"#;
    let text = PLAN.replacen(r#"["subjects/a", "subjects/b"]"#, subjects, 1) + more;
    let plan = plan(&text).unwrap();
    execute(&plan.search_runs(), 1, &mut results, |_, run| Ok(measure(run)), |_| ()).unwrap();
    let runs = plan.score_runs(&results);
    execute(&runs, 1, &mut results, |_, run| Ok(measure(run)), |_| ()).unwrap();
    let rows = table(&runs, &results);
    let found: Vec<_> = rows
        .iter()
        .map(|row| row.against_first[1].map(|against| (against.test.p, against.corrected)))
        .collect();
    // Of six signs; three arms are tested, since one shares no data with the first.
    let least = 2.0 / 64.0;
    let (two, same, better) = ((least, 3.0 * least), (1.0, 1.0), (least, 3.0 * least));
    assert_eq!(found, [None, Some(two), Some(same), Some(better), None]);
    let over = |row: usize| rows[row].over_data[1].unwrap().n;
    assert_eq!((rows[0].runs, over(0), over(4)), (12, 6, 1));
}

const PROBES: &str = r#"
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
fn finished_runs_are_looked_at_once_more() {
    let folder = tempfile::tempdir().unwrap();
    let mut results = Results::open(&folder.path().join("results.jsonl")).unwrap();
    let plan = plan(&format!("{PLAN}{PROBES}")).unwrap();
    let train = |_: usize, run: &Run| {
        draw(folder.path(), run);
        Ok(measure(run))
    };
    execute(&plan.search_runs(), 2, &mut results, train, |_| ()).unwrap();
    let runs = plan.score_runs(&results);
    assert_eq!(runs.len(), 10, "the arm of styles has its own data");
    assert!(plan.probes(&runs, &results).is_empty(), "nothing is trained yet");
    execute(&runs, 2, &mut results, train, |_| ()).unwrap();

    let probes = plan.probes(&runs, &results);
    // Two subjects of two seeds at three strengths, and with the style of their seed in four ways.
    assert_eq!(probes.len(), 4 * 3 + 4 * 4);
    let same_seed = |probe: &Probe| match &probe.look {
        Look::Merge { style, .. } => style.config.seed == probe.run.config.seed,
        Look::Strength { .. } => true,
    };
    assert!(probes.iter().all(same_seed));

    let mut seen = Results::open(&folder.path().join("probes.jsonl")).unwrap();
    let look = |_: usize, probe: &Probe| {
        let place = folder.path().join(&probe.id);
        std::fs::create_dir_all(&place).unwrap();
        image::RgbImage::new(4, 4).save(place.join("samples.png")).unwrap();
        let scores = measure(&probe.run).after;
        Ok((Scores { clip_t: probe.at[0] as f32, ..scores }, Some(0.25)))
    };
    execute(&probes, 3, &mut seen, look, |_| ()).unwrap();
    let again = |_: usize, _: &Probe| Err("looked at twice".to_owned());
    assert!(execute(&probes, 3, &mut seen, again, |_| ()).unwrap().is_empty());

    let places = places(&probes, &seen);
    let found: Vec<_> = places.iter().map(|p| (p.series.as_str(), &p.at[..], p.looks)).collect();
    assert_eq!(found[0], ("one, geodesic", &[0.5][..], 4));
    assert_eq!(found[4], ("one in style, residual", &[0.8, 0.6][..], 4));
    assert_eq!(found.len(), 3 + 4);
    assert!((places[1].scores[0].unwrap().mean - 1.0).abs() < 1e-12);

    let html = report(&plan, &runs, &results, (&probes, &seen), folder.path()).unwrap();
    assert!(html.contains("one in style, compose at 0.8, 0.6"), "{html}");
    assert_eq!(html.matches("<svg").count(), 3 + 2, "and two curves over the strength");
}

#[test]
fn a_failed_run_stops_no_other_and_is_run_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut results = Results::open(&folder.path().join("results.jsonl")).unwrap();
    let plan = plan(PLAN).unwrap();
    let search = plan.search_runs();
    let fail = |_: usize, run: &Run| match run.config.steps {
        30 => Err("out of luck".to_owned()),
        _ => Ok(measure(run)),
    };
    let failures = execute(&search, 1, &mut results, fail, |_| ()).unwrap();
    assert_eq!(failures.len(), 1);
    assert_eq!(failures[0].reason, "out of luck");
    let chosen = plan.score_runs(&results);
    assert!(chosen.iter().all(|run| run.config.steps != 30), "a failed setting is not chosen");
    assert!(
        execute(&search, 1, &mut results, |_, run| Ok(measure(run)), |_| ()).unwrap().is_empty()
    );
}

#[test]
fn a_line_cut_short_is_dropped_and_a_broken_one_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("results.jsonl");
    let plan = plan(PLAN).unwrap();
    let runs = plan.search_runs();
    let mut results = Results::open(&path).unwrap();
    execute(&runs, 1, &mut results, |_, run| Ok(measure(run)), |_| ()).unwrap();

    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, &text[..text.len() - 5]).unwrap();
    let mut results = Results::open(&path).unwrap();
    let left = runs.iter().filter(|run| results.get(&run.id).is_some()).count();
    assert_eq!(left, runs.len() - 1);
    execute(&runs, 1, &mut results, |_, run| Ok(measure(run)), |_| ()).unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);

    std::fs::write(&path, text.replacen("\"id\"", "\"di\"", 1)).unwrap();
    assert!(matches!(
        Results::<Record>::open(&path),
        Err(CompareError::ReadResults { line: 1, .. })
    ));
}

#[test]
fn scores_on_the_way_are_kept_and_a_line_without_them_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("results.jsonl");
    let plan = plan(PLAN).unwrap();
    let runs = plan.search_runs();
    let train = |_: usize, run: &Run| {
        let measured = measure(run);
        let scored = Scored { step: 10, scores: measured.before };
        let trace = if run.config.steps == 20 { vec![scored] } else { vec![] };
        Ok(Measured { trace, ..measured })
    };
    let mut results = Results::open(&path).unwrap();
    execute(&runs, 1, &mut results, train, |_| ()).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(text.matches("\"trace\":[{\"step\":10,\"scores\":{").count(), 1, "{text}");
    assert_eq!(text.matches("trace").count(), 1, "nothing where there is none");
    let again: Results<Record> = Results::open(&path).unwrap();
    assert!(runs.iter().all(|run| again.get(&run.id) == results.get(&run.id)));
}

#[test]
fn an_unfair_or_unusable_plan_is_refused() {
    let change = |from: &str, to: &str| plan(&PLAN.replacen(from, to, 1)).unwrap_err();
    assert!(matches!(change("subjects/c", "subjects/a"), CompareError::TunedOnScored(_)));
    assert!(matches!(change("\"two\"", "\"one\""), CompareError::SameName(_)));
    assert!(matches!(change("\"two\"", "\"t/o\""), CompareError::BadName(_)));
    assert!(matches!(change("[0, 1]", "[]"), CompareError::Empty("score.seeds")));
    assert!(matches!(change("steps = 10", "stepz = 10"), CompareError::Arm { .. }));
    assert!(matches!(change("batch_size = 2", "batch_size = 0"), CompareError::Arm { .. }));
    assert!(matches!(change("base", "[["), CompareError::ReadPlan(_)));
    let probing = |from: &str, to: &str| {
        plan(&format!("{PLAN}{}", PROBES.replacen(from, to, 1))).unwrap_err()
    };
    let unknown = probing("arm = \"one\"", "arm = \"ten\"");
    assert!(unknown.to_string().contains("no arm `ten`"), "{unknown}");
    assert!(matches!(probing("[0.5, 1.0]", "[]"), CompareError::Empty("strength.at")));
    assert!(matches!(probing("[0.5, 1.0]", "[nan]"), CompareError::NotFinite("strength.at")));
    assert!(matches!(probing("styles/s", "subjects/c"), CompareError::TunedOnScored(_)));
    let without = PLAN.replace("[search]\ndata = [\"subjects/c\"]\nseeds = [0]\n", "");
    assert!(matches!(plan(&without), Err(CompareError::NoSearch(_))));
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
fn settings_go_by_the_data_and_an_arm_has_the_last_word() {
    let folder = tempfile::tempdir().unwrap();
    let mut results = Results::open(&folder.path().join("results.jsonl")).unwrap();
    let plan = plan(KINDS).unwrap();
    let search = plan.search_runs();
    assert!(search.iter().all(|run| run.config.trigger.as_deref() == Some("sks cat")));
    execute(&search, 1, &mut results, |_, run| Ok(measure(run)), |_| ()).unwrap();
    let runs = plan.score_runs(&results);
    assert_eq!((runs.len(), plan.num_scored(), search.len()), (8, 8, 2));
    let asked = |arm: &str, data: &str| {
        let of = |run: &&Run| run.arm == arm && run.config.data.ends_with(data);
        runs.iter().find(of).unwrap().config.clone()
    };
    let (dog, bear, two) = (asked("one", "dog2"), asked("one", "bear"), asked("two", "dog2"));
    assert_eq!(dog.trigger.as_deref(), Some("sks dog"));
    assert_eq!(dog.samples.prompts, ["a [trigger] in a hat", "a wet dog"]);
    assert_eq!(dog.prior.unwrap().prompt, "a photo of a dog");
    assert_eq!((bear.trigger.as_deref(), bear.prior), (Some("sks stuffed animal"), None));
    assert!(bear.samples.prompts.is_empty());
    let guidance = [dog.samples.guidance, bear.samples.guidance, two.samples.guidance];
    assert_eq!(guidance, [4.0, 3.0, 5.0]);
    assert_eq!(two.samples.prompts.len(), 2, "the rest of its kind's settings stays");

    let folders = plan.folders();
    let expected = ["class", "judges/clip", "judges/dino", "set/bear", "set/cat", "set/dog2"];
    assert!(folders.iter().eq(expected.iter().map(Path::new)), "{folders:?}");

    let change = |from: &str, to: &str| refusal(&KINDS.replacen(from, to, 1));
    let unknown = change("class = \"cat\", kind = \"live\"", "class = \"cat\", kind = \"alive\"");
    assert!(unknown.contains("set/cat is of kind `alive`"), "{unknown}");
    let none = change("set/bear\", class = \"stuffed animal\"", "set/bear\"");
    assert!(none.contains("folder = \"set/bear\", class ="), "{none}");
    // The same folder, whatever it is called.
    let tuned = change("set/cat", "set/bear");
    assert!(tuned.contains("not chosen on what is scored"), "{tuned}");
}

fn refusal(text: &str) -> String {
    plan(text).unwrap_err().to_string()
}

#[test]
fn the_plans_of_the_examples_are_usable() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/compare");
    let mut plans = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let checked = plan(&std::fs::read_to_string(&path).unwrap());
        assert!(checked.is_ok(), "{}: {:?}", path.display(), checked.err());
        plans += 1;
    }
    assert!(plans >= 6);
}

#[test]
fn every_subject_of_dreambooth_is_asked_for_by_its_class() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/compare/dreambooth.toml");
    let plan = plan(&std::fs::read_to_string(path).unwrap()).unwrap();
    let subjects: BTreeSet<_> = plan.configs().map(|config| &config.data).collect();
    assert_eq!(subjects.len(), 30);
    assert_eq!((plan.search_runs().len(), plan.num_scored()), (4 * 33, 26 * 11));
    for config in plan.configs() {
        let trigger = config.trigger.as_deref().unwrap();
        assert!(trigger.starts_with("sks ") && !trigger.contains('{'), "{trigger}");
        let prompts: BTreeSet<_> = config.samples.prompts.iter().collect();
        assert_eq!(prompts.len(), 12, "{}", config.data.display());
        assert!(prompts.iter().all(|prompt| prompt.contains("[trigger]")), "{prompts:?}");
        let worn = prompts.iter().any(|prompt| prompt.contains("straw hat"));
        assert_eq!(worn, ["sks dog", "sks cat"].contains(&trigger), "only what is alive wears it");
        assert!(config.validation.held_out > 0.0, "there are no truths");
    }
}

/// What is bound to a place, such as a graphics card, serves one task at a time.
#[test]
fn a_place_is_taken_by_one_task_at_a_time() {
    const PLACES: usize = 3;
    let folder = tempfile::tempdir().unwrap();
    let mut results = Results::open(&folder.path().join("results.jsonl")).unwrap();
    let taken: [AtomicUsize; PLACES] = Default::default();
    let train = |place: usize, run: &Run| {
        assert_eq!(taken[place].fetch_add(1, Ordering::SeqCst), 0, "place {place}");
        std::thread::sleep(std::time::Duration::from_millis(5));
        taken[place].fetch_sub(1, Ordering::SeqCst);
        Ok(measure(run))
    };
    let runs = plan(PLAN).unwrap().search_runs();
    assert!(execute(&runs, PLACES, &mut results, train, |_| ()).unwrap().is_empty());
}
