//! Rotations of subspaces and the calibration that places them, against dense formulas in f64.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::{DType, Device, Tensor, TensorData};
use common::{
    Input, Net, calibrate, difference, disturb, gradients, plan, recipe, targets, values,
};
use soda_adapters::full::FullConfig;
use soda_adapters::soda::{
    Rotation, RotationConfig, Selection, Side, Soda, SodaConfig, SpectrumConfig, Structure,
    Subspace,
};
use soda_adapters::{
    Adapter as _, AdapterState, MergeRule, Method as _, Plan, PlanOptions, Probe, Targets,
};
use soda_kernels::matmul;
use soda_linalg::{Svd, rotation_exp, rotation_log};
use soda_testing::relative_error;

/// A rotation of subspaces of dimension `rank` and the shift of 3 singular values.
fn subspaces(subspace: Subspace, side: Side, rank: usize) -> SodaConfig {
    SodaConfig {
        rotation: Some(RotationConfig {
            structure: Structure::Subspace,
            subspace: Some(subspace),
            rank: Some(rank),
            side,
            ..RotationConfig::default()
        }),
        spectrum: Some(SpectrumConfig {
            rank: Some(3),
            select: Some(Selection::Gradient),
            ..SpectrumConfig::default()
        }),
        ..SodaConfig::default()
    }
}

fn f64_supported() -> bool {
    Device::default().supports_dtype(DType::F64)
}

fn eye(n: usize) -> Tensor<2> {
    Tensor::<2>::eye(n, &Device::default()).cast(DType::F64)
}

/// `I + Q (R - I) Qᵀ`, formed.
fn dense(rotation: &Rotation) -> Tensor<2> {
    let (q, r) = (rotation.basis.as_ref().unwrap().val(), rotation.factors().remove(0));
    let [n, rank] = q.dims();
    eye(n) + matmul(matmul(q.clone(), r - eye(rank)), q.transpose())
}

/// `R (W0 + L Δ Bᵀ) R'`, formed.
fn formula(soda: &Soda, w: &Tensor<2>) -> Tensor<2> {
    let spectrum = soda.truncated_spectrum.as_ref().unwrap();
    let shift = spectrum.delta.val().max_pair(spectrum.s.val().neg());
    let columns = spectrum.left.val() * shift.unsqueeze_dim(0);
    let mut w = w.clone() + matmul(columns, spectrum.right.val().transpose());
    if let Some(rotation) = &soda.rotation {
        w = matmul(dense(rotation), w);
    }
    if let Some(rotation) = &soda.output_rotation {
        w = matmul(w, dense(rotation));
    }
    w
}

fn trained(method: &SodaConfig, net: &Net) -> Plan<Soda> {
    let adapted = disturb(method, plan(method, net).attach(net.clone()));
    AdapterState::capture(recipe(method, net), &adapted).plan(net).unwrap()
}

/// A low-rank change of the rank of its parts is the dense formula. The states hold f32 values, whose bases
/// are orthonormal to 1e-7; the tolerance is that of f64.
#[test]
fn the_low_rank_change_is_the_dense_formula() {
    if !f64_supported() {
        return;
    }
    for (side, rank) in [(Side::Input, 5), (Side::Output, 5), (Side::Both, 7)] {
        let net = Net::new().cast(DType::F64);
        let plan = trained(&subspaces(Subspace::Gradient, side, 2), &net);
        for (path, adapter) in plan.adapters() {
            let w = match path.as_str() {
                "to_q.weight" => net.to_q.weight.val(),
                "to_k.weight" => net.to_k.weight.val(),
                _ => net.conv.weight.val().reshape([6, 36]).transpose(),
            };
            let (a, b) = adapter.low_rank().unwrap();
            assert_eq!(a.dims()[1], rank, "{path}");
            let found = w.clone() + matmul(a, b);
            let error = difference(found.clone(), formula(adapter, &w));
            assert!(error < 1e-12, "{side:?} {path}: {error:.1e}");
            assert!(difference(found, w) > 1e-3, "{path} was trained");
        }
    }
}

/// An input with two rows that are not zero, so that the gradient of a weight has rank 2.
fn two_rows() -> Input {
    let input = Input::new().cast(DType::F64);
    let mask = Tensor::<1>::from_floats([1., 0., 1., 0., 0., 0., 0.], &Device::default());
    Input { q: input.q * mask.cast(DType::F64).unsqueeze_dim(1), ..input }
}

/// The gradient of the loss by `to_q`, `[in, out]`, from full fine-tuning on the same input.
fn weight_gradient(net: &Net, input: &Input) -> Tensor<2> {
    let full = FullConfig::default().plan(&targets(), net).unwrap().attach(net.clone()).train();
    let grads = full.forward(&input.on_tape()).square().sum().backward();
    let all = gradients(&full, &grads);
    let (_, gradient) = all.into_iter().find(|(path, _)| path.starts_with("to_q.")).unwrap();
    Tensor::from_data(TensorData::new(gradient, [12, 20]), (&Device::default(), DType::F64))
}

