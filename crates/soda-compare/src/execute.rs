//! Several tasks at once.

use std::sync::Mutex;
use std::sync::mpsc;

use crate::error::CompareError;
use crate::results::{Line, Results};

/// What is done once, and leaves a line: a run, or a look at what it trained.
pub trait Task: Sync {
    /// What comes out.
    type Measured: Send;
    /// What is kept of it.
    type Line: Line;

    /// What tells it from all others.
    fn id(&self) -> &str;

    /// The line of what came out.
    fn line(&self, measured: Self::Measured) -> Self::Line;
}

/// What happens while tasks are executed.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a, T> {
    /// A task begins.
    Started(&'a T),
    /// A task is done; `done` of `total`, those of earlier sessions included.
    Finished {
        /// Which.
        task: &'a T,
        /// How many are done.
        done: usize,
        /// Of how many.
        total: usize,
    },
}

/// A task that gave nothing.
#[derive(Clone, Debug)]
pub struct Failure {
    /// [`Task::id`].
    pub id: String,
    /// Why.
    pub reason: String,
}

/// Executes those of `tasks` that `results` lacks, `jobs` at once, each by `act`, which is told at which of the `jobs`
/// places, counted from 0, it is. One that fails stops no other; it is returned, and executed again next time.
///
/// # Errors
/// A result that cannot be stored; nothing new is started then.
pub fn execute<T: Task>(
    tasks: &[T],
    jobs: usize,
    results: &mut Results<T::Line>,
    act: impl Fn(usize, &T) -> Result<T::Measured, String> + Sync,
    mut on_event: impl FnMut(Event<'_, T>),
) -> Result<Vec<Failure>, CompareError> {
    let missing: Vec<&T> = tasks.iter().filter(|task| results.get(task.id()).is_none()).collect();
    let mut done = tasks.len() - missing.len();
    let mut failures = Vec::new();
    let queue = Mutex::new(missing.into_iter());
    // A poisoned lock would mean that `next` of a slice's iterator panicked.
    let next = || queue.lock().ok().and_then(|mut queue| queue.next());
    std::thread::scope(|scope| {
        let (sender, receiver) = mpsc::channel();
        for place in 0..jobs.max(1) {
            let (sender, next, act) = (sender.clone(), &next, &act);
            scope.spawn(move || {
                while let Some(task) = next() {
                    // The receiver is gone when a result could not be stored: no reason to go on.
                    if sender.send((task, None)).is_err()
                        || sender.send((task, Some(act(place, task)))).is_err()
                    {
                        return;
                    }
                }
            });
        }
        drop(sender);
        for (task, result) in receiver {
            match result {
                None => on_event(Event::Started(task)),
                Some(Ok(measured)) => {
                    results.append(task.line(measured))?;
                    done += 1;
                    on_event(Event::Finished { task, done, total: tasks.len() });
                }
                Some(Err(reason)) => failures.push(Failure { id: task.id().to_owned(), reason }),
            }
        }
        Ok(failures)
    })
}
