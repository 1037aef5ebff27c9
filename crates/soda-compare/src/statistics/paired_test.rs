//! A paired test of whether an arm differs from the first arm.
//!
//! The test assumes no distribution. Its units must be independent, and the seeds of one data set are not:
//! they share training images and prompts. Each data set therefore counts once, as the mean of its seeds.
//! With a single data set, the seeds are the units, and the result holds for that data set only.

use std::collections::BTreeMap;
use std::fmt;

use super::summary::Summary;

/// The result of a paired test.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairedTest {
    /// The mean difference over the units.
    pub difference: f64,
    /// The two-sided p value of [`sign_flip_p_value`]. NaN if a difference is not finite.
    pub p: f64,
    /// The kind of unit that counts as independent.
    pub unit: ClusterUnit,
    /// The number of units.
    pub units: usize,
}

/// The kind of unit that a paired test takes as independent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterUnit {
    /// A data set, as the mean of its seeds.
    DataSet,
    /// A seed of the only data set.
    Seed,
}

/// Writes the number and the kind of the units, such as `5 seeds`.
impl fmt::Display for PairedTest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.unit {
            ClusterUnit::DataSet => "data set",
            ClusterUnit::Seed => "seed",
        };
        let plural = if self.units == 1 { "" } else { "s" };
        write!(formatter, "{} {unit}{plural}", self.units)
    }
}

/// Tests whether paired differences have mean zero. Each difference comes with its data set.
///
/// Returns `None` if there are no differences.
///
/// ```
/// use soda_compare::{ClusterUnit, paired_test};
///
/// let differences = [("dog", 0.3), ("dog", 0.1), ("mug", 0.2), ("cat", 0.4)];
/// let test = paired_test(differences).unwrap();
/// assert_eq!((test.unit, test.units, test.p), (ClusterUnit::DataSet, 3, 0.25));
/// ```
pub fn paired_test<D: Ord>(differences: impl IntoIterator<Item = (D, f64)>) -> Option<PairedTest> {
    let mut sets: BTreeMap<D, Vec<f64>> = BTreeMap::new();
    for (data, difference) in differences {
        sets.entry(data).or_default().push(difference);
    }
    let mut sets: Vec<Vec<f64>> = sets.into_values().collect();
    let (unit, units) = match &mut sets[..] {
        [seeds] => (ClusterUnit::Seed, std::mem::take(seeds)),
        sets => {
            let mean = |seeds: &Vec<f64>| Some(Summary::from_values(seeds)?.mean);
            (ClusterUnit::DataSet, sets.iter().filter_map(mean).collect())
        }
    };
    let difference = Summary::from_values(&units)?.mean;
    Some(PairedTest { difference, p: sign_flip_p_value(&units), unit, units: units.len() })
}

/// Adjusts the p values of one family of tests for their number (Holm 1979, Scandinavian Journal of
/// Statistics 6).
///
/// The result controls the family-wise error rate under any dependence of the tests. A p value that is NaN
/// stays NaN and counts as a member of the family.
///
/// ```
/// assert_eq!(soda_compare::holm_adjusted(&[0.0078125, 0.25]), [0.015625, 0.25]);
/// ```
pub fn holm_adjusted(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|a, b| p[*a].total_cmp(&p[*b]));
    let mut adjusted = vec![1.0; p.len()];
    let mut least = 0.0_f64;
    for (rank, index) in order.into_iter().enumerate() {
        // `f64::max` would drop NaN and report the p value before it.
        if p[index].is_nan() {
            adjusted[index] = f64::NAN;
            continue;
        }
        least = least.max((p.len() - rank) as f64 * p[index]).min(1.0);
        adjusted[index] = least;
    }
    adjusted
}

