//! The thin singular value decomposition of a stack of matrices in matrix products only, for a device
//! whose products are fast and whose host is not.
//!
//! In two steps (Nakatsukasa and Higham, SIAM J. Sci. Comput. 2013): the polar decomposition
//! `A = Up H`, then the eigenvectors `V` of the symmetric `H`, so that `U = Up V`.
//!
//! The polar factor is the limit of `X <- X (a I + b XᵀX + c (XᵀX)²)`. Steps with `a = 3.44` bring small
//! singular values up to about one, steps with `a = 15/8` converge there with order three.
//!
//! Eigenvectors are found by dividing the spectrum. `S`, the polar factor of `H - σI`, has the eigenvectors
//! of `H` and the eigenvalues 1 and -1. With `J = diag(1, …, 1, -1, …, -1)` of the same signature
//! `S (I + SJ) = (I + SJ) J`, so that `Q`, the polar factor of `I + SJ`, has `S Q = Q J`: its columns span
//! what lies above `σ` and what lies below. Both parts are divided in their turn, those of all matrices
//! together in stacks of one padded size, until each is no wider than rounding or so small that the host is quicker:
//! below that a device is asked for many small products, and waits for the asking.
//!
//! `σ` is the mean of the `n` eigenvalues plus `θ |H - mean I|_F / n`, `0 < θ < 1`. There is always one above it: of
//! numbers with mean 0 and standard deviation `d`, `max |min| >= d²` and `|min| <= d √n`, hence
//! `max >= d / √n = |H - mean I|_F / n`. The mean itself is what a symmetric spectrum may have for an
//! eigenvalue.
//!
//! The host decides the sizes: it reads back how many eigenvalues lie above each `σ`, and a norm for each
//! step of an iteration.

use std::collections::BTreeMap;

use burn::tensor::{DType, Device, Int, Tensor, TensorData, TensorReadError};
use faer::{Mat, Side};
use rayon::prelude::*;
use soda_kernels::{Iterate, has_library, matmul};

use crate::batch;
use crate::host::{self, Real};

/// `a x + b x³ + c x⁵` that multiplies what is small by `a` and keeps `[0.68, 1.2]` to itself.
const ROUGH: [f64; 3] = [3.4445, -4.7750, 2.0315];
/// The same with `x = 1` as a fixed point of third order (Higham, Functions of Matrices, 8.3).
const FINE: [f64; 3] = [15.0 / 8.0, -10.0 / 8.0, 3.0 / 8.0];

/// Steps of an iteration: enough for a singular value of 1e-20.
const MAX_STEPS: usize = 80;
/// Rows of a part that the host ends with.
const BY_HOST: usize = 48;
/// Levels of division: a spectrum that halves with each eigenvalue takes one for each within rounding.
const MAX_LEVELS: usize = 100;

/// `U`, `s`, `Vᵀ` of each matrix: `[b, m, k]`, `[b, 1, k]`, `[b, k, n]`.
pub(crate) struct Factors {
    pub(crate) u: Tensor<3>,
    pub(crate) s: Tensor<3>,
    pub(crate) vt: Tensor<3>,
    /// For each matrix: the larger of its backward error in `eps √m`, and of the distance of its factors
    /// from orthonormal in `eps √k`. NaN where an entry is not finite.
    pub(crate) error: Vec<f64>,
}

/// Of finite matrices `[b, m, n]`, in f32 or f64.
pub(crate) fn thin(a: Tensor<3>) -> Result<Factors, TensorReadError> {
    let [_, m, n] = a.dims();
    if m < n {
        let Factors { u, s, vt, error } = tall(a.transpose())?;
        return Ok(signed(Factors { u: vt.transpose(), s, vt: u.transpose(), error }));
    }
    Ok(signed(tall(a)?))
}

