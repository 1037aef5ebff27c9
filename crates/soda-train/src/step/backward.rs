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
use soda_models::unet::{AddedCondition, Condition, Unet};

use crate::config::GradientCheckpointing;
use crate::step::gradients::AdapterGradients;

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

impl GradientCheckpointing {
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
