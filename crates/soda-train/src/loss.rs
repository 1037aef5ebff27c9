//! What a step minimises.
//!
//! With `e = mean |f(x_t, t, c) - target|²` of a sample (Ho et al., arXiv 2006.11239, eq. 14) and `e0` that
//! of the frozen network:
//!
//! | loss | of a sample | paper |
//! |---|---|---|
//! | `mse` | `e` | DreamBooth, arXiv 2208.12242 |
//! | `dco` | `-log σ(-β (e - e0))` | Direct Consistency Optimization, arXiv 2402.12004, eq. 9 |

use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::activation::log_sigmoid;
use soda_adapters::without_adapters;
use soda_models::unet::{AddedCondition, Condition, Unet};

use crate::batch::Batch;
use crate::config::{Loss, ObjectiveConfig};
use crate::gradients::AdapterGradients;

/// The loss of `batch` and its gradients; `unet` is adapted and on a plain device.
pub(crate) fn gradients(
    unet: &Unet,
    batch: &Batch,
    objective: &ObjectiveConfig,
) -> (f32, AdapterGradients) {
    // Leaves of a tape of its own: several threads may do this at once.
    let taped = unet.clone().train();
    let (noisy, condition) = inputs(unet, batch);
    let error = errors(
        taped.forward(
            Tensor::from_inner(noisy),
            Tensor::from_inner(batch.timesteps.clone()),
            on_tape(condition),
        ),
        Tensor::from_inner(batch.target.clone()),
    );
    let loss = match objective.loss {
        Loss::Mse => error,
        Loss::Dco => {
            let frozen = Tensor::from_inner(frozen_errors(unet, batch));
            log_sigmoid((error - frozen).mul_scalar(-objective.dco_beta)).neg()
        }
    };
    let loss = (loss * Tensor::from_inner(batch.weight.clone())).sum();
    let grads = loss.backward();
    (loss.into_scalar::<f32>(), AdapterGradients::collect(&taped, &grads))
}

/// What the network is given, in its precision.
fn inputs(unet: &Unet, batch: &Batch) -> (Tensor<4>, Condition) {
    let dtype = unet.conv_in.weight.val().dtype();
    (batch.noisy.clone().cast(dtype), batch.condition.clone().cast(dtype))
}

fn on_tape(Condition { text, added }: Condition) -> Condition {
    let added = added.map(|added| AddedCondition {
        pooled: Tensor::from_inner(added.pooled),
        time_ids: Tensor::from_inner(added.time_ids),
    });
    Condition { text: Tensor::from_inner(text), added }
}

/// The mean squared error of `batch`, off the tape.
pub(crate) fn value(unet: &Unet, batch: &Batch) -> f32 {
    let (noisy, condition) = inputs(unet, batch);
    let prediction = unet.forward(noisy, batch.timesteps.clone(), condition);
    (errors(prediction, batch.target.clone()) * batch.weight.clone()).sum().into_scalar::<f32>()
}

/// `e0`: the same weights with the adapters off, never a second network.
fn frozen_errors(unet: &Unet, batch: &Batch) -> Tensor<1> {
    let (noisy, condition) = inputs(unet, batch);
    let prediction = without_adapters(|| unet.forward(noisy, batch.timesteps.clone(), condition));
    errors(prediction, batch.target.clone())
}

/// Mean squared error of each sample, `[b]`, in f32.
fn errors(prediction: Tensor<4>, target: Tensor<4>) -> Tensor<1> {
    let samples = prediction.dims()[0];
    let difference = prediction.cast(burn::tensor::DType::F32) - target;
    let each: Tensor<2> = difference.square().flatten(1, 3);
    each.mean_dim(1).reshape([samples])
}
