//! The contract of every method on quantized weights: it computes what it does on the same weights in floats.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::collections::{BTreeMap, HashMap};

use burn::module::{Module, ModuleMapper, Param};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{DType, Device, Distribution, FloatDType, Tensor, TensorData};
use common::{difference, disturb, gradients};
use soda_adapters::{
    AdapterState, AnyAdapter, Calibration, METHOD_PRESETS, Method as _, MethodConfig, Plan,
    PlanOptions, Probe, Recipe, Targets, attach_all, detach, fingerprint, for_inference, fuse_all,
    map_params, named_params, without_adapters,
};
use soda_kernels::{
    QuantFormat, QuantLayout, QuantizedMatrix, StoredWeight, has_vendor_blas, linear_deferred,
    stored_weights, with_stored,
};
use soda_testing::assert_close;

/// A square and a tall layer, one after the other.
#[derive(Module, Debug)]
struct Net {
    first: Linear,
    second: Linear,
}

impl Net {
    fn new() -> Self {
        let linear = |input, output| {
            LinearConfig::new(input, output).with_bias(false).init(&Device::default())
        };
        Self { first: linear(64, 64), second: linear(64, 24) }
    }

    /// As the networks of this workspace call their layers.
    fn forward(&self, x: &Tensor<2>) -> Tensor<2> {
        let hidden = linear_deferred(x.clone(), || self.first.weight.val(), None).tanh();
        linear_deferred(hidden, || self.second.weight.val(), None)
    }

    /// The network with its weights in host memory until their adapters are made.
    fn waiting(self) -> Self {
        let wait = |layer: &Linear| {
            let data = layer.weight.val().transpose().into_data();
            StoredWeight::waiting_floats(&data, &Device::default()).unwrap()
        };
        let weights = BTreeMap::from([
            ("first.weight".to_owned(), wait(&self.first)),
            ("second.weight".to_owned(), wait(&self.second)),
        ]);
        with_stored(self, weights)
    }

    /// The network with quantized weights, and with the same weights in floats.
    fn quantized(self, format: QuantFormat) -> (Self, Self) {
        let quantize = |layer: &Linear| {
            let matrix = layer.weight.val().transpose();
            let values: Vec<f32> = matrix.clone().into_data().iter().collect();
            let layout = QuantLayout::new(format, matrix.dims()).unwrap();
            let matrix = QuantizedMatrix::encode(&values, layout);
            StoredWeight::quantized(&matrix, &Device::default())
        };
        let weights = BTreeMap::from([
            ("first.weight".to_owned(), quantize(&self.first)),
            ("second.weight".to_owned(), quantize(&self.second)),
        ]);
        let quantized = with_stored(self, weights);
        let floats = quantized.clone().materialize();
        (quantized, floats)
    }
}

fn targets() -> Targets {
    Targets(vec![r"^(first|second)\.weight$".to_owned()])
}

fn input() -> Tensor<2> {
    Tensor::random([5, 64], Distribution::Normal(0.0, 1.0), &Device::default())
}

/// The plan of a method on a network in floats, with directions from one input if it wants them.
fn plan(method: &MethodConfig, net: &Net) -> Plan<AnyAdapter> {
    plan_measured(method, net, measured(method, net).as_ref())
}

fn plan_measured(
    method: &MethodConfig,
    net: &Net,
    calibration: Option<&Calibration>,
) -> Plan<AnyAdapter> {
    let mut options = PlanOptions { calibration, ..PlanOptions::default() };
    method.plan_with(&targets(), net, &mut options).unwrap()
}

/// The directions of a method that wants them, from one input.
fn measured(method: &MethodConfig, net: &Net) -> Option<Calibration> {
    method.calibration().map(|_| {
        let probes = method.plan_probes(&targets(), net, &mut PlanOptions::default()).unwrap();
        let probed = probes.clone().attach(net.clone()).train();
        let output = probed.forward(&Tensor::from_inner(input()));
        let grads = gradients(&probed, &output.square().sum().backward());
        let shapes: HashMap<_, _> =
            named_params(&probed).into_iter().map(|param| (param.path, param.shape)).collect();
        let data = |(path, grad): (String, Vec<f64>)| {
            let data = TensorData::new(grad, shapes[&path].clone());
            (path.replace(".adapter.", "."), data)
        };
        Probe::measure(probes.adapters(), &grads.into_iter().map(data).collect()).unwrap()
    })
}