fn tall(a: Tensor<3>) -> Result<Factors, TensorReadError> {
    let ([_, m, n], eps) = (a.dims(), epsilon(&a));
    let scale = a.clone().abs().max_dim(2).max_dim(1);
    let scale = scale.clone() + is(scale, |scale| scale.equal_scalar(0));
    let a = a / scale.clone();
    let norm = frobenius(&a);
    // What has no rank has no polar factor; `4 eps |A|` of noise gives it one.
    let unit = norm.clone() + is(norm.clone(), |norm| norm.equal_scalar(0));
    let noise = noise([m, n], &a).mul_scalar(4.0 * eps / ((m * n) as f64).sqrt());
    let up = polar(a.clone() + noise * unit.clone(), 10)?;
    let h = batch::sym(matmul(up.clone().transpose(), a.clone()));
    let v = eigenvectors(h, norm)?.transpose();

    let identity = batch::identity(&v);
    let newton =
        |x: Tensor<3>| x.clone() + matmul(x.clone(), (identity.clone() - gram(&x)).mul_scalar(0.5));
    let v = newton(v);
    let u = newton(matmul(up, v.clone()));
    let image = matmul(a, v.clone());
    let s = (u.clone() * image.clone()).sum_dim(1);
    let sign = sign_of(&s);
    let (u, s) = (u * sign.clone(), s * sign);

    let residual = frobenius(&(image - u.clone() * s.clone())) / unit;
    let defect = |x: &Tensor<3>| {
        (gram(x) - identity.clone()).abs().max_dim(2).max_dim(1).div_scalar((n as f64).sqrt())
    };
    let error = residual.div_scalar((m as f64).sqrt()).max_pair(defect(&u).max_pair(defect(&v)));
    // Infinity times zero is what shows an overflow.
    let overflow = (s.clone() * scale.clone()).mul_scalar(0).sum_dim(2);
    let error = (error.div_scalar(eps) + overflow).try_to_vec_as::<f64>()?;

    let order = permutation(rank(&s.clone().transpose()));
    let (u, v) = (matmul(u, order.clone()), matmul(v, order.clone()));
    let s = (order * s.transpose()).sum_dim(1) * scale;
    Ok(Factors { u, s, vt: v.transpose(), error })
}

/// The sign rule of [`crate::svd`].
fn signed(Factors { u, s, vt, error }: Factors) -> Factors {
    let size = u.clone().abs();
    let largest = is(size.clone().max_dim(1) - size, |gap| gap.lower_equal_scalar(0));
    // The first of equals has the largest of these.
    let early = largest.clone() / (positions(u.dims()[1], &u) + 1);
    let first = is(early.clone().max_dim(1) - early, |gap| gap.lower_equal_scalar(0));
    let sign = sign_of(&(u.clone() * first).sum_dim(1));
    Factors { u: u * sign.clone(), s, vt: vt * sign.transpose(), error }
}

