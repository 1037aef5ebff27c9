//! Parameters of one shape as one batch, so that the number of kernels depends on how many shapes there
//! are and not on how many layers.

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use soda_adapters::Leaf;
use soda_kernels::{cat, split};

/// Rows and columns of a parameter as a matrix.
pub(crate) type Shape = [usize; 2];

/// A parameter as a matrix: its last axis are the columns, a vector is one row.
pub(crate) fn matrix_shape(leaf: &Leaf) -> Shape {
    let cols = leaf.shape.last().copied().unwrap_or(1);
    let elements: usize = leaf.shape.iter().product();
    [elements / cols.max(1), cols]
}

/// Parameters sorted by shape, each shape in the order of the paths.
pub(crate) fn by_shape<'a>(
    leaves: impl IntoIterator<Item = &'a Leaf>,
) -> BTreeMap<Shape, Vec<&'a Leaf>> {
    let mut buckets: BTreeMap<Shape, Vec<&Leaf>> = BTreeMap::new();
    for leaf in leaves {
        buckets.entry(matrix_shape(leaf)).or_default().push(leaf);
    }
    buckets
}

/// Flat tensors of one shape as `[count, rows, cols]`.
pub(crate) fn stack(
    tensors: impl IntoIterator<Item = Tensor<1>>,
    [rows, cols]: Shape,
) -> Tensor<3> {
    let flat: Vec<Tensor<1>> = tensors.into_iter().collect();
    let count = flat.len();
    cat(flat).reshape([count, rows, cols])
}

/// The flat tensors of a stack.
pub(crate) fn unstack(stack: Tensor<3>) -> Vec<Tensor<1>> {
    let [count, rows, cols] = stack.dims();
    split(stack.reshape([count * rows * cols]), &vec![rows * cols; count])
}
