//! How the matrices of a tensor are stored, as cuBLAS takes it: leading dimension, transposition, batch
//! strides.

use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

/// A batch of matrices that cuBLAS reads without a copy.
pub(super) struct Matrices {
    pub(super) tensor: CubeTensor,
    /// Whether the matrices are column-major, that is, transposes of row-major matrices.
    pub(super) transposed: bool,
    /// The leading dimension: elements from one row, or column if transposed, to the next.
    pub(super) ld: usize,
    /// Size and stride of the batch axes, merged into two. One call computes all products along the inner
    /// one.
    pub(super) batch: [(usize, usize); 2],
}

/// The fields of [`Matrices`] without the tensor: `transposed`, `ld`, `batch`.
type Layout = (bool, usize, [(usize, usize); 2]);

impl Matrices {
    /// The matrices of `tensor`, or of a contiguous copy if cuBLAS cannot read its strides.
    pub(super) fn of(tensor: CubeTensor) -> Self {
        match Self::layout(&tensor) {
            Some((transposed, ld, batch)) => Self { tensor, transposed, ld, batch },
            None => {
                let tensor = into_contiguous(tensor);
                let shape = tensor.meta.shape();
                let rank = shape.num_dims();
                let (rows, cols) = (shape[rank - 2], shape[rank - 1]);
                let count = shape[..rank - 2].iter().product();
                let batch = [(1, 0), (count, rows * cols)];
                Self { transposed: false, ld: cols.max(1), batch, tensor }
            }
        }
    }

    fn layout(tensor: &CubeTensor) -> Option<Layout> {
        let (shape, strides) = (tensor.meta.shape(), tensor.meta.strides());
        let last = shape.num_dims() - 1;
        let (rows, cols) = (shape[last - 1], shape[last]);
        // The stride of an axis of size 1 carries no information.
        let step = |axis: usize| if shape[axis] == 1 { None } else { Some(strides[axis]) };
        let (down, right) = (step(last - 1), step(last));
        let (transposed, ld) = if right.is_none_or(|s| s == 1) && down.is_none_or(|s| s >= cols) {
            (false, down.unwrap_or(cols))
        } else if down.is_none_or(|s| s == 1) && right.is_none_or(|s| s >= rows) {
            (true, right.unwrap_or(rows))
        } else {
            return None;
        };
        let mut batch: Vec<(usize, usize)> = Vec::new();
        for axis in 0..last - 1 {
            let Some(stride) = step(axis) else { continue };
            match batch.last_mut() {
                Some((size, outer)) if *outer == shape[axis] * stride => {
                    (*size, *outer) = (*size * shape[axis], stride);
                }
                _ => batch.push((shape[axis], stride)),
            }
        }
        match batch[..] {
            [] => Some((transposed, ld, [(1, 0), (1, 0)])),
            [inner] => Some((transposed, ld, [(1, 0), inner])),
            [outer, inner] => Some((transposed, ld, [outer, inner])),
            _ => None,
        }
    }

    /// The number of matrices.
    pub(super) fn count(&self) -> usize {
        self.batch[0].0 * self.batch[1].0
    }

    /// The offset of matrix number `index` in elements.
    pub(super) fn offset(&self, index: usize) -> usize {
        let [(_, outer), (inner_size, inner)] = self.batch;
        index / inner_size * outer + index % inner_size * inner
    }
}
