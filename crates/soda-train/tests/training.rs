//! Steps of the trainer on the bundled model: equal to PyTorch's, whatever the number of threads, and
//! the same after a stop as without one.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use soda_adapters::{Component, Leaf, Method as _, leaves};
use soda_kernels::matmul;
use soda_models::config;
use soda_models::pipeline::{Networks, Pipeline, TextIds};
use soda_models::unet::{Unet, UnetConfig};
use soda_models::weights;
use soda_train::{Batch, Prompts, TrainConfig, Trainer, TrainerState, preset, set};

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn unet(device: &Device) -> Unet {
    let folder = path("../../examples/toybox/base/unet");
    let config: UnetConfig = config::read(&folder.join("config.json")).unwrap();
    weights::load(config.init(device), &folder.join("diffusion_pytorch_model.safetensors")).unwrap()
}

fn settings(settings: &[&str]) -> TrainConfig {
    let mut table = preset("toybox").unwrap();
    let targets = r#"targets=['mid_block\..*attn\d\.to_(q|k)\.weight$']"#;
    let common = ["base=b", "data=d", "batch_size=3", "optimizer.schedule=constant", targets];
    for setting in common.iter().chain(settings) {
        set(&mut table, setting).unwrap();
    }
    let config = TrainConfig::from_table(table).unwrap();
    config.check().unwrap();
    config
}

fn trainer<'a>(config: &'a TrainConfig, device: &Device) -> Trainer<'a> {
    Trainer::new(unet_of(config, device), &config.method, config).unwrap()
}

fn unet_of(config: &TrainConfig, device: &Device) -> Unet {
    let unet = unet(device);
    config.method.plan(&config.targets, &unet).unwrap().attach(unet)
}

/// Those of the text encoder in the fixture.
const TEXT: [&str; 2] = [
    r#"text_encoder.targets=['layers\.[02]\.self_attn\.(q|out)_proj\.weight$']"#,
    "text_encoder.learning_rate=1e-3",
];

/// With the text encoder, which learns too.
fn text_trainer<'a>(config: &'a TrainConfig, device: &Device) -> Trainer<'a> {
    let pipeline = Pipeline::load(&path("../../examples/toybox/base"), device).unwrap();
    let (networks, text) = (pipeline.networks(), config.text_encoder.as_ref().unwrap());
    let plan = config.method.plan(&config.targets, &networks.unet).unwrap();
    let text = config.method.plan(&text.targets, &networks.text_encoder).unwrap();
    let plan = plan.within(Component::Unet).and(text.within(Component::TextEncoder));
    Trainer::new(plan.attach(networks), &config.method, config).unwrap()
}

/// The files of `docs/reference/training.py`.
struct Fixture(BTreeMap<String, (Vec<usize>, Vec<f32>)>);

impl Fixture {
    fn read() -> Self {
        let files = ["training", "training_text"].map(Self::entries);
        Self(files.into_iter().flatten().collect())
    }

    fn entries(name: &str) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
        let bytes = std::fs::read(path(&format!("tests/fixtures/{name}.safetensors"))).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let numbers = |view: &safetensors::tensor::TensorView<'_>| {
            let word = |bytes: &[u8]| -> [u8; 4] { bytes.try_into().unwrap() };
            view.data()
                .chunks_exact(4)
                .map(|bytes| match view.dtype() {
                    safetensors::Dtype::I32 => i32::from_le_bytes(word(bytes)) as f32,
                    _ => f32::from_le_bytes(word(bytes)),
                })
                .collect::<Vec<f32>>()
        };
        let tensors = file.tensors();
        let entry = |(name, view): &(String, safetensors::tensor::TensorView<'_>)| {
            (name.clone(), (view.shape().to_vec(), numbers(view)))
        };
        tensors.iter().map(entry).collect()
    }

    fn tensor<const D: usize>(&self, name: &str, device: &Device) -> Tensor<D> {
        let (shape, values) = self.0[name].clone();
        Tensor::from_data(TensorData::new(values, shape), device)
    }

    fn batch(&self, step: usize, device: &Device) -> Batch {
        let at = |name: &str| -> Tensor<4> {
            self.tensor::<5>(name, device).narrow(0, step, 1).squeeze_dim(0)
        };
        let timesteps: Tensor<1> =
            self.tensor::<2>("timesteps", device).narrow(0, step, 1).squeeze_dim(0);
        let count = timesteps.dims()[0];
        Batch {
            noisy: at("noisy"),
            target: at("target"),
            prompts: self.tensor::<3>("text", device).into(),
            timesteps,
            weight: Tensor::full([count], 1.0 / count as f64, device),
            mask: None,
        }
    }

    /// The same of which the text encoder is given tokens.
    fn tokens(&self, step: usize, device: &Device) -> Batch {
        let ids: Tensor<2, Int> = self.tensor::<2>("ids", device).int();
        let prompts = Prompts::Tokens { ids: TextIds { first: ids, second: None }, time_ids: None };
        Batch { prompts, ..self.batch(step, device) }
    }

    fn under(&self, prefix: &str) -> BTreeMap<String, TensorData> {
        let entries = self.0.iter().filter_map(|(name, (shape, values))| {
            let name = name.strip_prefix(prefix)?;
            let elements = shape.iter().product::<usize>();
            Some((name.to_owned(), TensorData::new(values.clone(), [elements])))
        });
        entries.collect()
    }
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|value| value * value).sum::<f64>().sqrt()
}

