//! The contract of every method, with a test for each clause.
//!
//! - An initial adapter changes nothing.
//! - The base is frozen, and the gradients are those of the formula.
//! - The state has everything that was trained.
//! - A materialized network computes what the adapted one does.
//! - Strength 0 is the base, and strength 1 the adapter.
//! - A disabled adapter is the base.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;
#[path = "common/methods.rs"]
mod methods;

use burn::module::Module;
use burn::tensor::{DType, Device, Distribution, Tensor};
use common::{Input, Net, difference, disturb, gradients, plan, recipe, targets};
use methods::methods;
use soda_adapters::lora::LoraConfig;
use soda_adapters::soda::SodaConfig;
use soda_adapters::{
    AdapterState, Method as _, MethodConfig, NamedParam, attach_all, detach, map_params,
    named_params, without_adapters,
};
use soda_kernels::{has_vendor_blas, matmul};
use soda_testing::max_abs;

/// The largest relative change of an initial adapter.
///
/// A vendor's library sums in an order that depends on the memory order of a matrix, so that equal weights
/// give products with other last bits. Everywhere else the change is zero.
fn rounding_tolerance(dtype: DType) -> f64 {
    match dtype {
        _ if !has_vendor_blas(&Tensor::<1>::zeros([1], &Device::default())) => 0.0,
        DType::F32 => 4.0 * f64::from(f32::EPSILON),
        DType::F64 => 4.0 * f64::EPSILON,
        _ => 0.0,
    }
}

#[test]
fn an_initial_adapter_changes_no_bit_in_any_float_type() {
    for (name, method) in methods() {
        for dtype in [DType::F32, DType::F64, DType::BF16, DType::F16] {
            if !Device::default().supports_dtype(dtype) {
                continue;
            }
            let (net, input) = (Net::new().cast(dtype), Input::new().cast(dtype));
            let adapted = plan(&method, &net).attach(net.clone());
            let (before, after) = (net.forward(&input), adapted.forward(&input));
            assert_eq!(after.dtype(), dtype);
            let changed = difference(after, before);
            assert!(changed <= rounding_tolerance(dtype), "{name} {dtype:?}: {changed:.1e}");
        }
    }
}

/// Checks initial adapters on the input side, where the networks of this workspace call their layers.
///
/// SODA in the basis of an SVD multiplies with the factors of the weight there, if the rounding is no larger
/// than that of the network's float type (`accuracy.rs`).
#[test]
fn an_initial_adapter_on_the_input_side_changes_last_bits_at_most() {
    for (name, method) in methods() {
        for dtype in [DType::F32, DType::F64, DType::BF16, DType::F16] {
            if !Device::default().supports_dtype(dtype) {
                continue;
            }
            let (net, input) = (Net::new().cast(dtype), Input::new().cast(dtype));
            let adapted = plan(&method, &net).attach(net.clone());
            let x = input.k.narrow(0, 0, 2);
            let through = |net: &Net| {
                soda_kernels::linear_deferred(x.clone(), || net.to_k.weight.val(), None)
            };
            let changed = difference(through(&adapted), through(&net));
            let singular = matches!(&method, MethodConfig::Soda(soda) if soda.needs_svd());
            let most = match dtype {
                DType::F32 if singular => 16.0 * f64::from(f32::EPSILON),
                DType::F64 if singular => 64.0 * f64::EPSILON,
                _ => rounding_tolerance(dtype),
            };
            assert!(changed <= most, "{name} {dtype:?}: {changed:.1e}");
        }
    }
}

#[test]
fn the_initial_adapter_of_the_paper_is_not_the_identity() {
    let net = Net::new();
    let adapted = SodaConfig::paper().plan(&targets(), &net).unwrap().attach(net.clone());
    let delta = adapted.to_q.weight.val() - net.to_q.weight.val();
    // |W - W0|₂ = 1e-3 when every singular value moves by 1e-3, so |W - W0|_F = 1e-3 √k.
    let norm = delta.square().sum().sqrt().into_scalar::<f32>();
    assert!((norm - 1e-3 * 12f32.sqrt()).abs() < 1e-5, "{norm}");
}

