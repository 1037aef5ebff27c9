//! CUDA: products by cuBLAS, convolutions by cuDNN, attention and reductions of rows and groups by kernels of our own.
//!
//! The libraries are NVIDIA's, loaded at run time if the machine has them (anything that has PyTorch does); a
//! build needs nothing of CUDA. They work on the backend's own buffers, in the order of its stream
//! ([`session`]). What they do not take, or a machine without them, goes to burn's kernels.

mod attend;
mod blas;
mod copies;
mod dnn;
mod images;
mod launch;
mod layout;
mod libraries;
mod planes;
mod polar;
mod session;
mod sums;
mod turn;

use burn::backend::TensorMetadata;
use burn::backend::ops::{FloatTensorOps, ModuleOps};
use burn::backend::tensor::FloatTensor;
use burn::tensor::ops::ConvOptions;
use burn::tensor::{DType, FloatDType};
use burn_cubecl::{CubeBackend, CubeDevice};

use crate::backend::{AttentionGradient, Kernels};
use crate::{attention, columns, conv, geglu, join, low_rank, norm, plus};

use attend::Attend;
pub(crate) use copies::{cat, overwrite, split};
pub(crate) use libraries::scratch;
pub(crate) use polar::{halves, step as polar_step, takes_polar};
pub(crate) use turn::Turn;

type Cube = CubeBackend;

fn on_cuda(x: &FloatTensor<Cube>) -> bool {
    matches!(x.device, CubeDevice::Cuda(_))
        && matches!(x.dtype, DType::F32 | DType::F16 | DType::BF16)
}

/// Whether products go to cuBLAS.
pub(crate) fn takes_products(x: &FloatTensor<Cube>) -> bool {
    let double = matches!(x.device, CubeDevice::Cuda(_)) && x.dtype == DType::F64;
    (on_cuda(x) || double) && libraries::blas_present()
}

/// Whether the kernels of our own can run.
pub(crate) fn ours(x: &FloatTensor<Cube>) -> bool {
    on_cuda(x) && images::kernels().is_some()
}

/// Whether the row kernels take the last axis.
fn fits_a_row(x: &FloatTensor<Cube>) -> bool {
    ours(x) && x.shape()[x.rank() - 1] <= launch::LONGEST_ROW
}

impl Kernels for Cube {
    // Rows of scores that begin at 16 bytes: cuBLAS has no quick product for others.
    const HALF_KEYS: usize = 8;

    fn product(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>) -> FloatTensor<Self> {
        if takes_products(&lhs) && lhs.dtype == rhs.dtype {
            return blas::product(lhs, rhs);
        }
        Self::float_matmul(lhs, rhs)
    }

    fn product_onto(
        lhs: FloatTensor<Self>,
        rhs: FloatTensor<Self>,
        to: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        if takes_products(&lhs) && [&rhs, &to].iter().all(|x| x.dtype == lhs.dtype) {
            if blas::adds_in_place(&to) {
                return blas::product_onto(lhs, rhs, to);
            }
            if sums::takes([&lhs, &rhs, &to]) {
                return sums::sum(lhs, rhs, &to);
            }
        }
        Self::float_add(Self::product(lhs, rhs), to)
    }

    fn wide_product(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>) -> FloatTensor<Self> {
        let half = matches!(lhs.dtype, DType::F16 | DType::BF16) && lhs.dtype == rhs.dtype;
        if half && takes_products(&lhs) {
            return blas::wide_product(lhs, rhs);
        }
        low_rank::wide_product::<Self>(lhs, rhs)
    }

    fn both_cast(
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        dtype: FloatDType,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let to = DType::from(dtype);
        let narrower = matches!(to, DType::F16 | DType::BF16);
        if narrower && ours(&a) && a.dtype == DType::F32 && b.dtype == DType::F32 {
            return launch::both_narrow(a, b, to);
        }
        low_rank::both_cast::<Self>(a, b, dtype)
    }

    fn convolution(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        options: ConvOptions<2>,
    ) -> FloatTensor<Self> {
        if on_cuda(&x) && x.dtype == weight.dtype && libraries::dnn_present() {
            return dnn::forward(x, weight, &options);
        }
        Self::conv2d(x, weight, None, options)
    }

    fn convolution_gradient(
        grad: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        height: usize,
        width: usize,
        options: ConvOptions<2>,
    ) -> FloatTensor<Self> {
        if on_cuda(&grad) && grad.dtype == weight.dtype && libraries::dnn_present() {
            return dnn::input_gradient(grad, weight, [height, width], &options);
        }
        conv::flipped::<Self>(grad, weight, [height, width], options)
    }

    fn attend(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        scale: f64,
    ) -> FloatTensor<Self> {
        match Attend::new(&q, &k, &v, scale) {
            Some(attend) => attend.forward([q, k, v], None),
            None => attention::forward::<Self>(q, k, v, scale),
        }
    }

    fn attend_keeping(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        scale: f64,
    ) -> (FloatTensor<Self>, Option<FloatTensor<Self>>) {
        let Some(attend) = Attend::new(&q, &k, &v, scale) else {
            return attention::keeping::<Self>(q, k, v, scale);
        };
        let logs = attend.logs(&q);
        (attend.forward([q, k, v], Some(&logs)), Some(logs))
    }

