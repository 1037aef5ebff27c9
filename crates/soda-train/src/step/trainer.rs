//! The training loop, one step at a time: draw, differentiate, clip, move, average.
//!
//! A step is a function of the seed, its number and the state that [`Trainer::state`] gives, so a run that
//! stops and goes on is the run that never stopped, to the bit.

use std::collections::BTreeMap;

use burn::module::Module as _;
use burn::tensor::TensorData;
use soda_adapters::Method;
use soda_models::clip::embeddings::NewTokens;
use soda_models::pipeline::Networks;
use soda_models::scheduler::Ddpm;
use soda_models::shards::Shards;

use crate::config::LossScaleConfig;
use crate::config::Precision;
use crate::config::TrainConfig;
use crate::data::batch::Batch;
use crate::data::encode::EncodedDataset;
use crate::error::TrainError;
use crate::step::ema::Ema;
use crate::step::graph::Recorded;
use crate::step::loss::gradients;
use crate::step::loss_scale::LossScale;
use crate::step::metrics::Step;
use crate::step::optimizer::AdapterOptimizer;
use crate::step::optimizer_state::OptimizerState;
use crate::step::stacks::{Part, Stacks};

/// What is learnt from.
pub struct Material<'a> {
    /// The subject or style.
    pub data: &'a EncodedDataset,
    /// Pictures of the class, whose prior is to be kept.
    pub class: Option<&'a EncodedDataset>,
    /// The noise schedule of the base.
    pub schedule: &'a Ddpm,
}

impl Material<'_> {
    /// What tells it from other data.
    pub(crate) fn digest(&self) -> String {
        let class = self.class.map_or("", EncodedDataset::digest);
        format!("{}{class}", self.data.digest())
    }
}

/// A training in progress.
pub struct Trainer<'a> {
    /// Adapted, on a plain device; their parameters are those of the start.
    networks: Networks,
    parameters: Stacks,
    /// The newest that are known to give a finite loss: those before the last step, unless there was none.
    good: Stacks,
    config: &'a TrainConfig,
    optimizer: AdapterOptimizer,
    ema: Option<Ema>,
    shards: Shards,
    /// In f16.
    scale: Option<LossScale>,
    recorded: Recorded,
    step: usize,
}

/// Everything of a [`Trainer`] that the configuration does not give.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TrainerState {
    /// Steps done.
    pub step: usize,
    /// The adapters' parameters by path, which begins with the network's name.
    pub adapter: BTreeMap<String, TensorData>,
    /// Their moving average by path; empty without one.
    pub average: BTreeMap<String, TensorData>,
    /// Moments.
    pub optimizer: OptimizerState,
    /// The loss scale, in f16.
    pub scale: Option<LossScale>,
}

/// Samples of a batch. Those of the class are in the same one where all pictures have one shape.
fn samples_at_once(config: &TrainConfig) -> usize {
    let with_class = config.prior.is_some() && config.buckets.is_none();
    config.batch_size * if with_class { 2 } else { 1 }
}

fn loss_scale(config: &TrainConfig) -> LossScaleConfig {
    config.loss_scale.unwrap_or_default()
}

impl<'a> Trainer<'a> {
    /// At step 0; `networks`, or a UNet alone, have their adapters attached and are on a plain device. Without text
    /// encoders all batches must have text states.
    ///
    /// # Errors
    /// A number of shards that the system has no threads for.
    pub fn new<M: Method>(
        networks: impl Into<Networks>,
        method: &M,
        config: &'a TrainConfig,
    ) -> Result<Self, TrainError> {
        let networks = networks.into();
        let parameters = Stacks::of(method, &networks);
        let text = config.trained_text_encoder().and_then(|text| text.learning_rate);
        let tokens = config.trained_tokens().and_then(|tokens| tokens.learning_rate);
        Ok(Self {
            optimizer: AdapterOptimizer::new(&config.optimizer)
                .with_rate(Part::Text, text)
                .with_rate(Part::Tokens, tokens),
            ema: config.optimizer.ema_decay.map(|decay| Ema::new(decay, parameters.clone())),
            shards: Shards::new(config.shards.unwrap_or(1).min(samples_at_once(config)))?,
            scale: (config.precision == Precision::F16)
                .then(|| LossScale::new(&loss_scale(config))),
            recorded: Recorded::Never,
            step: 0,
            good: parameters.clone(),
            parameters,
            networks,
            config,
        })
    }

