//! The CPU: kernels on slices, in float32, with faer's products.
//!
//! burn's operations are one loop each over numbers that meanwhile left the cache, with the C library's exponential
//! and error function one number at a time. Here what belongs together is one loop over what is in the cache, the
//! functions are vectors ([`vector`]), and a task is a part of the samples or rows, so that the threads of the current
//! pool share it. What is not float32 goes to burn's operations, attention to float32 and back.

mod attend;
mod convolution;
mod dense;
mod gate;
mod norm;
mod product;
mod vector;
mod winograd;

use burn::backend::Flex;
use burn::backend::ops::{FloatTensorOps, ModuleOps};
use burn::tensor::FloatDType;
use burn::tensor::ops::ConvOptions;

use self::dense::{Flat, single};
use crate::backend::{AttentionGradient, Kernels};
use crate::{conv, geglu, norm as single_operations};

impl Kernels for Flex {
    // Computing them again while they are in the cache is quicker than reading them back.
    const SCORES_KEPT: usize = 0;

    fn product(lhs: Flat, rhs: Flat) -> Flat {
        if single(&[&lhs, &rhs]) {
            product::product(lhs, rhs)
        } else {
            Self::float_matmul(lhs, rhs)
        }
    }

    fn convolution(x: Flat, weight: Flat, options: ConvOptions<2>) -> Flat {
        if single(&[&x, &weight]) {
            return convolution::forward(&x, &weight, &options);
        }
        Self::conv2d(x, weight, None, options)
    }

    fn convolution_gradient(
        grad: Flat,
        weight: Flat,
        height: usize,
        width: usize,
        options: ConvOptions<2>,
    ) -> Flat {
        if single(&[&grad, &weight]) {
            return convolution::gradient(&grad, &weight, [height, width], &options);
        }
        conv::transposed::<Self>(grad, weight, [height, width], options)
    }

    fn attend(q: Flat, k: Flat, v: Flat, scale: f64) -> Flat {
        let dtype = q.dtype();
        let [q, k, v] = [q, k, v].map(to_single);
        Self::float_cast(attend::attend(q, k, v, scale as f32), dtype.into())
    }

    fn attend_gradient(
        q: Flat,
        k: Flat,
        v: Flat,
        grad: Flat,
        scale: f64,
        wanted: [bool; 3],
    ) -> AttentionGradient<Self> {
        let dtype = q.dtype();
        let [q, k, v, grad] = [q, k, v, grad].map(to_single);
        let [dq, dk, dv] = attend::gradient(q, k, v, grad, scale as f32)
            .map(|gradient| Self::float_cast(gradient, dtype.into()));
        (wanted[0].then_some(dq), wanted[1].then_some(dk), wanted[2].then_some(dv))
    }

    fn normalize_groups(
        x: Flat,
        gamma: Flat,
        beta: Flat,
        groups: usize,
        eps: f64,
        act: bool,
    ) -> (Flat, Option<Flat>) {
        if single(&[&x, &gamma, &beta]) {
            return (norm::groups(&x, &gamma, &beta, groups, eps, act), None);
        }
        (single_operations::groups::<Self>(x, gamma, beta, groups, eps, act), None)
    }

    fn normalize_groups_gradient(
        x: Flat,
        dy: Flat,
        gamma: Flat,
        beta: Flat,
        groups: usize,
        eps: f64,
        act: bool,
    ) -> Flat {
        if single(&[&x, &dy, &gamma, &beta]) {
            return norm::groups_gradient(&x, &dy, &gamma, &beta, groups, eps, act);
        }
        single_operations::groups_gradient::<Self>(x, dy, gamma, beta, groups, eps, act)
    }

    fn normalize_rows(x: Flat, gamma: Flat, beta: Flat, eps: f64) -> Flat {
        if single(&[&x, &gamma, &beta]) {
            return norm::rows(&x, &gamma, &beta, eps);
        }
        Self::layer_norm(x, gamma, Some(beta), eps)
    }

    fn normalize_rows_gradient(x: Flat, dy: Flat, gamma: Flat, eps: f64) -> Flat {
        if single(&[&x, &dy, &gamma]) {
            return norm::rows_gradient(&x, &dy, &gamma, eps);
        }
        single_operations::rows_gradient::<Self>(x, dy, gamma, eps)
    }

    fn gate(x: Flat) -> Flat {
        if single(&[&x]) { gate::forward(&x) } else { geglu::forward::<Self>(x) }
    }

    fn gate_gradient(x: Flat, dy: Flat) -> Flat {
        if single(&[&x, &dy]) { gate::gradient(&x, &dy) } else { geglu::gradient::<Self>(x, dy) }
    }
}

fn to_single(x: Flat) -> Flat {
    Flex::float_cast(x, FloatDType::F32)
}