#[test]
fn gradients_are_central_differences_of_the_trained_tensors_only() {
    // Rounding in f32 hides the differences.
    if !Device::default().supports_dtype(DType::F64) {
        return;
    }
    for (name, method) in methods() {
        let (net, input) = (Net::new().cast(DType::F64), Input::new().cast(DType::F64));
        let adapted = disturb(&method, plan(&method, &net).attach(net));
        let toward =
            Tensor::<2>::random([7, 9], Distribution::Normal(0.0, 1.0), &Device::default());
        let toward = toward.cast(DType::F64);

        let trained = adapted.clone().train();
        let output = trained.forward(&input.on_tape());
        let loss = (output * Tensor::from_inner(toward.clone())).sum();
        let grads = gradients(&trained, &loss.backward());
        let trainable: Vec<_> =
            named_params(&trained).into_iter().filter(|param| param.trainable).collect();
        assert!(!trainable.is_empty());
        assert_eq!(grads.len(), trainable.len(), "{name}: gradients and trained tensors");
        assert!(grads.keys().all(|path| path.contains(".adapter.")), "{name}");

        let loss = |net: &Net| (net.forward(&input) * toward.clone()).sum().into_scalar::<f64>();
        for trained in trainable {
            // DoRA's norm and COFT's bound are constants of the gradient by design. The gradients of PEFT are
            // their reference.
            if (name == "dora" && !trained.path.contains("magnitude")) || name == "coft" {
                continue;
            }
            let elements: usize = trained.shape.iter().product();
            for index in [0, elements / 3, elements - 1] {
                let step = 1e-5;
                let moved = |by: f64| {
                    loss(&map_params(adapted.clone(), |other| {
                        let at = Tensor::<1, burn::tensor::Int>::arange(
                            0..elements as i64,
                            &Device::default(),
                        );
                        (other.path == trained.path).then(|| {
                            let one = at.equal_elem(index as i64).float().cast(DType::F64);
                            other.value() + one.mul_scalar(by)
                        })
                    }))
                };
                let expected = (moved(step) - moved(-step)) / (2.0 * step);
                let found = grads[&trained.path][index];
                // The error of a central difference is of order step² and rounding/step, both 1e-10.
                let scale = expected.abs().max(1.0);
                assert!(
                    (found - expected).abs() < 1e-6 * scale,
                    "{name} {}[{index}]: {found} for {expected}",
                    trained.path
                );
            }
        }
    }
}

#[test]
fn materializing_is_applying_and_the_state_has_everything() {
    for (name, method) in methods() {
        let (net, input) = (Net::new(), Input::new());
        let adapted = disturb(&method, plan(&method, &net).attach(net.clone()));
        let output = adapted.forward(&input);
        assert!(difference(output.clone(), net.forward(&input)) > 1e-2, "{name} was trained");

        let merged = adapted.clone().materialize();
        assert_eq!(named_params(&merged).len(), named_params(&net).len());
        assert!(difference(merged.forward(&input), output.clone()) < 1e-6, "{name}");

        let loaded = AdapterState::capture(recipe(&method, &net), &adapted).attach(net).unwrap();
        assert_eq!(difference(loaded.forward(&input), output), 0.0, "{name}");

        // The loaded network has the names, values and trainable flags of the trained one.
        let state = |net: &Net| -> Vec<_> {
            let entry = |param: NamedParam| {
                let value = param.value().into_data().try_to_vec::<f32>().unwrap();
                (param.path, param.trainable, value)
            };
            named_params(net).into_iter().map(entry).collect()
        };
        assert_eq!(state(&loaded), state(&adapted), "{name}");
    }
}

#[test]
fn strength_runs_from_the_base_to_the_adapter() {
    for (name, method) in methods() {
        let (net, input) = (Net::new(), Input::new());
        let adapted = disturb(&method, plan(&method, &net).attach(net.clone()));
        let file = AdapterState::capture(recipe(&method, &net), &adapted);
        let at = |t: f64| {
            let plan = file.plan(&net).unwrap().at_strength(t).unwrap();
            plan.attach(net.clone()).forward(&input)
        };
        // An f64 logarithm and exponential of f32 values: a few roundings.
        assert!(difference(at(0.0), net.forward(&input)) < 1e-5, "{name} at 0");
        assert_eq!(difference(at(1.0), adapted.forward(&input)), 0.0, "{name} at 1");
        assert!(difference(at(0.999_999), adapted.forward(&input)) < 1e-4, "{name} near 1");
        let half = difference(at(0.5), net.forward(&input));
        let whole = difference(at(1.0), net.forward(&input));
        assert!(half > 0.2 * whole && half < 0.9 * whole, "{name}: {half} of {whole}");
    }
}

#[test]
fn powers_of_rotations_add() {
    let (net, input) = (Net::new(), Input::new());
    let method = MethodConfig::from(SodaConfig::rotation_only());
    let adapted = disturb(&method, plan(&method, &net).attach(net.clone()));
    let plan = AdapterState::capture(recipe(&method, &net), &adapted).plan(&net).unwrap();
    let half = plan.clone().at_strength(0.5).unwrap();
    let quarter = half.at_strength(0.5).unwrap().attach(net.clone());
    let direct = plan.at_strength(0.25).unwrap().attach(net.clone());
    assert!(difference(quarter.forward(&input), direct.forward(&input)) < 1e-5);
}

