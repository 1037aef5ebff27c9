//! `soda train --gpus` and `--ranks`: starts the ranks of a training on this machine and waits for them.
//!
//! Rank 0 writes and prints as a training of one process does. What the others print is shown only if rank 0
//! cannot say why the training failed.

use std::io::Write as _;
use std::net::TcpListener;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use soda_distributed::Launch;

use crate::child::{ENDS_WITH_PARENT, INTERRUPTED, Messages};
use crate::progress::print_stderr;

/// The variable of ranks that a launcher of this program has started.
const LAUNCHED: &str = "SODA_LAUNCHED";
/// The time between two looks at the ranks.
const LOOK: Duration = Duration::from_millis(50);
/// The time that ranks have to end by themselves when another has failed: a step, and a checkpoint.
const GRACE: Duration = Duration::from_secs(60);

/// Whether this process is a rank that a launcher of this program has started.
pub(crate) fn is_launched() -> bool {
    std::env::var_os(LAUNCHED).is_some()
}

/// A rank.
struct Rank {
    child: Child,
    status: Option<ExitStatus>,
    /// Whether this program killed it.
    is_killed: bool,
    /// What it has printed, but for rank 0.
    messages: Option<Messages>,
}

/// Runs this command line on `world` ranks of this machine, and ends the process as rank 0 ends.
///
/// # Errors
/// A rank that cannot be started, or ends in a way that rank 0 cannot tell.
pub(crate) fn run(world: usize, gpus: &[u32]) -> Result<()> {
    let launch = Launch::local(0, world, free_port()?, &Launch::random_token()?);
    let inputs = Arc::new(Mutex::new(Vec::new()));
    let interrupted = Arc::new(AtomicBool::new(false));
    pass_signals_on(Arc::clone(&inputs), Arc::clone(&interrupted))?;
    let mut ranks = Vec::new();
    for rank in 0..world {
        let launch = Launch { rank, local_rank: rank, ..launch.clone() };
        let (started, input) = start(&launch, gpus.get(rank).copied())?;
        inputs.lock().unwrap_or_else(PoisonError::into_inner).extend(input);
        ranks.push(started);
    }
    let failed = wait(&mut ranks)?;
    let Some(failed) = failed else { return Ok(()) };
    let of_root = &ranks[0];
    let code = of_root.status.filter(|_| !of_root.is_killed).and_then(|status| status.code());
    match code {
        // The run is complete.
        Some(0) => print_stderr(&format!("warning: {}", ranks[failed].describe(failed))),
        // Rank 0 has said why.
        Some(code) => std::process::exit(code),
        None if interrupted.load(Ordering::Relaxed) => std::process::exit(INTERRUPTED),
        None => bail!("{}", ranks[failed].describe(failed)),
    }
    Ok(())
}

impl Rank {
    /// How the rank ended, and what it said.
    fn describe(&mut self, rank: usize) -> String {
        let status = self.status.map_or_else(|| "an unknown status".to_owned(), |s| s.to_string());
        let text = self.messages.take().map(Messages::in_one_line).unwrap_or_default();
        let colon = if text.is_empty() { "" } else { ": " };
        format!("rank {rank} of this machine ended with {status}{colon}{text}")
    }
}

/// A port of this machine that is free now.
fn free_port() -> Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("cannot find a free port")?;
    Ok(listener.local_addr().context("cannot find a free port")?.port())
}

/// Sends a byte to each rank for a signal to this process. Ranks that are started here ignore signals, so
/// that Ctrl-C, which a terminal sends to all, counts once.
fn pass_signals_on(
    inputs: Arc<Mutex<Vec<ChildStdin>>>,
    interrupted: Arc<AtomicBool>,
) -> Result<()> {
    ctrlc::set_handler(move || {
        interrupted.store(true, Ordering::Relaxed);
        for input in inputs.lock().unwrap_or_else(PoisonError::into_inner).iter_mut() {
            // A rank that has ended needs no signal.
            let _ = input.write_all(b"\n").and_then(|()| input.flush());
        }
    })
    .context("cannot listen for Ctrl-C")
}

fn start(launch: &Launch, gpu: Option<u32>) -> Result<(Rank, Option<ChildStdin>)> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut command = Command::new(program);
    command
        .args(std::env::args_os().skip(1))
        .envs(launch.variables())
        .env(LAUNCHED, "1")
        .env(ENDS_WITH_PARENT, "1")
        .env("RAYON_NUM_THREADS", (cores / launch.world).max(1).to_string())
        .stdin(Stdio::piped());
    if let Some(gpu) = gpu {
        command.env("CUDA_VISIBLE_DEVICES", gpu.to_string());
    }
    if launch.rank > 0 {
        command.stdout(Stdio::null()).stderr(Stdio::piped());
    }
    let mut child = command.spawn().context("cannot start a rank")?;
    let input = child.stdin.take();
    let messages = child.stderr.take().map(Messages::read);
    Ok((Rank { child, status: None, is_killed: false, messages }, input))
}

/// Waits until all ranks have ended. Returns the first that failed.
fn wait(ranks: &mut [Rank]) -> Result<Option<usize>> {
    let mut first: Option<(usize, Instant)> = None;
    while ranks.iter().any(|rank| rank.status.is_none()) {
        for (index, rank) in ranks.iter_mut().enumerate() {
            if rank.status.is_none() {
                rank.status = rank.child.try_wait().context("cannot wait for a rank")?;
                if rank.status.is_some_and(|status| !status.success()) && first.is_none() {
                    first = Some((index, Instant::now()));
                }
            }
            if rank.status.is_none() && first.is_some_and(|(_, since)| since.elapsed() > GRACE) {
                rank.is_killed = true;
                rank.child.kill().context("cannot end a rank")?;
            }
        }
        std::thread::sleep(LOOK);
    }
    Ok(first.map(|(index, _)| index))
}
