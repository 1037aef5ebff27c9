//! Mean, spread, and a paired test that assumes no distribution.

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

/// How often chance alone would give a mean difference at least as large as that of these paired
/// `differences`, in either direction: the sign-flip permutation test (Fisher, The Design of Experiments,
/// section 21). Exact up to 20 pairs, by 2^20 draws of a fixed generator above. 1 for no pair.
pub fn paired(differences: &[f64]) -> f64 {
    const EXACT: usize = 20;
    let n = differences.len();
    let observed = differences.iter().sum::<f64>().abs();
    // Sums of the same numbers in another order differ by rounding.
    let slack = 1e-12 * differences.iter().map(|d| d.abs()).sum::<f64>();
    let draws = 1_u64 << n.min(EXACT);
    let mut state = 0_u64;
    let extreme = (0..draws)
        .filter(|draw| {
            let mut sum = 0.0;
            for (i, difference) in differences.iter().enumerate() {
                let flip = if n <= EXACT { draw >> i & 1 == 1 } else { bit(&mut state) };
                sum += if flip { -difference } else { *difference };
            }
            sum.abs() >= observed - slack
        })
        .count();
    extreme as f64 / draws as f64
}

/// A fair bit (splitmix64).
fn bit(state: &mut u64) -> bool {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)) & 1 == 1
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

    #[test]
    fn the_test_counts_sign_flips() {
        // All of one sign: only the two constant patterns are as extreme.
        assert!((paired(&[1.0, 2.0, 0.5, 3.0]) - 2.0 / 16.0).abs() < 1e-12);
        assert!((paired(&[1.0, -1.0]) - 1.0).abs() < 1e-12, "no difference");
        assert!((paired(&[]) - 1.0).abs() < 1e-12);
        // scipy.stats.permutation_test((x,), mean, permutation_type="samples") on the same numbers.
        assert!((paired(&[0.3, 0.1, -0.05, 0.2, 0.4]) - 0.125).abs() < 1e-12);
    }

    #[test]
    fn many_pairs_are_drawn_and_agree_with_the_binomial() {
        // Of 24 differences of size 1, a flip of signs leaves a binomial count.
        let differences: Vec<f64> = (0..24).map(|i| if i % 5 < 3 { 1.0 } else { -1.0 }).collect();
        let sum: f64 = differences.iter().sum();
        let p = paired(&differences);
        let exact = binomial_tail(24, sum.abs() as i64);
        assert!((p - exact).abs() < 4.0 * (exact * (1.0 - exact) / f64::from(1 << 20)).sqrt());
    }

    /// `P(|2k - n| >= at_least)` for `k` of `Binomial(n, 1/2)`.
    fn binomial_tail(n: i64, at_least: i64) -> f64 {
        let mut ways = 1.0;
        let mut total = 0.0;
        for k in 0..=n {
            if (2 * k - n).abs() >= at_least {
                total += ways;
            }
            ways *= (n - k) as f64 / (k + 1) as f64;
        }
        total / 2f64.powi(n as i32)
    }
}