/// Every preset whose initial adapter is the identity.
fn methods() -> impl Iterator<Item = (&'static str, MethodConfig)> {
    let named = METHOD_PRESETS.iter().filter(|(name, _)| *name != "soda-paper");
    named.map(|(name, make)| (*name, make()))
}

/// The adapters are made from the original weights. DoRA's norms are those of the original too, so that they
/// differ from the norms of the quantized weight by its error.
#[test]
fn an_adapter_computes_what_it_does_on_the_same_weights_in_floats() {
    for format in QuantFormat::ALL {
        for (name, method) in methods() {
            let net = Net::new();
            let planned = plan(&method, &net);
            let (quantized, floats) = net.clone().quantized(format);
            let x = input();
            let fresh = planned.attach(quantized.clone());
            let base = quantized.forward(&x);
            let changed = difference(fresh.forward(&x), base.clone());
            assert!(changed <= 1e-6, "{name} {format:?}: an initial adapter changes {changed:.1e}");

            // The weight-side form in floats is the reference: it has no shorter way to the product.
            let trained = disturb(&method, fresh);
            let recipe = Recipe::new(method.clone(), targets(), &net).unwrap();
            let state = AdapterState::capture(recipe, &trained);
            let reference = state.plan(&net).unwrap().attach(floats);
            let on_weight = |net: &Net, x: &Tensor<2>| {
                let hidden = soda_kernels::matmul(x.clone(), net.first.weight.val()).tanh();
                soda_kernels::matmul(hidden, net.second.weight.val())
            };
            let tolerance = if name == "dora" { 0.05 } else { 2e-5 };
            let masked = method.depends_on_timestep();
            let expected = if masked { reference.forward(&x) } else { on_weight(&reference, &x) };
            let off = difference(trained.forward(&x), expected);
            assert!(off <= tolerance, "{name} {format:?}: off by {off:.1e}");
            assert!(difference(trained.forward(&x), base.clone()) > 1e-3, "{name} was trained");

            let tape = |net: &Net, on_weight_side: bool| {
                let (net, x) = (net.clone().train(), Tensor::from_inner(x.clone()));
                let y = if on_weight_side { on_weight(&net, &x) } else { net.forward(&x) };
                gradients(&net, &y.square().sum().backward())
            };
            let (ours, theirs) = (tape(&trained, false), tape(&reference, !masked));
            assert_eq!(ours.keys().collect::<Vec<_>>().len(), theirs.len(), "{name}");
            for (path, theirs) in theirs {
                let off = soda_testing::relative_error(&ours[&path], &theirs);
                assert!(
                    off <= 10.0 * tolerance,
                    "{name} {format:?} {path}: gradient off by {off:.1e}"
                );
            }

            assert_eq!(difference(without_adapters(|| trained.forward(&x)), base.clone()), 0.0);
            let kept = for_inference(trained.clone(), &method);
            assert_eq!(stored_weights(&kept).len(), 2, "{name} stays quantized");
            assert_eq!(difference(kept.forward(&x), trained.forward(&x)), 0.0, "{name}");
            let bare = detach(trained);
            assert_eq!(difference(bare.forward(&x), base), 0.0, "{name}: detached");
            assert_eq!(
                stored_weights(&bare).into_keys().collect::<Vec<_>>(),
                ["first.weight", "second.weight"]
            );
        }
    }
}

#[test]
fn weighted_adapters_add_their_changes_to_a_quantized_weight() {
    let net = Net::new();
    let method = MethodConfig::preset("lora").unwrap();
    let planned = plan(&method, &net);
    let (quantized, _) = net.quantized(QuantFormat::Int8);
    let x = input();
    let trained = disturb(&method, planned.attach(quantized.clone()));
    let recipe = Recipe::from_weights(method.clone(), targets(), &BTreeMap::new());
    let state = AdapterState::capture(recipe, &trained);
    assert_eq!(state.paths().into_iter().collect::<Vec<_>>(), ["first.weight", "second.weight"]);
    let net = Net::new();
    let again = |weight: f64| {
        let mut options = PlanOptions { on_other_base: Some(&mut || {}), ..PlanOptions::default() };
        (state.plan_with(&net, &mut options).unwrap(), weight)
    };
    let both = attach_all([again(0.25), again(0.75)], quantized.clone());
    assert!(difference(both.forward(&x), trained.forward(&x)) < 1e-5);
    assert_eq!(stored_weights(&both).len(), 2);
    assert_eq!(both.first.weight.base().dtype(), DType::F32);
}

