//! Child processes `soda train`.
//!
//! The hidden folder `.ui` in the folder of the runs has for each run that the page started its settings
//! `NAME.toml`, and the output of its processes `NAME.log`. A child is in a process group of its own, so that
//! it goes on when Ctrl-C ends the server.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde::Serialize;
use soda_models::input_file::{self, SizeLimit};
use soda_train::RunFolder;

use crate::id::id_of;
use crate::runs::{Run, RunState};

/// The folder of settings and outputs, in the folder of the runs.
pub(crate) const FOLDER: &str = ".ui";
/// The most bytes of the end of an output that are shown.
const MAX_OUTPUT: usize = 8 << 10;
/// The size of an output that is read. It has a line for each warning.
const OUTPUT: SizeLimit = SizeLimit { bytes: 16 << 20, kind: "the output of a run" };

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
}

impl Jobs {
    /// Creates the folder of settings and outputs.
    pub(crate) fn new(runs: PathBuf, program: PathBuf, options: Vec<OsString>) -> io::Result<Self> {
        std::fs::create_dir_all(runs.join(FOLDER))?;
        Ok(Self { runs, program, options, children: HashMap::new() })
    }

    fn file(&self, name: &str, end: &str) -> PathBuf {
        self.runs.join(FOLDER).join(format!("{name}.{end}"))
    }

    /// Whether a run or a start has this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.runs.join(name).exists() || self.file(name, "toml").exists()
    }

    /// Starts a new run with these settings, TOML.
    pub(crate) fn start(&mut self, name: &str, settings: &str) -> io::Result<()> {
        let config = self.file(name, "toml");
        soda_files::write(&config, settings.as_bytes())?;
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
        let log = self.file(name, "log");
        let output: File = OpenOptions::new().append(true).create(true).open(log)?;
        let mut command = Command::new(&self.program);
        command.arg("train").args(args).args(&self.options);
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        detach(&mut command);
        let child = command.spawn()?;
        self.children.insert(name.to_owned(), child);
        Ok(())
    }

    /// Whether the newest child of this name runs. Collects children that ended.
    pub(crate) fn is_alive(&mut self, name: &str) -> bool {
        self.children.retain(|_, child| matches!(child.try_wait(), Ok(None)));
        self.children.contains_key(name)
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
        let bytes = input_file::read(&self.file(name, "log"), OUTPUT).unwrap_or_default();
        let end = &bytes[bytes.len().saturating_sub(MAX_OUTPUT)..];
        String::from_utf8_lossy(end).into_owned()
    }

    /// Ends a child that has no folder yet and forgets its settings. False if there is none with this id.
    pub(crate) fn discard(&mut self, id: &str) -> bool {
        let Some(start) = self.starts().into_iter().find(|start| start.id == id) else {
            return false;
        };
        if let Some(mut child) = self.children.remove(&start.name) {
            let _ = child.kill().and_then(|()| child.wait());
        }
        for end in ["toml", "log"] {
            let _ = std::fs::remove_file(self.file(&start.name, end));
        }
        true
    }
}

/// Removes a folder of pictures. One that cannot be removed stays.
pub(crate) fn remove_folder(folder: &Path) {
    let _ = std::fs::remove_dir_all(folder);
}

/// Puts the child into a process group of its own.
#[cfg(unix)]
fn detach(command: &mut Command) {
    use std::os::unix::process::CommandExt as _;
    command.process_group(0);
}

/// Puts the child into a process group of its own, without a console window.
#[cfg(windows)]
fn detach(command: &mut Command) {
    use std::os::windows::process::CommandExt as _;
    const CREATE_NEW_PROCESS_GROUP: u32 = 0x200;
    const CREATE_NO_WINDOW: u32 = 0x0800_0000;
    command.creation_flags(CREATE_NEW_PROCESS_GROUP | CREATE_NO_WINDOW);
}

/// Other systems have no process groups.
#[cfg(not(any(unix, windows)))]
fn detach(_: &mut Command) {}
