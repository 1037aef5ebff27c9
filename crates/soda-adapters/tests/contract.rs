//! The contract every adapter keeps: nothing changes at first, the base stays frozen, a file holds all of
//! it, and merging is the same as applying.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Distribution, Tensor};
use serde_json::json;
use soda_adapters::soda::{RotationConfig, SodaConfig, SpectrumConfig};
use soda_adapters::{
    AdapterError, AdapterFile, Geometry, Header, Method, Targets, fingerprint, leaves, map_leaves,
};

/// Two layers, wide and tall, of which the second is no target by default.
#[derive(Module, Debug)]
struct Net {
    to_q: Linear,
    to_k: Linear,
    head: Linear,
}

impl Net {
    fn new(device: &Device) -> Self {
        let linear = |input, output| LinearConfig::new(input, output).init(device);
        Self { to_q: linear(12, 20), to_k: linear(30, 20), head: linear(20, 3) }
    }

    fn forward(&self, q: Tensor<2>, k: Tensor<2>) -> Tensor<2> {
        self.head.forward(self.to_q.forward(q) * self.to_k.forward(k))
    }
}

fn targets() -> Targets {
    Targets(vec![r"^to_.\.weight$".to_owned()])
}

fn inputs(device: &Device) -> (Tensor<2>, Tensor<2>) {
    let random = |cols| Tensor::random([7, cols], Distribution::Normal(0.0, 1.0), device);
    (random(12), random(30))
}

/// `max |a - b| / max |b|`
fn difference(a: Tensor<2>, b: Tensor<2>) -> f32 {
    let scale = b.clone().abs().max().into_scalar::<f32>();
    (a - b).abs().max().into_scalar::<f32>() / scale
}

fn methods() -> [SodaConfig; 4] {
    let rotation = Some(RotationConfig::default());
    let spectrum = Some(SpectrumConfig::default());
    [
        SodaConfig { rotation: rotation.clone(), spectrum: spectrum.clone() },
        SodaConfig { rotation: rotation.clone(), spectrum: None },
        SodaConfig { rotation: None, spectrum },
        SodaConfig { rotation: Some(RotationConfig { factors: 1 }), spectrum: None },
    ]
}

/// Moves every adapter parameter as a training would: spectra by a little, rotations within the manifold.
fn disturb(method: &SodaConfig, net: Net) -> Net {
    let shapes: std::collections::HashMap<_, _> =
        leaves(&net).into_iter().map(|leaf| (leaf.path, leaf.shape)).collect();
    map_leaves(net, |path, _, value| {
        if !path.contains(".soda.") {
            return None;
        }
        let noise = value.random_like(Distribution::Normal(0.0, 0.1));
        Some(match method.geometry(path) {
            Geometry::Euclidean => value + noise,
            Geometry::Stiefel => {
                let n = shapes[path][0];
                let skew = noise.reshape([n, n]);
                orthogonal(skew.clone() - skew.transpose()).reshape([n * n])
            }
        })
    })
}

/// The Cayley transform `(I - A/2)⁻¹ (I + A/2)` by its power series, for small skew `A`.
fn orthogonal(skew: Tensor<2>) -> Tensor<2> {
    let n = skew.dims()[0];
    let identity = Tensor::<2>::eye(n, &skew.device());
    let half = skew.mul_scalar(0.5);
    let mut inverse = identity.clone();
    for _ in 0..60 {
        inverse = identity.clone() + half.clone().matmul(inverse);
    }
    inverse.matmul(identity + half)
}

fn header(method: &SodaConfig, net: &Net) -> Header {
    Header {
        method: SodaConfig::NAME.to_owned(),
        config: json!(method),
        targets: targets(),
        base: "net".to_owned(),
        base_hash: fingerprint(&targets().select(net).unwrap()),
        trigger: vec!["sks mug".to_owned()],
        training: json!({ "steps": 3 }),
    }
}

#[test]
fn a_fresh_adapter_changes_no_bit() {
    let device = Device::default();
    for method in methods() {
        let net = Net::new(&device);
        let (q, k) = inputs(&device);
        let adapted = method.plan(&targets(), &net).unwrap().attach(net.clone());
        let (before, after) = (net.forward(q.clone(), k.clone()), adapted.forward(q, k));
        assert_eq!(difference(after, before), 0.0, "{method:?}");
    }
}