#[test]
fn disabled_and_detached_adapters_are_the_base() {
    for (name, method) in methods() {
        let (net, input) = (Net::new(), Input::new());
        let adapted = disturb(&method, plan(&method, &net).attach(net.clone()));
        let (base, output) = (net.forward(&input), adapted.forward(&input));

        assert_eq!(difference(without_adapters(|| adapted.forward(&input)), base.clone()), 0.0);
        let nested = without_adapters(|| {
            without_adapters(|| ());
            adapted.forward(&input)
        });
        assert_eq!(difference(nested, base.clone()), 0.0, "{name}");
        // The consistency loss needs the prediction of the base on an autodiff device too.
        let trained = adapted.clone().train();
        let frozen = without_adapters(|| trained.forward(&input.on_tape()));
        assert_eq!(difference(frozen.without_autodiff(), base.clone()), 0.0, "{name}");
        let caught = std::panic::catch_unwind(|| {
            without_adapters(|| std::panic::resume_unwind(Box::new(())))
        });
        assert!(caught.is_err());
        assert_eq!(difference(adapted.forward(&input), output), 0.0, "{name} is on again");

        let bare = detach(adapted);
        assert_eq!(named_params(&bare).len(), named_params(&net).len());
        assert_eq!(difference(bare.forward(&input), base), 0.0, "{name}");
    }
}

#[test]
fn several_adapters_add_their_weighted_deltas() {
    let net = Net::new();
    let (first, second) =
        (MethodConfig::from(SodaConfig::default()), MethodConfig::from(LoraConfig::default()));
    let file = |method: &MethodConfig| {
        let adapted = disturb(method, plan(method, &net).attach(net.clone()));
        (adapted.conv.weight.val(), AdapterState::capture(recipe(method, &net), &adapted))
    };
    let ((w1, first), (w2, second)) = (file(&first), file(&second));
    let both = attach_all(
        [(first.plan(&net).unwrap(), 0.8), (second.plan(&net).unwrap(), -0.3)],
        net.clone(),
    );
    let w0 = net.conv.weight.val();
    let expected = w0.clone() + (w1 - w0.clone()).mul_scalar(0.8) - (w2 - w0).mul_scalar(0.3);
    assert!(both.conv.weight.val().all_close(expected, None, Some(1e-6)));
    let parts: Vec<_> = named_params(&both).into_iter().map(|param| param.path).collect();
    assert!(parts.iter().any(|path| path == "to_q.weight.adapter.1.a"), "{parts:?}");
}

#[test]
fn configurations_round_trip_and_an_unknown_name_lists_the_known_ones() {
    for (name, method) in methods() {
        let text = serde_json::to_string(&method).unwrap();
        assert_eq!(serde_json::from_str::<MethodConfig>(&text).unwrap(), method, "{name}: {text}");
    }
    let error = MethodConfig::preset("lroa").unwrap_err().to_string();
    assert!(error.contains("`lroa`") && error.contains("svdiff, kronecker, lora"), "{error}");
    let error = serde_json::from_str::<MethodConfig>(r#"{"name": "lora", "ranks": 3}"#);
    assert!(error.unwrap_err().to_string().contains("ranks"));
}

/// Compares the input side with the weight side, for few rows and for so many that a vendor's library forms
/// the weight.
#[test]
fn the_input_side_is_the_weight_side() {
    the_sides_agree(2, 19);
    the_sides_agree(60, 5);
}

/// Compares both sides for a number of rows, where at least `least` methods offer a product.
fn the_sides_agree(rows: usize, least: usize) {
    // Rounding in f32 hides the differences.
    if !Device::default().supports_dtype(DType::F64) {
        return;
    }
    let mut offered = 0;
    for (name, method) in methods() {
        let (net, input) = (Net::new().cast(DType::F64), Input::new().cast(DType::F64));
        let net = disturb(&method, plan(&method, &net).attach(net)).train();
        let x = input.k.clone().repeat_dim(0, rows).narrow(0, 0, rows);
        let x = x.autodiff().require_grad();
        let mut through = || {
            let weight = || {
                let base = net.to_k.weight.base();
                let weight = net.to_k.weight.val();
                // An adapter that offers the product returns the base as the weight.
                offered += usize::from(weight.clone().equal(base).all().into_scalar::<bool>());
                weight
            };
            soda_kernels::linear_deferred(x.clone(), weight, None)
        };
        let by_input = through();
        let by_weight = matmul(x.clone(), net.to_k.weight.val());
        let all = |y: &Tensor<2>| -> (Vec<f64>, _) {
            let grads = (y.clone() * y.clone()).sum().backward();
            (x.grad(&grads).unwrap().into_data().iter().collect(), gradients(&net, &grads))
        };
        let error =
            difference(by_input.clone().without_autodiff(), by_weight.clone().without_autodiff());
        assert!(error <= 1e-12, "{name}: {error:.1e}");
        let ((x1, g1), (x2, g2)) = (all(&by_input), all(&by_weight));
        // Relative to the largest of all, since a gradient that cancels to nearly zero has no significant
        // digits.
        let most = max_abs(g2.values().flatten().chain(&x2).copied());
        let close = |a: &[f64], b: &[f64]| {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-11 * most)
        };
        assert!(close(&x1, &x2), "{name}: the input's gradient");
        assert_eq!(g1.len(), g2.len(), "{name}");
        assert!(g1.iter().all(|(path, grad)| close(grad, &g2[path])), "{name}: {:?}", g1.keys());
    }
    assert!(offered >= least, "{offered} methods offered a product for {rows} rows");
}
