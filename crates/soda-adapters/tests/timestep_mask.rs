//! T-LoRA's mask: each sample of a batch has the directions of its own timestep.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use burn::module::Module as _;
use burn::tensor::{Device, Tensor};
use common::{Net, difference, disturb, gradients, plan, recipe, targets};
use soda_adapters::lora::{LoraConfig, LoraInit};
use soda_adapters::oft::OftConfig;
use soda_adapters::soda::{RotationConfig, SodaConfig, Structure};
use soda_adapters::{
    Adapter as _, AdapterState, AnyAdapter, MergeRule, Method as _, MethodConfig, Plan,
    TimestepMask, attach_all, for_inference,
};
use soda_kernels::{linear_deferred, matmul, with_timesteps};

/// The tolerance relative to the largest output: sums of 30 products in f32.
const TOLERANCE: f64 = 2e-6;

fn masked(init: LoraInit) -> MethodConfig {
    LoraConfig { rank: 4, alpha: Some(6.0), init, ..LoraConfig::t_lora() }.into()
}

fn subspace() -> MethodConfig {
    let mask = TimestepMask { min_rank: 2, alpha: 1.0 };
    let mut config = SodaConfig { timestep_mask: Some(mask), ..SodaConfig::subspace() };
    if let Some(rotation) = &mut config.rotation {
        rotation.rank = Some(4);
    }
    if let Some(spectrum) = &mut config.spectrum {
        spectrum.rank = Some(6);
    }
    config.into()
}

fn at(timesteps: &[f32]) -> Tensor<1> {
    Tensor::from_floats(timesteps, &Device::default())
}

/// The adapted layer `to_k` on six rows, which are those of two samples.
fn forward(net: &Net, timesteps: [f32; 2]) -> Tensor<2> {
    let x = rows();
    with_timesteps(at(&timesteps), || linear_deferred(x, || net.to_k.weight.val(), None))
}

fn rows() -> Tensor<2> {
    let device = Device::default();
    Tensor::<1, burn::tensor::Int>::arange(0..180, &device)
        .float()
        .mul_scalar(0.7)
        .sin()
        .reshape([6, 30])
}

/// The trained adapters of `adapted` as a plan.
fn trained(method: &MethodConfig, net: &Net, adapted: &Net) -> Plan<AnyAdapter> {
    AdapterState::capture(recipe(method, net), adapted).plan(net).unwrap()
}

/// Timestep 1000 has the first direction of four, 600 has `⌊3 · 0.4⌋ + 1 = 2`, 0 has all.
#[test]
fn each_sample_has_the_directions_of_its_timestep() {
    let method = masked(LoraInit::Kaiming);
    let net = Net::new();
    let adapted = disturb(&method, plan(&method, &net).attach(net.clone()));
    let plan = trained(&method, &net, &adapted);
    let (a, b) = plan.adapters()["to_k.weight"].low_rank().unwrap();
    let expected = |x: Tensor<2>, active: usize| {
        let change = matmul(
            matmul(x.clone(), a.clone().narrow(1, 0, active)),
            b.clone().narrow(0, 0, active),
        );
        matmul(x, net.to_k.weight.val()) + change
    };
    let (first, second) = (rows().narrow(0, 0, 3), rows().narrow(0, 3, 3));
    for (timesteps, active) in [([1000.0, 600.0], [1, 2]), ([0.0, 1000.0], [4, 1])] {
        let expected = [expected(first.clone(), active[0]), expected(second.clone(), active[1])];
        let error = difference(forward(&adapted, timesteps), Tensor::cat(expected.to_vec(), 0));
        assert!(error < TOLERANCE, "{timesteps:?}: {error:e}");
    }
}

#[test]
fn an_initial_adapter_is_the_base_at_every_timestep() {
    for method in [masked(LoraInit::Kaiming), masked(LoraInit::Pissa), subspace()] {
        let net = Net::new();
        let adapted = plan(&method, &net).attach(net.clone());
        let error = difference(forward(&adapted, [900.0, 300.0]), forward(&net, [900.0, 300.0]));
        assert!(error < TOLERANCE, "{method:?}: {error:e}");
    }
}

