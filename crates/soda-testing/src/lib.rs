//! Helpers of the workspace's tests: numeric comparisons that fail on NaN and on empty input, [`fuzz`], and
//! [`Faults`] at a chosen change of a file, and [`workspace_path`].
//!
//! `f32::max` returns the other operand when one is NaN, so `fold(0.0, f32::max)` over differences reports 0
//! for an all-NaN output. These functions return NaN instead, and `error <= tolerance` is false for NaN.

#[cfg(target_os = "linux")]
mod faults;
mod fuzz;
mod mutator;
mod paths;
mod watch;

#[cfg(target_os = "linux")]
pub use faults::{Fault, Faults};
pub use fuzz::fuzz;
pub use mutator::Mutator;
pub use paths::workspace_path;

/// The largest absolute value, NaN if any value is NaN.
///
/// # Panics
/// If there are no values: a comparison of nothing would always pass.
#[track_caller]
pub fn max_abs<T: Into<f64>>(values: impl IntoIterator<Item = T>) -> f64 {
    let mut values = values.into_iter().map(|value| value.into().abs()).peekable();
    assert!(values.peek().is_some(), "a comparison of no values");
    values.fold(0.0, |most, value| if most.is_nan() || most >= value { most } else { value })
}

/// `max |a - b|`, NaN if any difference is NaN.
///
/// # Panics
/// If the two have different lengths, or none.
#[track_caller]
pub fn max_abs_diff<T: Copy + Into<f64>>(a: &[T], b: &[T]) -> f64 {
    assert_eq!(a.len(), b.len(), "a comparison of different lengths");
    max_abs(a.iter().zip(b).map(|(&a, &b)| a.into() - b.into()))
}

/// `max |a - b| / max |b|`, with `b` the reference, or `max |a|` if the reference is zero.
///
/// NaN if any value is NaN.
///
/// # Panics
/// If the two have different lengths, or none.
#[track_caller]
pub fn relative_error<T: Copy + Into<f64>>(a: &[T], b: &[T]) -> f64 {
    let (difference, scale) = (max_abs_diff(a, b), max_abs(b.iter().copied()));
    if scale == 0.0 { difference } else { difference / scale }
}

/// Asserts that `max |a - b| <= tolerance · max |b|`, with `b` the reference.
///
/// # Panics
/// If the error exceeds the tolerance or is NaN; if the two have different lengths, or none.
#[track_caller]
pub fn assert_close<T: Copy + Into<f64>>(what: &str, a: &[T], b: &[T], tolerance: f64) {
    let error = relative_error(a, b);
    assert!(error <= tolerance, "{what}: relative error {error:e} exceeds {tolerance:e}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nan_is_never_close() {
        for nan in [[f32::NAN, 1.0, 2.0], [1.0, f32::NAN, 2.0], [1.0, 2.0, f32::NAN]] {
            assert!(max_abs(nan).is_nan());
            assert!(relative_error(&nan, &[1.0, 2.0, 3.0]).is_nan());
            assert!(relative_error(&[1.0, 2.0, 3.0], &nan).is_nan());
            assert!(std::panic::catch_unwind(|| assert_close("nan", &nan, &nan, 1e9)).is_err());
        }
        let infinite = [f32::INFINITY; 2];
        assert!(relative_error(&infinite, &infinite).is_nan());
    }

    #[test]
    fn errors_are_relative_to_the_reference() {
        assert_eq!(relative_error(&[1.0, 2.5], &[1.0, 2.0]), 0.25);
        assert_eq!(relative_error(&[0.5f32], &[0.0]), 0.5);
        assert_eq!(relative_error(&[0.0], &[0.0]), 0.0);
    }

    #[test]
    fn nothing_is_not_close_to_nothing() {
        assert!(std::panic::catch_unwind(|| assert_close::<f32>("empty", &[], &[], 1.0)).is_err());
    }
}
