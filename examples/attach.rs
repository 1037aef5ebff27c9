//! SODA on a network of one's own, trained with burn's autodiff and the Stiefel optimizer, without a
//! diffusion model.
//!
//! `cargo run -p soda-examples --example attach`

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Distribution, Tensor};
use soda_adapters::soda::SodaConfig;
use soda_adapters::{Method, Targets, named_params};
use soda_optim::{AdapterGradients, AdapterOptimizer, AdapterOptimizerConfig};

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
    let random = || Net {
        up: LinearConfig::new(24, 64).init(&device),
        down: LinearConfig::new(64, 8).init(&device),
    };
    let (net, teacher) = (random(), random());
    let x = Tensor::<2>::random([256, 24], Distribution::Normal(0.0, 1.0), &device);
    let target = Tensor::from_inner(teacher.forward(x.clone()));

    let method = SodaConfig::default();
    let plan = method.plan(&Targets(vec![r"weight$".to_owned()]), &net)?;
    let mut net = plan.attach(net).train();
    let trained: usize = named_params(&net)
        .iter()
        .filter(|param| param.trainable)
        .map(|param| param.shape.iter().product::<usize>())
        .sum();
    println!("{trained} trained parameters of {}", net.num_params());

    let mut optimizer = AdapterOptimizer::new(&AdapterOptimizerConfig::default());
    let x = Tensor::from_inner(x);
    for step in 0..=200 {
        let loss = (net.forward(x.clone()) - target.clone()).square().mean();
        if step % 50 == 0 {
            println!("step {step:3}  loss {:.4}", loss.clone().into_scalar::<f32>());
        }
        let grads = AdapterGradients::collect(&net, &loss.backward());
        net = optimizer.step(&method, net, grads, 1.0);
    }
    let merged = net.valid().materialize();
    println!("merged: {} parameters, all plain", merged.num_params());
    Ok(())
}
