//! Parallel execution of tasks whose results are stored.

use std::sync::Mutex;
use std::sync::mpsc;

use super::file::{ResultsFile, StoredResult};
use crate::error::CompareError;

/// A task that runs once and stores one result: a training run or an evaluation.
pub trait Task: Sync {
    /// The output of the task.
    type Output: Send;
    /// The result that is stored.
    type Stored: StoredResult;

    /// The identifier of the task, unique in its results file.
    fn id(&self) -> &str;

    /// Makes the stored result from the output.
    fn stored(&self, output: Self::Output) -> Self::Stored;
}

/// Progress of [`execute`].
#[derive(Clone, Copy, Debug)]
pub enum TaskEvent<'a, T> {
    /// A task starts.
    Started(&'a T),
    /// A task has finished.
    Finished {
        /// The task.
        task: &'a T,
        /// The number of finished tasks, including those of earlier sessions.
        done: usize,
        /// The number of tasks.
        total: usize,
    },
}

/// A task that failed.
#[derive(Clone, Debug)]
pub struct TaskFailure {
    /// The identifier of the task: [`Task::id`].
    pub id: String,
    /// The error message.
    pub reason: String,
}

/// Executes the tasks that `results` lacks, `jobs` at once.
///
/// `act` executes one task. Its first argument is the index of the worker, from 0 to `jobs - 1`. A task
/// that fails stops no other; it is returned here and executed again by the next call.
///
/// # Errors
/// A result cannot be stored. No further task starts then.
pub fn execute<T: Task>(
    tasks: &[T],
    jobs: usize,
    results: &mut ResultsFile<T::Stored>,
    act: impl Fn(usize, &T) -> Result<T::Output, String> + Sync,
    mut on_event: impl FnMut(TaskEvent<'_, T>),
) -> Result<Vec<TaskFailure>, CompareError> {
    let missing: Vec<&T> = tasks.iter().filter(|task| results.get(task.id()).is_none()).collect();
    let mut done = tasks.len() - missing.len();
    let mut failures = Vec::new();
    let queue = Mutex::new(missing.into_iter());
    // A poisoned lock would mean that `next` of a slice's iterator panicked.
    let next = || queue.lock().ok().and_then(|mut queue| queue.next());
    std::thread::scope(|scope| {
        let (sender, receiver) = mpsc::channel();
        for worker in 0..jobs.max(1) {
            let (sender, next, act) = (sender.clone(), &next, &act);
            scope.spawn(move || {
                while let Some(task) = next() {
                    // The receiver is gone if a result could not be stored. The worker stops then.
                    if sender.send((task, None)).is_err()
                        || sender.send((task, Some(act(worker, task)))).is_err()
                    {
                        return;
                    }
                }
            });
        }
        drop(sender);
        for (task, result) in receiver {
            match result {
                None => on_event(TaskEvent::Started(task)),
                Some(Ok(output)) => {
                    results.append(task.stored(output))?;
                    done += 1;
                    on_event(TaskEvent::Finished { task, done, total: tasks.len() });
                }
                Some(Err(reason)) => {
                    failures.push(TaskFailure { id: task.id().to_owned(), reason });
                }
            }
        }
        Ok(failures)
    })
}
