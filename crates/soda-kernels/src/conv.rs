//! Convolutions whose weights are frozen.
//!
//! Nothing asks for the weight's gradient, so that nothing of the input has to be kept: the tape holds the
//! weight, which lives anyway, and a size. The gradient by the input is the transposed convolution of the output's
//! gradient; at stride 1 that is also a forward convolution,
//!
//! ```text
//! dx = dy * w~     w~[c, o, i, j] = w[o, c, kh - 1 - i, kw - 1 - j], padding k - 1 - p
//! ```

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Dispatch, TensorMetadata};
use burn::nn::PaddingConfig2d;
use burn::nn::conv::Conv2d;
use burn::tensor::Tensor;
use burn::tensor::ops::{ConvOptions, ConvTransposeOptions, PadMode};

use crate::backend::Kernels;
use crate::matmul::{has_vendor_blas, matmul};
use crate::plus::plus;

/// `layer` applied to `x` `[b, c, h, w]`; its weight and bias get no gradient unless they are on the tape.
///
/// # Panics
/// A layer with groups or dilation, which no network here has.
#[track_caller]
pub fn conv2d(layer: &Conv2d, x: Tensor<4>) -> Tensor<4> {
    conv2d_residual(layer, x, None, None)
}

/// [`conv2d`] with what is added to its value: `each` `[b, o]` to all pixels of a sample, and `rest`, of the value's shape.
///
/// # Panics
/// As [`conv2d`].
#[track_caller]
pub fn conv2d_residual(
    layer: &Conv2d,
    x: Tensor<4>,
    each: Option<Tensor<2>>,
    rest: Option<Tensor<4>>,
) -> Tensor<4> {
    assert!(
        layer.groups == 1 && layer.dilation == [1, 1],
        "conv2d: groups and dilation are not supported"
    );
    let weight = layer.weight.val();
    let [batch, channels, height, width] = x.dims();
    let (kernel, stride) = (layer.kernel_size, layer.stride);
    let (top, left, bottom, right) = match layer.padding {
        PaddingConfig2d::Explicit(top, left, bottom, right) => (top, left, bottom, right),
        PaddingConfig2d::Valid => (0, 0, 0, 0),
        PaddingConfig2d::Same => {
            let y = layer.forward(x);
            let y = match each {
                Some(each) => y + each.unsqueeze_dims(&[2, 3]),
                None => y,
            };
            return plus(y, None, rest);
        }
    };
    let bias = layer.bias.as_ref().map(|bias| bias.val().unsqueeze::<2>());
    let bias = match (bias, each) {
        (Some(bias), Some(each)) => Some(each + bias),
        (bias, each) => bias.or(each),
    };
    if kernel == [1, 1] && stride == [1, 1] && top + bottom + left + right == 0 {
        let out = weight.dims()[0];
        let pixels = x.permute([0, 2, 3, 1]).reshape([batch * height * width, channels]);
        let y = matmul(pixels, weight.reshape([out, channels]).transpose());
        let y = y.reshape([batch, height, width, out]);
        let rest = rest.map(|rest| rest.permute([0, 2, 3, 1]));
        return plus(y, bias, rest).permute([0, 3, 1, 2]);
    }
    let (x, padding) = if top == bottom && left == right {
        (x, [top, left])
    } else {
        (x.pad((left, right, top, bottom), PadMode::Constant(0.0)), [0, 0])
    };
    let options = ConvOptions::new(stride, padding, [1, 1], 1);
    let y = Tensor::from_dispatch(Dispatch::convolution(
        x.into_dispatch(),
        weight.into_dispatch(),
        options,
    ));
    if has_vendor_blas(&y) {
        // The numbers lie so.
        let rest = rest.map(|rest| rest.permute([0, 2, 3, 1]));
        return plus(y.permute([0, 2, 3, 1]), bias, rest).permute([0, 3, 1, 2]);
    }
    let y = match bias {
        Some(bias) => y + bias.unsqueeze_dims(&[2, 3]),
        None => y,
    };
    plus(y, None, rest)
}

