//! The choice of the sizes of Kronecker factors for a width.

use crate::error::LinalgError;

/// Returns `count` factors of `n`, each at least 2, ascending, with the least `Σ nᵢ²`.
///
/// Square Kronecker factors of these sizes hold `Σ nᵢ²` parameters, and multiply at `Σ nᵢ` multiply-adds per
/// entry. The factors of 1 are `[1]`.
///
/// If `n` has fewer than `count` prime factors, the result has as many factors as `n` has primes. A caller
/// that needs `count` factors must check the length.
///
/// # Errors
///
/// [`LinalgError::NoFactorSizes`] if `n` or `count` is zero.
///
/// ```
/// # use soda_linalg::factor_sizes;
/// assert_eq!(factor_sizes(1280, 3)?, [8, 10, 16]);
/// assert_eq!(factor_sizes(127, 3)?, [127]);
/// # Ok::<(), soda_linalg::LinalgError>(())
/// ```
pub fn factor_sizes(n: usize, count: usize) -> Result<Vec<usize>, LinalgError> {
    if n == 0 || count == 0 {
        return Err(LinalgError::NoFactorSizes { n, count });
    }
    let possible = count.min(count_prime_factors(n)).max(1);
    let mut search = Search { best: None, prefix: Vec::new() };
    search.descend(n, possible, 2, 0);
    Ok(search.best.map_or_else(|| vec![n], |(_, factors)| factors))
}

/// Returns the fewest factors of `n` with at most `budget` parameters, `Σ nᵢ² <= budget`, ascending.
///
/// # Errors
///
/// [`LinalgError::NoFactorSizes`] if `n` is zero, and [`LinalgError::ParameterBudget`] if every factorization
/// of `n` has more than `budget` parameters.
///
/// ```
/// # use soda_linalg::factor_sizes_within;
/// assert_eq!(factor_sizes_within(1280, 1_000)?, [8, 10, 16]); // two factors have 2,624
/// # Ok::<(), soda_linalg::LinalgError>(())
/// ```
pub fn factor_sizes_within(n: usize, budget: u128) -> Result<Vec<usize>, LinalgError> {
    let most = count_prime_factors(n).max(1);
    let mut least = u128::MAX;
    for count in 1..=most {
        let factors = factor_sizes(n, count)?;
        let cost = factors.iter().map(|factor| square(*factor)).sum();
        if cost <= budget {
            return Ok(factors);
        }
        least = least.min(cost);
    }
    Err(LinalgError::ParameterBudget { n, budget, least })
}

/// A depth-first search over ascending factors. A branch is cut if even equal remaining factors would cost
/// more.
struct Search {
    best: Option<(u128, Vec<usize>)>,
    prefix: Vec<usize>,
}

impl Search {
    fn descend(&mut self, n: usize, count: usize, least: usize, cost: u128) {
        if count == 1 {
            let cost = cost + square(n);
            if n >= least && self.best.as_ref().is_none_or(|(best, _)| cost < *best) {
                self.best = Some((cost, [&self.prefix[..], &[n]].concat()));
            }
            return;
        }
        // Largest first: nearly equal factors are found early, and cut the other branches.
        let root = integer_root(n, count);
        for factor in (least..=root).rev().filter(|factor| n.is_multiple_of(*factor)) {
            let bound = cost + square(factor) * count as u128;
            if self.best.as_ref().is_some_and(|(best, _)| bound >= *best) {
                continue;
            }
            self.prefix.push(factor);
            self.descend(n / factor, count - 1, factor, cost + square(factor));
            self.prefix.pop();
        }
    }
}

fn square(n: usize) -> u128 {
    (n as u128) * (n as u128)
}

/// The largest `r` with `r^k <= n`.
fn integer_root(n: usize, k: usize) -> usize {
    let mut root = (n as f64).powf(1.0 / k as f64).round() as usize + 1;
    while root > 1 && (root as u128).checked_pow(k as u32).is_none_or(|power| power > n as u128) {
        root -= 1;
    }
    root
}

/// The number of prime factors of `n`, with their multiplicities.
fn count_prime_factors(mut n: usize) -> usize {
    if n == 0 {
        return 0;
    }
    let (mut count, mut prime) = (0, 2);
    while prime <= n / prime {
        if n.is_multiple_of(prime) {
            n /= prime;
            count += 1;
        } else {
            prime += 1;
        }
    }
    count + usize::from(n > 1)
}
