//! Several runs at once.

use std::sync::Mutex;
use std::sync::mpsc;

use crate::error::CompareError;
use crate::plan::Run;
use crate::results::{Measured, Record, Results};

/// What happens while runs are executed.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A run begins.
    Started(&'a Run),
    /// A run is done; `done` of `total`, those of earlier sessions included.
    Finished {
        /// Which.
        run: &'a Run,
        /// How many are done.
        done: usize,
        /// Of how many.
        total: usize,
    },
}

/// A run that gave nothing.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Which.
    pub run: Run,
    /// Why.
    pub reason: String,
}

/// Executes those of `runs` that `results` lacks, `jobs` at once, each by `train`. One that fails stops no
/// other; it is returned, and run again next time.
///
/// # Errors
/// A result that cannot be stored; nothing new is started then.
pub fn execute(
    runs: &[Run],
    jobs: usize,
    results: &mut Results,
    train: impl Fn(&Run) -> Result<Measured, String> + Sync,
    mut on_event: impl FnMut(Event<'_>),
) -> Result<Vec<Failure>, CompareError> {
    let missing: Vec<&Run> = runs.iter().filter(|run| results.get(&run.id).is_none()).collect();
    let mut done = runs.len() - missing.len();
    let mut failures = Vec::new();
    let queue = Mutex::new(missing.into_iter());
    // A poisoned lock would mean that `next` of a slice's iterator panicked.
    let next = || queue.lock().ok().and_then(|mut queue| queue.next());
    std::thread::scope(|scope| {
        let (sender, receiver) = mpsc::channel();
        for _ in 0..jobs.max(1) {
            let (sender, next, train) = (sender.clone(), &next, &train);
            scope.spawn(move || {
                while let Some(run) = next() {
                    // The receiver is gone when a result could not be stored: no reason to go on.
                    if sender.send((run, None)).is_err()
                        || sender.send((run, Some(train(run)))).is_err()
                    {
                        return;
                    }
                }
            });
        }
        drop(sender);
        for (run, result) in receiver {
            match result {
                None => on_event(Event::Started(run)),
                Some(Ok(measured)) => {
                    results.append(Record::new(run, measured))?;
                    done += 1;
                    on_event(Event::Finished { run, done, total: runs.len() });
                }
                Some(Err(reason)) => failures.push(Failure { run: run.clone(), reason }),
            }
        }
        Ok(failures)
    })
}
