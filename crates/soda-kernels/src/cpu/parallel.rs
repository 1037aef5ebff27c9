//! Tasks on the threads of the current pool, and scratch memory of a thread.

use std::cell::Cell;

use rayon::prelude::*;

/// The number of multiplications that takes less time than to wake another thread.
const MIN_WORK_OF_A_THREAD: usize = 1 << 17;

/// Runs `f` on all tasks, on the threads of the current pool if that pays. `work` is the number of
/// multiplications of all tasks together.
pub(super) fn for_each_task<T: Send>(tasks: Vec<T>, work: usize, f: impl Fn(T) + Send + Sync) {
    if tasks.len() == 1 || work < MIN_WORK_OF_A_THREAD || rayon::current_num_threads() == 1 {
        tasks.into_iter().for_each(f);
    } else {
        tasks.into_par_iter().for_each(f);
    }
}

/// The number of rows of a task if the threads of the pool share `rows`. `work` is the number of
/// multiplications of a row.
pub(super) fn rows_per_task(rows: usize, work: usize) -> usize {
    let threads = rayon::current_num_threads();
    if threads == 1 {
        rows
    } else {
        rows.div_ceil(threads).max(MIN_WORK_OF_A_THREAD / 4 / work.max(1))
    }
}

thread_local! {
    static SCRATCH: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Calls `f` with `N` slices of these lengths and unspecified contents. The thread keeps their memory for the
/// next call.
pub(super) fn with_scratch<const N: usize, R>(
    lengths: [usize; N],
    f: impl FnOnce([&mut [f32]; N]) -> R,
) -> R {
    let mut all = SCRATCH.take();
    let total = lengths.iter().sum();
    if all.len() < total {
        all.resize(total, 0.0);
    }
    let mut rest = &mut all[..];
    let parts = lengths.map(|length| {
        let (part, others) = std::mem::take(&mut rest).split_at_mut(length);
        rest = others;
        part
    });
    let result = f(parts);
    SCRATCH.set(all);
    result
}
