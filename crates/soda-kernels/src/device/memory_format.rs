//! Memory formats: the order in which the elements of a tensor are stored. Shapes and values do not change.

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::Tensor;

use super::memory::persistent;
use super::vendor_blas::has_vendor_blas;

/// The order of the axes of linear weights and of convolution kernels in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryFormat {
    /// What the device's library reads without a copy: convolution kernels `[o, c, h, w]` channels last, and
    /// linear weights `[in, out]` as `[out, in]`. A rotation of the input acts on the rows of the latter.
    Preferred,
    /// The order of the shape, in which a gather reads whole rows of an embedding.
    Contiguous,
}

impl MemoryFormat {
    /// The axes from the outermost to the innermost in memory. `None` for tensors that have one format only.
    fn order<const D: usize>(self) -> Option<[usize; D]> {
        let order: &[usize] = match (self, D) {
            (Self::Preferred, 2) => &[1, 0],
            (Self::Preferred, 4) => &[0, 2, 3, 1],
            (Self::Contiguous, 2 | 4) => &[0, 1, 2, 3],
            _ => return None,
        };
        Some(std::array::from_fn(|axis| order[axis]))
    }

    /// Stores the weights of `module`, which has no adapters, in this format.
    ///
    /// A library may round a product by the format of its factors. So equal weights give equal bits only in
    /// equal formats. A weight that has the format is not copied. On a device without a vendor's BLAS the
    /// module is returned as it is.
    pub fn apply<M: Module>(self, module: M) -> M {
        module.map(&mut ToFormat { format: self, persistent: false })
    }
}

/// Stores the weights of `module` in [`MemoryFormat::Preferred`], as persistent allocations.
pub fn to_preferred_memory_format<M: Module>(module: M) -> M {
    module.map(&mut ToFormat { format: MemoryFormat::Preferred, persistent: true })
}

struct ToFormat {
    format: MemoryFormat,
    persistent: bool,
}

impl ModuleMapper for ToFormat {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(order) = self.format.order() else { return param };
        if !has_vendor_blas(&param.val()) {
            return param;
        }
        let store = |weight| with_stride_order(weight, order);
        match self.persistent {
            true => param.map(|weight| persistent(weight, store)),
            false => param.map(store),
        }
    }
}

/// Stores `x` in the given stride order: `x.permute(order)` is contiguous in memory.
///
/// Equal bits in every run need equal stride orders. A GPU writes the sum of two tensors over either operand,
/// whichever is free by then. A library may round a product with a transposed matrix differently.
///
/// So a transposed tensor takes the order of the other operand before both meet.
///
/// # Panics
/// If `order` does not name every axis once.
#[track_caller]
pub fn with_stride_order<const D: usize>(x: Tensor<D>, order: [usize; D]) -> Tensor<D> {
    let dims = x.dims();
    let mut inverse = order;
    for (place, &axis) in order.iter().enumerate() {
        inverse[axis] = place;
    }
    // A vector has only one memory format, so reshaping to a vector copies the elements in order.
    let flat: Tensor<1> = x.permute(order).reshape([dims.iter().product::<usize>()]);
    flat.reshape(order.map(|axis| dims[axis])).permute(inverse)
}

#[cfg(test)]
mod tests {
    use burn::nn::LinearConfig;
    use burn::tensor::{Device, Distribution};

    use super::*;

    #[test]
    fn a_memory_format_changes_no_value() {
        let device = Device::default();
        let layer = LinearConfig::new(3, 7).init(&device);
        let weight = layer.weight.val().into_data();
        for format in [MemoryFormat::Preferred, MemoryFormat::Contiguous] {
            let stored = format.apply(layer.clone());
            assert_eq!(stored.weight.val().into_data(), weight, "{format:?}");
        }
        assert_eq!(MemoryFormat::Preferred.order(), Some([0, 2, 3, 1]));
        assert_eq!(MemoryFormat::Contiguous.order(), Some([0, 1]));
        assert_eq!(MemoryFormat::Preferred.order::<1>(), None);
    }

    #[test]
    fn a_stride_order_changes_no_value() {
        let device = Device::default();
        let random = |shape| Tensor::<4>::random(shape, Distribution::Default, &device);
        let kernel = random([2, 3, 4, 5]);
        let reordered = with_stride_order(kernel.clone(), [0, 2, 3, 1]);
        assert_eq!(reordered.dims(), kernel.dims());
        assert_eq!(reordered.into_data(), kernel.into_data());
        let matrix: Tensor<2> = random([1, 1, 3, 7]).reshape([3, 7]);
        let reordered = with_stride_order(matrix.clone(), [1, 0]);
        assert_eq!(reordered.dims(), matrix.dims());
        assert_eq!(reordered.into_data(), matrix.into_data());
    }
}
