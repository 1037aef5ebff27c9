//! The gradients of a loss of the network's prediction, with one tape over the whole network or with a small one over
//! each of its stages in turn (Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174).
//!
//! ```text
//! h_{i+1} = f_i(h_i, θ)                                    forward, without a tape, keeping every h_i
//! g_i = ∂⟨f_i(h_i, θ), g_{i+1}⟩ / ∂h_i,   ∂L/∂θ += ∂⟨f_i(h_i, θ), g_{i+1}⟩ / ∂θ      backward, f_i once more
//! ```
//!
//! `g` is `∂L/∂h`. Both ways compute the same products of the same numbers; only sums over stages, of what all of them
//! read, are added in another order.
//!
//! Why no operation of burn's tape does this: such an operation has a fixed number of parents, and a stage has as many as
//! it has adapted weights; and it is written for each backend, where the walk over stages needs tensors only.

use burn::module::Module;
use burn::tensor::{Gradients, Tensor};
use serde::{Deserialize, Serialize};
use soda_models::unet::{AddedCondition, Condition, Unet};

use crate::gradients::AdapterGradients;

/// What the backward pass finds of the forward pass, and what it computes again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Checkpointing {
    /// Every stage's intermediates are kept: most memory, least work.
    #[default]
    None,
    /// Only what is between the stages is kept, and the intermediates of one stage at a time.
    Block,
}

/// What the network is called with, in its precision and off the tape.
#[derive(Clone, Debug)]
pub struct Call {
    /// `x_t`, `[b, c, h, w]`.
    pub noisy: Tensor<4>,
    /// `t`, `[b]`.
    pub timesteps: Tensor<1>,
    /// The text, and of SDXL what belongs to it.
    pub condition: Condition,
    /// Whether the gradient by the condition is asked for, as who trains a text encoder does.
    pub wants_condition: bool,
}

/// What came of it.
#[derive(Debug)]
pub struct Backward {
    /// The loss, `[1]`.
    pub loss: Tensor<1>,
    /// Gradients by the adapters' parameters.
    pub adapters: AdapterGradients,
    /// Gradients by the condition, where asked for.
    pub condition: Option<ConditionGradient>,
}

/// Gradients by what the text encoders give.
#[derive(Clone, Debug)]
pub struct ConditionGradient {
    /// By the text states, `[b, m, d]`.
    pub text: Tensor<3>,
    /// By SDXL's pooled text, `[b, p]`.
    pub pooled: Option<Tensor<2>>,
}

impl Checkpointing {
    /// `loss` of the prediction of `unet`, and its gradients. `unet` is adapted and on a plain device; `loss` is given
    /// the prediction `[b, c, h, w]` on a tape.
    pub fn backward(
        self,
        unet: &Unet,
        call: Call,
        loss: impl FnOnce(Tensor<4>) -> Tensor<1>,
    ) -> Backward {
        match self {
            Self::None => whole(unet, call, loss),
            Self::Block => by_stage(unet, call, loss),
        }
    }
}

/// One tape over the whole network.
fn whole(unet: &Unet, call: Call, loss: impl FnOnce(Tensor<4>) -> Tensor<1>) -> Backward {
    // Leaves of a tape of its own: several threads may do this at once.
    let taped = unet.clone().train();
    let Call { noisy, timesteps, condition, wants_condition } = call;
    let condition = on_tape(condition, wants_condition);
    let (noisy, timesteps) = (Tensor::from_inner(noisy), Tensor::<1>::from_inner(timesteps));
    let loss = loss(taped.forward(noisy, timesteps, condition.clone()));
    let grads = loss.backward();
    let condition = wants_condition.then(|| ConditionGradient {
        text: gradient(&condition.text, &grads),
        pooled: condition.added.map(|added| gradient(&added.pooled, &grads)),
    });
    Backward { loss, adapters: AdapterGradients::collect(&taped, &grads), condition }
}

