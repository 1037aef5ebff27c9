//! Elementary functions that the compiler vectorizes, and sums.
//!
//! The C library's `expf` and `erff` are calls for one number each. The functions here are arithmetic without
//! branches, so a loop over them becomes vector instructions of eight or sixteen numbers. They consist of
//! multiplications and additions, never fused, so a result does not depend on the processor.

use std::f32::consts::{FRAC_1_SQRT_2, LOG2_E};

/// Runs `work`, compiled for the vector instructions of this processor.
///
/// `work` and the functions that it calls must be `#[inline(always)]`: a function that is not inlined is
/// compiled for the baseline processor.
#[inline(always)]
pub(super) fn vectorized<R>(work: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(work)
}

/// The exponential `e^x` for `x <= 0`, within 2 ulp; 0 below -87. Cody and Waite's reduction with Cephes'
/// polynomial: `e^x = 2^n e^r`, `n = round(x / ln 2)`, `|r| <= ln 2 / 2`.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    /// A number that, added to a small number, leaves the nearest integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    /// `ln 2` as a sum of two parts. The first has few enough bits that its products with `n` are exact.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    let rounded = x * LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = (x - n * LN_2[0]) - n * LN_2[1];
    let mut p = 1.987_569_1e-4;
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p * r + c;
    }
    let mantissa = p * (r * r) + r + 1.0;
    let power = f32::from_bits((rounded.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    if x < -87.0 { 0.0 } else { mantissa * power }
}

/// The sigmoid `1 / (1 + e^-x)`, within 4 ulp.
#[inline(always)]
pub(super) fn sigmoid(x: f32) -> f32 {
    let e = exp(-x.abs());
    let high = 1.0 / (1.0 + e);
    if x < 0.0 { e * high } else { high }
}

/// The error function, within 3 ulp: two polynomials by Juffa (Stack Overflow 35148198, BSD 2-clause). The
/// outer one approximates `ln(1 - erf)`.
#[inline(always)]
pub(super) fn erf(x: f32) -> f32 {
    let (t, s) = (x.abs(), x * x);
    let mut outer =
        (-1.728_534_7e-5 * t + 3.831_972_6e-4) * s + (-3.883_964_4e-3 * t + 2.425_462_2e-2);
    for c in [-0.106_777_85, -0.634_846_7, -0.128_717_51] {
        outer = outer * t + c;
    }
    let outer = (1.0 - exp(outer * t - t)).copysign(x);
    let mut inner = -5.967_617e-4;
    for c in [4.991_194_2e-3, -2.676_813_5e-2, 0.112_819_925, -0.376_125_34, 0.128_379_17] {
        inner = inner * s + c;
    }
    if t > 0.927_734_4 { outer } else { inner * x + x }
}

/// The standard normal distribution function.
#[inline(always)]
pub(super) fn normal(x: f32) -> f32 {
    0.5 * (1.0 + erf(x * FRAC_1_SQRT_2))
}

/// The density of the standard normal distribution.
#[inline(always)]
pub(super) fn normal_density(x: f32) -> f32 {
    const HEIGHT: f32 = 0.398_942_3;
    HEIGHT * exp(-0.5 * (x * x))
}

/// The length of partial sums in float32; their total is in float64, so that a map of a million pixels keeps
/// its digits.
const BLOCK: usize = 4096;
/// The number of independent sums, which become the lanes of vectors.
const LANES: usize = 16;

/// The sum of `f(x)` over the elements.
#[inline(always)]
pub(super) fn sum(x: &[f32], f: impl Fn(f32) -> f32) -> f64 {
    let mut total = 0.0;
    for block in x.chunks(BLOCK) {
        let (body, tail) = block.as_chunks::<LANES>();
        let mut sums = [0.0; LANES];
        for x in body {
            for lane in 0..LANES {
                sums[lane] += f(x[lane]);
            }
        }
        for (sum, &x) in sums.iter_mut().zip(tail) {
            *sum += f(x);
        }
        total += f64::from(sums.iter().sum::<f32>());
    }
    total
}

/// The sum of `f(x, y)` over pairs of elements. Both slices have one length.
#[inline(always)]
pub(super) fn sum_of_pairs(x: &[f32], y: &[f32], f: impl Fn(f32, f32) -> f32) -> f64 {
    let mut total = 0.0;
    for (x, y) in x.chunks(BLOCK).zip(y.chunks(BLOCK)) {
        let ((body_x, tail_x), (body_y, tail_y)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
        let mut sums = [0.0; LANES];
        for (x, y) in body_x.iter().zip(body_y) {
            for lane in 0..LANES {
                sums[lane] += f(x[lane], y[lane]);
            }
        }
        for (sum, (&x, &y)) in sums.iter_mut().zip(tail_x.iter().zip(tail_y)) {
            *sum += f(x, y);
        }
        total += f64::from(sums.iter().sum::<f32>());
    }
    total
}

/// The largest number. NaN is skipped: softmax subtracts the maximum from the row, where NaN stays visible.
#[inline(always)]
pub(super) fn max(x: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (body, tail) = x.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for x in body {
        for lane in 0..LANES {
            lanes[lane] = larger(lanes[lane], x[lane]);
        }
    }
    lanes.into_iter().chain(tail.iter().copied()).fold(f32::NEG_INFINITY, larger)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The largest error of `f` against `exact` in units of the last place, for `x` in steps of `step`.
    fn ulps(
        from: f32,
        to: f32,
        step: f32,
        f: impl Fn(f32) -> f32,
        exact: impl Fn(f64) -> f64,
    ) -> f64 {
        let count = ((to - from) / step) as usize;
        soda_testing::max_abs((0..=count).map(|i| {
            let x = from + i as f32 * step;
            let exact = exact(f64::from(x));
            let unit =
                f64::from((exact as f32).abs().max(f32::MIN_POSITIVE)) * f64::from(f32::EPSILON);
            (f64::from(f(x)) - exact) / unit
        }))
    }

    /// Abramowitz and Stegun 7.1.6, a series of positive terms.
    fn exact_erf(x: f64) -> f64 {
        let (mut term, mut sum) = (x, x);
        for n in 1..400 {
            term *= 2.0 * x * x / (2.0 * f64::from(n) + 1.0);
            sum += term;
        }
        2.0 / std::f64::consts::PI.sqrt() * (-x * x).exp() * sum
    }

    #[test]
    fn functions_have_the_accuracy_that_they_document() {
        let vector = |f: fn(f32) -> f32| {
            move |x| {
                vectorized(
                    #[inline(always)]
                    || f(x),
                )
            }
        };
        assert!(ulps(-87.0, 0.0, 1.7e-3, vector(exp), f64::exp) <= 2.0);
        assert!(ulps(-80.0, 80.0, 1.3e-3, vector(sigmoid), |x| 1.0 / (1.0 + (-x).exp())) <= 4.0);
        assert!(ulps(-6.0, 6.0, 1.1e-4, vector(erf), exact_erf) <= 3.0);
    }

    #[test]
    fn functions_are_exact_at_their_limits_and_keep_nan() {
        assert_eq!([exp(-88.0), exp(f32::NEG_INFINITY), exp(0.0)], [0.0, 0.0, 1.0]);
        assert_eq!([sigmoid(-200.0), sigmoid(200.0)], [0.0, 1.0]);
        assert_eq!([erf(-30.0), erf(0.0), erf(f32::INFINITY)], [-1.0, 0.0, 1.0]);
        for f in [exp, sigmoid, erf, normal, normal_density] {
            assert!(f(f32::NAN).is_nan());
        }
    }

    #[test]
    fn sums_and_maxima_include_every_element() {
        let x: Vec<f32> = (0..9001).map(|i| (i % 97) as f32).collect();
        let exact: f64 = x.iter().map(|&x| f64::from(x)).sum();
        assert_eq!(sum(&x, |x| x), exact);
        assert_eq!(sum_of_pairs(&x, &x, |x, y| 2.0 * x - y), exact);
        for at in 0..40 {
            let mut x = vec![-3.0; 40];
            x[at] = -1.0;
            assert_eq!(max(&x), -1.0);
        }
    }
}
