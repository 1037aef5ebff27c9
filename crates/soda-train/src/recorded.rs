//! Losses and gradients from a recording, where the device makes one: a step is a launch then, and not thousands.

use burn::tensor::Tensor;
use soda_kernels::Recording;
use soda_models::pipeline::Networks;

use crate::batch::Batch;
use crate::config::TrainConfig;
use crate::loss::{gradients, tensors};
use crate::prompts::Prompts;
use crate::stacks::Stacks;

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
    recording: Recording<(Tensor<1>, Stacks)>,
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
        if let Self::Unseen = self {
            let made = StepRecording::new(networks, parameters, batch, config);
            *self = made.map_or(Self::Never, |made| Self::Made(Box::new(made)));
        }
        match self {
            Self::Made(step) if step.sizes == sizes(&flat(batch)) => {
                let (loss, grads) = step.repeat(parameters, &batch.weighted(scale));
                (loss / scale, grads)
            }
            _ => {
                let adapted = parameters.put(networks.clone());
                let (loss, grads) = gradients(&adapted, batch, config, scale);
                (loss, parameters.gradients(grads))
            }
        }
    }
}

impl StepRecording {
    fn new(
        networks: &Networks,
        parameters: &Stacks,
        batch: &Batch,
        config: &TrainConfig,
    ) -> Option<Self> {
        // A recording's inputs are numbers, and tokens are not: text encoders that learn are not recorded.
        if let Prompts::Tokens { .. } = batch.prompts {
            return None;
        }
        let (networks, layout, shapes) = (networks.clone(), parameters.clone(), batch.clone());
        let sizes = sizes(&flat(batch));
        let config = config.clone();
        let recording = Recording::new(inputs(parameters, batch), move |inputs| {
            let mut inputs = inputs.iter().cloned();
            let parameters = layout.filled(&mut inputs);
            let batch = shapes.map(|x| inputs.next().unwrap_or(x));
            let (loss, grads) = tensors(&parameters.put(networks.clone()), &batch, &config);
            (loss, parameters.gradients(grads))
        })?;
        Some(Self { sizes, recording })
    }

    fn repeat(&mut self, parameters: &Stacks, batch: &Batch) -> (f32, Stacks) {
        let (loss, grads) = self.recording.repeat(inputs(parameters, batch));
        // The next repetition writes over the originals.
        let grads = grads.copied();
        (loss.clone().into_scalar::<f32>(), grads)
    }
}

/// What changes from step to step: the adapter and the batch.
fn inputs(parameters: &Stacks, batch: &Batch) -> Vec<Tensor<1>> {
    parameters.flat().into_iter().chain(flat(batch)).collect()
}

fn flat(batch: &Batch) -> Vec<Tensor<1>> {
    let mut all = Vec::new();
    let _ = batch.map(|x| {
        all.push(x.clone());
        x
    });
    all
}

fn sizes(tensors: &[Tensor<1>]) -> Vec<usize> {
    tensors.iter().map(|x| x.dims()[0]).collect()
}
