//! Losses and gradients from a recording, where the device makes one: a step is a launch then, and not thousands.
//!
//! What is recorded is what the UNet is asked. Text encoders that learn have read the prompts before, one launch after the
//! other, and go on from the condition's gradient: what they are given are no numbers but tokens.

use burn::tensor::Tensor;
use soda_adapters::Component;
use soda_kernels::Recording;
use soda_models::pipeline::Networks;

use crate::config::TrainConfig;
use crate::data::batch::Batch;
use crate::data::prompts::Prompts;
use crate::step::backward::{Backward, ConditionGradient};
use crate::step::loss::{Question, gradients};
use crate::step::stacks::Stacks;
use crate::step::text_encoding::Reading;

/// What computes losses and gradients on the caller's thread.
pub(crate) enum Recorded {
    /// Nothing yet: the first batch says what there is to record.
    Unseen,
    /// One size of batch. Others are rare (the end of a bucket) and a recording holds all memory of a step.
    Made(Box<StepRecording>),
    /// The device makes none.
    Never,
}

/// The recorded computation on batches of one size.
pub(crate) struct StepRecording {
    sizes: Vec<usize>,
    recording: Recording<(Tensor<1>, Stacks, Option<ConditionGradient>)>,
}

impl Recorded {
    /// [`gradients`] of `networks` with these `parameters`, from the recording for batches of its size.
    pub(crate) fn gradients(
        &mut self,
        networks: &Networks,
        parameters: &Stacks,
        batch: &Batch,
        config: &TrainConfig,
        scale: f32,
    ) -> (f32, Stacks) {
        if let Self::Never = self {
            let (loss, grads) = gradients(&parameters.put(networks.clone()), batch, config, scale);
            return (loss, parameters.gradients(grads));
        }
        let reader = match batch.prompts {
            // The UNet's parameters come from the stacks.
            Prompts::Encoded(_) => networks.clone(),
            Prompts::Tokens { .. } => parameters.put(networks.clone()),
        };
        let reading = Reading::new(&reader, &batch.prompts);
        let question = Question::new(&reader, &batch.weighted(scale), &reading, config);
        if let Self::Unseen = self {
            let made = StepRecording::new(networks, parameters, &question, config);
            *self = made.map_or(Self::Never, |made| Self::Made(Box::new(made)));
        }
        let (loss, grads, condition) = match self {
            Self::Made(step) if step.sizes == sizes(&flat(&question)) => {
                step.repeat(parameters, &question)
            }
            _ => {
                let adapted = parameters.put(networks.clone());
                let Backward { loss, adapters, condition } = question.answer(&adapted.unet, config);
                (loss, parameters.gradients(adapters.within(Component::Unet)), condition)
            }
        };
        let grads = match condition.filter(|_| reading.learns()) {
            Some(condition) => grads + parameters.gradients(reading.backward(condition)),
            None => grads,
        };
        (loss.into_scalar::<f32>() / scale, grads)
    }
}

impl StepRecording {
    fn new(
        networks: &Networks,
        parameters: &Stacks,
        question: &Question,
        config: &TrainConfig,
    ) -> Option<Self> {
        let (networks, layout, shapes) = (networks.clone(), parameters.clone(), question.clone());
        let sizes = sizes(&flat(question));
        let config = config.clone();
        let recording = Recording::new(inputs(parameters, question), move |inputs| {
            let mut inputs = inputs.iter().cloned();
            let parameters = layout.filled(&mut inputs);
            let question = shapes.map(|x| inputs.next().unwrap_or(x));
            let adapted = parameters.put(networks.clone());
            let Backward { loss, adapters, condition } = question.answer(&adapted.unet, &config);
            (loss, parameters.gradients(adapters.within(Component::Unet)), condition)
        })?;
        Some(Self { sizes, recording })
    }

    /// The condition's gradient is to be used before the next repetition.
    fn repeat(
        &mut self,
        parameters: &Stacks,
        question: &Question,
    ) -> (Tensor<1>, Stacks, Option<ConditionGradient>) {
        let (loss, grads, condition) = self.recording.repeat(inputs(parameters, question));
        // The next repetition writes over the originals.
        (loss.clone(), grads.copied(), condition.clone())
    }
}

/// What changes from step to step: the adapters and what is asked.
fn inputs(parameters: &Stacks, question: &Question) -> Vec<Tensor<1>> {
    parameters.flat().into_iter().chain(flat(question)).collect()
}

fn flat(question: &Question) -> Vec<Tensor<1>> {
    let mut all = Vec::new();
    let _ = question.map(|x| {
        all.push(x.clone());
        x
    });
    all
}

fn sizes(tensors: &[Tensor<1>]) -> Vec<usize> {
    tensors.iter().map(|x| x.dims()[0]).collect()
}
