//! `soda` commands that run as child processes of a comparison, or as ranks of a training.
//!
//! A run in a process of its own cannot take others down with it, and its peak memory can be measured. A
//! child ends with its parent: its standard input is a pipe that the parent never writes to, and that the
//! system closes when the parent ends, however it does. A launcher of ranks writes a byte for each signal.

use std::ffi::OsString;
use std::io::Read as _;
use std::process::{ChildStderr, Command, Stdio};
use std::sync::OnceLock;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use soda_distributed::Launch;

use crate::memory_meter::peak_of_process;
use crate::remedy::CHILD;

/// The environment variable by which a parent asks its child to end with it.
pub(crate) const ENDS_WITH_PARENT: &str = "SODA_ENDS_WITH_PARENT";

/// The most bytes of a child's messages that are kept.
const MOST_TEXT: usize = 1 << 16;

/// The exit code of shells for a command that Ctrl-C ended.
pub(crate) const INTERRUPTED: i32 = 130;

/// What a byte of the parent does. Without it the process ends.
static ON_SIGNAL: OnceLock<Box<dyn Fn() + Send + Sync>> = OnceLock::new();

/// Ends this process as soon as its parent ends, if the parent asked for it.
pub(crate) fn end_with_parent() {
    if std::env::var_os(ENDS_WITH_PARENT).is_none() {
        return;
    }
    std::thread::spawn(|| {
        let mut input = std::io::stdin().lock();
        // The pipe ends with the parent.
        while let Ok(1) = input.read(&mut [0]) {
            match ON_SIGNAL.get() {
                Some(on_signal) => on_signal(),
                None => std::process::exit(INTERRUPTED),
            }
        }
        std::process::exit(1);
    });
}

/// Calls `on_signal` for each byte that the parent sends.
pub(crate) fn on_signal_of_parent(on_signal: impl Fn() + Send + Sync + 'static) {
    // A process listens once.
    let _ = ON_SIGNAL.set(Box::new(on_signal));
}

/// The environment of the child processes.
#[derive(Debug)]
pub(crate) struct ChildPool {
    /// The number of child processes that run at once. Each gets its share of the cores.
    pub(crate) jobs: usize,
    /// The CUDA devices that the children are spread over; if empty, each sees all of them.
    pub(crate) gpus: Vec<u32>,
}

impl ChildPool {
    /// Runs this program with `argv` as the child of a worker. Returns its peak memory in bytes, where the
    /// system reports it.
    ///
    /// # Errors
    /// The child cannot be started or fails. The message is what the child wrote to standard error.
    pub(crate) fn run(&self, argv: &[OsString], worker: usize) -> Result<Option<u64>> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let program = std::env::current_exe().context("cannot find this program")?;
        let mut command = Command::new(program);
        command
            .args(argv)
            .env(CHILD, "1")
            .env("RAYON_NUM_THREADS", (cores / self.jobs).max(1).to_string())
            .env(ENDS_WITH_PARENT, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        // A child is no rank, whatever started this process.
        for variable in Launch::VARIABLES {
            command.env_remove(variable);
        }
        if let Some(gpu) = self.gpus.get(worker % self.gpus.len().max(1)) {
            command.env("CUDA_VISIBLE_DEVICES", gpu.to_string());
        }
        wait(command)
    }
}

/// Waits for the command to succeed and polls its peak memory.
fn wait(mut command: Command) -> Result<Option<u64>> {
    let mut child = command.spawn().context("cannot start a child process")?;
    let messages = child.stderr.take().map(Messages::read);
    let mut peak = None;
    let status = loop {
        if let Some(status) = child.try_wait().context("cannot wait for a child process")? {
            break status;
        }
        peak = peak.max(peak_of_process(&child.id().to_string()));
        std::thread::sleep(Duration::from_millis(100));
    };
    if !status.success() {
        let text = messages.map(Messages::in_one_line).unwrap_or_default();
        if text.is_empty() {
            bail!("it ended with {status}");
        }
        bail!("{text}");
    }
    Ok(peak)
}

/// What a child writes to standard error. It is read while the child runs, since a child waits where its pipe
/// is full.
pub(crate) struct Messages(JoinHandle<String>);

impl Messages {
    /// Begins to read. The last [`MOST_TEXT`] bytes are kept.
    pub(crate) fn read(mut stderr: ChildStderr) -> Self {
        Self(std::thread::spawn(move || {
            let (mut kept, mut chunk) = (Vec::new(), [0; 4096]);
            while let Ok(count @ 1..) = stderr.read(&mut chunk) {
                kept.extend(&chunk[..count]);
                let excess = kept.len().saturating_sub(MOST_TEXT);
                kept.drain(..excess);
            }
            String::from_utf8_lossy(&kept).into_owned()
        }))
    }

    /// The lines joined by semicolons, once the child has ended.
    pub(crate) fn in_one_line(self) -> String {
        let text = self.0.join().unwrap_or_default();
        let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        lines.join("; ").trim_start_matches("error: ").to_owned()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use super::*;

    #[cfg(unix)]
    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }

    /// A pipe holds 64 KiB on Linux.
    #[cfg(unix)]
    #[test]
    fn a_child_with_many_messages_ends_and_its_last_ones_are_told() {
        let many = "i=0; while [ $i -lt 4000 ]; do echo warning: a caption that is too long $i >&2; i=$((i+1)); done";
        wait(shell(many)).unwrap();
        let error = wait(shell(&format!("{many}; echo 'no room' >&2; exit 1"))).unwrap_err();
        assert!(error.to_string().ends_with("long 3999; no room"), "{error}");
        let error = wait(shell("exit 3")).unwrap_err();
        assert!(error.to_string().contains('3'), "{error}");
    }
}
