//! The choice of a cuDNN algorithm for a convolution.

use std::ffi::c_int;

use burn::tensor::DType;
use cudarc::cudnn::{result, sys};

/// The largest workspace of an algorithm in bytes.
const MAX_WORKSPACE: usize = 256 << 20;

const NOT_SUPPORTED: result::CudnnError =
    result::CudnnError(sys::cudnnStatus_t::CUDNN_STATUS_NOT_SUPPORTED);

/// What a convolution computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Direction {
    Forward,
    InputGradient,
}

/// The properties of a convolution that cuDNN's choice of an algorithm depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct PlanKey {
    pub(super) direction: Direction,
    pub(super) dtype: DType,
    /// `[b, c, h, w]`
    pub(super) input: [usize; 4],
    /// `[o, c, kh, kw]`
    pub(super) weight: [usize; 4],
    /// `[b, o, h', w']`
    pub(super) output: [usize; 4],
    pub(super) stride: [usize; 2],
    pub(super) padding: [usize; 2],
}

/// The descriptors and the algorithm of a convolution.
#[derive(Clone, Copy)]
pub(super) struct Plan {
    pub(super) input: sys::cudnnTensorDescriptor_t,
    pub(super) weight: sys::cudnnFilterDescriptor_t,
    pub(super) output: sys::cudnnTensorDescriptor_t,
    pub(super) convolution: sys::cudnnConvolutionDescriptor_t,
    pub(super) algorithm: Algorithm,
    /// Bytes of workspace.
    pub(super) workspace: usize,
}

/// The algorithm that cuDNN proposed.
#[derive(Clone, Copy)]
pub(super) enum Algorithm {
    Forward(sys::cudnnConvolutionFwdAlgo_t),
    InputGradient(sys::cudnnConvolutionBwdDataAlgo_t),
}

#[allow(unsafe_code, reason = "calls of cuDNN")]
impl Plan {
    pub(super) fn new(key: &PlanKey, dnn: sys::cudnnHandle_t) -> Result<Self, result::CudnnError> {
        use sys::cudnnDataType_t::{CUDNN_DATA_BFLOAT16, CUDNN_DATA_FLOAT, CUDNN_DATA_HALF};
        use sys::cudnnMathType_t::{CUDNN_FMA_MATH, CUDNN_TENSOR_OP_MATH};
        let (kind, math) = match key.dtype {
            DType::BF16 => (CUDNN_DATA_BFLOAT16, CUDNN_TENSOR_OP_MATH),
            DType::F16 => (CUDNN_DATA_HALF, CUDNN_TENSOR_OP_MATH),
            // No TF32: float32 stays float32.
            _ => (CUDNN_DATA_FLOAT, CUDNN_FMA_MATH),
        };
        let format = sys::cudnnTensorFormat_t::CUDNN_TENSOR_NHWC;
        let int = |sizes: [usize; 4]| sizes.map(|size| size as c_int);
        let [ph, pw] = key.padding.map(|p| p as c_int);
        let [sh, sw] = key.stride.map(|s| s as c_int);
        // SAFETY: descriptors are created before they are set, and live as long as the process.
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
                    let best = found[..count as usize]
                        .iter()
                        .find(|a| fits(a.status, a.memory))
                        .ok_or(NOT_SUPPORTED)?;
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
                    let best = found[..count as usize]
                        .iter()
                        .find(|a| fits(a.status, a.memory))
                        .ok_or(NOT_SUPPORTED)?;
                    (Algorithm::InputGradient(best.algo), best.memory)
                }
            };
            Ok(Self { input, weight, output, convolution, algorithm, workspace })
        }
    }
}

/// Whether an algorithm succeeded within the limit of workspace.
fn fits(status: sys::cudnnStatus_t, memory: usize) -> bool {
    status == sys::cudnnStatus_t::CUDNN_STATUS_SUCCESS && memory <= MAX_WORKSPACE
}