/// The adapters of a plan, by path and parameter.
fn adapters(plan: Plan<AnyAdapter>, net: &Net) -> Vec<(String, Vec<f32>)> {
    let params = named_params(&plan.attach(net.clone())).into_iter();
    let params = params.filter(|param| param.path.contains(".adapter."));
    params.map(|param| (param.path.clone(), param.value().into_data().iter().collect())).collect()
}

#[test]
fn adapters_of_waiting_weights_are_those_of_the_same_weights_on_the_device() {
    for (name, method) in METHOD_PRESETS.iter().map(|(name, make)| (name, make())) {
        let net = Net::new();
        let waiting = net.clone().waiting();
        let weights = |net: &Net| fingerprint(&targets().select(net).unwrap());
        assert_eq!(weights(&waiting), weights(&net));
        let calibration = measured(&method, &net);
        let [expected, found] = [&net, &waiting]
            .map(|base| adapters(plan_measured(&method, base, calibration.as_ref()), &net));
        assert!(!expected.is_empty() && expected.len() == found.len(), "{name}");
        for ((path, expected), (_, found)) in expected.iter().zip(&found) {
            assert_close(&format!("{name}: {path}"), found, expected, order_of_sums());
        }
    }
}

/// What the order of a sum may change. A library of a vendor adds in another order where a matrix lies
/// transposed, as one that has waited does; a CPU adds the numbers of each output in one order.
fn order_of_sums() -> f64 {
    if has_vendor_blas(&Tensor::<1>::zeros([1], &Device::default())) { 1e-6 } else { 0.0 }
}

/// A vendor's library multiplies in the type of the network, whatever that of the file was.
#[test]
fn a_network_in_half_precision_computes_the_same_from_a_file_in_any_precision() {
    let rounded = Net::new().map(&mut Cast(FloatDType::BF16));
    let from_f32 = rounded.clone().map(&mut Cast(FloatDType::F32));
    let x = input().cast(FloatDType::BF16);
    for (name, method) in methods().filter(|(_, method)| method.calibration().is_none()) {
        let outputs = [&rounded, &from_f32].map(|net| {
            let network_dtype = Some(FloatDType::BF16);
            let mut options = PlanOptions { network_dtype, ..PlanOptions::default() };
            let plan = method.plan_with(&targets(), net, &mut options).unwrap();
            let trained = map_params(plan.attach(rounded.clone()), |param| {
                let values = param.path.contains(".adapter.").then(|| param.value())?;
                let steps = Tensor::arange(0..values.dims()[0] as i64, &Device::default());
                Some(values.clone() + steps.float().cast(values.dtype()).sin().mul_scalar(0.05))
            });
            trained.forward(&x).into_data().iter::<f32>().collect::<Vec<_>>()
        });
        assert!(outputs[0] == outputs[1], "{name}");
    }
}

#[test]
fn fused_weights_are_those_of_attached_adapters_and_are_stored_one_by_one() {
    for (name, method) in methods().filter(|(_, method)| !method.depends_on_timestep()) {
        let net = Net::new();
        let recipe = Recipe::new(method.clone(), targets(), &net).unwrap();
        let trained = disturb(&method, plan(&method, &net).attach(net.clone()));
        let state = AdapterState::capture(recipe, &trained);
        let plans = |net: &Net| [0.5, 0.25].map(|weight| (state.plan(net).unwrap(), weight));
        let expected = attach_all(plans(&net), net.clone()).materialize();
        let waiting = net.clone().waiting();
        for net in [&net, &waiting] {
            let fused = fuse_all(plans(net), net.clone(), |_, _| None);
            assert!(stored_weights(&fused).is_empty(), "{name}");
            let x = input();
            let difference = difference(fused.forward(&x), expected.forward(&x));
            assert!(difference <= order_of_sums(), "{name}: {difference}");
        }
        let store = |path: &str, matrix: &Tensor<2>| {
            let data = matrix.clone().transpose().into_data();
            (path == "first.weight")
                .then(|| StoredWeight::offloaded_floats(&data, &Device::default()).unwrap())
        };
        let fused = fuse_all(plans(&waiting), waiting, store);
        assert_eq!(stored_weights(&fused).into_keys().collect::<Vec<_>>(), ["first.weight"]);
        let x = input();
        assert!(difference(fused.forward(&x), expected.forward(&x)) <= 1e-6, "{name}");
    }
}

struct Cast(FloatDType);

impl ModuleMapper for Cast {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|value| value.cast(self.0))
    }
}
