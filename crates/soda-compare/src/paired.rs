//! Whether an arm differs from the first: a paired test that assumes no distribution, and takes for independent only
//! what is.
//!
//! Seeds of one data set are not: they learn the same pictures and draw the same prompts, so that a method that does
//! well on one of them does well on all. Each data set counts once, as the mean of its seeds. Where there is only one,
//! its seeds are tested, and what is found holds for that data set alone.

use std::collections::BTreeMap;
use std::fmt;

use crate::statistics::Summary;

/// What differences say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Test {
    /// The mean difference, over the units.
    pub difference: f64,
    /// How often chance gives as much, in either direction: [`paired`].
    pub p: f64,
    /// What was taken for independent.
    pub unit: Unit,
    /// How many there were.
    pub units: usize,
}

/// What is taken for independent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Data sets, each the mean of its seeds.
    DataSet,
    /// Seeds of the only data set.
    Seed,
}

impl fmt::Display for Test {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.unit {
            Unit::DataSet => "data set",
            Unit::Seed => "seed",
        };
        let plural = if self.units == 1 { "" } else { "s" };
        write!(formatter, "{} {unit}{plural}", self.units)
    }
}

/// Tests differences on equal data and seed, each with its data set. None for no difference.
pub fn test<D: Ord>(differences: impl IntoIterator<Item = (D, f64)>) -> Option<Test> {
    let mut sets: BTreeMap<D, Vec<f64>> = BTreeMap::new();
    for (data, difference) in differences {
        sets.entry(data).or_default().push(difference);
    }
    let mut sets: Vec<Vec<f64>> = sets.into_values().collect();
    let (unit, units) = match &mut sets[..] {
        [seeds] => (Unit::Seed, std::mem::take(seeds)),
        sets => {
            let mean = |seeds: &Vec<f64>| Some(Summary::of(seeds)?.mean);
            (Unit::DataSet, sets.iter().filter_map(mean).collect())
        }
    };
    let difference = Summary::of(&units)?.mean;
    Some(Test { difference, p: paired(&units), unit, units: units.len() })
}

/// The p's of one family of tests, corrected for their number (Holm, Scandinavian Journal of Statistics 6, 1979): how
/// often chance alone gives any one of the family, however they depend on each other, a p as small as this.
pub fn holm(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|a, b| p[*a].total_cmp(&p[*b]));
    let mut corrected = vec![1.0; p.len()];
    let mut least = 0.0_f64;
    for (rank, index) in order.into_iter().enumerate() {
        least = least.max((p.len() - rank) as f64 * p[index]).min(1.0);
        corrected[index] = least;
    }
    corrected
}

/// How often chance alone would give a mean difference at least as large as that of these paired
/// `differences`, in either direction: the sign-flip permutation test (Fisher, The Design of Experiments,
/// section 21). Exact up to 20 of them, by 2^20 draws of a fixed generator above. 1 for no pair.
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

    /// Five data sets of one to three seeds.
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
        // scipy.stats.permutation_test on the five means, and 0.0390625 on the nine differences.
        let found = test(DIFFERENCES).map(|found| (found.p, found.unit, found.units));
        assert_eq!(found, Some((0.125, Unit::DataSet, 5)));
        assert!((paired(&DIFFERENCES.map(|(_, d)| d)) - 0.0390625).abs() < 1e-12);
        // Nothing is found by running what was run once more.
        let twice = DIFFERENCES.into_iter().chain(DIFFERENCES);
        let (once, twice) = (test(DIFFERENCES), test(twice));
        let close = |a: Test, b: Test| (a.difference - b.difference).abs() < 1e-12 && a.p == b.p;
        assert!(once.zip(twice).is_some_and(|(a, b)| close(a, b)), "{once:?}, {twice:?}");
    }

    #[test]
    fn seeds_are_tested_where_there_is_one_data_set() {
        let found = test([("a", 0.3), ("a", 0.1), ("a", -0.05), ("a", 0.2), ("a", 0.4)]);
        let text = found.map(|found| (found.p, found.to_string()));
        assert_eq!(text, Some((0.125, "5 seeds".to_owned())));
        assert_eq!(test([("a", 0.5)]).map(|found| found.to_string()), Some("1 seed".to_owned()));
        assert_eq!(test::<&str>([]), None);
    }

    #[test]
    fn a_family_is_corrected_as_holm_does() {
        // statsmodels.stats.multitest.multipletests(p, method="holm").
        let p = [0.0078125, 0.25, 0.03125, 0.0078125, 0.5];
        assert_eq!(holm(&p), [0.0390625, 0.5, 0.09375, 0.0390625, 0.5]);
        assert_eq!(holm(&[0.03]), [0.03], "a family of one");
        assert!(holm(&[]).is_empty());
        assert!(holm(&[0.9, 0.8, 0.7]).iter().all(|p| *p == 1.0), "a p is at most 1");
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