    /// The same with steps from a recording, where the device makes one: one launch instead of thousands, for as much
    /// memory as a step takes. Text encoders that learn are beside it. Only for a process whose other threads leave the
    /// device alone while it is made, in the first step.
    #[must_use]
    pub fn recording(self) -> Self {
        Self { recorded: Recorded::Unseen, ..self }
    }

    /// Steps done.
    pub fn steps_done(&self) -> usize {
        self.step
    }

    /// The next step on its own random samples.
    ///
    /// # Errors
    /// As [`Trainer::step_on`].
    pub fn step(&mut self, material: &Material<'_>) -> Result<Step, TrainError> {
        let Material { data, class, schedule } = *material;
        self.step_over(&Batch::sample(data, class, schedule, self.config, self.step))
    }

    /// The next step on these samples.
    ///
    /// # Errors
    /// A loss or a gradient that is not finite. Nothing has moved then; see [`Trainer::last_good`]. In f16 a gradient
    /// that is not is passed over, and an error only where no loss scale helps.
    pub fn step_on(&mut self, batch: &Batch) -> Result<Step, TrainError> {
        self.step_over(std::slice::from_ref(batch))
    }

    fn step_over(&mut self, batches: &[Batch]) -> Result<Step, TrainError> {
        let (step, steps) = (self.step, self.config.steps);
        let text = self.config.trained_text_encoder();
        let text = text.is_some_and(|text| text.learns_in(step, steps));
        let tokens = self.config.trained_tokens();
        let tokens = tokens.is_some_and(|tokens| tokens.learn_in(step, steps));
        let learns = |part| match part {
            Part::Denoiser => true,
            Part::Text => text,
            Part::Tokens => tokens,
        };
        self.rest(learns);
        let samples: usize = batches.iter().map(Batch::len).sum();
        let at_once = samples.div_ceil(self.config.accumulation).max(1);
        let parts = batches.iter().flat_map(|batch| batch.parts(batch.len().div_ceil(at_once)));
        let mut sum: Option<(f32, Stacks)> = None;
        for part in parts {
            // Added in order, so that the sum has the same bits however the threads ran.
            for (loss, grads) in self.gradients(&part) {
                sum = Some(match sum {
                    Some(sum) => (sum.0 + loss, sum.1 + grads),
                    None => (loss, grads),
                });
            }
        }
        let (loss, grads) = sum.unwrap_or_else(|| (0.0, self.parameters.scaled(0.0)));
        let grads = match self.scale {
            Some(scale) => grads.scaled(scale.value.recip()),
            None => grads,
        };
        // An infinite gradient of a finite loss would spoil the next loss, and with it the adapter.
        let norm = grads.norm().map_or(0.0, |norm| norm.into_scalar::<f32>());
        if loss.is_finite() {
            self.good = self.parameters.clone();
        }
        if let Some(scale) = self.scale.filter(|_| loss.is_finite()) {
            let next = scale.after(norm.is_finite(), &loss_scale(self.config));
            let collapsed = || TrainError::ScaleCollapsed { step: self.step + 1, kept: None };
            self.scale = Some(next.ok_or_else(collapsed)?);
            if !norm.is_finite() {
                self.step += 1;
                return Ok(Step { loss, grad_norm: norm, ..Step::default() });
            }
        }
        if !loss.is_finite() || !norm.is_finite() {
            let value = if loss.is_finite() { norm } else { loss };
            return Err(TrainError::Diverged { step: self.step + 1, value, kept: None });
        }
        let factor = self.config.optimizer.factor(self.step, self.config.steps);
        let moved = self.optimizer.step_stacks(&self.parameters, &grads, factor);
        // Without a gradient what rests would go on by what it remembers of it.
        self.parameters =
            moved.zip(
                &self.parameters,
                |stack, new, old| {
                    if learns(stack.kind.part) { new } else { old }
                },
            );
        self.step += 1;
        if let Some(ema) = &mut self.ema {
            ema.update(&self.parameters, self.step);
        }
        let rate = |part| if learns(part) { self.optimizer.rate(part, factor) as f32 } else { 0.0 };
        Ok(Step {
            loss,
            grad_norm: norm,
            rotation_lr: self.optimizer.rotation_rate(factor) as f32,
            flat_lr: rate(Part::Denoiser),
            text_lr: rate(Part::Text),
            token_lr: rate(Part::Tokens),
        })
    }