/// Loss and weights of six steps against PyTorch in double precision. Weights are compared by how far they
/// moved: an error of 5e-4 of the way is far below what one step adds, and a wrong formula is of order 1.
#[test]
fn six_steps_are_pytorchs() {
    let (fixture, device) = (Fixture::read(), Device::default());
    let cases = ["soda", "soda-qr", "svdiff", "lora"].map(|name| [(name, "mse"), (name, "dco")]);
    let text = [("soda-text", "mse"), ("soda-text", "dco"), ("lora-text", "mse")];
    for (name, loss) in cases.into_iter().flatten().chain(text) {
        let case = format!("{name}/{loss}");
        let with_text = name.strip_suffix("-text");
        let method = with_text.unwrap_or(name);
        let (method_setting, loss_setting) =
            (format!("method={method}"), format!("objective.loss={loss}"));
        let mut all = vec![method_setting.as_str(), &loss_setting, "shards=2"];
        if method == "lora" {
            all.push("method.rank=4");
        }
        if with_text.is_some() {
            all.extend(TEXT);
        }
        let config = settings(&all);
        let start = fixture.under(&format!("{name}/start/"));
        let state = TrainerState { adapter: start.clone(), ..TrainerState::default() };
        let mut trainer = match with_text {
            Some(_) => text_trainer(&config, &device),
            None => trainer(&config, &device),
        };
        trainer = trainer.restored(state).unwrap();
        for (step, expected) in fixture.0[&format!("{case}/losses")].1.iter().enumerate() {
            let batch = match with_text {
                Some(_) => fixture.tokens(step, &device),
                None => fixture.batch(step, &device),
            };
            let found = trainer.step_on(&batch).unwrap().loss;
            let error = (found - expected).abs() / expected.abs().max(1e-2);
            assert!(error < 5e-4, "{case}, step {step}: {found} for {expected}");
        }
        let end = fixture.under(&format!("{case}/end/"));
        let state = trainer.state();
        let all = |of: &BTreeMap<String, TensorData>| -> Vec<f64> {
            end.keys().flat_map(|name| of[name].iter::<f64>().collect::<Vec<_>>()).collect()
        };
        let (start, end, found) = (all(&start), all(&end), all(&state.adapter));
        let way = norm(end.iter().zip(&start).map(|(a, b)| a - b));
        let error = norm(end.iter().zip(&found).map(|(a, b)| a - b)) / way;
        assert!(error < 5e-4, "{case}: {error:e} of the way");
    }
}

/// Parts are added in another order than one whole is, which rounding sees and nothing else does.
#[test]
fn parts_and_threads_change_rounding_only() {
    let (fixture, device) = (Fixture::read(), Device::default());
    let gradient_step = |shards: &str, accumulation: &str| {
        // The loss of the second step tells how the first one moved.
        let config = settings(&[shards, accumulation]);
        let mut trainer = trainer(&config, &device);
        (0..2).map(|step| trainer.step_on(&fixture.batch(step, &device)).unwrap().loss).collect()
    };
    let whole: Vec<f32> = gradient_step("shards=1", "accumulation=1");
    for (shards, accumulation) in [("shards=2", "accumulation=1"), ("shards=7", "accumulation=3")] {
        let parts: Vec<f32> = gradient_step(shards, accumulation);
        let again: Vec<f32> = gradient_step(shards, accumulation);
        assert_eq!(parts, again, "{shards}, {accumulation}: not the same bits twice");
        for (part, whole) in parts.iter().zip(&whole) {
            assert!((part - whole).abs() < 2e-5 * whole, "{shards}: {parts:?} for {whole:?}");
        }
    }
}

