//! The runs of a folder, and what their files say of them.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::Serialize;
use serde_json::Value;
use soda_adapters::Method as _;
use soda_models::input_file::{self, SizeLimit};
use soda_train::{LOSS_WINDOW, RunFolder, TrainConfig, read_text};

use crate::id::{id_of, is_file_below};

/// The most bytes of a log's end that are read for a summary: more than [`LOSS_WINDOW`] steps. The list reads
/// that of every run.
const TAIL: u64 = 12 << 10;

/// A folder of a run.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) path: PathBuf,
}

/// What a run is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RunState {
    /// A process was started and has no folder yet.
    Starting,
    /// A process works on it.
    Running,
    /// It has a report.
    Finished,
    /// It was asked to stop.
    Stopped,
    /// It ended with an error.
    Failed,
    /// Its process ended without a word.
    Interrupted,
}

/// A run in the list.
#[derive(Debug, Serialize)]
pub(crate) struct RunSummary {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) state: RunState,
    /// The seconds since 1970 when the run was created.
    pub(crate) created: f64,
    /// The newest step, and all steps.
    pub(crate) step: u64,
    pub(crate) steps: u64,
    /// The mean loss of the newest steps.
    pub(crate) loss: Option<f64>,
    /// The stage of a run that goes on.
    pub(crate) stage: Option<String>,
    /// The error of a run that failed.
    pub(crate) error: Option<String>,
    pub(crate) method: String,
    pub(crate) base: String,
    pub(crate) data: String,
}

/// A run on its own page.
#[derive(Debug, Serialize)]
pub(crate) struct RunDetails {
    #[serde(flatten)]
    pub(crate) summary: RunSummary,
    /// The settings, TOML.
    pub(crate) settings: String,
    /// The prompts of the samples, in the order of the columns of a grid.
    pub(crate) prompts: Vec<String>,
    pub(crate) has_before: bool,
    pub(crate) has_after: bool,
    pub(crate) has_adapter: bool,
    /// The steps that have a grid of samples.
    pub(crate) samples: Vec<u64>,
}

/// All runs in `root` by name. A symbolic link and a hidden folder are none.
pub(crate) fn list(root: &Path) -> Vec<Run> {
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    let mut runs: Vec<Run> = entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter_map(|entry| {
            let (name, path) = (entry.file_name().into_string().ok()?, entry.path());
            let is_run = !name.starts_with('.') && path.join(RunFolder::CONFIG).is_file();
            is_run.then(|| Run { id: id_of(Path::new(&name)), name, path })
        })
        .collect();
    runs.sort_by(|a, b| a.name.cmp(&b.name));
    runs
}

/// The run with this id.
pub(crate) fn find(root: &Path, id: &str) -> Option<Run> {
    list(root).into_iter().find(|run| run.id == id)
}

impl Run {
    /// What the run is doing. `last` is the last line of its log that says how it ended.
    fn state(&self, last: Option<&Value>) -> RunState {
        if RunFolder::is_busy(&self.path) {
            return RunState::Running;
        }
        if self.path.join(RunFolder::REPORT).is_file() {
            return RunState::Finished;
        }
        match last.and_then(|line| line["event"].as_str()) {
            Some("failed") => RunState::Failed,
            Some("stopped") => RunState::Stopped,
            _ => RunState::Interrupted,
        }
    }

    /// Whether the folder of the run is still there, and not a link.
    pub(crate) fn is_there(&self) -> bool {
        self.path.symlink_metadata().is_ok_and(|data| data.is_dir())
            && self.path.join(RunFolder::CONFIG).is_file()
    }

    /// Whether no process works on the run.
    pub(crate) fn is_over(&self) -> bool {
        !RunFolder::is_busy(&self.path)
    }

    pub(crate) fn summary(&self) -> RunSummary {
        self.summary_with(self.config().as_ref())
    }

    /// The settings of the run.
    pub(crate) fn config(&self) -> Option<TrainConfig> {
        let text = read_text(&self.path.join(RunFolder::CONFIG), SizeLimit::SETTINGS).ok()?;
        TrainConfig::from_toml(&text).ok()
    }