/// The two-sided p value of the sign-flip permutation test on paired `differences`.
///
/// It is the share of sign patterns whose sum is at least as large as the observed one (Fisher, The Design
/// of Experiments, section 21). It is exact for up to 20 differences. Above, it uses 2^20 draws of a fixed
/// generator. It is 1 for no difference, and NaN if a difference is not finite.
pub fn sign_flip_p_value(differences: &[f64]) -> f64 {
    const EXACT: usize = 20;
    if differences.iter().any(|difference| !difference.is_finite()) {
        return f64::NAN;
    }
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

/// Draws a fair bit (splitmix64).
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

    /// Differences on five data sets with one to three seeds.
    const DIFFERENCES: [(&str, f64); 9] = [
        ("a", 0.3),
        ("a", 0.1),
        ("b", 0.2),
        ("c", -0.1),
        ("c", 0.0),
        ("c", 0.05),
        ("d", 0.4),
        ("d", 0.1),
        ("e", 0.12),
    ];

    #[test]
    fn a_data_set_counts_once() {
        // From scipy.stats.permutation_test: 0.125 on the five means, 0.0390625 on the nine differences.
        let found = paired_test(DIFFERENCES).map(|found| (found.p, found.unit, found.units));
        assert_eq!(found, Some((0.125, ClusterUnit::DataSet, 5)));
        assert!((sign_flip_p_value(&DIFFERENCES.map(|(_, d)| d)) - 0.0390625).abs() < 1e-12);
        // Repeating the same runs adds no evidence.
        let twice = DIFFERENCES.into_iter().chain(DIFFERENCES);
        let (once, twice) = (paired_test(DIFFERENCES), paired_test(twice));
        let close = |a: PairedTest, b: PairedTest| {
            (a.difference - b.difference).abs() < 1e-12 && a.p == b.p
        };
        assert!(once.zip(twice).is_some_and(|(a, b)| close(a, b)), "{once:?}, {twice:?}");
    }

    #[test]
    fn the_seeds_are_the_units_of_a_single_data_set() {
        let found = paired_test([("a", 0.3), ("a", 0.1), ("a", -0.05), ("a", 0.2), ("a", 0.4)]);
        let text = found.map(|found| (found.p, found.to_string()));
        assert_eq!(text, Some((0.125, "5 seeds".to_owned())));
        assert_eq!(
            paired_test([("a", 0.5)]).map(|found| found.to_string()),
            Some("1 seed".to_owned())
        );
        assert_eq!(paired_test::<&str>([]), None);
    }

    #[test]
    fn p_values_are_adjusted_as_holm_does() {
        // From statsmodels.stats.multitest.multipletests(p, method="holm").
        let p = [0.0078125, 0.25, 0.03125, 0.0078125, 0.5];
        assert_eq!(holm_adjusted(&p), [0.0390625, 0.5, 0.09375, 0.0390625, 0.5]);
        assert_eq!(holm_adjusted(&[0.03]), [0.03], "a family of one");
        assert!(holm_adjusted(&[]).is_empty());
        assert!(holm_adjusted(&[0.9, 0.8, 0.7]).iter().all(|p| *p == 1.0), "a p is at most 1");
    }

    #[test]
    fn the_p_value_counts_sign_patterns() {
        // All differences have one sign, so that only the two constant patterns are as extreme.
        assert!((sign_flip_p_value(&[1.0, 2.0, 0.5, 3.0]) - 2.0 / 16.0).abs() < 1e-12);
        assert!((sign_flip_p_value(&[1.0, -1.0]) - 1.0).abs() < 1e-12, "no difference");
        assert!((sign_flip_p_value(&[]) - 1.0).abs() < 1e-12);
        // From scipy.stats.permutation_test((x,), mean, permutation_type="samples").
        assert!((sign_flip_p_value(&[0.3, 0.1, -0.05, 0.2, 0.4]) - 0.125).abs() < 1e-12);
    }

    #[test]
    fn a_difference_that_is_not_finite_is_never_significant() {
        for value in [f64::NAN, f64::INFINITY] {
            assert!(sign_flip_p_value(&[0.1, value, 0.3]).is_nan());
            let test = paired_test([("a", 0.1), ("b", value), ("c", 0.3)]);
            assert!(test.is_some_and(|test| test.p.is_nan()));
        }
        let adjusted = holm_adjusted(&[0.01, f64::NAN, 0.02]);
        assert_eq!((adjusted[0], adjusted[2]), (0.03, 0.04));
        assert!(adjusted[1].is_nan());
    }

    #[test]
    fn sampled_patterns_agree_with_the_binomial_distribution() {
        // With 24 differences of size 1, the number of flipped signs is binomial.
        let differences: Vec<f64> = (0..24).map(|i| if i % 5 < 3 { 1.0 } else { -1.0 }).collect();
        let sum: f64 = differences.iter().sum();
        let p = sign_flip_p_value(&differences);
        let exact = binomial_tail(24, sum.abs() as i64);
        assert!((p - exact).abs() < 4.0 * (exact * (1.0 - exact) / f64::from(1 << 20)).sqrt());
    }

    /// Computes `P(|2k - n| >= at_least)` for `k` of `Binomial(n, 1/2)`.
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
