//! `soda` commands that run as child processes of a comparison, or as ranks of a training.
//!
//! A run in a process of its own cannot take others down with it, and its peak memory can be measured. A
//! child ends with its parent: its standard input is a pipe that the parent never writes to, and that the
//! system closes when the parent ends, however it does. A launcher of ranks writes a byte for each signal.

use std::ffi::OsString;
use std::io::Read as _;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use soda_distributed::Launch;

use crate::remedy::CHILD;

/// The environment variable by which a parent asks its child to end with it.
pub(crate) const ENDS_WITH_PARENT: &str = "SODA_ENDS_WITH_PARENT";

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
    let mut peak = None;
    while child.try_wait()?.is_none() {
        peak = peak.max(peak_memory(child.id()));
        std::thread::sleep(Duration::from_millis(100));
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<_> =
            message.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        bail!("{}", lines.join("; ").trim_start_matches("error: "));
    }
    Ok(peak)
}

/// Linux's `VmHWM`: the largest resident set size of the process so far, in bytes.
fn peak_memory(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}
