//! The processes of a training.

use std::cell::RefCell;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::common::program;

/// The longest time of a training here.
const LONGEST: Duration = Duration::from_secs(900);

/// The ranks of a training, as a launcher starts them.
pub(crate) struct World(RefCell<Vec<Option<Child>>>);

/// The command of a rank.
pub(crate) fn rank(folder: &Path, args: &[String], variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(program());
    command.args(args).current_dir(folder).stdout(Stdio::null()).stderr(Stdio::piped());
    command.env("RAYON_NUM_THREADS", "1").envs(variables.iter().copied());
    command
}

impl World {
    /// Starts `world` ranks of one command.
    pub(crate) fn start(folder: &Path, world: usize, args: &[String]) -> Self {
        Self::start_each(folder, &vec![args.to_vec(); world])
    }

    /// Starts a rank for each command.
    pub(crate) fn start_each(folder: &Path, commands: &[Vec<String>]) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port().to_string();
        drop(listener);
        let world = commands.len().to_string();
        let start = |(index, args): (usize, &Vec<String>)| {
            let index = index.to_string();
            let variables = [
                ("RANK", &*index),
                ("WORLD_SIZE", &world),
                ("LOCAL_RANK", &index),
                ("MASTER_ADDR", "127.0.0.1"),
                ("MASTER_PORT", &port),
            ];
            Some(rank(folder, args, &variables).spawn().unwrap())
        };
        Self(RefCell::new(commands.iter().enumerate().map(start).collect()))
    }

    /// Sends a signal to a rank. Returns whether it was still running.
    pub(crate) fn signal(&self, rank: usize, signal: &str) -> bool {
        let mut ranks = self.0.borrow_mut();
        let child = ranks[rank].as_mut().unwrap();
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        let id = child.id().to_string();
        Command::new("kill").args([&format!("-{signal}"), &*id]).status().unwrap().success()
    }

    /// Waits for a file that a rank writes.
    #[track_caller]
    pub(crate) fn wait_for(&self, path: &Path) {
        let started = Instant::now();
        while !path.is_file() {
            let mut ranks = self.0.borrow_mut();
            let ended = ranks.iter_mut().flatten().any(|child| child.try_wait().unwrap().is_some());
            drop(ranks);
            if ended && !path.is_file() {
                panic!("{}: {:?}", path.display(), self.ends());
            }
            assert!(started.elapsed() < LONGEST, "{} does not come", path.display());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits for the end of a rank. Returns what it said on standard error.
    #[track_caller]
    pub(crate) fn end_of(&self, rank: usize) -> String {
        let mut child = self.0.borrow_mut()[rank].take().unwrap();
        let started = Instant::now();
        while child.try_wait().unwrap().is_none() {
            if started.elapsed() >= LONGEST {
                child.kill().unwrap();
                panic!("rank {rank} hangs");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        text(&child.wait_with_output().unwrap().stderr)
    }

    /// Waits for the end of all ranks.
    #[track_caller]
    pub(crate) fn ends(&self) -> Vec<String> {
        let count = self.0.borrow().len();
        (0..count).map(|rank| self.end_of(rank)).collect()
    }

    /// Waits until all ranks have succeeded.
    #[track_caller]
    pub(crate) fn finish(self) {
        let ends = self.ends();
        assert!(ends.iter().all(|said| !said.contains("error: ")), "{ends:?}");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for child in self.0.borrow_mut().iter_mut().flatten() {
            let _ = child.kill().and_then(|()| child.wait());
        }
    }
}

/// The losses of a run's steps.
pub(crate) fn losses(folder: &Path, name: &str) -> Vec<f32> {
    let text = std::fs::read_to_string(folder.join("runs").join(name).join("loss.csv")).unwrap();
    let loss = |line: &str| line.split(',').nth(1).unwrap().parse().ok();
    text.lines().skip(1).filter_map(loss).collect()
}

/// Files under `folder` that were left half written.
pub(crate) fn leftovers(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir(folder) else { return found };
    for path in entries.map(|entry| entry.unwrap().path()) {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.starts_with(".soda-") {
            found.push(path);
        } else if path.is_dir() {
            found.extend(leftovers(&path));
        }
    }
    found
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
