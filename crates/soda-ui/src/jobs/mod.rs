//! Child processes `soda train`, and the runs that wait for them to end.
//!
//! The hidden folder `.ui` in the folder of the runs has for each run that the page started its settings
//! `NAME.toml`, and the output of its processes `NAME.log`. A child is in a process group of its own, so that
//! it goes on when Ctrl-C ends the server.

mod exports;
mod memory_plan;
mod process;
mod queue;

use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use serde::Serialize;
use soda_train::RunFolder;

use crate::id::id_of;
use crate::runs::{Run, RunState, list};
pub(crate) use exports::ExportForm;
use exports::Exports;
use memory_plan::MemoryPlan;
use queue::Queue;

/// The folder of settings and outputs, in the folder of the runs.
pub(crate) const FOLDER: &str = ".ui";
/// The most bytes of the end of an output that are shown.
const MAX_OUTPUT: usize = 8 << 10;

/// A run that has no folder yet.
#[derive(Debug, Serialize)]
pub(crate) struct Start {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) state: RunState,
    /// The end of the output.
    pub(crate) output: String,
}

/// The child processes of one server.
pub(crate) struct Jobs {
    runs: PathBuf,
    program: PathBuf,
    options: Vec<OsString>,
    children: HashMap<String, Child>,
    queue: Queue,
    exports: Exports,
    memory_plan: MemoryPlan,
}

impl Jobs {
    /// Creates the folder of settings and outputs.
    pub(crate) fn new(runs: PathBuf, program: PathBuf, options: Vec<OsString>) -> io::Result<Self> {
        let queue = Queue::new(runs.join(FOLDER).join("queue"))?;
        let folder = runs.join(FOLDER).join("exports");
        let exports = Exports::new(folder, program.clone(), options.clone());
        let folder = runs.join(FOLDER).join("plan");
        let memory_plan = MemoryPlan::new(folder, program.clone(), options.clone());
        let children = HashMap::new();
        Ok(Self { runs, program, options, children, queue, exports, memory_plan })
    }

    fn file(&self, name: &str, end: &str) -> PathBuf {
        self.runs.join(FOLDER).join(format!("{name}.{end}"))
    }

