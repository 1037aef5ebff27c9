//! `events.jsonl`: what a run did and when, one JSON object a line, for programs that watch it.
//!
//! A line has the fields `time` (seconds since 1970) and `event`, and others by the event:
//!
//! | event | fields |
//! |---|---|
//! | `started` | `step`: the steps that are done already, `steps`: all steps |
//! | `stage` | `name` |
//! | `progress` | `done`, `total`: parts of the stage |
//! | `step` | `step`, `values`: the columns of `loss.csv` |
//! | `validation` | `step`, `values` |
//! | `samples` | `step` of the grid in `samples/` |
//! | `warning`, `note` | `text` |
//! | `finished` | `device_memory`: that of [`RunSummary`](crate::RunSummary), if it was measured |
//! | `stopped`, `failed` | `text` |
//!
//! A resumed run appends. It repeats the steps after its checkpoint, whose later lines count.

use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize, Serializer};
use soda_models::input_file::{SizeLimit, read_text};

use crate::error::TrainError;
use crate::event::Event;
use crate::output::run_folder::RunFolder;

/// The least time between two lines of `progress`.
const PAUSE: Duration = Duration::from_secs(1);

/// What a line says.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum LogEntry<'a> {
    /// The steps begin or go on.
    Started { step: usize, steps: usize },
    /// A stage begins.
    Stage { name: &'a str },
    /// Parts of a stage are done.
    Progress { done: usize, total: usize },
    /// A step is done.
    Step { step: usize, values: Values<'a> },
    /// The validation after a step.
    Validation { step: usize, values: Values<'a> },
    /// A grid of samples was written.
    Samples { step: usize },
    /// A problem that does not stop the run.
    Warning { text: &'a str },
    /// Information.
    Note { text: &'a str },
    /// The run is done.
    Finished {
        /// The most bytes that its device's pools held.
        #[serde(skip_serializing_if = "Option::is_none")]
        device_memory: Option<u64>,
    },
    /// The run was stopped.
    Stopped { text: &'a str },
    /// The run ended with an error.
    Failed { text: &'a str },
}

/// Values with their names. A value that is not finite is `null`.
pub(crate) struct Values<'a>(pub(crate) &'a [(&'static str, f32)]);

impl Serialize for Values<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().copied())
    }
}

/// A line.
#[derive(Serialize)]
struct Line<'a> {
    time: f64,
    #[serde(flatten)]
    entry: LogEntry<'a>,
}

/// The log of a run, open for appending.
///
/// A line that cannot be written is missing. A run of hours does not end for it.
pub(crate) struct EventLog {
    file: File,
    /// Whether the file may end within a line.
    is_cut: Cell<bool>,
    /// The time of the last line of `progress`.
    last_progress: Cell<Option<Instant>>,
}

impl EventLog {
    /// Opens the log of a run, which is created if it is missing.
    pub(crate) fn open(folder: &RunFolder) -> Result<Self, TrainError> {
        let path = folder.file(RunFolder::EVENTS);
        let file = OpenOptions::new().append(true).create(true).open(&path);
        let file = file.map_err(TrainError::io("create", &path))?;
        // A killed process may have left a part of a line.
        let is_cut = Cell::new(file.metadata().is_ok_and(|data| data.len() > 0));
        Ok(Self { file, is_cut, last_progress: Cell::new(None) })
    }

    /// Appends a line in one write, so that a reader rarely sees a part of one.
    pub(crate) fn write(&self, entry: LogEntry<'_>) {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |t| t.as_secs_f64());
        let Ok(text) = serde_json::to_string(&Line { time, entry }) else { return };
        let start = if self.is_cut.get() { "\n" } else { "" };
        let written = (&self.file).write_all(format!("{start}{text}\n").as_bytes());
        self.is_cut.set(written.is_err());
    }

    /// Appends an event of the run. Steps are written with their metrics by the training loop.
    pub(crate) fn observe(&self, event: Event<'_>) {
        match event {
            Event::Stage { name } => {
                self.last_progress.set(None);
                self.write(LogEntry::Stage { name });
            }
            Event::Warning(text) => self.write(LogEntry::Warning { text }),
            Event::Note(text) => self.write(LogEntry::Note { text }),
            Event::Progress { loss: Some(_), .. } => {}
            Event::Progress { done, total, loss: None } => {
                let is_due = self.last_progress.get().is_none_or(|last| last.elapsed() >= PAUSE);
                if is_due || done == total {
                    self.last_progress.set(Some(Instant::now()));
                    self.write(LogEntry::Progress { done, total });
                }
            }
        }
    }

    /// Appends how the run ended. A finished one gives the most bytes that its device's pools held.
    pub(crate) fn end(&self, result: Result<Option<u64>, &TrainError>) {
        match result {
            Ok(device_memory) => self.write(LogEntry::Finished { device_memory }),
            Err(error) => {
                let text = &*error.to_string();
                self.write(match error {
                    TrainError::Stopped { .. } | TrainError::StoppedSampling { .. } => {
                        LogEntry::Stopped { text }
                    }
                    _ => LogEntry::Failed { text },
                });
            }
        }
    }
}

/// When a finished run went on, and what it held of its device, by its `events.jsonl`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RunSpan {
    /// The time of the first line.
    pub started: SystemTime,
    /// Seconds from the first line to the last, with any pause between them. The base is read before.
    pub seconds: f64,
    /// The device's memory in bytes, see [`RunSummary::device_memory`](crate::RunSummary::device_memory).
    pub device_memory: Option<u64>,
}

impl RunSpan {
    /// Reads the log in the folder of a run. `None` if the log has no line that says that the run finished.
    ///
    /// # Errors
    /// [`TrainError::Io`] if the file cannot be read.
    pub fn read(folder: &Path) -> Result<Option<Self>, TrainError> {
        #[derive(Deserialize)]
        struct Line {
            time: f64,
            event: String,
            device_memory: Option<u64>,
        }
        let path = folder.join(RunFolder::EVENTS);
        let text = read_text(&path, SizeLimit::LIST).map_err(TrainError::io("read", &path))?;
        let mut lines = text.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok());
        let Some(first) = lines.next() else { return Ok(None) };
        let finished = lines.rfind(|line| line.event == "finished");
        Ok(finished.and_then(|last| {
            let since = Duration::try_from_secs_f64(first.time).ok()?;
            let started = UNIX_EPOCH.checked_add(since)?;
            let (seconds, device_memory) = (last.time - first.time, last.device_memory);
            Some(Self { started, seconds, device_memory })
        }))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use serde_json::Value;

    use super::*;

    #[test]
    fn every_line_is_json_after_a_line_that_was_cut() {
        let root = tempfile::tempdir().unwrap();
        let folder = RunFolder::create(root.path(), None, "mug", "").unwrap();
        let log = EventLog::open(&folder).unwrap();
        log.write(LogEntry::Started { step: 0, steps: 3 });
        log.write(LogEntry::Step {
            step: 1,
            values: Values(&[("loss", 0.1), ("grad_norm", f32::NAN)]),
        });
        drop(log);
        let path = folder.file(RunFolder::EVENTS);
        let cut = std::fs::read_to_string(&path).unwrap() + "{\"time\":1,\"ev";
        std::fs::write(&path, cut).unwrap();
        let log = EventLog::open(&folder).unwrap();
        log.write(LogEntry::Note { text: "again" });
        for done in 0..1000 {
            log.observe(Event::Progress { done, total: 1000, loss: None });
        }
        log.end(Err(&TrainError::Stopped { step: 1, folder: "runs/a".into() }));
        assert_eq!(RunSpan::read(folder.path()).unwrap(), None);
        let text = std::fs::read_to_string(&path).unwrap();
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let lines: Vec<Value> = lines.collect();
        let names: Vec<&str> = lines.iter().map(|line| line["event"].as_str().unwrap()).collect();
        assert_eq!(names[..3], ["started", "step", "note"]);
        assert_eq!(*names.last().unwrap(), "stopped");
        assert!(names.len() < 20, "the progress of every part is written: {}", names.len());
        assert_eq!(lines[1]["values"]["loss"].to_string(), "0.1");
        assert!(lines[1]["values"]["grad_norm"].is_null());
        assert!(lines.iter().all(|line| line["time"].as_f64().unwrap() > 1e9));

        log.end(Ok(Some(7)));
        let span = RunSpan::read(folder.path()).unwrap().unwrap();
        let first = span.started.duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        assert!((first - lines[0]["time"].as_f64().unwrap()).abs() < 1e-3);
        assert!(span.seconds >= 0.0 && span.device_memory == Some(7), "{span:?}");
    }
}
