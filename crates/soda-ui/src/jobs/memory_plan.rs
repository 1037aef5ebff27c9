//! The memory that a run will need, by a child process `soda train --plan`.
//!
//! The folder `.ui/plan` has the settings and the output of the newest prediction. There is one at a time.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use serde::Serialize;

use super::process;

/// The most bytes of the output: the table, warnings, or what is wrong.
const MAX_OUTPUT: usize = 16 << 10;

/// How far a prediction is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum PlanState {
    /// Nothing was asked for, or a run began since.
    #[default]
    None,
    Running,
    Done,
    Failed,
}

/// A prediction.
#[derive(Debug, Serialize)]
pub(crate) struct PlanReport {
    state: PlanState,
    /// What the process has written.
    output: String,
}

/// The process that predicts the memory of a run.
pub(crate) struct MemoryPlan {
    folder: PathBuf,
    program: PathBuf,
    options: Vec<OsString>,
    child: Option<Child>,
    state: PlanState,
}

impl MemoryPlan {
    /// Predictions whose files are in `folder`.
    pub(super) fn new(folder: PathBuf, program: PathBuf, options: Vec<OsString>) -> Self {
        Self { folder, program, options, child: None, state: PlanState::None }
    }

    fn log(&self) -> PathBuf {
        self.folder.join("output.log")
    }

    /// Begins to predict the memory of a run with these settings, TOML, in place of an earlier prediction.
    ///
    /// # Errors
    /// The error of the operating system.
    pub(super) fn start(&mut self, settings: &str) -> io::Result<()> {
        self.cancel();
        std::fs::create_dir_all(&self.folder)?;
        let config = self.folder.join("settings.toml");
        soda_files::write(&config, settings.as_bytes())?;
        remove(&self.log())?;
        let mut option = OsString::from("--config=");
        option.push(&config);
        let mut command = Command::new(&self.program);
        command.args(["train", "--plan"]).arg(option).args(&self.options);
        self.child = Some(process::start(&mut command, &self.log())?);
        self.state = PlanState::Running;
        Ok(())
    }

    /// Ends a prediction that goes on. It would need memory beside a run.
    pub(super) fn cancel(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill().and_then(|()| child.wait());
        }
        self.state = PlanState::None;
    }

    /// The newest prediction.
    pub(crate) fn report(&mut self) -> PlanReport {
        let ended = self.child.as_mut().map(Child::try_wait);
        match ended {
            Some(Ok(Some(status))) => {
                let is_done = status.success();
                self.state = if is_done { PlanState::Done } else { PlanState::Failed };
                self.child = None;
            }
            Some(Err(_)) => (self.state, self.child) = (PlanState::Failed, None),
            Some(Ok(None)) | None => {}
        }
        let output = match self.state {
            PlanState::None => String::new(),
            _ => process::end_of(&self.log(), MAX_OUTPUT),
        };
        PlanReport { state: self.state, output }
    }
}

/// Removes a file that may be missing.
fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
