//! Convolutions by cuDNN, channels last.
//!
//! Maps are `[b, c, h, w]` whose numbers lie as `[b, h, w, c]`, which is what burn's own convolutions give and
//! what tensor cores want; the weight is laid out so on each call, a copy of at most a few megabytes.

use std::ffi::c_int;

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn::tensor::ops::ConvOptions;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::ops::{permute_nchw_to_nhwc, permute_nhwc_to_nchw};
use burn_cubecl::tensor::CubeTensor;
use cudarc::cudnn::{result, sys};

use super::libraries::planned;
use super::session;

/// Algorithms that want more scratch memory than this are passed over.
const WORKSPACE: usize = 256 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Direction {
    Forward,
    InputGradient,
}

/// A convolution, up to what cuDNN's choice depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct PlanKey {
    direction: Direction,
    dtype: DType,
    /// `[b, c, h, w]`
    input: [usize; 4],
    /// `[o, c, kh, kw]`
    weight: [usize; 4],
    /// `[b, o, h', w']`
    output: [usize; 4],
    stride: [usize; 2],
    padding: [usize; 2],
}

/// Descriptors and the algorithm of one convolution.
#[derive(Clone, Copy)]
pub(super) struct Plan {
    input: sys::cudnnTensorDescriptor_t,
    weight: sys::cudnnFilterDescriptor_t,
    output: sys::cudnnTensorDescriptor_t,
    convolution: sys::cudnnConvolutionDescriptor_t,
    algorithm: Algorithm,
    workspace: usize,
}

#[derive(Clone, Copy)]
enum Algorithm {
    Forward(sys::cudnnConvolutionFwdAlgo_t),
    InputGradient(sys::cudnnConvolutionBwdDataAlgo_t),
}

/// `x` `[b, c, h, w]` convolved with `weight` `[o, c, kh, kw]`.
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

/// The gradient by the input of `height` and `width`, from that of the output, `grad`.
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

#[allow(unsafe_code, reason = "calls of cuDNN")]
fn run(key: PlanKey, from: CubeTensor, weight: CubeTensor, [b, c, h, w]: [usize; 4]) -> CubeTensor {
    let from = into_contiguous(permute_nchw_to_nhwc(from));
    let weight = into_contiguous(permute_nchw_to_nhwc(weight));
    let (client, device) = (from.client.clone(), from.device.clone());
    let to = empty_device_contiguous_dtype(client, device, [b, h, w, c].into(), key.dtype);
    session::submit([&from, &weight, &to], move |session, [from, weight, to]| {
        let dnn = session.dnn()?;
        let plan = planned(&mut session.plans, key, |key| Plan::new(key, dnn))?;
        let scratch = session.workspace(plan.workspace)?;
        let (one, zero) = (1f32, 0f32);
        let (one, zero) = (std::ptr::from_ref(&one).cast(), std::ptr::from_ref(&zero).cast());
        // SAFETY: the descriptors are those of the three buffers, which `submit` holds.
        let done = unsafe {
            match plan.algorithm {
                Algorithm::Forward(algorithm) => result::convolution_forward(
                    dnn,
                    one,
                    plan.input,
                    from as *const _,
                    plan.weight,
                    weight as *const _,
                    plan.convolution,
                    algorithm,
                    scratch,
                    plan.workspace,
                    zero,
                    plan.output,
                    to as *mut _,
                ),
                Algorithm::InputGradient(algorithm) => result::convolution_backward_data(
                    dnn,
                    one,
                    plan.weight,
                    weight as *const _,
                    plan.output,
                    from as *const _,
                    plan.convolution,
                    algorithm,
                    scratch,
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

#[allow(unsafe_code, reason = "calls of cuDNN")]
impl Plan {
    fn new(key: &PlanKey, dnn: sys::cudnnHandle_t) -> Result<Self, result::CudnnError> {
        use sys::cudnnDataType_t::{CUDNN_DATA_BFLOAT16, CUDNN_DATA_FLOAT, CUDNN_DATA_HALF};
        use sys::cudnnMathType_t::{CUDNN_FMA_MATH, CUDNN_TENSOR_OP_MATH};
        let (kind, math) = match key.dtype {
            DType::BF16 => (CUDNN_DATA_BFLOAT16, CUDNN_TENSOR_OP_MATH),
            DType::F16 => (CUDNN_DATA_HALF, CUDNN_TENSOR_OP_MATH),
            // float32 stays float32: no TF32.
            _ => (CUDNN_DATA_FLOAT, CUDNN_FMA_MATH),
        };
        let format = sys::cudnnTensorFormat_t::CUDNN_TENSOR_NHWC;
        let int = |sizes: [usize; 4]| sizes.map(|size| size as c_int);
        let [ph, pw] = key.padding.map(|p| p as c_int);
        let [sh, sw] = key.stride.map(|s| s as c_int);
        // SAFETY: descriptors are made before they are set, and live as long as the process.
        unsafe {
            let input = result::create_tensor_descriptor()?;
            result::set_tensor4d_descriptor(input, format, kind, int(key.input))?;
            let output = result::create_tensor_descriptor()?;
            result::set_tensor4d_descriptor(output, format, kind, int(key.output))?;
            let weight = result::create_filter_descriptor()?;
            result::set_filter4d_descriptor(weight, kind, format, int(key.weight))?;
            let convolution = result::create_convolution_descriptor()?;
            let mode = sys::cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION;
            result::set_convolution2d_descriptor(
                convolution,
                ph,
                pw,
                sh,
                sw,
                1,
                1,
                mode,
                CUDNN_DATA_FLOAT,
            )?;
            result::set_convolution_math_type(convolution, math)?;
            let (algorithm, workspace) = match key.direction {
                Direction::Forward => {
                    let mut found = [std::mem::zeroed::<sys::cudnnConvolutionFwdAlgoPerf_t>(); 8];
                    let mut count = 0;
                    result::get_convolution_forward_algorithm(
                        dnn,
                        input,
                        weight,
                        convolution,
                        output,
                        found.len() as c_int,
                        &mut count,
                        found.as_mut_ptr(),
                    )?;
                    let best =
                        found[..count as usize].iter().find(|a| fits(a.status, a.memory)).ok_or(
                            result::CudnnError(sys::cudnnStatus_t::CUDNN_STATUS_NOT_SUPPORTED),
                        )?;
                    (Algorithm::Forward(best.algo), best.memory)
                }
                Direction::InputGradient => {
                    let mut found =
                        [std::mem::zeroed::<sys::cudnnConvolutionBwdDataAlgoPerf_t>(); 8];
                    let mut count = 0;
                    result::get_convolution_backward_data_algorithm(
                        dnn,
                        weight,
                        output,
                        convolution,
                        input,
                        found.len() as c_int,
                        &mut count,
                        found.as_mut_ptr(),
                    )?;
                    let best =
                        found[..count as usize].iter().find(|a| fits(a.status, a.memory)).ok_or(
                            result::CudnnError(sys::cudnnStatus_t::CUDNN_STATUS_NOT_SUPPORTED),
                        )?;
                    (Algorithm::InputGradient(best.algo), best.memory)
                }
            };
            Ok(Self { input, weight, output, convolution, algorithm, workspace })
        }
    }
}

fn fits(status: sys::cudnnStatus_t, memory: usize) -> bool {
    status == sys::cudnnStatus_t::CUDNN_STATUS_SUCCESS && memory <= WORKSPACE
}
