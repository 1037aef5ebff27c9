//! Prodigy against the reference implementation (prodigyopt), on the quadratics of `prodigy.py`.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::BTreeMap;

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Tensor, TensorData};
use serde::Deserialize;
use soda_adapters::MethodConfig;
use soda_optim::{
    AdapterGradients, AdapterOptimizer, AdapterOptimizerConfig, FlatOptimizer, ParamGroup,
};

type Values = BTreeMap<String, Vec<f64>>;

#[derive(Deserialize)]
struct Fixture {
    start: Values,
    target: Values,
    h: Values,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    warmup: usize,
    decay: f64,
    d: Vec<f64>,
    end: Values,
}

/// Two parameters of different shapes, which share one estimate.
#[derive(Module, Debug)]
struct Net {
    a: Param<Tensor<2>>,
    b: Param<Tensor<1>>,
}

impl Net {
    fn new(values: &Values, device: &Device) -> Self {
        let data = |name: &str, shape: &[usize]| TensorData::new(values[name].clone(), shape);
        Self {
            a: Param::from_tensor(Tensor::from_data(data("a", &[3, 4]), (device, DType::F64))),
            b: Param::from_tensor(Tensor::from_data(data("b", &[5]), (device, DType::F64))),
        }
    }
}

fn fixture() -> Fixture {
    let path = soda_testing::workspace_path("crates/soda-optim/tests/fixtures/prodigy.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn optimizer(case: &Case) -> (AdapterOptimizerConfig, AdapterOptimizer) {
    let config = AdapterOptimizerConfig {
        flat_optimizer: FlatOptimizer::Prodigy,
        flat_lr: 1.0,
        flat_weight_decay: case.decay,
        max_grad_norm: f64::INFINITY,
        lr_warmup: case.warmup > 0,
        ..AdapterOptimizerConfig::default()
    };
    let optimizer = AdapterOptimizer::new(&config);
    (config, optimizer)
}

/// One step of `Σ h (x - target)² / 2`.
fn step(optimizer: &mut AdapterOptimizer, net: Net, fixture: &Fixture, factor: f64) -> Net {
    let device = net.b.val().device();
    let (h, target) = (Net::new(&fixture.h, &device), Net::new(&fixture.target, &device));
    let taped = net.clone().train();
    let lift = |x: Tensor<2>| Tensor::<2>::from_inner(x);
    let a = (taped.a.val() - lift(target.a.val())).square() * lift(h.a.val());
    let b = (taped.b.val() - Tensor::from_inner(target.b.val())).square()
        * Tensor::from_inner(h.b.val());
    let grads = (a.sum() + b.sum()).div_scalar(2.0).backward();
    let grads = AdapterGradients::collect(&taped, &grads);
    optimizer.step(&MethodConfig::default(), net, grads, factor)
}

fn factor(case: &Case, step: usize) -> f64 {
    ((step + 1) as f64 / (case.warmup + 1) as f64).min(1.0)
}

/// The estimate of every step and the final parameters agree, in f64: the first steps are of 1e-6, which f32
/// rounds away beside a parameter near 1. The tolerance 1e-9 covers the rounding of sixty steps.
#[test]
fn estimates_and_parameters_are_those_of_prodigyopt() {
    if !Device::default().supports_dtype(DType::F64) {
        return;
    }
    let (fixture, device) = (fixture(), Device::default());
    for case in &fixture.cases {
        let (_, mut optimizer) = optimizer(case);
        let mut net = Net::new(&fixture.start, &device);
        for (number, expected) in case.d.iter().enumerate() {
            net = step(&mut optimizer, net, &fixture, factor(case, number));
            let d = optimizer.flat_lr(&ParamGroup::DEFAULT, 1.0);
            assert!((d / expected - 1.0).abs() < 1e-9, "step {number}: {d} for {expected}");
        }
        let found = [net.a.val().flatten::<1>(0, 1), net.b.val()];
        for (found, name) in found.into_iter().zip(["a", "b"]) {
            for (found, expected) in found.into_data().iter::<f64>().zip(&case.end[name]) {
                assert!((found - expected).abs() < 1e-9, "{name}: {found} for {expected}");
            }
        }
    }
}

#[test]
fn a_restored_state_continues_to_the_bit() {
    if !Device::default().supports_dtype(DType::F64) {
        return;
    }
    let (fixture, device) = (fixture(), Device::default());
    let case = &fixture.cases[1];
    let (config, mut straight) = optimizer(case);
    let mut net = Net::new(&fixture.start, &device);
    for number in 0..20 {
        net = step(&mut straight, net, &fixture, factor(case, number));
    }
    let restored = AdapterOptimizer::new(&config).restored(straight.state(), &device);
    let (mut resumed, mut other) = (restored.unwrap(), net.clone());
    for number in 20..30 {
        net = step(&mut straight, net, &fixture, factor(case, number));
        other = step(&mut resumed, other, &fixture, factor(case, number));
    }
    assert_eq!(straight.state(), resumed.state());
    assert_eq!(net.a.val().into_data(), other.a.val().into_data());
    // The state of another optimizer is refused in both directions.
    let adamw = AdapterOptimizer::new(&AdapterOptimizerConfig::default());
    assert!(AdapterOptimizer::new(&config).restored(adamw.state(), &device).is_err());
    assert!(adamw.restored(straight.state(), &device).is_err());
}
