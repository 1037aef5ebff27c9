//! Weights laid out once as a device's library reads them best, instead of in every call. Shapes and values are the same.

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::Tensor;

use crate::matmul::has_vendor_blas;
use crate::memory::persistent;

/// `module` with its weights laid out for its device's library: kernels `[o, c, h, w]` of convolutions as `[o, h, w, c]`, and
/// weights `[in, out]` of linear layers as `[out, in]`, whose rows a rotation of the input turns.
///
/// On a device without one, `module` as it is.
pub fn to_preferred_memory_format<M: Module>(module: M) -> M {
    struct Lay;
    impl ModuleMapper for Lay {
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
    module.map(&mut Lay)
}

/// `x` whose numbers lie as those of `x.permute(order)` do.
///
/// A GPU computes a sum of two tensors that lie in different orders in the place of one of them, if nobody needs that any more, which
/// is a matter of time there; and a library may round a product with a transposed matrix in another way. Where the same bits are
/// wanted in every run, what is transposed is put in order before it meets what is not.
///
/// # Panics
/// Where `order` does not name every axis once.
#[track_caller]
pub fn with_stride_order<const D: usize>(x: Tensor<D>, order: [usize; D]) -> Tensor<D> {
    let dims = x.dims();
    let mut back = order;
    for (place, &axis) in order.iter().enumerate() {
        back[axis] = place;
    }
    // A vector has but one layout: making one is what copies.
    let flat: Tensor<1> = x.permute(order).reshape([dims.iter().product::<usize>()]);
    flat.reshape(order.map(|axis| dims[axis])).permute(back)
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Distribution};

    use super::*;

    #[test]
    fn the_order_of_numbers_changes_no_value() {
        let device = Device::default();
        let random = |shape| Tensor::<4>::random(shape, Distribution::Default, &device);
        let kernel = random([2, 3, 4, 5]);
        let laid = with_stride_order(kernel.clone(), [0, 2, 3, 1]);
        assert_eq!(laid.dims(), kernel.dims());
        assert_eq!(laid.into_data(), kernel.into_data());
        let matrix: Tensor<2> = random([1, 1, 3, 7]).reshape([3, 7]);
        let laid = with_stride_order(matrix.clone(), [1, 0]);
        assert_eq!(laid.dims(), matrix.dims());
        assert_eq!(laid.into_data(), matrix.into_data());
    }
}
