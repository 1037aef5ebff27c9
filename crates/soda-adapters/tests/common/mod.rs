//! A small network with every kind of target, and the helpers of the tests.

#![allow(dead_code, reason = "each test uses some of the helpers")]
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::{HashMap, HashSet};

use burn::module::{Module, ModuleVisitor, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{DType, Device, Distribution, Gradients, Tensor, TensorData};
use soda_adapters::{
    Calibration, Geometry, Method, Plan, PlanOptions, Probe, Recipe, Targets, map_params,
    named_params,
};
use soda_kernels::{conv2d, linear, matmul};
use soda_testing::relative_error;

/// A wide and a tall layer, a convolution, and a head that the targets do not select.
#[derive(Module, Debug)]
pub(crate) struct Net {
    pub(crate) to_q: Linear,
    pub(crate) to_k: Linear,
    pub(crate) conv: Conv2d,
    pub(crate) head: Linear,
}

/// The small network as the only component of a pipeline.
#[derive(Module, Debug)]
pub(crate) struct Networks {
    pub(crate) unet: Net,
}

impl Net {
    pub(crate) fn new() -> Self {
        let device = Device::default();
        let linear = |input, output| LinearConfig::new(input, output).init(&device);
        Self {
            to_q: linear(12, 20),
            to_k: linear(30, 20),
            conv: Conv2dConfig::new([4, 6], [3, 3]).init(&device),
            head: linear(20, 3),
        }
    }

    /// Returns `[7, 9]`.
    pub(crate) fn forward(&self, input: &Input) -> Tensor<2> {
        let [dense, conv] = self.features(input);
        Tensor::cat(vec![forward(&self.head, dense), conv], 1)
    }

    /// The outputs of the adapted layers, `[7, 20]` and `[7, 6]`.
    pub(crate) fn features(&self, input: &Input) -> [Tensor<2>; 2] {
        let dense = forward(&self.to_q, input.q.clone()) * forward(&self.to_k, input.k.clone());
        let conv = conv2d(&self.conv, input.image.clone()).reshape([7, 6]);
        [dense, conv]
    }

    /// Casts all weights to another float type.
    pub(crate) fn cast(self, dtype: DType) -> Self {
        map_params(self, |param| Some(param.value().cast(dtype)))
    }
}

/// Applies a layer with the product of soda-kernels. The product of burn rounds to TF32 on some GPUs.
fn forward(layer: &Linear, x: Tensor<2>) -> Tensor<2> {
    linear(x, layer.weight.val(), layer.bias.as_ref().map(Param::val))
}

pub(crate) struct Input {
    pub(crate) q: Tensor<2>,
    pub(crate) k: Tensor<2>,
    pub(crate) image: Tensor<4>,
}

impl Input {
    pub(crate) fn new() -> Self {
        let device = Device::default();
        let normal = Distribution::Normal(0.0, 1.0);
        Self {
            q: Tensor::random([7, 12], normal, &device),
            k: Tensor::random([7, 30], normal, &device),
            image: Tensor::random([7, 4, 3, 3], normal, &device),
        }
    }

    pub(crate) fn cast(&self, dtype: DType) -> Self {
        Self {
            q: self.q.clone().cast(dtype),
            k: self.k.clone().cast(dtype),
            image: self.image.clone().cast(dtype),
        }
    }

    pub(crate) fn on_tape(&self) -> Self {
        Self {
            q: Tensor::from_inner(self.q.clone()),
            k: Tensor::from_inner(self.k.clone()),
            image: Tensor::from_inner(self.image.clone()),
        }
    }
}

pub(crate) fn targets() -> Targets {
    Targets(vec![r"^(to_.|conv)\.weight$".to_owned()])
}

/// The targets that a method can adapt: without the convolution, if it needs rows.
pub(crate) fn targets_of(method: &impl Method) -> Targets {
    if method.depends_on_timestep() {
        Targets(vec![r"^to_.\.weight$".to_owned()])
    } else {
        targets()
    }
}

/// The plan of a method. A method that is calibrated sees a random input.
pub(crate) fn plan<M: Method>(method: &M, net: &Net) -> Plan<M::Adapter> {
    let input = Input::new().cast(net.head.weight.val().dtype());
    let calibration = calibrate(method, &targets_of(method), net, &input);
    let mut options = PlanOptions { calibration: calibration.as_ref(), ..PlanOptions::default() };
    method.plan_with(&targets_of(method), net, &mut options).unwrap()
}

/// Measures the directions on one input, if the method wants them.
pub(crate) fn calibrate<M: Method>(
    method: &M,
    targets: &Targets,
    net: &Net,
    input: &Input,
) -> Option<Calibration> {
    method.calibration()?;
    let probes = method.plan_probes(targets, net, &mut PlanOptions::default()).unwrap();
    let probed = probes.clone().attach(net.clone()).train();
    let output = probed.forward(&input.on_tape());
    let grads = output.square().sum().backward();
    let shapes: HashMap<_, _> =
        named_params(&probed).into_iter().map(|param| (param.path, param.shape)).collect();
    let data = |(path, grad): (String, Vec<f64>)| {
        let data = TensorData::new(grad, shapes[&path].clone());
        (path.replace(".adapter.", "."), data)
    };
    let grads = gradients(&probed, &grads).into_iter().map(data).collect();
    Some(Probe::measure(probes.adapters(), &grads).unwrap())
}

pub(crate) fn recipe<M: Method>(method: &M, net: &Net) -> Recipe<M> {
    Recipe::new(method.clone(), targets_of(method), net).unwrap()
}

/// `max |a - b| / max |b|`. NaN if any value is NaN.
pub(crate) fn difference(a: Tensor<2>, b: Tensor<2>) -> f64 {
    relative_error(&values(a), &values(b))
}

/// The values of a tensor in f64.
pub(crate) fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().iter().collect()
}

