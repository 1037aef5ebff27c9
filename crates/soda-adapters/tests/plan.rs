//! A plan decomposes many weights at once, with the same bits for each weight as alone.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, TensorData};
use soda_adapters::lora::LoraConfig;
use soda_adapters::soda::{RotationConfig, SodaConfig};
use soda_adapters::{AdapterState, Method, PlanOptions, Recipe, Targets};
use soda_linalg::SvdCache;

/// More layers than one batch of decompositions, of three alternating shapes.
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

/// The adapted weights, which depend on the singular vectors because the initial shift is 1e-3, and the
/// progress.
fn planned(
    net: &Net,
    targets: &Targets,
    cache: Option<&SvdCache>,
) -> (Vec<TensorData>, Vec<[usize; 2]>) {
    let mut progress = Vec::new();
    let mut on_progress = |done, total| progress.push([done, total]);
    let mut options =
        PlanOptions { cache, on_progress: Some(&mut on_progress), ..PlanOptions::default() };
    let plan = SodaConfig::paper().plan_with(targets, net, &mut options).unwrap();
    (weights(&plan.attach(net.clone())), progress)
}

#[test]
fn a_weight_of_a_plan_has_the_decomposition_that_it_has_alone() {
    let (net, all) = (net(), Targets(vec![r"weight$".to_owned()]));
    let (found, progress) = planned(&net, &all, None);
    assert_eq!(progress, [[64, LAYERS], [128, LAYERS], [LAYERS, LAYERS]]);
    for i in (0..LAYERS).step_by(7) {
        let path = format!("layers.{i}.weight");
        let (alone, _) = planned(&net, &Targets::from_paths([path.as_str()]), None);
        assert_eq!(alone[i], found[i], "{path}");
        assert_ne!(alone[i], net.layers[i].weight.val().into_data(), "{path}");
    }
}

#[test]
fn neither_the_cache_nor_the_number_of_threads_changes_a_bit() {
    let (net, all) = (net(), Targets(vec![r"weight$".to_owned()]));
    let (direct, progress) = planned(&net, &all, None);
    let folder = tempfile::tempdir().unwrap();
    let cache = SvdCache::new(folder.path());
    assert_eq!(planned(&net, &all, Some(&cache)), (direct.clone(), progress.clone()));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), LAYERS);
    assert_eq!(planned(&net, &all, Some(&cache)), (direct.clone(), progress.clone()));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    assert_eq!(pool.install(|| planned(&net, &all, None)), (direct, progress));
}

#[test]
fn a_method_without_decompositions_reports_no_progress() {
    let (net, all) = (net(), Targets(vec![r"weight$".to_owned()]));
    let mut on_progress = |_, _| panic!("nothing is decomposed");
    let mut options = PlanOptions { on_progress: Some(&mut on_progress), ..PlanOptions::default() };
    LoraConfig::default().plan_with(&all, &net, &mut options).unwrap();
}

/// A width with configured sizes has factors of these sizes, any other width the most even ones.
#[test]
fn factors_have_the_configured_sizes() {
    let sizes = |sizes: Vec<Vec<usize>>| {
        let rotation = RotationConfig { factors: 2, sizes, ..RotationConfig::default() };
        let method = SodaConfig { rotation: Some(rotation), ..SodaConfig::rotation_only() };
        let (net, all) = (net(), Targets(vec![r"layers\.[01]\.weight$".to_owned()]));
        let plan = method.plan(&all, &net).map_err(|error| error.to_string())?;
        let recipe = Recipe::new(method, all, &net).unwrap();
        Ok::<_, String>(AdapterState::capture(recipe, &plan.attach(net)).factor_sizes())
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