#[derive(Debug)]
struct Convolution;

/// What the gradient needs: the weight, the input's size, and the input where the weight asks for one too.
#[derive(Clone, Debug)]
struct Kept {
    x: Option<NodeId>,
    weight: NodeId,
    size: [usize; 2],
    options: ConvOptions<2>,
}

/// [`Kernels::convolution`] on the tape.
pub(crate) fn tracked<B: Kernels, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
    weight: FloatTensor<Autodiff<B, C>>,
    options: ConvOptions<2>,
) -> FloatTensor<Autodiff<B, C>> {
    let [_, _, height, width] = x.shape().dims();
    let trained = weight.is_tracked();
    let nodes = [x.node(), weight.node()];
    match Backward::<B, 2>::prepare::<C>(Convolution, nodes).compute_bound().stateful() {
        OpsKind::Tracked(mut prep) => {
            let kept = Kept {
                x: trained.then(|| prep.checkpoint(&x)),
                weight: prep.checkpoint(&weight),
                size: [height, width],
                options: options.clone(),
            };
            prep.finish(kept, B::convolution(x.into_primitive(), weight.into_primitive(), options))
        }
        OpsKind::UnTracked(prep) => {
            prep.finish(B::convolution(x.into_primitive(), weight.into_primitive(), options))
        }
    }
}

impl<B: Kernels> Backward<B, 2> for Convolution {
    type State = Kept;

    fn backward(
        self,
        ops: Ops<Self::State, 2>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let dy = grads.consume::<B>(&ops.node);
        let Kept { x, weight, size: [height, width], options } = ops.state;
        let weight = checkpointer.retrieve_node_output::<FloatTensor<B>>(weight);
        let [x_node, weight_node] = ops.parents;
        if let (Some(node), Some(x)) = (weight_node, x) {
            let x = checkpointer.retrieve_node_output::<FloatTensor<B>>(x);
            let dw = B::conv2d_weight_backward(x, weight.clone(), dy.clone(), options.clone());
            grads.register::<B>(node.id, dw);
        }
        if let Some(node) = x_node {
            let dx = B::convolution_gradient(dy, weight, height, width, options);
            grads.register::<B>(node.id, dx);
        }
    }
}

/// The gradient by the input as a transposed convolution: what a CPU is quickest at.
pub(crate) fn transposed<B: Kernels>(
    dy: FloatTensor<B>,
    weight: FloatTensor<B>,
    size: [usize; 2],
    options: ConvOptions<2>,
) -> FloatTensor<B> {
    let ([_, _, kh, kw], [_, _, h, w]) = (weight.shape().dims(), dy.shape().dims());
    let padding = options.padding_begin();
    // Rows at the far edge that no window reached get a zero gradient, but a place.
    let rest = |axis: usize, full: usize, out: usize, kernel: usize| {
        full + 2 * padding[axis] - ((out - 1) * options.stride[axis] + kernel)
    };
    let rest = [rest(0, size[0], h, kh), rest(1, size[1], w, kw)];
    let options = ConvTransposeOptions::new(options.stride, padding, rest, [1, 1], 1);
    B::conv_transpose2d(dy, weight, None, options)
}

/// The same as a forward convolution, where there is one: no kernel but the forward pass' is compiled.
#[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "what CUDA does without cuDNN"))]
pub(crate) fn flipped<B: Kernels>(
    dy: FloatTensor<B>,
    weight: FloatTensor<B>,
    size: [usize; 2],
    options: ConvOptions<2>,
) -> FloatTensor<B> {
    let [_, _, kh, kw] = weight.shape().dims();
    let padding = options.padding_begin();
    if options.stride != [1, 1] || padding[0] >= kh || padding[1] >= kw {
        return transposed::<B>(dy, weight, size, options);
    }
    let weight = B::float_flip(B::float_swap_dims(weight, 0, 1), &[2, 3]);
    let padding = [kh - 1 - padding[0], kw - 1 - padding[1]];
    B::convolution(dy, weight, ConvOptions::new([1, 1], padding, [1, 1], 1))
}
