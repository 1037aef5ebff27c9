//! The CPU: kernels on slices in float32, with matrix products by faer.
//!
//! burn's operations are one loop each, over elements that have left the cache by then. They call the C
//! library's `expf` and `erff` for one number at a time. Here one loop does all work on the elements that are
//! in the cache, and the elementary functions are vectorized ([`simd`]).
//!
//! A task is a part of the samples or
//! rows, which the threads of the current pool share. Tensors that are not float32 go to the fallback, except
//! in attention, which casts to float32 and back.

mod attention;
mod conv;
mod conv_geometry;
mod dequantize;
mod gated;
mod im2col;
mod matmul;
mod matrices;
mod norm;
mod parallel;
mod rms_norm_rotary;
mod simd;
mod tensor;
mod winograd;

use burn::backend::Flex;
use burn::backend::ops::{FloatTensorOps, ModuleOps};
use burn::backend::tensor::IntTensor;
use burn::tensor::FloatDType;
use burn::tensor::ops::ConvOptions;

use self::gated::{Geglu, Swiglu};
use self::tensor::{FlexTensor, all_f32};
use crate::backend::{KernelGradients, Kernels};
use crate::fallback;
use crate::fallback::attention::AttentionGradient;
use crate::quantize::QuantLayout;

impl Kernels for Flex {
    fn matmul(lhs: FlexTensor, rhs: FlexTensor) -> FlexTensor {
        if all_f32(&[&lhs, &rhs]) { matmul::matmul(lhs, rhs) } else { Self::float_matmul(lhs, rhs) }
    }

    fn dequantize_matrix(
        words: IntTensor<Self>,
        scales: FlexTensor,
        layout: QuantLayout,
        dtype: FloatDType,
    ) -> FlexTensor {
        let matrix = dequantize::dequantize(&words, &scales, layout);
        if dtype == FloatDType::F32 { matrix } else { Self::float_cast(matrix, dtype) }
    }

    fn conv2d_forward(x: FlexTensor, weight: FlexTensor, options: ConvOptions<2>) -> FlexTensor {
        if all_f32(&[&x, &weight]) {
            return conv::forward(&x, &weight, &options);
        }
        Self::conv2d(x, weight, None, options)
    }

    fn attention_forward(q: FlexTensor, k: FlexTensor, v: FlexTensor, scale: f64) -> FlexTensor {
        let dtype = q.dtype();
        let [q, k, v] = [q, k, v].map(to_f32);
        Self::float_cast(attention::forward(q, k, v, scale as f32), dtype.into())
    }

    fn group_norm_forward(
        x: FlexTensor,
        gamma: FlexTensor,
        beta: FlexTensor,
        groups: usize,
        eps: f64,
        silu: bool,
    ) -> (FlexTensor, Option<FlexTensor>) {
        if all_f32(&[&x, &gamma, &beta]) {
            return (norm::group_norm(&x, &gamma, &beta, groups, eps, silu), None);
        }
        (fallback::norm::group_norm::<Self>(x, gamma, beta, groups, eps, silu), None)
    }

    fn layer_norm_forward(
        x: FlexTensor,
        gamma: FlexTensor,
        beta: FlexTensor,
        eps: f64,
    ) -> FlexTensor {
        if all_f32(&[&x, &gamma, &beta]) {
            return norm::layer_norm(&x, &gamma, &beta, eps);
        }
        fallback::norm::layer_norm::<Self>(x, gamma, beta, eps)
    }

    fn geglu(x: FlexTensor) -> FlexTensor {
        if all_f32(&[&x]) {
            gated::forward::<Geglu>(&x)
        } else {
            fallback::geglu::forward::<Self>(x)
        }
    }

    fn swiglu(x: FlexTensor) -> FlexTensor {
        if all_f32(&[&x]) {
            gated::forward::<Swiglu>(&x)
        } else {
            fallback::swiglu::forward::<Self>(x)
        }
    }

