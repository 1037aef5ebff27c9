//! Laws of merging: one adapter alone is itself, a mean of equals is the same, rotations stay rotations,
//! composing is applying in turn, and what cannot be merged is named.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use burn::tensor::Tensor;
use common::{Input, Net, difference, disturb, recipe, targets};
use soda_adapters::blocks::CayleyForm;
use soda_adapters::lora::LoraConfig;
use soda_adapters::merge::{Combine, combine};
use soda_adapters::oft::OftConfig;
use soda_adapters::soda::SodaConfig;
use soda_adapters::{Adaptation, AnyAdapter, Method as _, MethodConfig, Plan, attach_all};

const GEODESIC: Combine = Combine::Geodesic { restore: 0.0 };

fn trained(method: &MethodConfig, net: &Net) -> Plan<AnyAdapter> {
    let adapted = disturb(method, method.plan(&targets(), net).unwrap().attach(net.clone()));
    Adaptation::capture(recipe(method, net), &adapted).plan(net).unwrap()
}

fn methods() -> [MethodConfig; 5] {
    let oft = OftConfig { block_size: 4, cayley: CayleyForm::Exact, ..OftConfig::default() };
    [
        SodaConfig::default().into(),
        SodaConfig::qr().into(),
        SodaConfig::rotation_only().into(),
        oft.into(),
        LoraConfig { rank: 3, ..LoraConfig::default() }.into(),
    ]
}

fn weight(plan: Plan<AnyAdapter>, net: &Net) -> Tensor<2> {
    plan.attach(net.clone()).to_q.weight.val()
}

#[test]
fn one_alone_is_itself_at_its_strength() {
    let (net, input) = (Net::new(), Input::new());
    for method in methods() {
        let (first, second) = (trained(&method, &net), trained(&method, &net));
        for how in [GEODESIC, Combine::Compose, Combine::Geodesic { restore: 1.0 }] {
            let merged = combine([(first.clone(), 0.7), (second.clone(), 0.0)], how).unwrap();
            let alone = first.clone().at_strength(0.7).unwrap();
            let (merged, alone) = (merged.attach(net.clone()), alone.attach(net.clone()));
            // Two logarithms and an exponential in f64, rounded to f32.
            let error = difference(merged.forward(&input), alone.forward(&input));
            assert!(error < 1e-5, "{} {how:?}: {error:.1e}", method.name());
        }
    }
}

#[test]
fn a_mean_of_equals_is_the_same() {
    let net = Net::new();
    for method in methods() {
        let plan = trained(&method, &net);
        let merged = combine([(plan.clone(), 0.3), (plan.clone(), 0.7)], GEODESIC).unwrap();
        assert!(difference(weight(merged, &net), weight(plan, &net)) < 1e-5, "{}", method.name());
    }
}

#[test]
fn rotations_stay_rotations_where_residuals_shrink() {
    let net = Net::new();
    let norm = |w: Tensor<2>| w.square().sum().sqrt().into_scalar::<f64>();
    let base = norm(net.to_q.weight.val());
    for method in [&methods()[2], &methods()[3]] {
        let plans = [(trained(method, &net), 0.5), (trained(method, &net), 0.5)];
        for how in [GEODESIC, Combine::Compose, Combine::Geodesic { restore: 1.0 }] {
            let merged = weight(combine(plans.clone(), how).unwrap(), &net);
            assert!((norm(merged) / base - 1.0).abs() < 1e-5, "{} {how:?}", method.name());
        }
        let residual = attach_all(plans, net.clone()).to_q.weight.val();
        assert!(norm(residual) / base < 0.999, "{}", method.name());
    }
}

#[test]
fn composing_is_applying_in_turn() {
    let net = Net::new();
    let method = &methods()[2];
    let (first, second) = (trained(method, &net), trained(method, &net));
    let once = second.clone().attach(net.clone()).to_q.weight.val();
    let adapter = &first.adapters()["to_q.weight"];
    let twice = soda_adapters::Adapter::apply(adapter, once);
    let composed = combine([(first.clone(), 1.0), (second, 1.0)], Combine::Compose).unwrap();
    assert!(difference(weight(composed, &net), twice) < 1e-5);
}

#[test]
fn restoring_turns_as_far_as_the_parts() {
    let net = Net::new();
    let method = &methods()[2];
    let (first, second) = (trained(method, &net), trained(method, &net));
    let turn = |plan: &Plan<AnyAdapter>| -> Vec<f64> {
        let AnyAdapter::Soda(soda) = &plan.adapters()["to_q.weight"] else { panic!("SODA") };
        let log = |factor: Tensor<2>| soda_linalg::rotation_log(&factor).unwrap();
        let norm = |log: Tensor<2>| log.square().sum().sqrt().into_scalar::<f64>();
        soda.rotation.as_ref().unwrap().factors().into_iter().map(log).map(norm).collect()
    };
    let at = |restore| {
        let plans = [(first.clone(), 0.5), (second.clone(), 0.5)];
        turn(&combine(plans, Combine::Geodesic { restore }).unwrap())
    };
    let parts: Vec<_> =
        turn(&first).iter().zip(turn(&second)).map(|(a, b)| 0.5 * a + 0.5 * b).collect();
    for ((plain, restored), parts) in at(0.0).iter().zip(at(1.0)).zip(parts) {
        assert!((restored - parts).abs() < 1e-4 * parts, "{restored} for {parts}");
        // A 2 x 2 rotation has one plane, in which nothing cancels but opposite turns.
        assert!(*plain <= parts * 1.0001, "{plain} of {parts}");
    }
}

#[test]
fn what_has_no_common_form_is_named() {
    let net = Net::new();
    let [soda, qr, _, oft, lora] = methods();
    let dora = MethodConfig::from(LoraConfig::dora());
    for (first, second) in [(&soda, &qr), (&soda, &oft), (&lora, &oft), (&dora, &dora)] {
        let plans = [(trained(first, &net), 1.0), (trained(second, &net), 1.0)];
        let message = combine(plans, GEODESIC).unwrap_err().to_string();
        assert!(message.contains("conv.weight") && message.contains("residuals"), "{message}");
    }
}
