//! Convolutions by cuDNN, channels last.
//!
//! Maps are `[b, c, h, w]`, stored as `[b, h, w, c]`: burn's own convolutions return them so, and tensor
//! cores read them so. A weight that is not stored channels last is copied in each call, at most a few
//! megabytes.

use burn::backend::TensorMetadata;
use burn::tensor::ops::ConvOptions;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::ops::{permute_nchw_to_nhwc, permute_nhwc_to_nchw};
use burn_cubecl::tensor::CubeTensor;
use cudarc::cudnn::result;

use super::cudnn_plan::{Algorithm, Direction, Plan, PlanKey};
use super::handles::planned;
use super::stream;

/// The convolution of `x` `[b, c, h, w]` with `weight` `[o, c, kh, kw]`.
pub(super) fn forward(x: CubeTensor, weight: CubeTensor, options: &ConvOptions<2>) -> CubeTensor {
    let (input, shape) = (x.shape().dims(), weight.shape().dims());
    let [b, _, h, w] = input;
    let [o, _, kh, kw] = shape;
    let (stride, padding) = (options.stride, options.padding_begin());
    let out = |size: usize, axis: usize, kernel: usize| {
        (size + 2 * padding[axis] - kernel) / stride[axis] + 1
    };
    let output = [b, o, out(h, 0, kh), out(w, 1, kw)];
    let key = PlanKey {
        direction: Direction::Forward,
        dtype: x.dtype,
        input,
        weight: shape,
        output,
        stride,
        padding,
    };
    run(key, x, weight, output)
}

/// The gradient of the convolution by its input of `height` and `width`, from the gradient `grad` of its
/// output.
pub(super) fn input_gradient(
    grad: CubeTensor,
    weight: CubeTensor,
    [height, width]: [usize; 2],
    options: &ConvOptions<2>,
) -> CubeTensor {
    let (output, shape): ([usize; 4], [usize; 4]) = (grad.shape().dims(), weight.shape().dims());
    let input = [output[0], shape[1], height, width];
    let key = PlanKey {
        direction: Direction::InputGradient,
        dtype: grad.dtype,
        input,
        weight: shape,
        output,
        stride: options.stride,
        padding: options.padding_begin(),
    };
    run(key, grad, weight, input)
}

/// Runs the convolution `key` on `from` and `weight`. The result has the shape `[b, c, h, w]`.
#[allow(unsafe_code, reason = "calls of cuDNN")]
fn run(key: PlanKey, from: CubeTensor, weight: CubeTensor, [b, c, h, w]: [usize; 4]) -> CubeTensor {
    let from = into_contiguous(permute_nchw_to_nhwc(from));
    let weight = into_contiguous(permute_nchw_to_nhwc(weight));
    let (client, device) = (from.client.clone(), from.device.clone());
    let to = empty_device_contiguous_dtype(client, device, [b, h, w, c].into(), key.dtype);
    stream::submit([&from, &weight, &to], move |context, [from, weight, to]| {
        let handles = &mut context.handles;
        let handle = handles.cudnn()?;
        let plan = planned(&mut handles.cudnn_plans, key, |key| Plan::new(key, handle))?;
        let workspace = handles.workspace(plan.workspace)?;
        let (one, zero) = (1f32, 0f32);
        let (one, zero) = (std::ptr::from_ref(&one).cast(), std::ptr::from_ref(&zero).cast());
        // SAFETY: the descriptors describe the three buffers, which `submit` keeps allocated.
        let done = unsafe {
            match plan.algorithm {
                Algorithm::Forward(algorithm) => result::convolution_forward(
                    handle,
                    one,
                    plan.input,
                    from as *const _,
                    plan.weight,
                    weight as *const _,
                    plan.convolution,
                    algorithm,
                    workspace,
                    plan.workspace,
                    zero,
                    plan.output,
                    to as *mut _,
                ),
                Algorithm::InputGradient(algorithm) => result::convolution_backward_data(
                    handle,
                    one,
                    plan.weight,
                    weight as *const _,
                    plan.output,
                    from as *const _,
                    plan.convolution,
                    algorithm,
                    workspace,
                    plan.workspace,
                    zero,
                    plan.input,
                    to as *mut _,
                ),
            }
        };
        done.map_err(|error| format!("cuDNN, {key:?}: {error:?}"))
    });
    permute_nhwc_to_nchw(to)
}