#[test]
fn the_paper_start_is_no_identity() {
    let device = Device::default();
    let net = Net::new(&device);
    let method = SodaConfig { rotation: None, spectrum: Some(SpectrumConfig { init: 1e-3 }) };
    let adapted = method.plan(&targets(), &net).unwrap().attach(net.clone());
    let delta = adapted.to_q.weight.val() - net.to_q.weight.val();
    // |W - W0|₂ = 1e-3 when every singular value moves by 1e-3, so |W - W0|_F = 1e-3 √k.
    let norm = delta.square().sum().sqrt().into_scalar::<f32>();
    assert!((norm - 1e-3 * 12f32.sqrt()).abs() < 1e-5, "{norm}");
}

#[test]
fn gradients_reach_the_adapter_and_nothing_else() {
    let device = Device::default();
    for method in methods() {
        let net =
            method.plan(&targets(), &Net::new(&device)).unwrap().attach(Net::new(&device)).train();
        let (q, k) = inputs(&device.clone().autodiff());
        let grads = net.forward(q, k).square().mean().backward();
        assert!(net.to_q.weight.base().grad(&grads).is_none());
        assert!(net.head.weight.val().grad(&grads).is_none());
        let trainable: Vec<_> = leaves(&net).into_iter().filter(|leaf| leaf.trainable).collect();
        assert!(!trainable.is_empty() && trainable.iter().all(|leaf| leaf.path.contains(".soda.")));
        for leaf in trainable {
            // The flat view is no leaf of the tape, so look the gradient up where it is kept.
            let adapter = if leaf.path.starts_with("to_q") { &net.to_q } else { &net.to_k };
            let soda = adapter.weight.reparameterization::<soda_adapters::soda::Soda>().unwrap();
            if let Some(rotation) = &soda.rotation {
                assert!(rotation.factors.iter().all(|factor| factor.val().grad(&grads).is_some()));
            }
            if let Some(spectrum) = &soda.spectrum {
                assert!(spectrum.delta.val().grad(&grads).is_some());
            }
        }
    }
}

#[test]
fn merging_is_applying_and_a_file_holds_it_all() {
    let device = Device::default();
    let folder = tempfile::tempdir().unwrap();
    for method in methods() {
        let net = Net::new(&device);
        let (q, k) = inputs(&device);
        let adapted = method.plan(&targets(), &net).unwrap().attach(net.clone());
        let adapted = disturb(&method, adapted);
        let output = adapted.forward(q.clone(), k.clone());
        assert!(difference(output.clone(), net.forward(q.clone(), k.clone())) > 1e-2, "{method:?}");

        let merged = adapted.clone().materialize();
        assert_eq!(leaves(&merged).len(), 6);
        assert!(difference(merged.forward(q.clone(), k.clone()), output.clone()) < 1e-6);

        let path = folder.path().join("adapter.safetensors");
        AdapterFile::capture::<SodaConfig, _>(header(&method, &net), &adapted)
            .write(&path)
            .unwrap();
        let file = AdapterFile::read(&path).unwrap();
        assert_eq!(file.header, header(&method, &net));
        let loaded = file.attach::<SodaConfig, _>(net).unwrap();
        assert_eq!(difference(loaded.forward(q, k), output), 0.0, "{method:?}");
    }
}

#[test]
fn strength_runs_along_the_geodesic_from_the_base_to_the_adapter() {
    let device = Device::default();
    let method = SodaConfig::default();
    let net = Net::new(&device);
    let (q, k) = inputs(&device);
    let adapted = disturb(&method, method.plan(&targets(), &net).unwrap().attach(net.clone()));
    let file = AdapterFile::capture::<SodaConfig, _>(header(&method, &net), &adapted);
    let at = |t: f64| {
        let file = file.clone().at_strength::<SodaConfig>(t).unwrap();
        file.attach::<SodaConfig, _>(net.clone()).unwrap().forward(q.clone(), k.clone())
    };
    // f32 through an f64 logarithm and exponential: a few roundings.
    assert!(difference(at(0.0), net.forward(q.clone(), k.clone())) < 1e-5);
    assert!(difference(at(0.999_999), adapted.forward(q.clone(), k.clone())) < 1e-4);
    // Half of a half, twice over, is a quarter: powers add.
    let half = file.clone().at_strength::<SodaConfig>(0.5).unwrap();
    let quarter = half.at_strength::<SodaConfig>(0.5).unwrap();
    let quarter =
        quarter.attach::<SodaConfig, _>(net.clone()).unwrap().forward(q.clone(), k.clone());
    assert!(difference(quarter, at(0.25)) < 1e-5);
}