    /// Whether a run, a start or a run that waits has this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.is_taken(name) || self.queue.list().iter().any(|waiting| waiting.name == name)
    }

    fn is_taken(&self, name: &str) -> bool {
        self.runs.join(name).exists() || self.file(name, "toml").exists()
    }

    /// The runs that wait.
    pub(crate) fn queue(&self) -> &Queue {
        &self.queue
    }

    /// What writes adapters for other tools.
    pub(crate) fn exports(&mut self) -> &mut Exports {
        &mut self.exports
    }

    /// The prediction of a run's memory.
    pub(crate) fn memory_plan(&mut self) -> &mut MemoryPlan {
        &mut self.memory_plan
    }

    /// Begins to predict the memory of a run with these settings, TOML. False if a run goes on, whose memory
    /// the prediction would take.
    pub(crate) fn plan_memory(&mut self, settings: &str) -> io::Result<bool> {
        if self.is_any_alive() {
            return Ok(false);
        }
        self.memory_plan.start(settings)?;
        Ok(true)
    }

    /// Starts the next run that waits, if no run of the folder goes on.
    pub(crate) fn advance(&mut self) {
        if self.queue.list().is_empty() || self.is_any_alive() {
            return;
        }
        let Some(next) = self.queue.next() else { return };
        // The name may have been given to another run since.
        let others = (2..).map(|number| format!("{}-{number}", next.name));
        let mut names = std::iter::once(next.name.clone()).chain(others);
        let Some(name) = names.find(|name| !self.is_taken(name)) else { return };
        // A run that cannot be started is shown as one that did not start.
        if self.queue.release(&next, &self.file(&name, "toml")).is_ok() {
            let _ = self.launch(&name);
        }
    }

    /// Whether a process works on a run of the folder or is about to.
    fn is_any_alive(&mut self) -> bool {
        self.children.retain(|_, child| matches!(child.try_wait(), Ok(None)));
        let entries = std::fs::read_dir(self.runs.join(FOLDER)).into_iter().flatten().flatten();
        let mut logs = entries.map(|entry| entry.path()).filter(|path| has_end(path, "log"));
        !self.children.is_empty()
            || logs.any(|log| process::is_running(&log))
            || list(&self.runs).iter().any(|run| !run.is_over())
    }

    /// Starts a new run with these settings, TOML.
    pub(crate) fn start(&mut self, name: &str, settings: &str) -> io::Result<()> {
        soda_files::write(&self.file(name, "toml"), settings.as_bytes())?;
        self.launch(name)
    }

    /// Starts the run whose settings are in the folder `.ui`.
    fn launch(&mut self, name: &str) -> io::Result<()> {
        let config = self.file(name, "toml");
        let option = |name: &str, value: &Path| {
            let mut option = OsString::from(format!("--{name}="));
            option.push(value);
            option
        };
        let run = OsString::from(format!("--name={name}"));
        self.spawn(name, &[option("config", &config), option("runs", &self.runs), run])
    }

    /// Resumes a run.
    pub(crate) fn resume(&mut self, run: &Run) -> io::Result<()> {
        let mut option = OsString::from("--resume=");
        option.push(&run.path);
        self.spawn(&run.name, &[option])
    }

    fn spawn(&mut self, name: &str, args: &[OsString]) -> io::Result<()> {
        self.memory_plan.cancel();
        let mut command = Command::new(&self.program);
        command.arg("train").args(args).args(&self.options);
        let child = process::start(&mut command, &self.file(name, "log"))?;
        self.children.insert(name.to_owned(), child);
        Ok(())
    }

    /// Whether the newest child of this name runs, also one of an earlier server. Collects children that
    /// ended.
    pub(crate) fn is_alive(&mut self, name: &str) -> bool {
        self.children.retain(|_, child| matches!(child.try_wait(), Ok(None)));
        self.children.contains_key(name) || process::is_running(&self.file(name, "log"))
    }

    /// The runs that have no folder yet, and those that ended before they had one.
    pub(crate) fn starts(&mut self) -> Vec<Start> {
        let entries = std::fs::read_dir(self.runs.join(FOLDER)).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            name.strip_suffix(".toml").map(str::to_owned)
        });
        let mut names: Vec<String> =
            names.filter(|name| !self.runs.join(name).join(RunFolder::CONFIG).exists()).collect();
        names.sort();
        names.into_iter().map(|name| self.describe(name)).collect()
    }

    fn describe(&mut self, name: String) -> Start {
        let state = if self.is_alive(&name) { RunState::Starting } else { RunState::Failed };
        Start { id: id_of(Path::new(&name)), state, output: self.output(&name), name }
    }

    /// The end of the output of a run's processes.
    pub(crate) fn output(&self, name: &str) -> String {
        process::end_of(&self.file(name, "log"), MAX_OUTPUT)
    }

    /// Ends a child that has no folder yet and forgets its settings. `None` if there is none with this id,
    /// false if it is a child of another server.
    pub(crate) fn discard(&mut self, id: &str) -> Option<bool> {
        let start = self.starts().into_iter().find(|start| start.id == id)?;
        match self.children.remove(&start.name) {
            Some(mut child) => {
                let _ = child.kill().and_then(|()| child.wait());
            }
            None if start.state == RunState::Starting => return Some(false),
            None => {}
        }
        for end in ["toml", "log"] {
            let _ = std::fs::remove_file(self.file(&start.name, end));
        }
        Some(true)
    }
}

/// Whether the name of a file ends with `.end`.
fn has_end(path: &Path, end: &str) -> bool {
    path.extension().is_some_and(|found| found == end)
}

/// Removes a folder of pictures. One that cannot be removed stays.
pub(crate) fn remove_folder(folder: &Path) {
    let _ = std::fs::remove_dir_all(folder);
}