/// Changes every trained tensor by a little, and rotations within the manifold, as training does.
pub(crate) fn disturb<M: Method, N: Module>(method: &M, net: N) -> N {
    let shapes: HashMap<_, _> =
        named_params(&net).into_iter().map(|param| (param.path, param.shape)).collect();
    // A parameter is marked as trainable on an autodiff device only.
    let trained = named_params(&net.clone().train()).into_iter().filter(|param| param.trainable);
    let trained: HashSet<_> = trained.map(|param| param.path).collect();
    map_params(net, |param| {
        let path = param.path.as_str();
        if !trained.contains(path) {
            return None;
        }
        let noise = param.value().random_like(Distribution::Normal(0.0, 0.1));
        Some(match method.geometry(path) {
            Geometry::Euclidean => param.value() + noise,
            Geometry::Stiefel => {
                let shape = &shapes[path];
                let (n, elements) = (shape[shape.len() - 1], shape.iter().product::<usize>());
                let skew: Tensor<3> = noise.reshape([elements / (n * n), n, n]);
                orthogonal(skew.clone() - skew.transpose()).reshape([elements])
            }
        })
    })
}

/// The Cayley transforms `(I - A/2)⁻¹ (I + A/2)` of small skew-symmetric `A`, by their power series.
fn orthogonal(skew: Tensor<3>) -> Tensor<3> {
    let identity = Tensor::<2>::eye(skew.dims()[2], &skew.device()).cast(skew.dtype());
    let identity = skew.zeros_like() + identity.unsqueeze_dim(0);
    // The series converges below a norm of 1, and slowly near it. Singular values of a skew-symmetric matrix
    // are pairs, so that the largest is at most 0.64 if the Frobenius norm is 0.9.
    let half = skew.mul_scalar(0.5);
    let norm = half.clone().square().sum_dim(2).sum_dim(1).sqrt();
    let half = half / norm.div_scalar(0.9).clamp_min(1.0);
    let mut inverse = identity.clone();
    for _ in 0..60 {
        inverse = identity.clone() + matmul(half.clone(), inverse);
    }
    matmul(inverse, identity + half)
}

/// The gradients by path of the parameter, flat.
pub(crate) fn gradients<N: Module>(net: &N, grads: &Gradients) -> HashMap<String, Vec<f64>> {
    struct Collect<'a>(Vec<String>, &'a Gradients, HashMap<String, Vec<f64>>);
    impl ModuleVisitor for Collect<'_> {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.0.push(name.to_owned());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.0.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(grad) = param.base().grad(self.1) {
                self.2.insert(self.0.join("."), grad.into_data().iter().collect());
            }
        }
    }
    let mut collect = Collect(Vec::new(), grads, HashMap::new());
    net.visit(&mut collect);
    collect.2
}
