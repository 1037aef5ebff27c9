//! The polar iteration, against its formula in burn's operations on the CPU.

use burn::tensor::{Device, Distribution, Tensor};
use soda_kernels::PolarIteration;
use soda_testing::relative_error;

#[test]
fn steps_agree_with_their_formula() {
    let cpu = Device::flex();
    let off = |ours: Tensor<3>, theirs: &Tensor<3>| {
        let values = |x: Tensor<3>| x.into_data().iter().collect::<Vec<f32>>();
        relative_error(&values(ours), &values(theirs.clone()))
    };
    for [b, m, n] in [[2, 40, 40], [3, 50, 24], [1, 130, 129]] {
        let shape = [b, m, n];
        let x = Tensor::<3>::random(shape, Distribution::Normal(0.0, 0.1), &cpu);
        let square = x.clone().transpose().matmul(x.clone());
        let [x_there, square_there] =
            [&x, &square].map(|x| x.clone().to_device(&Device::default()));
        let step = |x: &Tensor<3>, [a, b, c]: [f64; 3]| {
            let square = x.clone().transpose().matmul(x.clone());
            let twice = square.clone().matmul(square.clone()).mul_scalar(c);
            x.clone().mul_scalar(a) + x.clone().matmul(square.mul_scalar(b) + twice)
        };
        let (first, second) = ([3.4445, -4.7750, 2.0315], [1.875, -1.25, 0.375]);
        let expected = step(&x, first);
        let iterate = PolarIteration::new(x_there, square_there).step(first);
        let gram = expected.clone().transpose().matmul(expected.clone());
        assert!(off(iterate.gram().clone(), &gram) <= 2e-5);
        assert!(off(iterate.finish(second), &step(&expected, second)) <= 2e-5);
    }
}