/// `Vᵀ` with `H = V diag(λ) Vᵀ` for a stack of symmetric matrices, `λ` descending to within `norm` times
/// rounding, `[b, 1, 1]`.
fn eigenvectors(h: Tensor<3>, norm: Tensor<3>) -> Result<Tensor<3>, TensorReadError> {
    let ([b, n, _], device, eps) = (h.dims(), h.device(), epsilon(&h));
    // From a basis that has nothing to do with that of `H`, no part is orthogonal to its first columns.
    let mut vt = polar(noise([n, n], &h), 8)?.expand([b, n, n]);
    let mut parts: Vec<Part> = (0..b).map(|i| Part { first: i * n, size: n }).collect();
    for _ in 0..MAX_LEVELS {
        parts.retain(|part| part.size > 1);
        if parts.is_empty() {
            break;
        }
        let rows = vt.clone().reshape([b * n, n]);
        let images = matmul(vt, h.clone()).reshape([b * n, n]);
        let mut groups = BTreeMap::<usize, Vec<Part>>::new();
        for part in parts.drain(..) {
            groups.entry(padded(part.size).max(BY_HOST)).or_default().push(part);
        }
        // Where each row of the next `vt` is found: in the old one, or in what a group became.
        let mut found: Vec<i32> = (0..(b * n) as i32).collect();
        let (mut pool, mut pooled) = (vec![rows.clone()], b * n);
        for (t, group) in groups {
            // Padding repeats the first row.
            let row = |part: &Part, i: usize| part.first + if i < part.size { i } else { 0 };
            let picked = group.iter().flat_map(|part| (0..t).map(move |i| row(part, i) as i32));
            let picked = indices(picked.collect(), &device);
            let pick =
                |x: &Tensor<2>| x.clone().select(0, picked.clone()).reshape([group.len(), t, n]);
            if t == BY_HOST {
                let sizes: Vec<usize> = group.iter().map(|part| part.size).collect();
                pool.push(
                    resolve(pick(&rows), pick(&images), &sizes)?.reshape([group.len() * t, n]),
                );
                for (i, part) in group.iter().enumerate() {
                    for row in 0..part.size {
                        found[part.first + row] = (pooled + i * t + row) as i32;
                    }
                }
                pooled += group.len() * t;
                continue;
            }
            let owners = group.iter().map(|part| (part.first / n) as i32).collect();
            let negligible = norm.clone().select(0, indices(owners, &device)).mul_scalar(2.0 * eps);
            let sizes: Vec<f64> = group.iter().map(|part| part.size as f64).collect();
            let (divided, above) = divide(pick(&rows), pick(&images), sizes, negligible)?;
            pool.push(divided.reshape([group.len() * t, n]));
            for (i, (part, above)) in group.iter().zip(above).enumerate() {
                let Some(above) = above else { continue };
                for row in 0..part.size {
                    found[part.first + row] = (pooled + i * t + row) as i32;
                }
                parts.push(Part { first: part.first, size: above });
                parts.push(Part { first: part.first + above, size: part.size - above });
            }
            pooled += group.len() * t;
        }
        vt = Tensor::cat(pool, 0).select(0, indices(found, &device)).reshape([b, n, n]);
    }
    Ok(vt)
}

/// Rows of a stack of `Vᵀ`, flattened, that span an invariant subspace.
struct Part {
    first: usize,
    size: usize,
}

/// The size of the stack that a part of `size` goes into, at most a seventh larger above 32.
fn padded(size: usize) -> usize {
    let power = size.next_power_of_two().max(4);
    if size <= 32 { power } else { size.next_multiple_of((power / 16).max(16)) }
}

/// Rotates the first `sizes` rows `[b, t, n]` of each part, `images` their products with `H`: first what
/// spans the eigenvectors above a point within the spectrum, and how many those are; none where the
/// spectrum is no wider than `negligible`, `[b, 1, 1]`.
fn divide(
    rows: Tensor<3>,
    images: Tensor<3>,
    sizes: Vec<f64>,
    negligible: Tensor<3>,
) -> Result<(Tensor<3>, Vec<Option<usize>>), TensorReadError> {
    let [b, t, _] = rows.dims();
    let (device, dtype) = (rows.device(), rows.dtype());
    let size = Tensor::<1>::from_data(TensorData::new(sizes.clone(), [b]), (&device, dtype));
    let size = size.reshape([b, 1, 1]);
    let h = batch::sym(matmul(images, rows.clone().transpose()));
    let identity = batch::identity(&h);
    let inside = is(positions(t, &rows) - size.clone(), |past| past.lower_scalar(0));
    let kept = identity.clone() * inside.clone();
    let padding = identity.clone() - kept.clone();

    let h = h * inside.clone() * inside.clone().transpose();
    let mean = total(h.clone() * identity.clone()) / size.clone();
    let h = h - kept.clone() * mean;
    let spread = frobenius(&h);
    let done = is(spread.clone() - negligible, |excess| excess.lower_equal_scalar(0));
    let x = h - kept.clone() * (spread.mul_scalar(0.3) / size);
    let x = x * done.ones_like().sub(done.clone()) + kept * done.clone();

    // The power 1/4 of `|X⁴|`, of which no more than `t^(1/4)` is too much.
    let square = matmul(x.clone(), x.clone());
    let bound = frobenius(&square);
    let s =
        orthogonalized(x / bound.clone().sqrt() + padding.clone(), square / bound + padding, 7)?;
    let s = batch::sym(s);

    let diagonal = (s.clone() * identity.clone()).sum_dim(2);
    let above = ((diagonal.clone() + 1).mul_scalar(0.5) * inside.clone()).sum_dim(1).round();
    // The largest entries of the diagonal lie nearest to what is above; padding stays last.
    let place = rank(&(diagonal + inside.clone().mul_scalar(4)));
    let below = is(place.clone() - above.clone(), |past| past.greater_equal_scalar(0)) * inside;
    let j = (below.mul_scalar(-2) + 1).transpose();
    let half = |s: Tensor<3>| (identity.clone() + s * j.clone()).mul_scalar(0.5);
    let m = half(s.clone());
    let q = orthogonalized(m.clone(), gram(&m), 5)?;
    // Once more from there: a small singular value of `I + SJ` has lost as many digits.
    let m = half(matmul(q.clone().transpose(), matmul(s, q.clone())));
    let q = matmul(q, orthogonalized(m.clone(), gram(&m), 0)?);
    let q = matmul(q, permutation(place));

    let count = (above - done.mul_scalar(2 * t as i64)).try_to_vec_as::<f64>()?;
    let counts = count.into_iter().zip(sizes);
    let above = counts.map(|(above, size)| (above >= 0.0).then(|| above.min(size) as usize));
    Ok((matmul(q.transpose(), rows), above.collect()))
}