    fn attend_gradient_keeping(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        value: FloatTensor<Self>,
        kept: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        scale: f64,
        wanted: [bool; 3],
    ) -> AttentionGradient<Self> {
        let Some(attend) = Attend::new(&q, &k, &v, scale) else {
            return attention::gradient::<Self>([q, k, v], grad, Some(kept), scale, wanted);
        };
        let [dq, dk, dv] = attend.gradient([q, k, v], grad, value, &kept);
        (wanted[0].then_some(dq), wanted[1].then_some(dk), wanted[2].then_some(dv))
    }

    fn softmax_rows(scores: FloatTensor<Self>, keys: usize) -> FloatTensor<Self> {
        if fits_a_row(&scores) {
            return launch::softmax(scores, keys);
        }
        attention::softmax::<Self>(scores, keys)
    }

    fn softmax_rows_gradient(p: FloatTensor<Self>, dp: FloatTensor<Self>) -> FloatTensor<Self> {
        if fits_a_row(&p) {
            return launch::softmax_gradient(p, dp);
        }
        let last = p.rank() - 1;
        let mean = Self::float_sum_dim(Self::float_mul(p.clone(), dp.clone()), last);
        Self::float_mul(p, Self::float_sub(dp, mean))
    }

    fn normalize_groups(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        groups: usize,
        eps: f64,
        act: bool,
    ) -> (FloatTensor<Self>, Option<FloatTensor<Self>>) {
        if ours(&x) && x.dtype == gamma.dtype {
            let norm = launch::GroupNorm { groups, eps: eps as f32, silu: act };
            let (y, kept) = norm.forward(x, gamma, beta);
            return (y, Some(kept));
        }
        (norm::groups::<Self>(x, gamma, beta, groups, eps, act), None)
    }

    fn normalize_groups_gradient_keeping(
        x: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        kept: FloatTensor<Self>,
        groups: usize,
        eps: f64,
        act: bool,
    ) -> FloatTensor<Self> {
        let norm = launch::GroupNorm { groups, eps: eps as f32, silu: act };
        norm.gradient(x, dy, gamma, beta, kept)
    }

    fn normalize_rows(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self> {
        if fits_a_row(&x) && x.dtype == gamma.dtype {
            return launch::layer_norm(x, gamma, beta, eps as f32);
        }
        Self::layer_norm(x, gamma, Some(beta), eps)
    }

    fn normalize_rows_gradient(
        x: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self> {
        if fits_a_row(&x) && x.dtype == gamma.dtype {
            return launch::layer_norm_gradient(x, dy, gamma, eps as f32);
        }
        norm::rows_gradient::<Self>(x, dy, gamma, eps)
    }

    fn gate(x: FloatTensor<Self>) -> FloatTensor<Self> {
        if ours(&x) { launch::geglu(x, None) } else { geglu::forward::<Self>(x) }
    }

    fn gate_gradient(x: FloatTensor<Self>, dy: FloatTensor<Self>) -> FloatTensor<Self> {
        if ours(&x) {
            return launch::geglu_gradient(x, None, dy);
        }
        geglu::gradient::<Self>(x, dy)
    }

    fn gate_biased(x: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self> {
        if ours(&x) && bias.dtype == x.dtype {
            return launch::geglu(x, Some(bias));
        }
        Self::gate(geglu::biased::<Self>(x, bias))
    }

    fn gate_biased_gradient(
        x: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        dy: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        if ours(&x) && bias.dtype == x.dtype {
            return launch::geglu_gradient(x, Some(bias), dy);
        }
        Self::gate_gradient(geglu::biased::<Self>(x, bias), dy)
    }

    fn add_bias(x: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self> {
        if ours(&x) && bias.dtype == x.dtype {
            return launch::plus(x, bias, None);
        }
        plus::forward::<Self>(x, bias)
    }

    fn add_bias_to(
        x: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        rest: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        if ours(&x) && bias.dtype == x.dtype && rest.dtype == x.dtype {
            return launch::plus(x, bias, Some(rest));
        }
        Self::float_add(plus::forward::<Self>(x, bias), rest)
    }

    fn join(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
        if ours(&a) && a.dtype == b.dtype {
            return launch::join(a, b);
        }
        Self::float_cat(vec![a, b], 1)
    }

    fn join_gradient(
        dy: FloatTensor<Self>,
        channels: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        if ours(&dy) { launch::apart(dy, channels) } else { join::gradient::<Self>(dy, channels) }
    }

    fn columns(
        l: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        least: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        if ours(&l) && gain.dtype == DType::F32 {
            return launch::columns(l, gain, least);
        }
        columns::forward::<Self>(l, gain, least)
    }

    fn columns_gradient(
        l: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        least: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        if ours(&l) && gain.dtype == DType::F32 {
            return launch::columns_gradient(l, dy, gain, least);
        }
        columns::gradient::<Self>(l, dy, gain, least)
    }
}
