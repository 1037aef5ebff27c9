//! Laws of merging.
//!
//! - One adapter with a weight is the adapter at that strength.
//! - The mean of equal adapters is the adapter.
//! - Merged rotations are rotations.
//! - Composing is applying one adapter after the other.
//! - Adapters without a common form are an error that names the weight.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use burn::tensor::Tensor;
use common::{Input, Net, difference, disturb, plan, recipe};
use soda_adapters::lora::LoraConfig;
use soda_adapters::oft::OftConfig;
use soda_adapters::soda::SodaConfig;
use soda_adapters::{
    AdapterState, AnyAdapter, CayleyForm, MergeRule, Method as _, MethodConfig, Plan, attach_all,
};

const GEODESIC: MergeRule = MergeRule::Geodesic { restore: 0.0 };

fn trained(method: &MethodConfig, net: &Net) -> Plan<AnyAdapter> {
    let adapted = disturb(method, plan(method, net).attach(net.clone()));
    AdapterState::capture(recipe(method, net), &adapted).plan(net).unwrap()
}

fn methods() -> [MethodConfig; 6] {
    let oft = OftConfig { block_size: 4, cayley: CayleyForm::Exact, ..OftConfig::default() };
    [
        SodaConfig::default().into(),
        SodaConfig::qr().into(),
        SodaConfig::rotation_only().into(),
        oft.into(),
        LoraConfig { rank: 3, ..LoraConfig::default() }.into(),
        SodaConfig::subspace().into(),
    ]
}

fn weight(plan: Plan<AnyAdapter>, net: &Net) -> Tensor<2> {
    plan.attach(net.clone()).to_q.weight.val()
}

#[test]
fn one_adapter_with_a_weight_is_the_adapter_at_that_strength() {
    let (net, input) = (Net::new(), Input::new());
    for method in methods() {
        let (first, second) = (trained(&method, &net), trained(&method, &net));
        for rule in [GEODESIC, MergeRule::Compose, MergeRule::Geodesic { restore: 1.0 }] {
            let merged = Plan::merge([(first.clone(), 0.7), (second.clone(), 0.0)], rule).unwrap();
            let alone = first.clone().at_strength(0.7).unwrap();
            let (merged, alone) = (merged.attach(net.clone()), alone.attach(net.clone()));
            // Two logarithms and an exponential in f64, rounded to f32.
            let error = difference(merged.forward(&input), alone.forward(&input));
            assert!(error < 1e-5, "{} {rule:?}: {error:.1e}", method.name());
        }
    }
}

#[test]
fn the_mean_of_equal_adapters_is_the_adapter() {
    let net = Net::new();
    for method in methods() {
        let plan = trained(&method, &net);
        let merged = Plan::merge([(plan.clone(), 0.3), (plan.clone(), 0.7)], GEODESIC).unwrap();
        let error = difference(weight(merged, &net), weight(plan, &net));
        assert!(error < 1e-5, "{}: {error:.1e}", method.name());
    }
}

#[test]
fn merged_rotations_are_rotations_while_residuals_shrink() {
    let net = Net::new();
    let norm = |w: Tensor<2>| w.square().sum().sqrt().into_scalar::<f64>();
    let base = norm(net.to_q.weight.val());
    for method in [&methods()[2], &methods()[3]] {
        let plans = [(trained(method, &net), 0.5), (trained(method, &net), 0.5)];
        for rule in [GEODESIC, MergeRule::Compose, MergeRule::Geodesic { restore: 1.0 }] {
            let merged = weight(Plan::merge(plans.clone(), rule).unwrap(), &net);
            assert!((norm(merged) / base - 1.0).abs() < 1e-5, "{} {rule:?}", method.name());
        }
        let residual = attach_all(plans, net.clone()).to_q.weight.val();
        // Ten times as far from 1 as rotations may be. How far depends on the random rotations.
        let shrunk = norm(residual) / base;
        assert!(shrunk < 1.0 - 1e-4, "{}: {shrunk}", method.name());
    }
}

#[test]
fn composing_is_applying_one_after_the_other() {
    let net = Net::new();
    let method = &methods()[2];
    let (first, second) = (trained(method, &net), trained(method, &net));
    let once = second.clone().attach(net.clone()).to_q.weight.val();
    let adapter = &first.adapters()["to_q.weight"];
    let twice = soda_adapters::Adapter::apply(adapter, once);
    let composed = Plan::merge([(first.clone(), 1.0), (second, 1.0)], MergeRule::Compose).unwrap();
    assert!(difference(weight(composed, &net), twice) < 1e-5);
}

#[test]
fn restoring_gives_the_sum_of_the_angles() {
    let net = Net::new();
    let method = &methods()[2];
    let (first, second) = (trained(method, &net), trained(method, &net));
    let angles = |plan: &Plan<AnyAdapter>| -> Vec<f64> {
        let AnyAdapter::Soda(soda) = &plan.adapters()["to_q.weight"] else { panic!("SODA") };
        let log = |factor: Tensor<2>| soda_linalg::rotation_log(&factor).unwrap();
        let norm = |log: Tensor<2>| log.square().sum().sqrt().into_scalar::<f64>();
        soda.rotation.as_ref().unwrap().factors().into_iter().map(log).map(norm).collect()
    };
    let at = |restore| {
        let plans = [(first.clone(), 0.5), (second.clone(), 0.5)];
        angles(&Plan::merge(plans, MergeRule::Geodesic { restore }).unwrap())
    };
    let sums: Vec<_> =
        angles(&first).iter().zip(angles(&second)).map(|(a, b)| 0.5 * a + 0.5 * b).collect();
    for ((plain, restored), sum) in at(0.0).iter().zip(at(1.0)).zip(sums) {
        assert!((restored - sum).abs() < 1e-4 * sum, "{restored} for {sum}");
        // A 2 x 2 rotation has one plane, in which only opposite angles cancel.
        assert!(*plain <= sum * 1.0001, "{plain} of {sum}");
    }
}

#[test]
fn adapters_without_a_common_form_name_the_weight() {
    let net = Net::new();
    let [soda, qr, _, oft, lora, _] = methods();
    let dora = MethodConfig::from(LoraConfig::dora());
    for (first, second) in [(&soda, &qr), (&soda, &oft), (&lora, &oft), (&dora, &dora)] {
        let plans = [(trained(first, &net), 1.0), (trained(second, &net), 1.0)];
        let message = Plan::merge(plans, GEODESIC).unwrap_err().to_string();
        assert!(message.contains("conv.weight") && message.contains("residuals"), "{message}");
    }
}