/// Turns the first `sizes` rows `[b, t, n]` of each part into eigenvectors, descending, on the host; `images` as for [`divide`].
fn resolve(
    rows: Tensor<3>,
    images: Tensor<3>,
    sizes: &[usize],
) -> Result<Tensor<3>, TensorReadError> {
    let h = batch::sym(matmul(images, rows.clone().transpose()));
    let turn = if host::is_double(&h) {
        rotations::<f64>(&h, sizes)?
    } else {
        rotations::<f32>(&h, sizes)?
    };
    Ok(matmul(turn, rows))
}

/// `Qᵀ` with `Q diag(λ) Qᵀ` the leading block of `sizes` rows of each matrix `[b, t, t]`; the identity past it, and where an
/// entry is not finite, which shows in the factors' error.
fn rotations<T: Real>(h: &Tensor<3>, sizes: &[usize]) -> Result<Tensor<3>, TensorReadError> {
    let [b, t, _] = h.dims();
    let entries = h.clone().try_to_vec_as::<T>()?;
    let turn = |(h, &size): (&[T], &usize)| -> Vec<T> {
        let block = Mat::from_fn(size, size, |i, j| h[i * t + j]);
        let eigen = block.self_adjoint_eigen(Side::Lower).ok();
        let one = |i, j| if i == j { T::one_impl() } else { T::zero_impl() };
        let entry = |i, j| match &eigen {
            // They ascend there.
            Some(eigen) if i < size && j < size => eigen.U()[(j, size - 1 - i)],
            _ => one(i, j),
        };
        (0..t * t).map(|at| entry(at / t, at % t)).collect()
    };
    let turns: Vec<Vec<T>> = entries.par_chunks(t * t).zip(sizes).map(turn).collect();
    let data = TensorData::new(turns.concat(), [b, t, t]);
    Ok(Tensor::from_data(data, (&h.device(), h.dtype())))
}

/// The polar factor of a stack `[b, m, n]`, `m >= n`, of full rank.
fn polar(x: Tensor<3>, rough: usize) -> Result<Tensor<3>, TensorReadError> {
    let gram = gram(&x);
    let bound = frobenius(&gram);
    orthogonalized(x / bound.clone().sqrt(), gram / bound, rough)
}

