//! Runs that wait for their turn: files in a folder, so that they outlive the server.
//!
//! The file `NUMBER-NAME.toml` has the settings of the run `NAME`. The least number is the first.

use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use soda_files::Lock;

use crate::id::id_of;

/// The most runs that wait.
const MAX_WAITING: usize = 1000;

/// A run that waits.
#[derive(Debug, Serialize)]
pub(crate) struct Waiting {
    pub(crate) id: String,
    pub(crate) name: String,
    #[serde(skip)]
    number: u64,
}

/// The runs that wait, in a folder.
pub(crate) struct Queue {
    folder: PathBuf,
    /// Held by the server that starts them.
    lock: Option<Lock>,
}

impl Queue {
    /// Creates the folder.
    pub(crate) fn new(folder: PathBuf) -> io::Result<Self> {
        std::fs::create_dir_all(&folder)?;
        Ok(Self { folder, lock: None })
    }

    fn file(&self, number: u64, name: &str) -> PathBuf {
        self.folder.join(format!("{number:06}-{name}.toml"))
    }

    /// The runs that wait, the next one first.
    pub(crate) fn list(&self) -> Vec<Waiting> {
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let mut waiting: Vec<Waiting> = entries
            .filter_map(|entry| {
                let file = entry.file_name().into_string().ok()?;
                let (number, name) = file.strip_suffix(".toml")?.split_once('-')?;
                let number = number.parse().ok()?;
                Some(Waiting { id: id_of(Path::new(&file)), name: name.to_owned(), number })
            })
            .collect();
        waiting.sort_by(|a, b| (a.number, &a.name).cmp(&(b.number, &b.name)));
        waiting
    }

    /// Adds a run at the end.
    ///
    /// # Errors
    /// The error of the operating system, or [`io::ErrorKind::QuotaExceeded`] for a full queue.
    pub(crate) fn add(&self, name: &str, settings: &str) -> io::Result<()> {
        let waiting = self.list();
        if waiting.len() >= MAX_WAITING {
            let sentence = format!("{MAX_WAITING} runs wait already");
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, sentence));
        }
        let number = waiting.last().map_or(1, |last| last.number + 1);
        soda_files::write(&self.file(number, name), settings.as_bytes())
    }

    /// Removes a run. False if none waits with this id.
    pub(crate) fn remove(&self, id: &str) -> bool {
        let found = self.list().into_iter().find(|waiting| waiting.id == id);
        found
            .is_some_and(|found| std::fs::remove_file(self.file(found.number, &found.name)).is_ok())
    }

    /// Puts a run before the one before it. False if none waits with this id; the first one stays.
    pub(crate) fn move_up(&self, id: &str) -> bool {
        let waiting = self.list();
        let Some(index) = waiting.iter().position(|waiting| waiting.id == id) else { return false };
        let Some(before) = index.checked_sub(1).map(|index| &waiting[index]) else { return true };
        let own = &waiting[index];
        // Two runs with one number, which a process that is killed here leaves, are in the order of names.
        let moved = |from: &Waiting, to: u64| {
            std::fs::rename(self.file(from.number, &from.name), self.file(to, &from.name)).is_ok()
        };
        moved(own, before.number) && moved(before, own.number)
    }

    /// The next run. `None` if none waits, or if another server starts the runs of this folder.
    pub(crate) fn next(&mut self) -> Option<Waiting> {
        let first = self.list().into_iter().next()?;
        if self.lock.is_none() {
            self.lock = Lock::try_new(&self.folder.join(".lock")).ok().flatten();
        }
        self.lock.is_some().then_some(first)
    }

    /// Moves the settings of a run that waits to the file `to`, so that they are at one place at any time.
    ///
    /// # Errors
    /// The error of the operating system.
    pub(crate) fn release(&self, waiting: &Waiting, to: &Path) -> io::Result<()> {
        std::fs::rename(self.file(waiting.number, &waiting.name), to)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use super::*;

    #[test]
    fn runs_wait_in_order_and_outlive_the_server() {
        let folder = tempfile::tempdir().unwrap();
        let queue = Queue::new(folder.path().to_owned()).unwrap();
        for name in ["b", "a-1", "c"] {
            queue.add(name, &format!("seed = '{name}'")).unwrap();
        }
        let names = |queue: &Queue| {
            queue.list().into_iter().map(|waiting| waiting.name).collect::<Vec<_>>()
        };
        assert_eq!(names(&queue), ["b", "a-1", "c"]);
        assert!(queue.move_up(&queue.list()[2].id) && queue.move_up(&queue.list()[0].id));
        assert!(!queue.move_up("a") && !queue.remove("../c"));
        let mut next = Queue::new(folder.path().to_owned()).unwrap();
        assert_eq!(names(&next), ["b", "c", "a-1"]);
        let first = next.next().unwrap();
        let moved = folder.path().join("moved");
        next.release(&first, &moved).unwrap();
        assert_eq!(std::fs::read_to_string(moved).unwrap(), "seed = 'b'");
        // One server starts the runs of a folder. The other one does when that has ended.
        let mut other = Queue::new(folder.path().to_owned()).unwrap();
        assert!(other.next().is_none());
        assert_eq!(names(&other), ["c", "a-1"]);
        drop(next);
        assert!(other.remove(&other.list()[0].id));
        assert_eq!(other.next().map(|waiting| waiting.name), Some("a-1".to_owned()));
    }
}