#[test]
fn every_mistake_is_named() {
    let device = Device::default();
    let method = SodaConfig::default();
    let net = Net::new(&device);
    let check = |result: Result<(), AdapterError>, needle: &str| {
        let message = result.unwrap_err().to_string();
        assert!(message.contains(needle), "{message}");
    };
    let plan = |pattern: &str| method.plan(&Targets(vec![pattern.into()]), &net).map(drop);
    check(plan("to_z"), "`to_z` matches no weight");
    check(plan("("), "not a regular expression");
    check(plan("bias"), "rank 2");
    check(method.plan(&Targets(Vec::new()), &net).map(drop), "attention");
    check(method.plan(&targets(), &net.clone().train()).map(drop), "autodiff");
    let nothing = SodaConfig { rotation: None, spectrum: None };
    check(nothing.plan(&targets(), &net).map(drop), "trains nothing");

    let adapted = method.plan(&targets(), &net).unwrap().attach(net.clone());
    let good = AdapterFile::capture::<SodaConfig, _>(header(&method, &net), &adapted);
    let broken = |change: &dyn Fn(&mut AdapterFile)| {
        let mut file = good.clone();
        change(&mut file);
        file.attach::<SodaConfig, _>(net.clone()).map(drop)
    };
    let first = good.tensors.keys().next().unwrap().clone();
    check(good.attach::<SodaConfig, _>(Net::new(&device)).map(drop), "was trained on base");
    check(broken(&|file| file.header.method = "other".into()), "`other`");
    check(broken(&|file| drop(file.tensors.remove(&first))), &first);
    check(
        broken(&|file| {
            let data = file.tensors[&first].clone();
            file.tensors.insert("unet.stray".into(), data);
        }),
        "unet.stray",
    );
    check(
        broken(&|file| {
            file.tensors.insert(first.clone(), burn::tensor::TensorData::from([1.0f32]));
        }),
        "has shape [1]",
    );
    let factor = good.tensors.keys().find(|key| key.contains("rotation")).unwrap().clone();
    check(
        broken(&|file| {
            let data = &file.tensors[&factor];
            let values: Vec<f32> = data.iter::<f32>().map(|value| value * 1.1).collect();
            let data = burn::tensor::TensorData::new(values, data.shape());
            file.tensors.insert(factor.clone(), data);
        }),
        "not orthogonal",
    );
}

#[test]
fn a_damaged_file_is_refused() {
    let device = Device::default();
    let method = SodaConfig::default();
    let net = Net::new(&device);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter.safetensors");
    let adapted = method.plan(&targets(), &net).unwrap().attach(net.clone());
    AdapterFile::capture::<SodaConfig, _>(header(&method, &net), &adapted).write(&path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    for length in [0, 7, 8, 100, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..length]).unwrap();
        assert!(
            matches!(AdapterFile::read(&path), Err(AdapterError::Malformed { .. })),
            "{length}"
        );
    }
    let text = |from: &str, to: &str| {
        let mut changed = bytes.clone();
        let at = changed.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
        changed[at..at + from.len()].copy_from_slice(to.as_bytes());
        std::fs::write(&path, changed).unwrap();
        AdapterFile::read(&path).unwrap_err()
    };
    assert!(matches!(text("\"version\":\"1\"", "\"version\":\"9\""), AdapterError::Version { .. }));
    assert!(matches!(text("soda-adapter", "dora-adapter"), AdapterError::NotAnAdapter { .. }));
    let missing = AdapterFile::read(&folder.path().join("none")).unwrap_err().to_string();
    assert!(missing.contains("cannot read adapter file"), "{missing}");
    let nowhere = folder.path().join("no/such/folder/a.safetensors");
    let file = AdapterFile::capture::<SodaConfig, _>(header(&method, &net), &adapted);
    assert!(matches!(file.write(&nowhere), Err(AdapterError::Io { action: "write", .. })));
}
