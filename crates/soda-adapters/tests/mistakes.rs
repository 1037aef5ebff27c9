//! Errors of targets, settings and states name the mistake.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use burn::module::Module;
use burn::tensor::TensorData;
use common::{Net, recipe, targets};
use soda_adapters::lora::LoraConfig;
use soda_adapters::soda::SodaConfig;
use soda_adapters::{AdapterError, AdapterState, Method, MethodConfig, Targets};

fn check(result: Result<(), AdapterError>, needle: &str) {
    let message = result.unwrap_err().to_string();
    assert!(message.contains(needle), "{message}");
}

#[test]
fn unusable_targets_and_settings_are_named() {
    let net = Net::new();
    let method = SodaConfig::default();
    let plan = |pattern: &str| method.plan(&Targets(vec![pattern.into()]), &net).map(drop);
    check(plan("to_z"), "`to_z` matches no weight");
    check(plan("("), "not a regular expression");
    check(plan("bias"), "rank 4");
    check(method.plan(&Targets(Vec::new()), &net).map(drop), "all-linear, conv");
    check(method.plan(&targets(), &net.clone().train()).map(drop), "autodiff");
    let nothing = SodaConfig { rotation: None, spectrum: None, ..SodaConfig::default() };
    check(nothing.plan(&targets(), &net).map(drop), "trains nothing");
    let lora = |lora: LoraConfig| lora.plan(&targets(), &net).map(drop);
    check(lora(LoraConfig { rank: 0, ..LoraConfig::default() }), "at least 1");
    let ranks = [("(".to_owned(), 3)].into();
    check(lora(LoraConfig { rank_pattern: ranks, ..LoraConfig::default() }), "`(`");
}

#[test]
fn a_state_that_does_not_fit_is_named() {
    let net = Net::new();
    let method = MethodConfig::default();
    let adapted = method.plan(&targets(), &net).unwrap().attach(net.clone());
    let good = AdapterState::capture(recipe(&method, &net), &adapted);
    let broken = |change: &dyn Fn(&mut AdapterState)| {
        let mut state = good.clone();
        change(&mut state);
        state.attach(net.clone()).map(drop)
    };
    let first = good.tensors.keys().next().unwrap().clone();
    check(good.attach(Net::new()).map(drop), "was trained on base");
    check(broken(&|state| state.recipe.method = LoraConfig::default().into()), "missing");
    check(broken(&|state| drop(state.tensors.remove(&first))), &first);
    check(
        broken(&|state| {
            let data = state.tensors[&first].clone();
            state.tensors.insert("stray".into(), data);
        }),
        "stray",
    );
    let short = TensorData::from([1.0f32]);
    check(
        broken(&|state| drop(state.tensors.insert(first.clone(), short.clone()))),
        "has shape [1]",
    );
    let factor = good.tensors.keys().find(|key| key.contains("rotation")).unwrap().clone();
    check(
        broken(&|state| {
            let data = &state.tensors[&factor];
            let values: Vec<f32> = data.iter::<f32>().map(|value| value * 1.1).collect();
            let data = TensorData::new(values, data.shape());
            state.tensors.insert(factor.clone(), data);
        }),
        "not orthogonal",
    );
    check(
        broken(&|state| {
            let shape = state.tensors[&factor].shape();
            let values = vec![f32::NAN; shape.num_elements()];
            state.tensors.insert(factor.clone(), TensorData::new(values, shape));
        }),
        "not orthogonal (max |QᵀQ - I| = NaN)",
    );
}
