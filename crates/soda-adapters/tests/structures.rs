//! PSOFT, HRA and GSOFT against the formulas of their papers and of PEFT 0.21, and how rotations with a
//! permutation, reflections and scales merge.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use burn::tensor::{DType, Device, Tensor};
use common::{Net, difference, disturb, plan, recipe, targets, values};
use soda_adapters::soda::{
    Parametrization, RotationConfig, Side, Soda, SodaConfig, Structure, Subspace,
};
use soda_adapters::{Adapter as _, AdapterError, AdapterState, MergeRule, Method as _, Plan};
use soda_kernels::matmul;
use soda_testing::max_abs;

fn f64_supported() -> bool {
    Device::default().supports_dtype(DType::F64)
}

fn eye(n: usize) -> Tensor<2> {
    Tensor::<2>::eye(n, &Device::default()).cast(DType::F64)
}

fn trained(method: &SodaConfig, net: &Net) -> Plan<Soda> {
    let adapted = disturb(method, plan(method, net).attach(net.clone()));
    AdapterState::capture(recipe(method, net), &adapted).plan(net).unwrap()
}

fn net() -> Net {
    Net::new().cast(DType::F64)
}

fn of_rank(config: SodaConfig, rank: usize) -> SodaConfig {
    let rotation = config.rotation.map(|rotation| RotationConfig { rank: Some(rank), ..rotation });
    SodaConfig { rotation, ..config }
}

/// PEFT: `ΔW = B (diag(b) R diag(a) - I) A` with `W ≈ B A` of the leading singular triples, `A Aᵀ = I` and
/// `R = (I + Q)(I - Q)⁻¹`. The state holds f32 values, of which all are taken.
#[test]
fn psoft_is_that_of_peft() {
    if !f64_supported() {
        return;
    }
    let net = net();
    let plan = trained(&of_rank(SodaConfig::psoft(), 5), &net);
    let soda = &plan.adapters()["to_k.weight"];
    let w = net.to_k.weight.val();
    let rotation = soda.rotation.as_ref().unwrap();
    let scales = rotation.scales.as_ref().unwrap();
    let a = rotation.basis.as_ref().unwrap().val().transpose();
    let b = matmul(w.clone().transpose(), a.clone().transpose());
    let generator = rotation.generators[0].val();
    let q = (generator.clone().transpose() - generator).mul_scalar(0.5);
    let mut inverse = eye(5);
    for _ in 0..200 {
        inverse = eye(5) + matmul(q.clone(), inverse);
    }
    let r = matmul(eye(5) + q, inverse);
    let scaled = r * scales.output.val().unsqueeze_dim(1) * scales.input.val().unsqueeze_dim(0);
    let change = matmul(b, matmul(scaled - eye(5), a.clone()));
    let expected = w.clone() + change.transpose();
    let found = soda.apply(w.clone());
    assert!(difference(found.clone(), expected) < 1e-12);
    assert!(difference(found, w.clone()) > 1e-2, "it was trained");
    // `A` has the leading singular vectors, so that `A Aᵀ = I` and `W Aᵀ` has orthogonal columns.
    let gram = matmul(a.clone(), matmul(matmul(w.clone(), w.transpose()), a.transpose()));
    let diagonal = gram.clone() * eye(5);
    assert!(difference(gram, diagonal) < 1e-6);
    // The change is a LoRA of the rank of the subspace, without loss.
    assert_eq!(soda.low_rank().unwrap().0.dims()[1], 5);
}

/// PEFT: `W = W0 H_1 ⋯ H_r`, and on the stored weight `H_r ⋯ H_1 W0ᵀ`.
#[test]
fn hra_is_that_of_peft() {
    if !f64_supported() {
        return;
    }
    let net = net();
    let plan = trained(&of_rank(SodaConfig::hra(), 6), &net);
    let soda = &plan.adapters()["to_k.weight"];
    let u = soda.rotation.as_ref().unwrap().reflections.as_ref().unwrap().val();
    let w = net.to_k.weight.val();
    let mut expected = w.clone();
    for i in 0..6 {
        let column = u.clone().narrow(1, i, 1);
        let square = column.clone().square().sum().into_scalar::<f64>();
        let shadow = matmul(column.clone().transpose(), expected.clone());
        expected = expected - matmul(column, shadow).mul_scalar(2.0 / square);
    }
    let found = soda.apply(w.clone());
    assert!(difference(found.clone(), expected) < 1e-12);
    assert!(difference(found, w) > 1e-2, "it was trained");
}

/// As a state has it, in f32.
#[test]
fn rotations_are_orthogonal_to_rounding() {
    let net = Net::new();
    let mut gsoft = SodaConfig::gsoft();
    gsoft.rotation.as_mut().unwrap().block_size = Some(5);
    let permuted = SodaConfig { spectrum: None, ..SodaConfig::permuted() };
    for method in [SodaConfig::hra(), SodaConfig { output_scale: false, ..gsoft }, permuted] {
        let plan = trained(&method, &net);
        let identity = Tensor::<2>::eye(30, &Device::default());
        let r = plan.adapters()["to_k.weight"].apply(identity.clone());
        let gram = matmul(r.clone().transpose(), r.clone());
        let error = max_abs(values(gram - identity.clone()));
        assert!(error < 2e-6, "{method:?}: {error:.1e}");
        assert!(difference(r, identity) > 1e-2, "it was trained");
    }
}

