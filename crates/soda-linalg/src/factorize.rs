//! Which Kronecker factors to use for a width.
//!
//! `m` square factors `n1 n2 … nm = n` cost `Σ nᵢ²` parameters and `Σ nᵢ` multiply-adds per entry. By
//! the inequality of arithmetic and geometric means both are least where the factors are nearly
//! equal; an exact minimum over the divisors of `n` is cheap to find.

use crate::error::LinalgError;

/// Writes `n` as a product of `parts` factors of 2 or more, ascending, that minimise `Σ nᵢ²`.
///
/// Where `n` has fewer prime factors than `parts`, there are as many factors as it has primes: a
/// result shorter than `parts` is how the caller learns of it. 1 is `[1]`.
///
/// # Errors
///
/// If `n` or `parts` is zero.
///
/// ```
/// # use soda_linalg::factorize;
/// assert_eq!(factorize(1280, 3)?, [8, 10, 16]);
/// assert_eq!(factorize(127, 3)?, [127]);
/// # Ok::<(), soda_linalg::LinalgError>(())
/// ```
pub fn factorize(n: usize, parts: usize) -> Result<Vec<usize>, LinalgError> {
    if n == 0 || parts == 0 {
        return Err(LinalgError::NoFactors { n, parts });
    }
    let possible = parts.min(count_prime_factors(n)).max(1);
    let mut search = Search { best: None, prefix: Vec::new() };
    search.descend(n, possible, 2, 0);
    Ok(search.best.map_or_else(|| vec![n], |(_, factors)| factors))
}

/// The fewest factors of `n` that hold at most `budget` parameters, `Σ nᵢ² <= budget`.
///
/// # Errors
///
/// If `n` is zero, or its prime factors already hold more than `budget`.
///
/// ```
/// # use soda_linalg::factorize_within;
/// assert_eq!(factorize_within(1280, 1_000)?, [8, 10, 16]); // two factors hold 2,624
/// # Ok::<(), soda_linalg::LinalgError>(())
/// ```
pub fn factorize_within(n: usize, budget: u128) -> Result<Vec<usize>, LinalgError> {
    let most = count_prime_factors(n).max(1);
    let mut least = u128::MAX;
    for parts in 1..=most {
        let factors = factorize(n, parts)?;
        let cost = factors.iter().map(|factor| square(*factor)).sum();
        if cost <= budget {
            return Ok(factors);
        }
        least = least.min(cost);
    }
    Err(LinalgError::Budget { n, budget, least })
}

/// Depth first over ascending factors, cut where even equal remaining factors would be worse.
struct Search {
    best: Option<(u128, Vec<usize>)>,
    prefix: Vec<usize>,
}

impl Search {
    fn descend(&mut self, n: usize, parts: usize, least: usize, cost: u128) {
        if parts == 1 {
            let cost = cost + square(n);
            if n >= least && self.best.as_ref().is_none_or(|(best, _)| cost < *best) {
                self.best = Some((cost, [&self.prefix[..], &[n]].concat()));
            }
            return;
        }
        // The largest first: nearly equal factors are found early and cut the rest.
        let root = integer_root(n, parts);
        for factor in (least..=root).rev().filter(|factor| n.is_multiple_of(*factor)) {
            let bound = cost + square(factor) * parts as u128;
            if self.best.as_ref().is_some_and(|(best, _)| bound >= *best) {
                continue;
            }
            self.prefix.push(factor);
            self.descend(n / factor, parts - 1, factor, cost + square(factor));
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