#[test]
fn a_restored_trainer_goes_on_to_the_bit() {
    let (fixture, device) = (Fixture::read(), Device::default());
    let config = settings(&[
        "optimizer.ema_decay=0.9",
        "optimizer.warmup_steps=2",
        "shards=2",
        "checkpointing=block",
    ]);
    let mut straight = trainer(&config, &device);
    for step in 0..3 {
        straight.step_on(&fixture.batch(step, &device)).unwrap();
    }
    let mut resumed = trainer(&config, &device).restored(straight.state()).unwrap();
    for step in 3..6 {
        let losses = [&mut straight, &mut resumed]
            .map(|trainer| trainer.step_on(&fixture.batch(step, &device)).unwrap());
        assert_eq!(losses[0], losses[1]);
    }
    assert_eq!(straight.state(), resumed.state());
    assert!(
        !straight.state().average.is_empty()
            && straight.state().average != straight.state().adapter
    );

    let other = settings(&["method=lora"]);
    assert!(trainer(&other, &device).restored(straight.state()).is_none());
}

/// After their share of the steps text encoders stand still to the bit and the UNet goes on, in a run that was stopped
/// before that as well.
#[test]
fn text_encoders_learn_for_their_share_of_the_steps() {
    let (fixture, device) = (Fixture::read(), Device::default());
    let rest = ["steps=5", "text_encoder.stop_after=0.5", "optimizer.ema_decay=0.9"];
    let config = settings(&[&TEXT[..], &rest, &["shards=2", "checkpointing=block"]].concat());
    let text = |state: &TrainerState| -> BTreeMap<String, TensorData> {
        let all = state.adapter.clone().into_iter();
        all.filter(|(path, _)| path.starts_with("text_encoder.")).collect()
    };
    let mut straight = text_trainer(&config, &device);
    let step = |trainer: &mut Trainer<'_>, number| {
        trainer.step_on(&fixture.tokens(number, &device)).unwrap()
    };
    step(&mut straight, 0);
    let mut resumed = text_trainer(&config, &device).restored(straight.state()).unwrap();
    for number in 1..5 {
        let before = straight.state();
        let steps = [&mut straight, &mut resumed].map(|trainer| step(trainer, number));
        assert_eq!(steps[0], steps[1]);
        let after = straight.state();
        let learns = number < 3;
        assert_eq!(steps[0].text_lr, if learns { 1e-3 } else { 0.0 });
        assert_eq!(text(&before) != text(&after), learns, "step {number}");
        assert_ne!(before.adapter, after.adapter);
    }
    assert_eq!(straight.state(), resumed.state());
    // A run without text encoders is another one.
    let alone = settings(&[]);
    assert!(trainer(&alone, &device).restored(straight.state()).is_none());
}

/// A trainer of the network in the precision of `config`.
fn trainer_in<'a>(config: &'a TrainConfig, device: &Device) -> Trainer<'a> {
    let unet = unet(device);
    let plan = config.method.plan(&config.targets, &unet).unwrap();
    let unet = plan.attach(config.precision.of(unet));
    Trainer::new(unet, &config.method, config).unwrap()
}

/// In half precision a step is the step of f32 but for the bits of mantissa that are missing, carried through some
/// thirty layers: in bf16 the loss within a hundredth, in f16, which has three bits more, an eighth of that. The adapter
/// is in f32.
#[test]
fn in_half_precision_the_loss_is_nearly_the_same_and_the_adapter_is_f32() {
    let (fixture, device) = (Fixture::read(), Device::default());
    let losses = |precision: &str| {
        let config = settings(&[precision]);
        let mut trainer = trainer_in(&config, &device);
        let losses =
            [0, 1].map(|step| trainer.step_on(&fixture.batch(step, &device)).unwrap().loss);
        let adapter = trainer.state().adapter;
        assert!(adapter.values().all(|data| data.dtype() == DType::F32));
        losses
    };
    let single = losses("precision=f32");
    for (name, dtype, tolerance) in [("bf16", DType::BF16, 1e-2), ("f16", DType::F16, 1e-2 / 8.0)] {
        if device.supports_dtype(dtype) {
            let half = losses(&format!("precision={name}"));
            for (single, half) in single.iter().zip(&half) {
                let error = (single - half).abs() / single;
                assert!(error > 0.0 && error < tolerance, "{name}: {error}");
            }
        }
    }
}