    fn rms_norm_rotary(
        x: FlexTensor,
        gamma: FlexTensor,
        cos: FlexTensor,
        sin: FlexTensor,
        eps: f64,
    ) -> FlexTensor {
        if all_f32(&[&x, &gamma, &cos, &sin]) {
            return rms_norm_rotary::forward(&x, [&gamma, &cos, &sin], eps);
        }
        fallback::rms_norm_rotary::forward::<Self>(x, [gamma, cos, sin], eps)
    }
}

impl KernelGradients for Flex {
    // To compute the weights again while they are in the cache is faster than to read them back.
    const MAX_SAVED_SCORES: usize = 0;

    fn conv2d_input_gradient(
        grad: FlexTensor,
        weight: FlexTensor,
        size: [usize; 2],
        options: ConvOptions<2>,
    ) -> FlexTensor {
        if all_f32(&[&grad, &weight]) {
            return conv::input_gradient(&grad, &weight, size, &options);
        }
        fallback::conv::transposed::<Self>(grad, weight, size, options)
    }

    fn attention_gradient(
        qkv: [FlexTensor; 3],
        saved: Option<[FlexTensor; 2]>,
        grad: FlexTensor,
        scale: f64,
        wanted: [bool; 3],
    ) -> AttentionGradient<Self> {
        if let Some([_, weights]) = saved {
            return fallback::attention::gradient::<Self>(qkv, grad, Some(weights), scale, wanted);
        }
        let dtype = qkv[0].dtype();
        let ([q, k, v], grad) = (qkv.map(to_f32), to_f32(grad));
        let [dq, dk, dv] = attention::gradient(q, k, v, grad, scale as f32)
            .map(|gradient| Self::float_cast(gradient, dtype.into()));
        (wanted[0].then_some(dq), wanted[1].then_some(dk), wanted[2].then_some(dv))
    }

    fn group_norm_gradient(
        x: FlexTensor,
        dy: FlexTensor,
        gamma: FlexTensor,
        beta: FlexTensor,
        _stats: Option<FlexTensor>,
        groups: usize,
        eps: f64,
        silu: bool,
    ) -> FlexTensor {
        if all_f32(&[&x, &dy, &gamma, &beta]) {
            return norm::group_norm_gradient(&x, &dy, &gamma, &beta, groups, eps, silu);
        }
        fallback::norm::group_norm_gradient::<Self>(x, dy, gamma, beta, groups, eps, silu)
    }

    fn layer_norm_gradient(
        x: FlexTensor,
        dy: FlexTensor,
        gamma: FlexTensor,
        eps: f64,
    ) -> FlexTensor {
        if all_f32(&[&x, &dy, &gamma]) {
            return norm::layer_norm_gradient(&x, &dy, &gamma, eps);
        }
        fallback::norm::layer_norm_gradient::<Self>(x, dy, gamma, eps)
    }

    fn geglu_gradient(x: FlexTensor, bias: Option<FlexTensor>, dy: FlexTensor) -> FlexTensor {
        match bias {
            None if all_f32(&[&x, &dy]) => gated::gradient::<Geglu>(&x, &dy),
            bias => fallback::geglu::gradient::<Self>(x, bias, dy),
        }
    }

    fn swiglu_gradient(x: FlexTensor, dy: FlexTensor) -> FlexTensor {
        if all_f32(&[&x, &dy]) {
            return gated::gradient::<Swiglu>(&x, &dy);
        }
        fallback::swiglu::gradient::<Self>(x, dy)
    }

    fn rms_norm_rotary_gradient(
        x: FlexTensor,
        dy: FlexTensor,
        [gamma, cos, sin]: [FlexTensor; 3],
        eps: f64,
    ) -> FlexTensor {
        if all_f32(&[&x, &dy, &gamma, &cos, &sin]) {
            return rms_norm_rotary::gradient(&x, &dy, [&gamma, &cos, &sin], eps);
        }
        fallback::rms_norm_rotary::gradient::<Self>(x, dy, [gamma, cos, sin], eps)
    }
}

fn to_f32(x: FlexTensor) -> FlexTensor {
    Flex::float_cast(x, FloatDType::F32)
}
