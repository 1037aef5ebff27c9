//! The factor planner against brute force.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;
use soda_linalg::{LinalgError, factorize};

#[test]
fn widths_of_real_models() {
    let plan = |n| factorize(n, 3).unwrap();
    assert_eq!(plan(320), [5, 8, 8]);
    assert_eq!(plan(640), [8, 8, 10]);
    assert_eq!(plan(768), [8, 8, 12]);
    assert_eq!(plan(1024), [8, 8, 16]);
    assert_eq!(plan(1280), [8, 10, 16]);
    assert_eq!(plan(2048), [8, 16, 16]);
}

#[test]
fn too_few_primes_give_fewer_factors() {
    assert_eq!(factorize(1, 3).unwrap(), [1]);
    assert_eq!(factorize(1009, 3).unwrap(), [1009]);
    assert_eq!(factorize(2 * 1009, 3).unwrap(), [2, 1009]);
    assert_eq!(factorize(8, usize::MAX).unwrap(), [2, 2, 2]);
}

#[test]
fn zero_is_refused() {
    assert!(matches!(factorize(0, 3), Err(LinalgError::NoFactors { n: 0, parts: 3 })));
    assert!(matches!(factorize(3, 0), Err(LinalgError::NoFactors { n: 3, parts: 0 })));
}

/// All ways to write `n` in `parts` ascending factors of at least `least`.
fn all(n: usize, parts: usize, least: usize) -> Vec<Vec<usize>> {
    if parts == 1 {
        return if n >= least { vec![vec![n]] } else { vec![] };
    }
    let divisors = (least..=n).filter(|divisor| n.is_multiple_of(*divisor));
    let prepend =
        |d: usize| all(n / d, parts - 1, d).into_iter().map(move |rest| [vec![d], rest].concat());
    divisors.flat_map(prepend).collect()
}

proptest! {
    #[test]
    fn no_other_factorisation_is_cheaper(n in 2..3000usize, parts in 1..5usize) {
        let cost = |factors: &[usize]| factors.iter().map(|n| n * n).sum::<usize>();
        let found = factorize(n, parts).unwrap();
        prop_assert!(found.is_sorted());
        prop_assert_eq!(found.iter().product::<usize>(), n);
        // The most parts that can be had, and the least cost among those.
        let best = (1..=parts).rev().find_map(|parts| all(n, parts, 2).into_iter().map(|f| cost(&f)).min());
        prop_assert_eq!(Some(cost(&found)), best);
    }
}
