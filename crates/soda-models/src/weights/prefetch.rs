//! Work that runs ahead of its consumer on other threads, within a bound on memory.

use std::num::NonZero;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

/// The bytes that results may hold before the consumer takes them.
const BYTES_AHEAD: usize = 512 << 20;

/// The most threads that work ahead. More do not read a disk or the page cache faster.
const MOST_THREADS: usize = 16;

/// Jobs below this many bytes are not worth a thread.
const BYTES_OF_A_THREAD: usize = 4 << 20;

/// A piece of work with a result that occupies memory.
pub(super) trait Job: Sync {
    /// The result.
    type Result: Send;

    /// The bytes of the result.
    fn bytes(&self) -> usize;

    /// Does the work.
    fn run(&self) -> Self::Result;
}

/// The results of jobs, computed ahead in the order of the jobs.
pub(super) struct Prefetch<'a, J: Job> {
    jobs: &'a [J],
    state: Mutex<State<J::Result>>,
    changed: Condvar,
}

struct State<R> {
    slots: Vec<Slot<R>>,
    /// Bytes of the jobs that run and of the results that wait.
    bytes: usize,
    stopped: bool,
}

enum Slot<R> {
    Waiting,
    Running,
    Done(R),
    Taken,
}

impl<'a, J: Job> Prefetch<'a, J> {
    /// Calls `consume`, which takes results, while other threads work ahead.
    pub(super) fn scope<T>(jobs: &'a [J], consume: impl FnOnce(&Self) -> T) -> T {
        let slots = jobs.iter().map(|_| Slot::Waiting).collect();
        let state = Mutex::new(State { slots, bytes: 0, stopped: false });
        let prefetch = Self { jobs, state, changed: Condvar::new() };
        let bytes: usize = jobs.iter().map(Job::bytes).sum();
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        let threads = (bytes / BYTES_OF_A_THREAD).min(cores).min(MOST_THREADS);
        thread::scope(|scope| {
            // Also when `consume` panics, since the scope waits for the threads.
            let _stop = StopOnDrop(&prefetch);
            for _ in 0..threads {
                scope.spawn(|| prefetch.work());
            }
            consume(&prefetch)
        })
    }

    /// The result of a job, or `None` if it was taken before. Runs the job here if no thread has begun it.
    pub(super) fn take(&self, index: usize) -> Option<J::Result> {
        let mut state = self.lock();
        loop {
            let slot = state.slots.get_mut(index)?;
            match std::mem::replace(slot, Slot::Taken) {
                Slot::Waiting => {
                    drop(state);
                    return Some(self.jobs[index].run());
                }
                Slot::Done(result) => {
                    state.bytes -= self.jobs[index].bytes();
                    self.changed.notify_all();
                    return Some(result);
                }
                Slot::Taken => return None,
                Slot::Running => *slot = Slot::Running,
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Runs jobs in their order until none waits.
    fn work(&self) {
        while let Some(index) = self.begin() {
            let _unfinished = Unfinished(self, index);
            let result = self.jobs[index].run();
            self.lock().slots[index] = Slot::Done(result);
            self.changed.notify_all();
        }
    }

    /// Marks the next job as running, when there is room for its result.
    fn begin(&self) -> Option<usize> {
        let mut state = self.lock();
        loop {
            if state.stopped {
                return None;
            }
            let waits = |slot: &Slot<_>| matches!(slot, Slot::Waiting);
            let index = state.slots.iter().position(waits)?;
            let bytes = self.jobs[index].bytes();
            if state.bytes == 0 || state.bytes + bytes <= BYTES_AHEAD {
                state.bytes += bytes;
                state.slots[index] = Slot::Running;
                return Some(index);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<J::Result>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gives a job back if it panics, so that the consumer does not wait for it forever.
struct Unfinished<'a, 'b, J: Job>(&'a Prefetch<'b, J>, usize);

impl<J: Job> Drop for Unfinished<'_, '_, J> {
    fn drop(&mut self) {
        let Self(prefetch, index) = *self;
        let mut state = prefetch.lock();
        if let Slot::Running = state.slots[index] {
            state.slots[index] = Slot::Waiting;
            state.bytes -= prefetch.jobs[index].bytes();
            prefetch.changed.notify_all();
        }
    }
}

/// Lets the threads end.
struct StopOnDrop<'a, 'b, J: Job>(&'a Prefetch<'b, J>);

impl<J: Job> Drop for StopOnDrop<'_, '_, J> {
    fn drop(&mut self) {
        self.0.lock().stopped = true;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// A job that returns its number, and claims to occupy many bytes.
    struct Number<'a> {
        number: usize,
        bytes: usize,
        runs: &'a AtomicUsize,
    }

    impl Job for Number<'_> {
        type Result = usize;

        fn bytes(&self) -> usize {
            self.bytes
        }

        fn run(&self) -> usize {
            self.runs.fetch_add(1, Ordering::Relaxed);
            self.number
        }
    }

    fn jobs(count: usize, bytes: usize, runs: &AtomicUsize) -> Vec<Number<'_>> {
        (0..count).map(|number| Number { number, bytes, runs }).collect()
    }

    #[test]
    fn every_job_runs_once_in_any_order_of_the_consumer() {
        for bytes in [1, BYTES_AHEAD / 3, 2 * BYTES_AHEAD] {
            for backwards in [false, true] {
                let runs = AtomicUsize::new(0);
                let jobs = jobs(100, bytes, &runs);
                let mut order: Vec<usize> = (0..100).collect();
                if backwards {
                    order.reverse();
                }
                let taken = Prefetch::scope(&jobs, |results| {
                    order.iter().map(|&index| results.take(index)).collect::<Vec<_>>()
                });
                let expected: Vec<_> = order.into_iter().map(Some).collect();
                assert_eq!(taken, expected);
                assert_eq!(runs.into_inner(), 100);
            }
        }
    }

    #[test]
    fn results_are_taken_once_and_the_rest_is_left() {
        let runs = AtomicUsize::new(0);
        let jobs = jobs(1000, BYTES_AHEAD / 2, &runs);
        Prefetch::scope(&jobs, |results| {
            assert_eq!(results.take(3), Some(3));
            assert_eq!(results.take(3), None);
            assert_eq!(results.take(1000), None);
        });
        assert!(runs.into_inner() < 1000, "all jobs ran though nobody took their results");
    }

    /// The consumer runs the job again, which panics there.
    #[test]
    #[should_panic = "the job fails"]
    fn a_panic_of_a_job_ends_the_consumer() {
        struct Failing;

        impl Job for Failing {
            type Result = ();

            fn bytes(&self) -> usize {
                BYTES_AHEAD
            }

            fn run(&self) {
                thread::sleep(std::time::Duration::from_millis(20));
                panic!("the job fails");
            }
        }

        Prefetch::scope(&[Failing, Failing], |results| {
            // A thread has begun by now.
            thread::sleep(std::time::Duration::from_millis(10));
            results.take(0);
        });
    }

    #[test]
    #[should_panic = "the consumer fails"]
    fn a_panic_of_the_consumer_ends_the_threads() {
        let runs = AtomicUsize::new(0);
        let jobs = jobs(10, BYTES_AHEAD, &runs);
        Prefetch::scope(&jobs, |_| panic!("the consumer fails"));
    }
}