/// At the timestep 0 the mask has all directions, and the adapted weight is that of the method without it.
#[test]
fn at_timestep_zero_the_rows_see_the_adapted_weight() {
    for method in [masked(LoraInit::Pissa), subspace()] {
        let net = Net::new();
        let adapted = disturb(&method, plan(&method, &net).attach(net));
        let weight = adapted.clone().materialize();
        let [now, later] = [[0.0; 2], [800.0; 2]].map(|t| forward(&adapted, t));
        let expected = forward(&weight, [0.0; 2]);
        assert!(difference(now, expected.clone()) < TOLERANCE, "{method:?}");
        assert!(difference(later, expected) > 1e-3, "{method:?}");
        let kept = for_inference(adapted.clone(), &method);
        assert_eq!(difference(forward(&kept, [800.0; 2]), forward(&adapted, [800.0; 2])), 0.0);
    }
}

#[test]
fn masked_directions_get_no_gradient() {
    let method = masked(LoraInit::Kaiming);
    let net = Net::new();
    let adapted = disturb(&method, plan(&method, &net).attach(net)).train();
    let x = Tensor::from_inner(rows());
    let timesteps = Tensor::from_inner(at(&[1000.0, 900.0]));
    let y = with_timesteps(timesteps, || linear_deferred(x, || adapted.to_k.weight.val(), None));
    let grads = gradients(&adapted, &y.square().sum().backward());
    // `b` is [4, 20], and only its first row is in use.
    let b = &grads["to_k.weight.adapter.b"];
    assert!(b[..20].iter().any(|g| *g != 0.0));
    assert!(b[20..].iter().all(|g| *g == 0.0));
}

#[test]
fn several_adapters_add_their_masked_changes() {
    let (method, other): (_, MethodConfig) =
        (masked(LoraInit::Kaiming), OftConfig { block_size: 4, ..OftConfig::default() }.into());
    let net = Net::new();
    let adapted = |method| disturb(method, plan(method, &net).attach(net.clone()));
    let (masked, rotated) = (adapted(&method), adapted(&other));
    let plans = [(trained(&method, &net, &masked), 0.5), (trained(&other, &net, &rotated), 2.0)];
    let both = attach_all(plans, net.clone());
    let timesteps = [700.0, 100.0];
    let base = forward(&net, timesteps);
    let change = |net: &Net| forward(net, timesteps) - base.clone();
    let expected = base.clone() + change(&masked) * 0.5 + change(&rotated) * 2.0;
    let error = difference(forward(&both, timesteps), expected);
    assert!(error < TOLERANCE, "{error:e}");
}

#[test]
fn what_has_no_timestep_is_refused_by_name() {
    let net = Net::new();
    let refused =
        |method: MethodConfig| method.plan(&targets(), &net).map(drop).unwrap_err().to_string();
    assert!(refused(masked(LoraInit::Kaiming)).contains("conv.weight is a convolution"));
    let dora = LoraConfig { dora: true, ..LoraConfig::t_lora() };
    assert!(refused(dora.into()).contains("`dora` exclude each other"));
    let kronecker = RotationConfig { structure: Structure::Kronecker, ..RotationConfig::default() };
    let mask = Some(TimestepMask::default());
    let soda =
        SodaConfig { rotation: Some(kronecker), timestep_mask: mask, ..SodaConfig::subspace() };
    assert!(refused(soda.into()).contains("belongs to a rotation of a subspace"));
    for alpha in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let mask = Some(TimestepMask { alpha, min_rank: 1 });
        let lora = LoraConfig { timestep_mask: mask, ..LoraConfig::default() };
        assert!(refused(lora.into()).contains("timestep_mask.alpha"), "{alpha}");
    }
    let method = masked(LoraInit::Kaiming);
    let plans = || (plan(&method, &net), 1.0);
    let error = Plan::merge([plans(), plans()], MergeRule::Geodesic { restore: 0.0 }).unwrap_err();
    assert!(error.to_string().contains("no common form"), "{error}");
}