/// A tape over each stage in turn, from the last to the first that has anything to learn.
fn by_stage(unet: &Unet, call: Call, loss: impl FnOnce(Tensor<4>) -> Tensor<1>) -> Backward {
    let Call { noisy, timesteps, condition: Condition { text, added }, wants_condition } = call;
    let taped = unet.clone().train();
    // On the tape's device and with nothing to track, where nothing is kept and every kernel is the one that the
    // backward pass will run: off it some round otherwise.
    let untracked = taped.clone().no_grad();
    let still = on_tape(Condition { text: text.clone(), added: added.clone() }, false);
    let at = || Tensor::<1>::from_inner(timesteps.clone()).into();
    let time = untracked.embed_time(at(), still.added);

    let (mut x, mut skips) = (Tensor::from_inner(noisy), Vec::new());
    let mut kept = Vec::new();
    for stage in untracked.stages() {
        let input = stage.input(x, &mut skips);
        kept.push(input.clone());
        x = stage.forward(input, &time, &still.text);
        if stage.leaves_skip() {
            skips.push(x.clone());
        }
    }
    let (time, prediction) = (time.inner(), leaf(x.inner(), true));
    let loss = loss(prediction.clone());
    let mut incoming: Tensor<4> = gradient(&prediction, &loss.backward());
    drop(prediction);

    // Before the first stage that a gradient is asked of, there is nothing to go back for.
    let wants_time = taped.trains_time() || (wants_condition && added.is_some());
    let stages = taped.stages();
    let first = stages.iter().position(|stage| {
        stage.trains()
            || (wants_time && stage.reads_time())
            || (wants_condition && stage.reads_text())
    });
    let first = first.unwrap_or(stages.len());

    let mut adapters = AdapterGradients::default();
    let mut of_skips: Vec<Tensor<4>> = Vec::new();
    let (mut of_time, mut of_text) = (None, None);
    for (index, stage) in stages.iter().enumerate().skip(first).rev() {
        // Taken out, so that a map is freed with the last stage that needs it.
        let Some(input) = kept.pop() else { break };
        if let Some(of_skip) = stage.leaves_skip().then(|| of_skips.pop()).flatten() {
            incoming = incoming + of_skip;
        }
        let input = input.each(|map| leaf(map.inner(), index > first));
        let (time, text) = (leaf(time.clone(), wants_time), leaf(text.clone(), wants_condition));
        let grads = seeded(stage.forward(input.clone(), &time, &text), incoming);
        adapters = adapters + AdapterGradients::visited(&grads, |visitor| stage.visit(visitor));
        of_time = sum(of_time, time.grad(&grads));
        of_text = sum(of_text, text.grad(&grads));
        incoming = gradient(&input.hidden, &grads);
        of_skips.extend(input.skip.map(|skip| gradient(&skip, &grads)));
    }

    let added = on_tape(Condition { text: text.clone(), added }, wants_condition).added;
    let mut pooled = None;
    if let (true, Some(of_time)) = (wants_time, of_time) {
        let grads = seeded(taped.embed_time(at(), added.clone()), of_time);
        adapters = adapters + AdapterGradients::collect(&taped, &grads);
        pooled = added.map(|added| gradient(&added.pooled, &grads));
    }
    let condition = wants_condition
        .then(|| ConditionGradient { text: of_text.unwrap_or_else(|| text.zeros_like()), pooled });
    Backward { loss, adapters, condition }
}

/// `condition` on the tape's device, where its gradient is kept if it is `wanted`.
pub(crate) fn on_tape(Condition { text, added }: Condition, wanted: bool) -> Condition {
    let added = added.map(|AddedCondition { pooled, time_ids }| AddedCondition {
        pooled: leaf(pooled, wanted),
        time_ids: Tensor::from_inner(time_ids),
    });
    Condition { text: leaf(text, wanted), added }
}