    /// The base model and the data folder.
    pub(crate) fn inputs(&self) -> Option<(PathBuf, PathBuf)> {
        self.config().map(|config| (config.base, config.data))
    }

    fn summary_with(&self, config: Option<&TrainConfig>) -> RunSummary {
        let log = self.end_of_log();
        let last = |names: &[&str]| {
            let is_one = |line: &&Value| line["event"].as_str().is_some_and(|e| names.contains(&e));
            log.iter().rev().find(is_one)
        };
        let ends = ["started", "stage", "finished", "stopped", "failed"];
        let end = last(&ends);
        let state = self.state(end);
        let step = last(&["step", "started"]);
        let created = std::fs::metadata(self.path.join(RunFolder::CONFIG));
        let created = created.and_then(|data| data.modified()).unwrap_or(UNIX_EPOCH);
        let name =
            |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let text = |line: Option<&Value>, field: &str| Some(line?[field].as_str()?.to_owned());
        let steps = config.map_or(0, |config| config.steps as u64);
        RunSummary {
            id: self.id.clone(),
            name: self.name.clone(),
            state,
            created: created.duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64()),
            step: match (step, state) {
                (None, RunState::Finished) => steps,
                (step, _) => step.and_then(|line| line["step"].as_u64()).unwrap_or(0),
            },
            steps,
            loss: mean_loss(&log),
            stage: text(last(&["stage"]), "name").filter(|_| state == RunState::Running),
            error: text(end, "text").filter(|_| state == RunState::Failed),
            method: config.map_or_else(String::new, |config| config.method.name().to_owned()),
            base: config.map_or_else(String::new, |config| name(&config.base)),
            data: config.map_or_else(String::new, |config| name(&config.data)),
        }
    }

    pub(crate) fn details(&self) -> RunDetails {
        let config = self.config();
        let settings = self.path.join(RunFolder::CONFIG);
        RunDetails {
            summary: self.summary_with(config.as_ref()),
            settings: read_text(&settings, SizeLimit::SETTINGS).unwrap_or_default(),
            prompts: config.map_or_else(Vec::new, |config| config.samples.prompts),
            has_before: self.image("before").is_some(),
            has_after: self.image("after").is_some(),
            has_adapter: self.has_adapter(),
            samples: self.samples().into_iter().map(|(step, _)| step).collect(),
        }
    }

    /// The grids of samples with their steps, in the order of the steps.
    fn samples(&self) -> Vec<(u64, PathBuf)> {
        let entries = std::fs::read_dir(self.path.join(RunFolder::SNAPSHOTS));
        let paths = entries.into_iter().flatten().flatten().map(|entry| entry.path());
        let mut samples: Vec<(u64, PathBuf)> = paths
            .filter(|path| path.extension().is_some_and(|extension| extension == "png"))
            .filter_map(|path| Some((path.file_stem()?.to_str()?.parse().ok()?, path.clone())))
            .collect();
        samples.sort();
        samples
    }

    /// The file of an image: `before`, `after`, or the step of a grid of samples.
    fn image(&self, name: &str) -> Option<PathBuf> {
        let path = match name {
            "before" => self.path.join(RunFolder::BEFORE_GRID),
            "after" => self.path.join(RunFolder::AFTER_GRID),
            step => {
                let step: u64 = step.parse().ok()?;
                self.samples().into_iter().find(|(found, _)| *found == step)?.1
            }
        };
        is_file_below(&self.path, &path).then_some(path)
    }

    /// Whether the run has an adapter.
    pub(crate) fn has_adapter(&self) -> bool {
        is_file_below(&self.path, &self.path.join(RunFolder::ADAPTER))
    }

    /// The bytes of an image, see [`Run::image`].
    pub(crate) fn read_image(&self, name: &str) -> Option<Vec<u8>> {
        input_file::read(&self.image(name)?, SizeLimit::IMAGE).ok()
    }

    /// Opens the log. `None` where there is none.
    pub(crate) fn open_log(&self) -> Option<File> {
        let path = self.path.join(RunFolder::EVENTS);
        if !is_file_below(&self.path, &path) {
            return None;
        }
        input_file::open(&path).ok()
    }

    /// The last lines of the log.
    fn end_of_log(&self) -> Vec<Value> {
        let Some(mut file) = self.open_log() else { return Vec::new() };
        let length = file.metadata().map_or(0, |data| data.len());
        let mut bytes = Vec::new();
        let read = file
            .seek(SeekFrom::Start(length.saturating_sub(TAIL)))
            .and_then(|_| file.take(TAIL).read_to_end(&mut bytes));
        if read.is_err() {
            return Vec::new();
        }
        // The first line may be a part of one, and is then no JSON.
        let lines = bytes.split(|byte| *byte == b'\n');
        lines.filter_map(|line| serde_json::from_slice(line).ok()).collect()
    }
}

