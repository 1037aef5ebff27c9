//! This process as one of several ranks, if a launcher says that it is one.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Result;
use soda_distributed::{Alone, Launch, Reduce, connect};

use crate::progress::print_stderr;
use crate::usage::UsageError;

/// The most bytes that rank 0 sends of settings, and of nothing.
const SETTINGS: usize = 1 << 20;
/// The time between two looks whether the work is done.
const BEAT: Duration = Duration::from_millis(500);

/// The time that the device has to do what is queued on it after an error.
const LONGEST_END: Duration = Duration::from_secs(20);

/// The ranks that this process has joined, which must hear how it ends.
static JOINED: OnceLock<Arc<dyn Reduce>> = OnceLock::new();

/// The place of this process among the ranks.
pub(crate) struct Membership {
    pub(crate) reduce: Arc<dyn Reduce>,
    /// This rank among those of its machine; `None` for a process alone.
    pub(crate) local_rank: Option<usize>,
}

impl Membership {
    /// Whether this rank writes and prints.
    pub(crate) fn is_first(&self) -> bool {
        self.reduce.rank() == 0
    }

    /// Does work that has no fixed time, such as a download. The other ranks wait meanwhile.
    pub(crate) fn while_others_wait<T>(&self, work: impl FnOnce() -> T) -> T {
        if self.reduce.world() == 1 {
            return work();
        }
        std::thread::scope(|scope| {
            let (working, done) = channel::<()>();
            scope.spawn(move || {
                while done.recv_timeout(BEAT) == Err(RecvTimeoutError::Timeout) {
                    self.reduce.alive();
                }
            });
            // Dropped at the end of the work, also by a panic.
            let _working = working;
            work()
        })
    }

    /// Does `work` on rank 0, and then on the others.
    pub(crate) fn first_on_rank_0<T>(&self, mut work: impl FnMut() -> Result<T>) -> Result<T> {
        let first = self.is_first().then(&mut work).transpose()?;
        self.reduce.broadcast(Vec::new(), SETTINGS)?;
        first.map_or_else(work, Ok)
    }

    /// The text of rank 0, on every rank.
    pub(crate) fn text_of_rank_0(&self, text: String) -> Result<String> {
        let bytes = self.reduce.broadcast(text.into_bytes(), SETTINGS)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// Whether a launcher has made this process a rank.
///
/// # Errors
/// A [`UsageError`] for variables that are half set.
pub(crate) fn launch() -> Result<Option<Launch>> {
    let variable = |name: &str| std::env::var(name).ok();
    Launch::from_variables(variable).map_err(|error| UsageError::new(error).into())
}

/// Connects this process with the other ranks, if a launcher says that there are any.
///
/// # Errors
/// Variables that are half set, or ranks that cannot meet.
pub(crate) fn join(patience: Duration) -> Result<Membership> {
    let Some(launch) = launch()? else {
        return Ok(Membership { reduce: Arc::new(Alone), local_rank: None });
    };
    let ranks = connect(&launch, patience, &mut |note| print_stderr(note))?;
    let reduce: Arc<dyn Reduce> = Arc::new(ranks);
    let reduce = Arc::clone(JOINED.get_or_init(|| reduce));
    Ok(Membership { reduce, local_rank: Some(launch.local_rank) })
}

/// Tells the other ranks that this process ends with an error, and makes sure that it does.
pub(crate) fn end(sentence: &str) {
    let Some(ranks) = JOINED.get() else { return };
    ranks.end(sentence);
    // The device may wait for a rank that has gone.
    std::thread::spawn(|| {
        std::thread::sleep(LONGEST_END);
        std::process::exit(1);
    });
}
