//! Losses and gradients from a recording, where the device makes one: a step is a launch then, and not thousands.

use std::collections::BTreeSet;

use burn::tensor::Tensor;
use soda_adapters::map_leaves;
use soda_kernels::{Recording, own};
use soda_models::unet::Unet;

use crate::batch::Batch;
use crate::config::TrainConfig;
use crate::ema::trainable;
use crate::gradients::AdapterGradients;
use crate::loss::{gradients, tensors};

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
    recording: Recording<(Tensor<1>, AdapterGradients)>,
}

impl Recorded {
    /// [`gradients`], from the recording for batches of its size.
    pub(crate) fn gradients(
        &mut self,
        unet: &Unet,
        batch: &Batch,
        config: &TrainConfig,
        scale: f32,
    ) -> (f32, AdapterGradients) {
        if let Self::Unseen = self {
            let made = StepRecording::new(unet, batch, config);
            *self = made.map_or(Self::Never, |made| Self::Made(Box::new(made)));
        }
        match self {
            Self::Made(step) if step.sizes == sizes(&flat(batch)) => {
                let (loss, grads) = step.repeat(unet, &batch.weighted(scale));
                (loss / scale, grads)
            }
            _ => gradients(unet, batch, config, scale),
        }
    }
}

impl StepRecording {
    fn new(unet: &Unet, batch: &Batch, config: &TrainConfig) -> Option<Self> {
        let moving: BTreeSet<_> = trainable(unet).into_iter().map(|leaf| leaf.path).collect();
        let unet =
            map_leaves(unet.clone(), |path, _, value| moving.contains(path).then(|| own(value)));
        let batch = batch.map(own);
        let read = inputs(&unet, &batch);
        let sizes = sizes(&flat(&batch));
        let config = config.clone();
        let recording = Recording::new(read, move || tensors(&unet, &batch, &config))?;
        Some(Self { sizes, recording })
    }

    fn repeat(&mut self, unet: &Unet, batch: &Batch) -> (f32, AdapterGradients) {
        let (loss, grads) = self.recording.repeat(inputs(unet, batch));
        // The next repetition writes over the originals.
        let grads = grads.copied();
        (loss.clone().into_scalar::<f32>(), grads)
    }
}

/// What changes from step to step: the adapter and the batch.
fn inputs(unet: &Unet, batch: &Batch) -> Vec<Tensor<1>> {
    trainable(unet).into_iter().map(|leaf| leaf.value).chain(flat(batch)).collect()
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
