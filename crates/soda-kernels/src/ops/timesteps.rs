//! The timesteps of the samples that a network is called on, for adapters whose change depends on them.
//!
//! An adapted layer sees the rows of all samples and no timestep. The caller of the network knows them, and
//! opens a scope with [`with_timesteps`].

use std::cell::RefCell;

use burn::tensor::Tensor;

/// Runs `f`, during which [`current_timesteps`] on this thread are `timesteps`, `[b]`.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use soda_kernels::{current_timesteps, with_timesteps};
///
/// let timesteps = Tensor::<1>::from_floats([999.0, 20.0], &Device::default());
/// with_timesteps(timesteps, || assert_eq!(current_timesteps().map(|t| t.dims()), Some([2])));
/// assert!(current_timesteps().is_none());
/// ```
pub fn with_timesteps<T>(timesteps: Tensor<1>, f: impl FnOnce() -> T) -> T {
    struct Restore(Option<Tensor<1>>);
    impl Drop for Restore {
        fn drop(&mut self) {
            TIMESTEPS.set(self.0.take());
        }
    }
    // Also restored on unwinding, or a caught panic would leave its timesteps to the next network.
    let _restore = Restore(TIMESTEPS.replace(Some(timesteps)));
    f()
}

/// The timesteps of the innermost [`with_timesteps`] on this thread, `[b]`.
pub fn current_timesteps() -> Option<Tensor<1>> {
    TIMESTEPS.with_borrow(Clone::clone)
}

thread_local! {
    static TIMESTEPS: RefCell<Option<Tensor<1>>> = const { RefCell::new(None) };
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    fn current() -> Option<Vec<f32>> {
        current_timesteps().map(|t| t.into_data().iter().collect())
    }

    fn at(t: f32) -> Tensor<1> {
        Tensor::from_floats([t], &Device::default())
    }

    #[test]
    fn scopes_nest_and_end_with_a_panic_too() {
        with_timesteps(at(1.0), || {
            with_timesteps(at(2.0), || assert_eq!(current(), Some(vec![2.0])));
            let panicked =
                std::panic::catch_unwind(|| with_timesteps(at(3.0), || panic!("inside")));
            assert!(panicked.is_err());
            assert_eq!(current(), Some(vec![1.0]));
        });
        assert_eq!(current(), None);
    }
}
