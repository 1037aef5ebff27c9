//! The factor sizes of a width against a brute-force search.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;
use soda_linalg::{LinalgError, factor_sizes};

#[test]
fn widths_of_diffusion_models() {
    let sizes = |n| factor_sizes(n, 3).unwrap();
    assert_eq!(sizes(320), [5, 8, 8]);
    assert_eq!(sizes(640), [8, 8, 10]);
    assert_eq!(sizes(768), [8, 8, 12]);
    assert_eq!(sizes(1024), [8, 8, 16]);
    assert_eq!(sizes(1280), [8, 10, 16]);
    assert_eq!(sizes(2048), [8, 16, 16]);
}

#[test]
fn a_width_with_few_primes_has_fewer_factors() {
    assert_eq!(factor_sizes(1, 3).unwrap(), [1]);
    assert_eq!(factor_sizes(1009, 3).unwrap(), [1009]);
    assert_eq!(factor_sizes(2 * 1009, 3).unwrap(), [2, 1009]);
    assert_eq!(factor_sizes(8, usize::MAX).unwrap(), [2, 2, 2]);
}

#[test]
fn zero_is_an_error() {
    assert!(matches!(factor_sizes(0, 3), Err(LinalgError::NoFactorSizes { n: 0, count: 3 })));
    assert!(matches!(factor_sizes(3, 0), Err(LinalgError::NoFactorSizes { n: 3, count: 0 })));
}

/// All products of `count` ascending factors of at least `least` that equal `n`.
fn factorizations(n: usize, count: usize, least: usize) -> Vec<Vec<usize>> {
    if count == 1 {
        return if n >= least { vec![vec![n]] } else { vec![] };
    }
    let divisors = (least..=n).filter(|divisor| n.is_multiple_of(*divisor));
    let prepend = |d: usize| {
        factorizations(n / d, count - 1, d).into_iter().map(move |rest| [vec![d], rest].concat())
    };
    divisors.flat_map(prepend).collect()
}

proptest! {
    #[test]
    fn no_other_factorization_has_fewer_parameters(n in 2..3000usize, count in 1..5usize) {
        let cost = |factors: &[usize]| factors.iter().map(|n| n * n).sum::<usize>();
        let found = factor_sizes(n, count).unwrap();
        prop_assert!(found.is_sorted());
        prop_assert_eq!(found.iter().product::<usize>(), n);
        // The least cost among the factorizations with the largest possible number of factors.
        let best = (1..=count)
            .rev()
            .find_map(|count| factorizations(n, count, 2).into_iter().map(|f| cost(&f)).min());
        prop_assert_eq!(Some(cost(&found)), best);
    }
}