/// The adapter of `to_q` with directions that were measured on one input.
fn measured(method: &SodaConfig, net: &Net, input: &Input) -> Soda {
    let to_q = Targets(vec![r"^to_q\.weight$".to_owned()]);
    let calibration = calibrate(method, &to_q, net, input);
    let mut options = PlanOptions { calibration: calibration.as_ref(), ..PlanOptions::default() };
    let plan = method.plan_with(&to_q, net, &mut options).unwrap();
    plan.adapters()["to_q.weight"].clone()
}

/// The part of `a` outside of the columns of `q`, relative to `a`.
fn outside(q: Tensor<2>, a: &Tensor<2>) -> f64 {
    let inside = matmul(q.clone(), matmul(q.transpose(), a.clone()));
    difference(inside, a.clone())
}

fn bases(soda: &Soda) -> [Tensor<2>; 2] {
    let basis =
        |rotation: &Option<Rotation>| rotation.as_ref().unwrap().basis.as_ref().unwrap().val();
    [basis(&soda.rotation), basis(&soda.output_rotation)]
}

/// Two rows give a skew gradient of rank 4, all of which a subspace of dimension 4 holds. Gradients are
/// rounded to f32 on the way.
#[test]
fn a_gradient_subspace_holds_the_skew_gradient() {
    if !f64_supported() {
        return;
    }
    let (net, input) = (Net::new().cast(DType::F64), two_rows());
    let soda = measured(&subspaces(Subspace::Gradient, Side::Both, 4), &net, &input);
    let (w, g) = (net.to_q.weight.val(), weight_gradient(&net, &input));
    let skew = |d: Tensor<2>| d.clone() - d.transpose();
    let input_side = skew(matmul(g.clone(), w.clone().transpose()));
    let output_side = skew(matmul(w.clone().transpose(), g.clone()));
    let [q, output_q] = bases(&soda);
    assert!(difference(matmul(q.clone().transpose(), q.clone()), eye(4)) < 1e-6);
    for (q, k) in [(q, input_side), (output_q, output_side)] {
        let error = outside(q, &k);
        assert!(error < 1e-5, "{error:.1e}");
    }
    // The selected singular values are those with the largest gradients.
    let svd = Svd::thin(&w).unwrap();
    let sizes = matmul(matmul(svd.u.transpose(), g), svd.vt.transpose());
    let sizes: Vec<f64> = values(sizes);
    let sizes: Vec<f64> = (0..12).map(|i| sizes[i * 12 + i].abs()).collect();
    let mut order: Vec<usize> = (0..12).collect();
    order.sort_by(|a, b| sizes[*b].total_cmp(&sizes[*a]));
    let mut chosen = order[..3].to_vec();
    chosen.sort_unstable();
    let s: Vec<f64> = values(svd.s);
    let expected: Vec<f64> = chosen.into_iter().map(|i| s[i]).collect();
    let found: Vec<f64> = values(soda.truncated_spectrum.unwrap().s.val());
    assert!(relative_error(&found, &expected) < 1e-6, "{found:?} {expected:?}");
}

#[test]
fn a_subspace_of_the_activations_holds_the_rows() {
    if !f64_supported() {
        return;
    }
    let (net, input) = (Net::new().cast(DType::F64), two_rows());
    let method = SodaConfig { spectrum: None, ..subspaces(Subspace::Activations, Side::Both, 2) };
    let to_q = Targets(vec![r"^to_q\.weight$".to_owned()]);
    let probes = method.plan_probes(&to_q, &net, &mut PlanOptions::default()).unwrap();
    let probed = probes.clone().attach(net.clone()).train();
    let rows = Tensor::from_inner(input.q.clone());
    // As the networks of this workspace call a layer: the adapter sees the rows.
    let output = soda_kernels::linear_deferred(rows, || probed.to_q.weight.val(), None);
    let grads = gradients(&probed, &output.square().sum().backward());
    let data = |side: &str, n: usize| {
        let grad = grads[&format!("to_q.weight.adapter.{side}.y")].clone();
        (format!("to_q.weight.{side}.y"), TensorData::new(grad, [n, 10]))
    };
    let data = BTreeMap::from([data("input", 12), data("output", 20)]);
    let calibration = Probe::measure(probes.adapters(), &data).unwrap();
    let mut options = PlanOptions { calibration: Some(&calibration), ..PlanOptions::default() };
    let plan = method.plan_with(&to_q, &net, &mut options).unwrap();
    let soda = plan.adapters()["to_q.weight"].clone();
    let outputs = matmul(input.q.clone(), net.to_q.weight.val());
    let [q, output_q] = bases(&soda);
    for (q, rows) in [(q, input.q.transpose()), (output_q, outputs.transpose())] {
        let error = outside(q, &rows);
        assert!(error < 1e-5, "{error:.1e}");
    }
    let unseen = Probe::measure(probes.adapters(), &BTreeMap::new()).unwrap_err();
    assert!(unseen.to_string().contains("to_q.weight does not show"), "{unseen}");
    let error = method.plan_probes(&targets(), &net, &mut PlanOptions::default()).unwrap_err();
    assert!(error.to_string().contains("conv.weight does not show"), "{error}");
}

