//! Convolutions with frozen weights.
//!
//! A frozen weight has no gradient, so the tape saves the weight, which lives anyway, and the input's size
//! instead of the input. The gradient by the input is a transposed convolution of the output's gradient. At
//! stride 1 it is also a forward convolution:
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
use burn::tensor::ops::{ConvOptions, PadMode};

use super::bias_residual::bias_residual;
use super::matmul::matmul;
use crate::backend::{KernelGradients, Kernels};
use crate::device::vendor_blas::has_vendor_blas;

/// Applies the convolution `layer` to `x` `[b, c, h, w]`.
///
/// Weight and bias get a gradient only if they are on the autodiff tape. A 1x1 convolution is a matrix
/// product.
///
/// # Panics
/// If the layer has groups or dilation.
///
/// ```
/// use burn::nn::conv::Conv2dConfig;
/// use burn::tensor::{Device, Tensor};
///
/// let device = Device::default();
/// let layer = Conv2dConfig::new([3, 8], [1, 1]).init(&device);
/// let x = Tensor::<4>::ones([1, 3, 4, 4], &device);
/// assert_eq!(soda_kernels::conv2d(&layer, x).dims(), [1, 8, 4, 4]);
/// ```
#[track_caller]
pub fn conv2d(layer: &Conv2d, x: Tensor<4>) -> Tensor<4> {
    conv2d_residual(layer, x, None, None)
}

/// [`conv2d`] plus a bias for each sample `[b, o]` and a residual of the shape of the result.
///
/// The bias for each sample is what a ResNet block of a UNet makes of the time embedding.
///
/// # Panics
/// If the layer has groups or dilation, or if the shapes do not fit.
#[track_caller]
pub fn conv2d_residual(
    layer: &Conv2d,
    x: Tensor<4>,
    per_sample_bias: Option<Tensor<2>>,
    residual: Option<Tensor<4>>,
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
            let y = match per_sample_bias {
                Some(bias) => y + bias.unsqueeze_dims(&[2, 3]),
                None => y,
            };
            return bias_residual(y, None, residual);
        }
    };
    let bias = layer.bias.as_ref().map(|bias| bias.val().unsqueeze::<2>());
    let bias = match (bias, per_sample_bias) {
        (Some(bias), Some(per_sample)) => Some(per_sample + bias),
        (bias, per_sample) => bias.or(per_sample),
    };
    let channels_last = |map: Tensor<4>| map.permute([0, 2, 3, 1]);
    let channels_first = |map: Tensor<4>| map.permute([0, 3, 1, 2]);
    if kernel == [1, 1] && stride == [1, 1] && top + bottom + left + right == 0 {
        let out = weight.dims()[0];
        let pixels = channels_last(x).reshape([batch * height * width, channels]);
        let y = matmul(pixels, weight.reshape([out, channels]).transpose());
        let y = y.reshape([batch, height, width, out]);
        return channels_first(bias_residual(y, bias, residual.map(channels_last)));
    }
    let (x, padding) = if top == bottom && left == right {
        (x, [top, left])
    } else {
        (x.pad((left, right, top, bottom), PadMode::Constant(0.0)), [0, 0])
    };
    let options = ConvOptions::new(stride, padding, [1, 1], 1);
    let y = Tensor::from_dispatch(Dispatch::conv2d_forward(
        x.into_dispatch(),
        weight.into_dispatch(),
        options,
    ));
    if has_vendor_blas(&y) {
        // cuDNN stores its results channels last, so the epilogue reads rows of channels.
        let y = bias_residual(channels_last(y), bias, residual.map(channels_last));
        return channels_first(y);
    }
    let y = match bias {
        Some(bias) => y + bias.unsqueeze_dims(&[2, 3]),
        None => y,
    };
    bias_residual(y, None, residual)
}

#[derive(Debug)]
struct Conv2dNode;

/// The state of the backward pass. The input is saved only if the weight has a gradient.
#[derive(Clone, Debug)]
struct Saved {
    x: Option<NodeId>,
    weight: NodeId,
    /// Height and width of the input.
    size: [usize; 2],
    options: ConvOptions<2>,
}

/// Records [`Kernels::conv2d_forward`] on the tape.
pub(crate) fn record<B: KernelGradients, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
    weight: FloatTensor<Autodiff<B, C>>,
    options: ConvOptions<2>,
) -> FloatTensor<Autodiff<B, C>> {
    let [_, _, height, width] = x.shape().dims();
    let weight_tracked = weight.is_tracked();
    let nodes = [x.node(), weight.node()];
    match Backward::<B, 2>::prepare::<C>(Conv2dNode, nodes).compute_bound().stateful() {
        OpsKind::Tracked(mut prep) => {
            let saved = Saved {
                x: weight_tracked.then(|| prep.checkpoint(&x)),
                weight: prep.checkpoint(&weight),
                size: [height, width],
                options: options.clone(),
            };
            let y = B::conv2d_forward(x.into_primitive(), weight.into_primitive(), options);
            prep.finish(saved, y)
        }
        OpsKind::UnTracked(prep) => {
            prep.finish(B::conv2d_forward(x.into_primitive(), weight.into_primitive(), options))
        }
    }
}

impl<B: KernelGradients> Backward<B, 2> for Conv2dNode {
    type State = Saved;

    fn backward(
        self,
        ops: Ops<Self::State, 2>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let dy = grads.consume::<B>(&ops.node);
        let Saved { x, weight, size, options } = ops.state;
        let weight = checkpointer.retrieve_node_output::<FloatTensor<B>>(weight);
        let [x_node, weight_node] = ops.parents;
        if let (Some(node), Some(x)) = (weight_node, x) {
            let x = checkpointer.retrieve_node_output::<FloatTensor<B>>(x);
            let dw = B::conv2d_weight_backward(x, weight.clone(), dy.clone(), options.clone());
            grads.register::<B>(node.id, dw);
        }
        if let Some(node) = x_node {
            let dx = B::conv2d_input_gradient(dy, weight, size, options);
            grads.register::<B>(node.id, dx);
        }
    }
}
