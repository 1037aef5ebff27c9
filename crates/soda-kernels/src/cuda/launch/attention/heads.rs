//! Heads within a tensor: where kernels read queries, keys and values, and where they write results.

use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

/// The elements of one read of 16 bytes, in half precision.
pub(super) const ELEMENTS_PER_READ: usize = 8;

/// Heads `[b, heads, rows, d]` within a tensor. The channels of a head are contiguous.
#[derive(Clone)]
pub(super) struct Heads {
    pub(super) tensor: CubeTensor,
    /// The first element of the first head.
    first: usize,
    /// The strides of samples, heads and rows, in elements.
    strides: [usize; 3],
}

impl Heads {
    /// A tensor `[b, heads, rows, d]` as the kernels of attention read it: a contiguous copy if its rows are
    /// not aligned to 16 bytes.
    pub(super) fn readable(x: CubeTensor) -> Self {
        let strides = x.meta.strides();
        let aligned = strides[..3].iter().all(|step| step.is_multiple_of(ELEMENTS_PER_READ));
        let aligned_start = x.handle.offset_start.unwrap_or(0).is_multiple_of(16);
        let fits = aligned && strides[3] == 1 && aligned_start;
        Self::of(if fits { x } else { into_contiguous(x) })
    }

    /// A tensor `[b, heads, rows, d]` with contiguous channels.
    pub(super) fn of(x: CubeTensor) -> Self {
        let strides = [0, 1, 2].map(|axis| x.meta.strides()[axis]);
        Self { tensor: x, first: 0, strides }
    }

    /// A tensor `[b, rows, heads, d]` with contiguous channels.
    pub(super) fn of_rows(x: &CubeTensor) -> Self {
        let strides = [0, 2, 1].map(|axis| x.meta.strides()[axis]);
        Self { tensor: x.clone(), first: 0, strides }
    }

    /// The heads of `width` channels in a contiguous tensor `[b, rows, c]`, from the channel `first` on.
    pub(super) fn of_channels(x: &CubeTensor, first: usize, width: usize) -> Self {
        let strides = x.meta.strides();
        Self { tensor: x.clone(), first, strides: [strides[0], width, strides[1]] }
    }

    /// The strides of samples, heads and rows.
    pub(super) fn strides(&self) -> [u64; 3] {
        self.strides.map(|step| step as u64)
    }
}

/// A function from the addresses of tensors to those of their first heads.
pub(super) fn offsets<const N: usize>(
    heads: [&Heads; N],
) -> impl Fn([u64; N]) -> [u64; N] + use<N> {
    let offsets = heads.map(|heads| (heads.first * heads.tensor.dtype.size()) as u64);
    move |addresses| std::array::from_fn(|index| addresses[index] + offsets[index])
}