/// A loss may not reach a layer. Its directions are any orthonormal ones.
#[test]
fn a_gradient_of_zero_gives_orthonormal_directions() {
    let (net, method) = (Net::new(), subspaces(Subspace::Gradient, Side::Both, 4));
    let probes = method.plan_probes(&targets(), &net, &mut PlanOptions::default()).unwrap();
    let calibration = Probe::measure(probes.adapters(), &BTreeMap::new()).unwrap();
    let mut options = PlanOptions { calibration: Some(&calibration), ..PlanOptions::default() };
    let plan = method.plan_with(&targets(), &net, &mut options).unwrap();
    for q in plan.adapters().values().flat_map(bases) {
        let gram = matmul(q.clone().transpose(), q).cast(DType::F32);
        assert!(difference(gram, Tensor::eye(4, &Device::default())) < 2e-6);
    }
}

/// A rank above the one for all has as many measured directions, and a rank of 0 is no rotation.
#[test]
fn ranks_of_single_weights_replace_the_one_for_all() {
    let (net, mut method) = (Net::new(), subspaces(Subspace::Gradient, Side::Both, 2));
    let rotation = method.rotation.as_mut().unwrap();
    rotation.ranks = [("to_q.weight", 12), ("to_k.weight.output", 20), ("to_k.weight", 0)]
        .map(|(path, rank)| (path.to_owned(), rank))
        .into();
    let plan = plan(&method, &net);
    let rank = |rotation: &Option<Rotation>| {
        rotation.as_ref().map(|rotation| rotation.basis.as_ref().unwrap().val().dims()[1])
    };
    let ranks = |path: &str| {
        let soda = &plan.adapters()[path];
        (rank(&soda.rotation), rank(&soda.output_rotation))
    };
    assert_eq!(ranks("to_q.weight"), (Some(12), Some(2)));
    assert_eq!(ranks("to_k.weight"), (None, Some(20)));
    assert_eq!(ranks("conv.weight"), (Some(2), Some(2)));
}

#[test]
fn a_method_that_is_calibrated_says_so_without() {
    let method = subspaces(Subspace::Gradient, Side::Input, 2);
    let error = method.plan(&targets(), &Net::new()).unwrap_err().to_string();
    assert!(error.contains("was not calibrated") && error.contains("weight"), "{error}");
}

/// Rotations of two subspaces, merged in the sum of the subspaces. The tolerance is that of a logarithm and
/// an exponential in f64 of factors that are orthogonal to 1e-7.
#[test]
fn subspaces_merge_in_their_sum() {
    if !f64_supported() {
        return;
    }
    let net = Net::new().cast(DType::F64);
    let method = SodaConfig { spectrum: None, ..subspaces(Subspace::Gradient, Side::Input, 2) };
    let (first, second) = (trained(&method, &net), trained(&method, &net));
    let merged = |weights: [f64; 2], rule| {
        let plans = [(first.clone(), weights[0]), (second.clone(), weights[1])];
        Plan::merge(plans, rule).unwrap().adapters()["to_k.weight"].clone()
    };
    let w = net.to_k.weight.val();
    let [one, two] = [&first, &second]
        .map(|plan| dense(plan.adapters()["to_k.weight"].rotation.as_ref().unwrap()));
    let only = merged([1.0, 0.0], MergeRule::Geodesic { restore: 0.0 }).apply(w.clone());
    assert!(difference(only, matmul(one.clone(), w.clone())) < 1e-6);
    let product = merged([1.0, 1.0], MergeRule::Compose).apply(w.clone());
    assert!(difference(product, matmul(matmul(one.clone(), two.clone()), w.clone())) < 1e-6);
    let mean = merged([0.5, 0.5], MergeRule::Geodesic { restore: 0.0 }).apply(w.clone());
    let half = |rotation: &Tensor<2>| rotation_log(rotation).unwrap().mul_scalar(0.5);
    let expected = rotation_exp(&(half(&one) + half(&two))).unwrap();
    assert!(difference(mean, matmul(expected, w)) < 1e-6);
}