/// The mean loss of the newest steps. `None` before the first step, and if one of them is not finite.
fn mean_loss(log: &[Value]) -> Option<f64> {
    let steps = log.iter().rev().filter(|line| line["event"] == "step").take(LOSS_WINDOW);
    let losses: Vec<f64> =
        steps.map(|line| line["values"]["loss"].as_f64()).collect::<Option<_>>()?;
    (!losses.is_empty()).then(|| losses.iter().sum::<f64>() / losses.len() as f64)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use super::*;

    const CONFIG: &str =
        "base = 'b/toy'\ndata = 'd/mug'\nsteps = 9\nbatch_size = 1\nmethod = 'lora'";

    fn write(path: &Path, text: &str) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn the_state_of_a_run_follows_from_its_files() {
        let root = tempfile::tempdir().unwrap();
        let start = "{\"event\":\"started\",\"step\":0,\"steps\":9}\n";
        let step = "{\"event\":\"step\",\"step\":4,\"values\":{\"loss\":0.5}}\n{\"event\":\"st";
        for (name, log, state) in [
            ("a", String::new(), RunState::Interrupted),
            ("b", format!("{start}{step}"), RunState::Interrupted),
            ("c", format!("{start}{{\"event\":\"stopped\",\"text\":\"x\"}}\n"), RunState::Stopped),
            ("d", format!("{start}{{\"event\":\"failed\",\"text\":\"x\"}}\n"), RunState::Failed),
            // A run that was resumed after a stop and killed.
            ("e", format!("{{\"event\":\"stopped\"}}\n{start}"), RunState::Interrupted),
        ] {
            write(&root.path().join(name).join(RunFolder::CONFIG), CONFIG);
            write(&root.path().join(name).join(RunFolder::EVENTS), &log);
            let run = find(root.path(), &id_of(Path::new(name))).unwrap();
            assert_eq!(run.summary().state, state, "{name}");
        }
        let summary = list(root.path())[1].summary();
        assert_eq!((summary.step, summary.steps, summary.loss), (4, 9, Some(0.5)));
        assert_eq!((&*summary.base, &*summary.data, &*summary.method), ("toy", "mug", "lora"));
        write(&root.path().join("a").join(RunFolder::REPORT), "");
        let summary = list(root.path())[0].summary();
        assert_eq!((summary.state, summary.step), (RunState::Finished, 9));
    }

    #[test]
    #[cfg(unix)]
    fn links_lead_nowhere() {
        let root = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        write(&outside.path().join("run").join(RunFolder::CONFIG), CONFIG);
        write(&outside.path().join("secret.png"), "secret");
        let link = |to: &Path, name: &str| {
            std::os::unix::fs::symlink(to, root.path().join(name)).unwrap();
        };
        link(&outside.path().join("run"), "linked");
        write(&root.path().join("a").join(RunFolder::CONFIG), CONFIG);
        link(&outside.path().join("secret.png"), "a/before.png");
        link(&outside.path().join("secret.png"), "a/events.jsonl");
        write(&root.path().join("a/after.png"), "own");
        write(&root.path().join(".ui").join(RunFolder::CONFIG), CONFIG);
        let runs = list(root.path());
        assert_eq!(runs.iter().map(|run| &*run.name).collect::<Vec<_>>(), ["a"]);
        assert_eq!(runs[0].read_image("before"), None);
        assert_eq!(runs[0].read_image("after"), Some(b"own".to_vec()));
        assert!(runs[0].open_log().is_none());
        for name in ["../a/after.png", "after.png", "", "-1", "7"] {
            assert_eq!(runs[0].read_image(name), None, "{name}");
        }
    }
}
