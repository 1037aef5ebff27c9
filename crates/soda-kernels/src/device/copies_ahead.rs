//! Passes over a network whose weights are in host memory.

use crate::cuda::{begin_pass, end_pass};

/// Runs `pass`, which reads the weights of networks in the order of the last such call on this thread.
///
/// Weights in host memory are copied to a CUDA device while it computes, in that order. Without this
/// function, and where the order differs, each is copied when it is needed. The results are the same. A
/// call within another is part of that one.
pub fn with_copies_ahead<T>(pass: impl FnOnce() -> T) -> T {
    struct End(bool);
    impl Drop for End {
        fn drop(&mut self) {
            if self.0 {
                end_pass();
            }
        }
    }
    // Also ended on unwinding, or a caught panic would leave the pass of the thread open.
    let _end = End(begin_pass());
    pass()
}
