//! A method of one's own: one file (this) and one row of a table.
//!
//! `Gain` scales every output of a layer by a trained number, `W = diag(1 + g) W0`, as (IA)³ does (arXiv
//! 2205.05638). The code of the crate plans, attaches, trains, disables, saves, loads, scales and merges it,
//! as it does its own methods.
//!
//! `cargo run -p soda-examples --example new_method`

use burn::module::{Module, Param};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Distribution, Tensor};
use serde::{Deserialize, Serialize};
use soda_adapters::lora::LoraConfig;
use soda_adapters::{
    Adapter, AdapterError, AdapterState, Method, Recipe, Targets, Weight, methods, without_adapters,
};
use soda_linalg::LinalgError;
use soda_optim::{AdapterGradients, AdapterOptimizer, AdapterOptimizerConfig};
use soda_pipeline::{AdapterFile, Component, Header};

/// The settings.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct GainConfig {}

/// The adapter of one weight.
#[derive(Module, Debug)]
struct Gain {
    /// `g`, `[out]`.
    gain: Param<Tensor<1>>,
}

impl Method for GainConfig {
    type Adapter = Gain;

    fn name(&self) -> &'static str {
        "gain"
    }

    fn init(&self, _path: &str, weight: &Weight) -> Result<Gain, AdapterError> {
        let [_, outputs] = weight.dims();
        Ok(Gain { gain: Param::from_tensor(Tensor::zeros([outputs], &weight.device())) })
    }
}

impl Adapter for Gain {
    fn apply(&self, w: Tensor<2>) -> Tensor<2> {
        w.clone() + w * self.gain.val().unsqueeze_dim(0)
    }

    fn at_strength(self, t: f64) -> Result<Self, LinalgError> {
        Ok(Self { gain: self.gain.map(|gain| gain.mul_scalar(t)) })
    }
}

mod table {
    //! A table with the new method and one of the crate.

    use super::{GainConfig, LoraConfig, methods};

    methods! {
        /// The methods of this program.
        Choice,
        /// The adapters of these methods.
        ChosenAdapter:
        /// LoRA.
        "lora" => Lora(LoraConfig),
        /// The new method.
        "gain" => Gain(GainConfig),
    }
}

#[derive(Module, Debug)]
struct Net {
    up: Linear,
    down: Linear,
}

impl Net {
    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        self.down.forward(self.up.forward(x).tanh())
    }
}

#[allow(clippy::print_stdout, reason = "an example shows what it does")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let device = Device::default();
    let net = Net {
        up: LinearConfig::new(24, 64).init(&device),
        down: LinearConfig::new(64, 8).init(&device),
    };
    let x = Tensor::<2>::random([256, 24], Distribution::Normal(0.0, 1.0), &device);
    let target = Tensor::from_inner(net.forward(x.clone()).mul_scalar(1.5));

    // By name, as from a configuration file.
    let method: table::Choice = serde_json::from_str(r#"{"name": "gain"}"#)?;
    let targets = Targets(vec!["weight$".to_owned()]);
    let mut adapted = method.plan(&targets, &net)?.attach(net.clone()).train();

    let rates = AdapterOptimizerConfig { flat_lr: 2e-2, ..AdapterOptimizerConfig::default() };
    let mut optimizer = AdapterOptimizer::new(&rates);
    let on_tape = Tensor::from_inner(x.clone());
    for step in 0..=100 {
        let loss = (adapted.forward(on_tape.clone()) - target.clone()).square().mean();
        if step % 25 == 0 {
            println!("step {step:3}  loss {:.5}", loss.clone().into_scalar::<f32>());
        }
        let grads = AdapterGradients::collect(&adapted, &loss.backward());
        adapted = optimizer.step(&method, adapted, grads, 1.0);
    }

    let adapted = adapted.valid();
    let off = without_adapters(|| adapted.forward(x.clone()));
    println!(
        "disabled, it is the base: {}",
        off.equal(net.forward(x.clone())).all().into_scalar::<bool>()
    );

    let state = AdapterState::capture(Recipe::new(method, targets, &net)?, &adapted);
    let header = Header { base: "net".to_owned(), ..Header::default() };
    let path = std::env::temp_dir().join(format!("gain-{}.safetensors", std::process::id()));
    AdapterFile::new(header).with_adapter(Component::Unet, state).write(&path)?;
    let file = AdapterFile::<table::Choice>::read(&path)?;
    std::fs::remove_file(&path)?;
    let merged =
        file.adapters[&Component::Unet].plan(&net)?.at_strength(0.5)?.attach(net).materialize();
    println!("merged at half strength: {} parameters, all plain", merged.num_params());
    Ok(())
}
