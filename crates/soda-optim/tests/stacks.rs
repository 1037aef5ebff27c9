//! A parameter that is a stack of matrices on the Stiefel manifold steps as its matrices do.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use burn::module::{Module, Param};
use burn::tensor::{Device, Distribution, Tensor};
use soda_adapters::soda::SodaConfig;
use soda_linalg::stiefel::{orthogonality_error, random_point};
use soda_optim::{AdapterGradients, AdapterOptimizer, AdapterOptimizerConfig, BatchedParams};

/// The names are those of an adapter of SODA.
#[derive(Module, Debug)]
struct Rotation {
    blocks: Param<Tensor<3>>,
    factors: Vec<Param<Tensor<2>>>,
}

#[derive(Module, Debug)]
struct Net {
    rotation: Rotation,
}

#[test]
fn blocks_of_one_parameter_step_as_single_matrices() {
    let device = Device::default();
    let blocks = random_point([3, 4, 4], &device);
    let directions = Tensor::<3>::random([3, 4, 4], Distribution::Normal(0.0, 1.0), &device);
    let one =
        |stack: &Tensor<3>, index: usize| stack.clone().narrow(0, index, 1).squeeze_dim::<2>(0);
    let factors = (0..3).map(|index| Param::from_tensor(one(&blocks, index))).collect();
    let rotation = Rotation { blocks: Param::from_tensor(blocks.clone()), factors };
    let (mut net, mut method) = (Net { rotation }, SodaConfig::gsoft());
    method.rotation.as_mut().unwrap().parametrization = Default::default();

    let config = AdapterOptimizerConfig { rotation_lr: 1e-2, ..AdapterOptimizerConfig::default() };
    let mut optimizer = AdapterOptimizer::new(&config);
    for _ in 0..20 {
        let trained = net.clone().train();
        let toward = |index| Tensor::<2>::from_inner(one(&directions, index));
        let stacked = trained.rotation.blocks.val() * Tensor::from_inner(directions.clone());
        let single = trained.rotation.factors.iter().enumerate();
        let single = single.map(|(index, factor)| (factor.val() * toward(index)).sum());
        let loss = single.fold(stacked.sum(), |sum, loss| sum + loss);
        let grads = AdapterGradients::collect(&trained, &loss.backward());
        net = optimizer.step(&method, net, grads, 1.0);
    }
    let found = net.rotation.blocks.val();
    assert!(orthogonality_error(&found).unwrap() < 2e-6);
    for index in 0..3 {
        let single = net.rotation.factors[index].val();
        assert!(one(&found, index).equal(single).all().into_scalar::<bool>(), "block {index}");
        let moved = (one(&found, index) - one(&blocks, index)).abs().max().into_scalar::<f32>();
        assert!(moved > 0.05, "block {index} moved by {moved}");
    }
    // A stored state fits the parameters of its own shape only.
    let params = BatchedParams::new(&method, &net);
    let stored = params.to_data();
    assert_eq!(stored["rotation.blocks"].num_elements(), 48);
    assert!(params.from_data(stored.clone()).is_ok());
    let mut other = stored;
    other.insert("rotation.blocks".to_owned(), other["rotation.factors.0"].clone());
    assert!(params.from_data(other).is_err());
}