/// A scale that is too large costs steps and nothing else; where it stands is part of what a stopped run goes on
/// from.
#[test]
fn in_f16_a_step_that_overflows_is_passed_over() {
    let (fixture, device) = (Fixture::read(), Device::default());
    if !device.supports_dtype(DType::F16) {
        return;
    }
    let config = settings(&[
        "precision=f16",
        "loss_scale.initial=16777216",
        "loss_scale.growth_interval=2",
        "optimizer.ema_decay=0.9",
        "checkpointing=block",
    ]);
    let mut trainer = trainer_in(&config, &device);
    let mut overflows = 0;
    loop {
        let before = trainer.state();
        let step = trainer.step_on(&fixture.batch(0, &device)).unwrap();
        let after = trainer.state();
        let scales = [&before, &after].map(|state| state.scale.unwrap().value);
        assert_eq!(after.step, before.step + 1);
        if step.grad_norm.is_finite() {
            assert_eq!(scales[1], scales[0]);
            assert_ne!(after.adapter, before.adapter);
            break;
        }
        overflows += 1;
        assert_eq!(scales[1], scales[0] / 2.0);
        assert_eq!([step.rotation_lr, step.flat_lr], [0.0; 2]);
        assert_eq!(TrainerState { step: before.step, scale: before.scale, ..after }, before);
    }
    assert!(overflows > 0);
    // One good step more doubles the scale, in the run that was stopped before it too.
    let mut resumed = trainer_in(&config, &device).restored(trainer.state()).unwrap();
    let scale = trainer.scale().unwrap();
    for batch in [1, 2] {
        let steps = [&mut trainer, &mut resumed]
            .map(|trainer| trainer.step_on(&fixture.batch(batch, &device)).unwrap());
        assert_eq!(steps[0].loss, steps[1].loss);
        assert_eq!(trainer.state(), resumed.state());
        assert!(batch == 2 || trainer.scale().unwrap().value == 2.0 * scale.value);
    }
    // A run in f32 has no scale to go on from.
    assert!(trainer_in(&settings(&[]), &device).restored(resumed.state()).is_none());
}

#[test]
fn gradients_that_no_scale_helps_stop_the_training_with_the_remedy() {
    let (fixture, device) = (Fixture::read(), Device::default());
    if !device.supports_dtype(DType::F16) {
        return;
    }
    let config = settings(&["precision=f16", "loss_scale.initial=4"]);
    let mut trainer = trainer_in(&config, &device);
    let mut batch = fixture.batch(0, &device);
    batch.weight = batch.weight.mul_scalar(1e9);
    let before = trainer.state().adapter;
    trainer.step_on(&batch).unwrap();
    trainer.step_on(&batch).unwrap();
    let message = trainer.step_on(&batch).unwrap_err().to_string();
    assert!(message.contains("step 3 overflow f16 at any loss scale"), "{message}");
    assert!(message.contains("bf16"), "{message}");
    assert_eq!(trainer.state().adapter, before);
}

#[test]
fn a_loss_that_is_no_number_moves_nothing() {
    let (fixture, device) = (Fixture::read(), Device::default());
    let config = settings(&[]);
    let mut trainer = trainer(&config, &device);
    trainer.step_on(&fixture.batch(0, &device)).unwrap();
    let before = trainer.state();
    // Only the loss of the next step tells whether a move was good: until then the one before counts.
    let first = leaves(&Networks::from(unet_of(&config, &device)));
    assert_eq!(values(&leaves(&trainer.last_good())), values(&first));
    let mut batch = fixture.batch(1, &device);
    batch.noisy = batch.noisy.mul_scalar(f32::NAN);
    let message = trainer.step_on(&batch).unwrap_err().to_string();
    assert!(message.contains("NaN at step 2"), "{message}");
    assert_eq!(trainer.state(), before);
    assert_eq!(values(&leaves(&trainer.last_good())), values(&first));
    trainer.step_on(&fixture.batch(1, &device)).unwrap();
    assert_ne!(values(&leaves(&trainer.last_good())), values(&first));
}

fn values(leaves: &[Leaf]) -> Vec<f32> {
    let adapter = leaves.iter().filter(|leaf| leaf.path.contains(".adapter."));
    adapter
        .flat_map(|leaf| leaf.value.clone().into_data().iter::<f32>().collect::<Vec<_>>())
        .collect()
}

/// The average of factors stays orthogonal, and of a constant is that constant.
#[test]
fn the_average_stays_on_the_manifold() {
    let (fixture, device) = (Fixture::read(), Device::default());
    let config = settings(&["optimizer.ema_decay=0.8", "optimizer.rotation_lr=5e-2"]);
    let mut trainer = trainer(&config, &device);
    for step in 0..6 {
        trainer.step_on(&fixture.batch(step, &device)).unwrap();
    }
    let mut factors = 0;
    for (name, data) in trainer.state().average {
        if name.contains("rotation.factors") {
            let n = (data.num_elements() as f64).sqrt() as usize;
            let q: Tensor<2> = Tensor::<1>::from_data(data, &device).reshape([n, n]);
            let defect = matmul(q.clone().transpose(), q) - Tensor::eye(n, &device);
            assert!(defect.abs().max().into_scalar::<f32>() < 2e-6, "{name}");
            factors += 1;
        }
    }
    assert_eq!(factors, 12);
}