/// A scale of the outputs comes after the rotation of the inputs.
#[test]
fn gsoft_scales_the_outputs_of_rotated_inputs() {
    if !f64_supported() {
        return;
    }
    let net = net();
    let mut method = SodaConfig::gsoft();
    method.rotation.as_mut().unwrap().block_size = Some(5);
    let plan = trained(&method, &net);
    let soda = &plan.adapters()["to_k.weight"];
    assert_eq!(soda.rotation.as_ref().unwrap().blocks.as_ref().unwrap().val().dims(), [6, 5, 5]);
    let w = net.to_k.weight.val();
    let scale = soda.output_scale.as_ref().unwrap().val();
    let found = soda.apply(w.clone()) / scale.unsqueeze_dim(0);
    // A rotation keeps the norm of every column.
    let norms = |w: Tensor<2>| w.square().sum_dim(0);
    assert!(difference(norms(found.clone()), norms(w.clone())) < 1e-12);
    assert!(difference(found, w) > 1e-2, "it was trained");
}

/// Ranks above a side of a weight are those of the side, in a plan and in the plan of a state.
#[test]
fn ranks_are_bounded_by_the_weight() {
    let net = Net::new();
    for method in [of_rank(SodaConfig::psoft(), 100), of_rank(SodaConfig::hra(), 100)] {
        trained(&method, &net);
    }
}

#[test]
fn settings_of_other_structures_are_refused_by_name() {
    let net = Net::new();
    let refusal = |rotation: RotationConfig| {
        let method = SodaConfig { rotation: Some(rotation), ..SodaConfig::default() };
        method.plan(&targets(), &net).map(drop).unwrap_err().to_string()
    };
    let of = |structure| RotationConfig { structure, ..RotationConfig::default() };
    let householder = || of(Structure::Householder);
    for (rotation, needle) in [
        (RotationConfig { scales: true, ..of(Structure::Kronecker) }, "`rotation.scales`"),
        (RotationConfig { rank: Some(4), ..of(Structure::GroupAndShuffle) }, "`rotation.rank`"),
        (RotationConfig { rank: Some(3), ..householder() }, "even"),
        (RotationConfig { block_size: Some(4), ..householder() }, "`rotation.block_size`"),
        (
            RotationConfig { block_size: Some(1), ..of(Structure::GroupAndShuffle) },
            "`rotation.block_size` is between 2 and 4096",
        ),
        (
            RotationConfig { parametrization: Parametrization::Cayley, ..householder() },
            "`rotation.parametrization`",
        ),
        (RotationConfig { seed: Some(1), ..of(Structure::Kronecker) }, "`rotation.seed`"),
        (
            RotationConfig { subspace: Some(Subspace::Principal), ..householder() },
            "`rotation.subspace`",
        ),
        (RotationConfig { numbers: Some(90), ..householder() }, "`rotation.numbers`"),
    ] {
        let message = refusal(rotation);
        assert!(message.contains(needle), "{message}");
    }
}

fn merged(
    plans: [&Plan<Soda>; 2],
    weights: [f64; 2],
    rule: MergeRule,
) -> Result<Plan<Soda>, AdapterError> {
    let [first, second] = plans;
    Plan::merge([(first.clone(), weights[0]), (second.clone(), weights[1])], rule)
}

/// The tolerance is that of a logarithm and an exponential in f64 of factors that are orthogonal to 1e-7.
#[test]
fn products_and_reflections_merge_where_they_have_a_common_form() {
    if !f64_supported() {
        return;
    }
    let net = net();
    let w = net.to_k.weight.val();
    let geodesic = MergeRule::Geodesic { restore: 0.0 };
    let mut gsoft = SodaConfig::gsoft();
    gsoft.rotation.as_mut().unwrap().block_size = Some(5);
    let mut permuted = SodaConfig::permuted();
    permuted.rotation.as_mut().unwrap().side = Side::Both;
    for (method, composes) in
        [(gsoft, false), (permuted, false), (of_rank(SodaConfig::hra(), 4), true)]
    {
        let (one, two) = (trained(&method, &net), trained(&method, &net));
        let apply = |plan: &Plan<Soda>| plan.adapters()["to_k.weight"].apply(w.clone());
        let only = apply(&merged([&one, &two], [1.0, 0.0], geodesic).unwrap());
        assert!(difference(only, apply(&one)) < 1e-6, "{method:?}");
        let same = apply(&merged([&one, &one], [0.3, 0.7], geodesic).unwrap());
        assert!(difference(same, apply(&one)) < 1e-6, "{method:?}");
        match merged([&one, &two], [1.0, 1.0], MergeRule::Compose) {
            Ok(product) => {
                assert!(composes, "{method:?}");
                let second = two.adapters()["to_k.weight"].apply(w.clone());
                let expected = one.adapters()["to_k.weight"].apply(second);
                assert!(difference(apply(&product), expected) < 1e-6, "{method:?}");
            }
            Err(error) => {
                assert!(!composes, "{method:?}");
                assert!(error.to_string().contains("no common form"), "{error}");
            }
        }
    }
    // Other seeds permute in another order, and scales are no rotation.
    let seeded = |seed| {
        let mut method = SodaConfig::permuted();
        method.rotation.as_mut().unwrap().seed = Some(seed);
        trained(&method, &net)
    };
    let psoft = trained(&of_rank(SodaConfig::psoft(), 4), &net);
    for plans in [[&seeded(1), &seeded(2)], [&psoft, &psoft]] {
        let error = merged(plans, [0.5, 0.5], geodesic).unwrap_err().to_string();
        assert!(error.contains("no common form"), "{error}");
    }
}
