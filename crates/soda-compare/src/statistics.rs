//! A sample's mean and spread.

/// A sample's mean and spread.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// The mean.
    pub mean: f64,
    /// The standard deviation, of `n - 1`; 0 for one value.
    pub deviation: f64,
    /// How many values.
    pub n: usize,
}

impl Summary {
    /// None for no value.
    pub fn of(values: &[f64]) -> Option<Self> {
        let n = values.len();
        if n == 0 {
            return None;
        }
        let mean = values.iter().sum::<f64>() / n as f64;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let deviation = (squares / (n.max(2) - 1) as f64).sqrt();
        Some(Self { mean, deviation, n })
    }

    /// The standard error of the mean.
    pub fn error(&self) -> f64 {
        self.deviation / (self.n as f64).sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_of_a_sample() {
        let summary = Summary::of(&[2.0, 4.0, 6.0]);
        assert_eq!(summary, Some(Summary { mean: 4.0, deviation: 2.0, n: 3 }));
        assert_eq!(Summary::of(&[5.0]), Some(Summary { mean: 5.0, deviation: 0.0, n: 1 }));
        assert_eq!(Summary::of(&[]), None);
    }
}
