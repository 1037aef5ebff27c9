//! A plan decomposes many weights at once: each gets its own factors, the same to the bit however they were computed.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, TensorData};
use soda_adapters::lora::LoraConfig;
use soda_adapters::soda::{RotationConfig, SodaConfig};
use soda_adapters::{Adaptation, Method, Recipe, SvdCache, Targets};

/// More layers than are decomposed together, of three shapes that take turns.
#[derive(Module, Debug)]
struct Net {
    layers: Vec<Linear>,
}

const LAYERS: usize = 150;

fn net() -> Net {
    let shapes = [(9, 6), (6, 9), (7, 7)];
    let layer = |i: usize| {
        let (input, output) = shapes[i % 3];
        LinearConfig::new(input, output).init(&Device::default())
    };
    Net { layers: (0..LAYERS).map(layer).collect() }
}

fn weights(net: &Net) -> Vec<TensorData> {
    net.layers.iter().map(|layer| layer.weight.val().into_data()).collect()
}

/// The effective weights, which show their bases: the shift starts at 1e-3.
fn planned(
    net: &Net,
    targets: &Targets,
    cache: Option<&SvdCache>,
) -> (Vec<TensorData>, Vec<[usize; 2]>) {
    let mut heard = Vec::new();
    let mut listen = |done, all| heard.push([done, all]);
    let plan = SodaConfig::paper().plan_with(targets, net, cache, &mut listen).unwrap();
    (weights(&plan.attach(net.clone())), heard)
}

#[test]
fn a_weight_in_a_plan_is_decomposed_as_if_alone() {
    let (net, all) = (net(), Targets(vec![r"weight$".to_owned()]));
    let (found, heard) = planned(&net, &all, None);
    assert_eq!(heard, [[64, LAYERS], [128, LAYERS], [LAYERS, LAYERS]]);
    for i in (0..LAYERS).step_by(7) {
        let path = format!("layers.{i}.weight");
        let (alone, _) = planned(&net, &Targets::paths([path.as_str()]), None);
        assert_eq!(alone[i], found[i], "{path}");
        assert_ne!(alone[i], net.layers[i].weight.val().into_data(), "{path}");
    }
}

#[test]
fn neither_the_cache_nor_the_number_of_threads_changes_a_bit() {
    let (net, all) = (net(), Targets(vec![r"weight$".to_owned()]));
    let (direct, heard) = planned(&net, &all, None);
    let folder = tempfile::tempdir().unwrap();
    let cache = SvdCache::new(folder.path());
    assert_eq!(planned(&net, &all, Some(&cache)), (direct.clone(), heard.clone()));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), LAYERS);
    assert_eq!(planned(&net, &all, Some(&cache)), (direct.clone(), heard.clone()));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    assert_eq!(pool.install(|| planned(&net, &all, None)), (direct, heard));
}

#[test]
fn what_needs_no_decomposition_says_nothing() {
    let (net, all) = (net(), Targets(vec![r"weight$".to_owned()]));
    let mut listen = |_, _| panic!("nothing is decomposed");
    LoraConfig::default().plan_with(&all, &net, None, &mut listen).unwrap();
}

/// A width whose factors are named has these, and any other the most even ones.
#[test]
fn named_sizes_are_those_of_the_factors() {
    let sizes = |sizes: Vec<Vec<usize>>| {
        let rotation = RotationConfig { factors: 2, sizes, ..RotationConfig::default() };
        let method = SodaConfig { rotation: Some(rotation), spectrum: None };
        let (net, all) = (net(), Targets(vec![r"layers\.[01]\.weight$".to_owned()]));
        let plan = method.plan(&all, &net).map_err(|error| error.to_string())?;
        let recipe = Recipe::new(method, all, &net).unwrap();
        Ok::<_, String>(Adaptation::capture(recipe, &plan.attach(net)).factor_sizes())
    };
    let even = [(6, vec![2, 3]), (9, vec![3, 3])];
    assert_eq!(sizes(vec![]), Ok(even.clone().into()));
    let named = [even[0].clone(), (9, vec![9])];
    assert_eq!(sizes(vec![vec![9], vec![5, 5]]), Ok(named.into()));
    for wrong in [vec![], vec![0, 9]] {
        let message = sizes(vec![wrong]).unwrap_err();
        assert!(message.contains("sizes of factors"), "{message}");
    }
}
