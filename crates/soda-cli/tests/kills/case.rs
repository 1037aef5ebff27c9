//! A command on a copy of a folder: what it gives, and what is there after a fault in it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use soda_adapters::MethodConfig;
use soda_pipeline::AdapterFile;
use soda_testing::{Fault, Faults};
use soda_train::Checkpoint;

use super::tree::{Tree, copy, difference, is_staged, tree};

/// The longest time of a command. One that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(300);

/// Whose changes of files count, where a command starts others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Process {
    Parent,
    Child,
}

/// A command.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// The folder that the command starts from, of which it gets a copy.
    pub(crate) before: PathBuf,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<(&'static str, String)>,
    /// The run that goes on after a fault, by its path in the folder.
    pub(crate) run: Option<&'static str>,
    /// The folder of the cache, which a run does not know by itself.
    pub(crate) cache: Option<&'static str>,
    pub(crate) process: Process,
}

/// What happens to a command.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Harm {
    /// A fault at a change of a file.
    Call(usize, Fault),
    /// A kill after some time.
    Moment(Duration),
}

/// What became of a command with a harm in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Killed,
    Failed,
    /// It succeeded: the harm came too late, or in a cleaning up.
    Succeeded,
}

/// A command that was not harmed.
pub(crate) struct Undisturbed {
    pub(crate) files: Tree,
    /// The changes of files, such as `rename /tmp/x`.
    pub(crate) calls: Vec<String>,
    pub(crate) took: Duration,
}

impl Case {
    pub(crate) fn new(name: &'static str, before: &Path, args: Vec<String>) -> Self {
        let (before, env, process) = (before.to_owned(), Vec::new(), Process::Parent);
        Self { name, before, args, env, run: None, cache: None, process }
    }

    /// Makes `work` a copy of the folder that the command starts from.
    fn prepare(&self, work: &Path) {
        if work.exists() {
            std::fs::remove_dir_all(work).unwrap();
        }
        copy(&self.before, work);
    }

    fn command(&self, work: &Path, args: &[String]) -> Command {
        let mut command = Command::new(super::common::program());
        command.args(args).current_dir(work).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        command.envs(self.env.iter().map(|(name, value)| (*name, value)));
        let whose = if self.process == Process::Child { "child" } else { "parent" };
        command.env("SODA_FAULT_IN", whose);
        command
    }

    /// Runs the command to its end in `work`.
    pub(crate) fn finish(&self, faults: &Faults, work: &Path) -> Undisturbed {
        self.prepare(work);
        let log = work.with_extension("log");
        let _ = std::fs::remove_file(&log);
        let mut command = self.command(work, &self.args);
        faults.log(&mut command, work, &log);
        let started = Instant::now();
        let output = wait(command, PATIENCE);
        assert!(output.status.success(), "{}: {}", self.name, said(&output));
        let took = started.elapsed();
        let calls = std::fs::read_to_string(log).unwrap_or_default();
        let calls: Vec<String> = calls.lines().map(str::to_owned).collect();
        assert!(!calls.is_empty(), "{} changes no file", self.name);
        let files = tree(work);
        assert!(!files.keys().any(|path| is_staged(path)), "{} leaves staged files", self.name);
        Undisturbed { files, calls, took }
    }

    /// Harms the command and gives it again.
    ///
    /// # Errors
    /// The law that is broken.
    pub(crate) fn harm(
        &self,
        faults: &Faults,
        work: &Path,
        harm: Harm,
        whole: &Undisturbed,
    ) -> Result<End, String> {
        self.prepare(work);
        let old = tree(work);
        let mut command = self.command(work, &self.args);
        let patience = match harm {
            Harm::Moment(moment) => moment,
            Harm::Call(number, fault) => {
                faults.interfere(&mut command, work, number, fault);
                PATIENCE
            }
        };
        let output = wait(command, patience);
        let killed = output.status.code().is_none();
        // The processes that a killed comparison started may still write.
        if let Some(process) = orphan(work) {
            return Err(format!("the process {process} goes on"));
        }
        if !killed && output.status.success() {
            // A cleaning up that fails harms no result.
            let mut found = tree(work);
            found.retain(|path, _| !is_staged(path));
            let differs = difference(&found, &whole.files);
            return differs
                .map_or(Ok(End::Succeeded), |what| Err(format!("it succeeded, and {what}")));
        }
        if !killed {
            self.check_message(&output, harm)?;
        }
        self.check_rest(work, &old, whole)?;
        self.again(work, whole)?;
        Ok(if killed { End::Killed } else { End::Failed })
    }