    /// Of what does not learn any more nothing is asked from here on but what it says.
    fn rest(&mut self, learns: impl Fn(Part) -> bool) {
        let Networks { text_encoder, text_encoder_2, .. } = &mut self.networks;
        for slot in [text_encoder, text_encoder_2] {
            let Some(mut encoder) = slot.take() else { continue };
            let new = encoder.text_model.embeddings.new_tokens.take();
            if !learns(Part::Text) {
                encoder = encoder.no_grad();
            }
            let rested = |new: NewTokens| if learns(Part::Tokens) { new } else { new.no_grad() };
            encoder.text_model.embeddings.new_tokens = new.map(rested);
            *slot = Some(encoder);
        }
    }

    /// Losses and gradients of the parts of `batch` that are computed at once.
    fn gradients(&mut self, batch: &Batch) -> Vec<(f32, Stacks)> {
        let scale = self.scale.map_or(1.0, |scale| scale.value);
        let (networks, parameters, config) = (&self.networks, &self.parameters, self.config);
        if self.shards.count() == 1 {
            return vec![self.recorded.gradients(networks, parameters, batch, config, scale)];
        }
        let networks = parameters.put(networks.clone());
        let parts = batch.parts(self.shards.count());
        let parts = parts.into_iter().map(|part| (networks.clone(), part)).collect();
        let of = |(networks, part): (Networks, Batch)| gradients(&networks, &part, config, scale);
        let found = self.shards.map(parts, of);
        found.into_iter().map(|(loss, grads)| (loss, parameters.gradients(grads))).collect()
    }

    /// The adapted networks: with their average, where there is one.
    pub fn networks(&self) -> Networks {
        self.ema.as_ref().map_or(&self.parameters, |ema| &ema.values).put(self.networks.clone())
    }

    /// The loss scale, in f16.
    pub fn scale(&self) -> Option<LossScale> {
        self.scale
    }

    /// The newest networks that are known to give a finite loss, without averaging.
    pub fn last_good(&self) -> Networks {
        self.good.put(self.networks.clone())
    }

    /// What to store.
    pub fn state(&self) -> TrainerState {
        TrainerState {
            step: self.step,
            adapter: self.parameters.state(),
            average: self.ema.as_ref().map(|ema| ema.values.state()).unwrap_or_default(),
            optimizer: self.optimizer.state(),
            scale: self.scale,
        }
    }

    /// Goes on from a stored state; `None` if that is another configuration's.
    #[must_use]
    pub fn restored(mut self, state: TrainerState) -> Option<Self> {
        if self.ema.is_none() != state.average.is_empty()
            || self.scale.is_some() != state.scale.is_some()
        {
            return None;
        }
        let device = self.networks.unet.conv_in.weight.val().device();
        if let Some(ema) = &mut self.ema {
            ema.values = self.parameters.restored(state.average)?;
        }
        self.parameters = self.parameters.restored(state.adapter)?;
        self.good = self.parameters.clone();
        self.optimizer = self.optimizer.restored(state.optimizer, &device)?;
        self.scale = state.scale;
        self.step = state.step;
        Some(self)
    }
}
