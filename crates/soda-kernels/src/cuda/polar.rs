//! Steps of the polar iteration on tensor cores: products of float32 as three of numbers of 11 bits.

use burn::backend::TensorMetadata;
use burn::backend::ops::FloatTensorOps;
use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use super::launch::{bits, blocks, like};
use super::{Cube, blas, images, libraries, ours, session};

/// Matrices of a launch: what the second axis of its grid can count.
const MOST: usize = 65_535;
/// Tensor cores on tf32.
const CAPABILITY: (i32, i32) = (8, 0);

/// Two numbers of 11 bits for each of a stack of matrices.
type Halves = [CubeTensor; 2];

/// Whether the steps take the iterate `[b, m, n]`.
pub(crate) fn takes_polar(x: &CubeTensor) -> bool {
    let fits = x.shape()[0] <= MOST && x.shape().num_elements() > 0;
    let capable = images::capability().is_some_and(|found| found >= CAPABILITY);
    fits && capable && x.dtype == DType::F32 && ours(x) && libraries::blas_present()
}

/// `X (a I + b S + c S²)` from `X` in halves and `S` `[b, n, n]`: the same in halves, and whole.
pub(crate) fn step(
    x: Halves,
    square: CubeTensor,
    [a, b, c]: [f64; 3],
) -> (Halves, CubeTensor, CubeTensor) {
    let (square, inner) = inner_halves(square, b, c);
    let outer = halves(blas::product_of_halves(square, inner), a);
    let x = blas::product_of_halves(x, outer);
    let next = halves(x.clone(), 0.0);
    let square = gram(&next);
    (next, x, square)
}

/// `XᵀX`.
fn gram(x: &Halves) -> CubeTensor {
    let transposed = x.clone().map(|half| Cube::float_swap_dims(half, 1, 2));
    blas::product_of_halves(transposed, x.clone())
}

/// `X + d I`, of which `d` is 0 where `X` `[b, m, n]` is not square.
pub(crate) fn halves(x: CubeTensor, d: f64) -> Halves {
    let x = into_contiguous(x);
    let [count, rows, n] = x.shape().dims();
    let (high, low) = (like(&x), like(&x));
    session::submit([&x, &high, &low], move |session, [x, high, low]| {
        let size = rows * n;
        let arguments = vec![x, high, low, size as u64, n as u64, bits(d as f32)];
        session.launch("halves", [blocks(size), count], 256, 0, arguments)
    });
    [high, low]
}

/// `S` and `b I + c S`.
fn inner_halves(square: CubeTensor, b: f64, c: f64) -> (Halves, Halves) {
    let square = into_contiguous(square);
    let [count, _, n] = square.shape().dims();
    let [high, low, inner_high, inner_low] = std::array::from_fn(|_| like(&square));
    session::submit(
        [&square, &high, &low, &inner_high, &inner_low],
        move |session, [square, high, low, inner_high, inner_low]| {
            let (size, tensors) = (n * n, [square, high, low, inner_high, inner_low]);
            let sizes = [size as u64, n as u64, bits(b as f32), bits(c as f32)];
            let arguments = tensors.into_iter().chain(sizes).collect();
            session.launch("halves_inner", [blocks(size), count], 256, 0, arguments)
        },
    );
    ([high, low], [inner_high, inner_low])
}
