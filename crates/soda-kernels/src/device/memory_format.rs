//! Memory formats: the order in which the elements of a tensor are stored. Shapes and values do not change.

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::Tensor;

use super::memory::persistent;
use super::vendor_blas::has_vendor_blas;

/// Stores the weights of `module` in the memory format that the device's library reads without a copy.
///
/// Convolution kernels `[o, c, h, w]` are stored channels last, and linear weights `[in, out]` as
/// `[out, in]`. A rotation of the input acts on the rows of the latter. On a device without a vendor's BLAS
/// the module is returned as it is.
pub fn to_preferred_memory_format<M: Module>(module: M) -> M {
    struct ToPreferred;
    impl ModuleMapper for ToPreferred {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let order: &[usize] = match D {
                2 => &[1, 0],
                4 => &[0, 2, 3, 1],
                _ => return param,
            };
            if !has_vendor_blas(&param.val()) {
                return param;
            }
            let order = std::array::from_fn(|axis| order[axis]);
            param.map(|weight| persistent(weight, |weight| with_stride_order(weight, order)))
        }
    }
    module.map(&mut ToPreferred)
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
    use burn::tensor::{Device, Distribution};

    use super::*;

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