/// The polar factor of `X` with singular values in `(0, 1]`, `rough` steps first.
fn orthogonalized(
    x: Tensor<3>,
    square: Tensor<3>,
    rough: usize,
) -> Result<Tensor<3>, TensorReadError> {
    let identity = batch::identity(&x);
    // A step takes an error `e` to less than `e³`.
    let near = 0.5 * epsilon(&x).cbrt();
    let mut iterate = Iterate::new(x, square);
    for step in 0..MAX_STEPS {
        let coefficients = if step < rough { ROUGH } else { FINE };
        let last = step >= rough && {
            let error = frobenius(&(iterate.square().clone() - identity.clone())).max();
            let error = error.try_into_scalar::<f64>()?;
            error.is_nan() || error < near
        };
        if last {
            return Ok(iterate.finish(coefficients));
        }
        iterate = iterate.step(coefficients);
    }
    Ok(iterate.into_x())
}

fn gram(x: &Tensor<3>) -> Tensor<3> {
    matmul(x.clone().transpose(), x.clone())
}

/// `[b, 1, 1]`.
fn frobenius(x: &Tensor<3>) -> Tensor<3> {
    total(x.clone().square()).sqrt()
}

/// The sum of all entries of each matrix, `[b, 1, 1]`.
pub(crate) fn total(x: Tensor<3>) -> Tensor<3> {
    if !has_library(&x) {
        return x.sum_dim(2).sum_dim(1);
    }
    // A library's product with ones is many times as fast as burn's sum of long rows.
    let [b, m, n] = x.dims();
    let ones = Tensor::ones([n, 1], (&x.device(), x.dtype()));
    matmul(x.reshape([b * m, n]), ones).reshape([b, m, 1]).sum_dim(1)
}

/// How many entries of a column `[b, t, 1]` come before each when they descend, the first of equals first.
fn rank(column: &Tensor<3>) -> Tensor<3> {
    let t = column.dims()[1];
    let index = positions(t, column);
    let earlier = is(index.clone().transpose() - index, |gap| gap.lower_scalar(0));
    let lead = column.clone().transpose() - column.clone();
    let larger = is(lead.clone(), |lead| lead.greater_scalar(0));
    (larger + is(lead, |lead| lead.equal_scalar(0)) * earlier).sum_dim(2)
}

/// The matrix whose product from the right moves column `i` to `place[i]`, `[b, t, 1]`.
fn permutation(place: Tensor<3>) -> Tensor<3> {
    let index = positions(place.dims()[1], &place).transpose();
    is(place - index, |gap| gap.equal_scalar(0))
}

/// `0, 1, …` as a column `[1, t, 1]`.
fn positions(t: usize, like: &Tensor<3>) -> Tensor<3> {
    let index = Tensor::<1, Int>::arange(0..t as i64, &like.device());
    index.float().cast(like.dtype()).reshape([1, t, 1])
}

/// 1 where the test holds, else 0.
fn is(x: Tensor<3>, test: impl FnOnce(Tensor<3>) -> Tensor<3, burn::tensor::Bool>) -> Tensor<3> {
    let dtype = x.dtype();
    test(x).float().cast(dtype)
}

/// -1 where an entry is negative, else 1.
fn sign_of(x: &Tensor<3>) -> Tensor<3> {
    is(x.clone(), |x| x.lower_scalar(0)).mul_scalar(-2) + 1
}

fn epsilon(x: &Tensor<3>) -> f64 {
    if x.dtype() == DType::F64 { f64::EPSILON } else { f64::from(f32::EPSILON) }
}

fn indices(values: Vec<i32>, device: &Device) -> Tensor<1, Int> {
    let length = values.len();
    Tensor::from_data(TensorData::new(values, [length]), device)
}

/// Uniform deviates in `[-√3, √3)`, of variance one, the same for every call: `[1, m, n]`.
fn noise([m, n]: [usize; 2], like: &Tensor<3>) -> Tensor<3> {
    // splitmix64, entry by entry
    let entry = |i: usize| {
        let mut z = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) as i64 as f64 / 2f64.powi(63) * 3f64.sqrt()) as f32
    };
    let entries: Vec<f32> = (0..m * n).into_par_iter().map(entry).collect();
    Tensor::from_data(TensorData::new(entries, [1, m, n]), (&like.device(), like.dtype()))
}
