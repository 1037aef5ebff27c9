//! How a tensor lies in memory, as the libraries want to hear it.

use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

/// A stack of matrices that cuBLAS can read without a copy.
pub(super) struct Matrices {
    pub(super) tensor: CubeTensor,
    /// Whether the rows lie side by side, that is, whether this is the transpose of a row-major matrix.
    pub(super) transposed: bool,
    /// Numbers from a row (or column, if transposed) to the next.
    pub(super) ld: usize,
    /// Size and step of the leading axes, as two: products of the inner one go in one call.
    pub(super) leading: [(usize, usize); 2],
}

/// [`Matrices`] without the tensor: `transposed`, `ld`, `leading`.
type Reading = (bool, usize, [(usize, usize); 2]);

impl Matrices {
    /// `tensor` as it lies, or a copy of it where it lies in a way that no library reads.
    pub(super) fn of(tensor: CubeTensor) -> Self {
        match Self::read(&tensor) {
            Some((transposed, ld, leading)) => Self { tensor, transposed, ld, leading },
            None => {
                let tensor = into_contiguous(tensor);
                let shape = tensor.meta.shape();
                let rank = shape.num_dims();
                let (rows, cols) = (shape[rank - 2], shape[rank - 1]);
                let count = shape[..rank - 2].iter().product();
                let leading = [(1, 0), (count, rows * cols)];
                Self { transposed: false, ld: cols.max(1), leading, tensor }
            }
        }
    }

    fn read(tensor: &CubeTensor) -> Option<Reading> {
        let (shape, strides) = (tensor.meta.shape(), tensor.meta.strides());
        let last = shape.num_dims() - 1;
        let (rows, cols) = (shape[last - 1], shape[last]);
        // The step along an axis of one is never taken and may be anything.
        let step = |axis: usize| if shape[axis] == 1 { None } else { Some(strides[axis]) };
        let (down, right) = (step(last - 1), step(last));
        let (transposed, ld) = if right.is_none_or(|s| s == 1) && down.is_none_or(|s| s >= cols) {
            (false, down.unwrap_or(cols))
        } else if down.is_none_or(|s| s == 1) && right.is_none_or(|s| s >= rows) {
            (true, right.unwrap_or(rows))
        } else {
            return None;
        };
        let mut leading: Vec<(usize, usize)> = Vec::new();
        for axis in 0..last - 1 {
            let Some(stride) = step(axis) else { continue };
            match leading.last_mut() {
                Some((size, outer)) if *outer == shape[axis] * stride => {
                    (*size, *outer) = (*size * shape[axis], stride);
                }
                _ => leading.push((shape[axis], stride)),
            }
        }
        match leading[..] {
            [] => Some((transposed, ld, [(1, 0), (1, 0)])),
            [inner] => Some((transposed, ld, [(1, 0), inner])),
            [outer, inner] => Some((transposed, ld, [outer, inner])),
            _ => None,
        }
    }

    /// How many matrices.
    pub(super) fn count(&self) -> usize {
        self.leading[0].0 * self.leading[1].0
    }

    /// Where matrix number `index` begins.
    pub(super) fn offset(&self, index: usize) -> usize {
        let [(_, outer), (inner_size, inner)] = self.leading;
        index / inner_size * outer + index % inner_size * inner
    }
}
