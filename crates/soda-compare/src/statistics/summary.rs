//! Mean and standard deviation of a sample.

/// Mean and standard deviation of a sample. Both are NaN if any value is NaN.
///
/// ```
/// use soda_compare::Summary;
///
/// let summary = Summary::from_values(&[2.0, 4.0, 6.0]).unwrap();
/// assert_eq!((summary.mean, summary.std_dev, summary.n), (4.0, 2.0, 3));
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// The mean.
    pub mean: f64,
    /// The sample standard deviation, with `n - 1` degrees of freedom; 0 for a single value.
    pub std_dev: f64,
    /// The number of values.
    pub n: usize,
}

impl Summary {
    /// Summarises `values`. Returns `None` if there are no values.
    pub fn from_values(values: &[f64]) -> Option<Self> {
        let n = values.len();
        if n == 0 {
            return None;
        }
        let mean = values.iter().sum::<f64>() / n as f64;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let std_dev = (squares / (n.max(2) - 1) as f64).sqrt();
        Some(Self { mean, std_dev, n })
    }

    /// The standard error of the mean.
    pub fn standard_error(&self) -> f64 {
        self.std_dev / (self.n as f64).sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_has_a_mean_and_a_standard_deviation() {
        let summary = Summary::from_values(&[2.0, 4.0, 6.0]);
        assert_eq!(summary, Some(Summary { mean: 4.0, std_dev: 2.0, n: 3 }));
        let one = Summary::from_values(&[5.0]);
        assert_eq!(one, Some(Summary { mean: 5.0, std_dev: 0.0, n: 1 }));
        assert_eq!(Summary::from_values(&[]), None);
    }

    #[test]
    fn nan_stays_in_the_summary() {
        let summary = Summary::from_values(&[1.0, f64::NAN, 2.0]);
        assert!(summary.is_some_and(|found| found.mean.is_nan() && found.std_dev.is_nan()));
    }
}