    /// A failed command says why in one sentence.
    fn check_message(&self, output: &Output, harm: Harm) -> Result<(), String> {
        let said = said(output);
        let errors = said.lines().filter(|line| line.starts_with("error: ")).count();
        let is_full = matches!(harm, Harm::Call(_, Fault::NoSpace | Fault::FullDisk));
        match () {
            () if output.status.code() != Some(1) => Err(format!("{}: {said}", output.status)),
            () if said.contains(".soda-") => Err(format!("it names a staged file: {said}")),
            () if errors != 1 || said.contains("panicked") => Err(format!("it says: {said}")),
            () if is_full && !said.contains("No space left") => Err(format!("it says: {said}")),
            () if is_full && !said.contains("make room") => Err(format!("no remedy: {said}")),
            () => Ok(()),
        }
    }

    /// Every file that is there is the old one, or the new one, and whole.
    fn check_rest(&self, work: &Path, old: &Tree, whole: &Undisturbed) -> Result<(), String> {
        let Some(run) = self.run else {
            for (path, bytes) in tree(work).into_iter().filter(|(path, _)| !is_staged(path)) {
                let is_known = [old, &whole.files].map(|files| files.get(&path) == Some(&bytes));
                if !is_known.contains(&true) && !self.is_kept_for_later(&path) {
                    return Err(format!("{} is half", path.display()));
                }
            }
            let lost = old.iter().find(|(path, _)| !work.join(path).exists());
            return lost.map_or(Ok(()), |(path, _)| Err(format!("{} is lost", path.display())));
        };
        let run = work.join(run);
        let adapter = run.join("adapter.safetensors");
        if adapter.exists() {
            AdapterFile::<MethodConfig>::read(&adapter).map_err(|error| error.to_string())?;
        }
        let checkpoints = std::fs::read_dir(run.join("checkpoints")).into_iter().flatten();
        for path in checkpoints.map(|entry| entry.unwrap().path()) {
            if path.extension().is_some_and(|extension| extension == "safetensors") {
                Checkpoint::read(&path).map_err(|error| error.to_string())?;
            }
        }
        Ok(())
    }

    /// Whether a path is that of something from which a later command goes on: a part of a download, the
    /// runs of a comparison.
    fn is_kept_for_later(&self, path: &Path) -> bool {
        path.starts_with("home") || path.starts_with("out")
    }

    /// The command, given again, finishes with the result of one that was not harmed, and nothing else.
    fn again(&self, work: &Path, whole: &Undisturbed) -> Result<(), String> {
        let is_done = difference(&tree(work), &whole.files).is_none();
        let run = self.run.filter(|run| work.join(run).exists());
        let args = match run {
            Some(run) => {
                let cache = self.cache.iter().flat_map(|cache| ["--cache", cache]);
                ["train", "--resume", run].into_iter().chain(cache).map(str::to_owned).collect()
            }
            None => self.args.clone(),
        };
        let is_finished = run.is_some_and(|run| work.join(run).join("report.html").exists());
        if !is_done || is_finished {
            let output = wait(self.command(work, &args), PATIENCE);
            let said = said(&output);
            let refused = is_finished && said.contains("is finished");
            if !output.status.success() && !refused {
                return Err(format!("given again, it fails: {said}"));
            }
        }
        let differs = difference(&tree(work), &whole.files);
        differs.map_or(Ok(()), |what| Err(format!("given again: {what}")))?;
        orphan(work).map_or(Ok(()), |process| Err(format!("the process {process} goes on")))
    }
}

/// Waits for a command to end, and kills it after some time.
fn wait(mut command: Command, patience: Duration) -> Output {
    let mut child = command.spawn().unwrap();
    let started = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if started.elapsed() >= patience {
            child.kill().unwrap();
            assert!(patience < PATIENCE, "{command:?} hangs");
            break;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    child.wait_with_output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A process that still works in a folder some seconds later.
fn orphan(work: &Path) -> Option<String> {
    let works_here = || {
        let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let here = |path: &PathBuf| {
            std::fs::read_link(path.join("cwd")).is_ok_and(|folder| folder.starts_with(work))
        };
        processes.map(|process| process.path()).find(here)
    };
    for _ in 0..50 {
        works_here()?;
        std::thread::sleep(Duration::from_millis(100));
    }
    works_here().map(|path| path.display().to_string())
}