/// `x` on a tape, where its gradient is kept if it is `wanted`.
fn leaf<const D: usize>(x: Tensor<D>, wanted: bool) -> Tensor<D> {
    Tensor::from_inner(x).set_require_grad(wanted)
}

/// The gradients of `⟨output, g⟩`: those of a loss whose gradient by `output` is `g`.
fn seeded<const D: usize>(output: Tensor<D>, g: Tensor<D>) -> Gradients {
    (output * Tensor::from_inner(g)).sum().backward()
}

/// The gradient of a leaf; zero where the loss does not depend on it.
fn gradient<const D: usize>(leaf: &Tensor<D>, grads: &Gradients) -> Tensor<D> {
    leaf.grad(grads).unwrap_or_else(|| leaf.clone().inner().zeros_like())
}

fn sum<const D: usize>(a: Option<Tensor<D>>, b: Option<Tensor<D>>) -> Option<Tensor<D>> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a + b),
        (a, b) => a.or(b),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use burn::tensor::{Device, TensorData};
    use serde_json::{Value, json};
    use soda_adapters::Method as _;
    use soda_models::noise::{generator, normal};
    use soda_models::unet::UnetConfig;

    use super::*;
    use crate::batch::Batch;
    use crate::config::TrainConfig;
    use crate::loss::gradients;
    use crate::testing::{filled, norm, random, sdxl, settings};

    /// Of the loss, and of the norm of the whole gradient. Only the sum of what a map's readers say is added in another
    /// order, which rounds by 6e-8 of it.
    const TOLERANCE: f32 = 1e-6;

    /// Of a tensor's own norm: gradients of queries and keys are what is left of sums that cancel, and lose a digit.
    const OWN: f32 = 1e-5;

    /// Sides that the way down rounds, so that the way up must be told its sizes.
    const SIDES: [usize; 2] = [10, 14];

    fn sd15() -> Value {
        json!({
            "block_out_channels": [16, 32, 32],
            "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
            "norm_num_groups": 8,
            "cross_attention_dim": 24,
            "attention_head_dim": 2,
        })
    }

    /// A network whose adapters are not those at the start, where a LoRA's first factor has no gradient.
    fn adapted(architecture: &UnetConfig, config: &TrainConfig, device: &Device) -> Unet {
        let unet = filled(architecture.init(device));
        let unet = config.method.plan(&config.targets, &unet).unwrap().attach(unet);
        random(unet, 1.0, |_| 0.05)
    }

    /// Two pictures, one of which counts less, as one of the class does.
    fn batch(architecture: &UnetConfig, device: &Device) -> Batch {
        let mut noise = generator(5, 0);
        let [height, width] = SIDES;
        let mut map = || normal(&mut noise, [2, 4, height, width], device);
        let (noisy, target) = (map(), map());
        let text: Tensor<4> = normal(&mut noise, [1, 2, 7, 24], device);
        let pooled: Tensor<4> = normal(&mut noise, [1, 1, 2, 12], device);
        let ids = TensorData::from([[64f32, 96.0, 0.0, 8.0, 80.0, 112.0]; 2]);
        let added = architecture.addition_embed_type.map(|_| AddedCondition {
            pooled: pooled.reshape([2, 12]),
            time_ids: Tensor::from_data(ids, device),
        });
        Batch {
            noisy,
            target,
            timesteps: Tensor::from_data(TensorData::from([20f32, 800.0]), device),
            prompts: Condition { text: text.reshape([2, 7, 24]), added }.into(),
            weight: Tensor::from_data(TensorData::from([0.5f32, 0.2]), device),
            mask: None,
        }
    }

    /// Holds `a` against `b`, a part of a gradient of norm `whole`.
    #[track_caller]
    fn check<const D: usize>(what: &str, a: &Tensor<D>, b: &Tensor<D>, whole: f32) {
        let (distance, size) = (norm(a.clone() - b.clone()), norm(b.clone()));
        assert!(size > 0.0, "{what} is zero");
        assert!(distance <= TOLERANCE * whole, "{what}: {:e} of all", distance / whole);
        assert!(distance <= OWN * size, "{what}: {:e}", distance / size);
    }

    /// All targets that there are, those of some stages only, and those that the time passes through.
    #[test]
    fn one_tape_a_stage_gives_the_gradients_of_one_tape() {
        let device = Device::default();
        for (name, architecture) in [("sd15", sd15()), ("sdxl", sdxl())] {
            let architecture: UnetConfig = serde_json::from_value(architecture).unwrap();
            let batch = batch(&architecture, &device);
            for method in ["method=soda", "method=lora"] {
                for loss in ["objective.loss=mse", "objective.loss=dco"] {
                    for targets in
                        ["['attention']", "['all-linear']", r"['up_blocks\..*to_q\.weight$']"]
                    {
                        let targets = format!("targets={targets}");
                        let case = format!("{name} {method} {loss} {targets}");
                        let all = [method, loss, &targets, "objective.dco_beta=10"];
                        let plain = settings(&all);
                        let unet = adapted(&architecture, &plain, &device);
                        let block =
                            TrainConfig { checkpointing: Checkpointing::Block, ..plain.clone() };
                        let networks = unet.into();
                        let (expected, plain) = gradients(&networks, &batch, &plain, 1.0);
                        let (loss, block) = gradients(&networks, &batch, &block, 1.0);
                        assert!((loss - expected).abs() <= TOLERANCE * expected.abs(), "{case}");
                        let paths = [&plain, &block].map(|g| g.0.keys().collect::<Vec<_>>());
                        assert!(!paths[0].is_empty(), "{case}");
                        assert_eq!(paths[0], paths[1], "{case}");
                        let all = plain.0.values().cloned().collect();
                        let whole = norm(Tensor::<1>::cat(all, 0));
                        for (path, expected) in &plain.0 {
                            check(&format!("{case} {path}"), &block.0[path], expected, whole);
                        }
                    }
                }
            }
        }
    }

    /// Whoever trains what made the condition goes on from its gradient.
    #[test]
    fn the_conditions_gradient_is_the_same_too() {
        let device = Device::default();
        for architecture in [sd15(), sdxl()] {
            let architecture: UnetConfig = serde_json::from_value(architecture).unwrap();
            let batch = batch(&architecture, &device);
            let unet = adapted(&architecture, &settings(&["method=lora"]), &device);
            let condition = batch.prompts.clone().ready().unwrap();
            let [plain, block] = [Checkpointing::None, Checkpointing::Block].map(|checkpointing| {
                let call = Call {
                    noisy: batch.noisy.clone(),
                    timesteps: batch.timesteps.clone(),
                    condition: condition.clone(),
                    wants_condition: true,
                };
                let found =
                    checkpointing.backward(&unet, call, |prediction| prediction.square().mean());
                found.condition.unwrap()
            });
            let whole = norm(plain.text.clone());
            check("text", &block.text, &plain.text, whole);
            assert_eq!(plain.pooled.is_some(), condition.added.is_some());
            if let Some(pooled) = plain.pooled {
                check("pooled", &block.pooled.unwrap(), &pooled, norm(pooled.clone()));
            }
        }
    }

    /// Without adapters there is nothing to go back for, and the loss is the loss.
    #[test]
    fn a_frozen_network_has_a_loss_and_no_gradients() {
        let device = Device::default();
        let architecture: UnetConfig = serde_json::from_value(sd15()).unwrap();
        let batch = batch(&architecture, &device);
        let config = settings(&["checkpointing=block"]);
        let unet = architecture.init(&device).no_grad();
        let (loss, found) = gradients(&unet.into(), &batch, &config, 1.0);
        assert!(loss.is_finite() && found.0.is_empty());
    }
}
