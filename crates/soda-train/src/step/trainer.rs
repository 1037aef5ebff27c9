//! Training steps and the state between them: sample a batch, compute gradients, clip, move, average.
//!
//! A step is a function of the seed, its number and the state of [`Trainer::state`]. A run that stops and
//! continues therefore equals the run that never stopped, to the bit.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::module::Module as _;
use burn::tensor::{Tensor, TensorData};
use soda_adapters::Method;
use soda_models::batch_shards::BatchShards;
use soda_models::clip::NewTokens;
use soda_models::pipeline::Networks;
use soda_models::scheduler::ForwardProcess;
use soda_optim::{AdapterOptimizer, BatchedParams, Ema, OptimizerState, ParamGroup};

use crate::config::{LossScaleConfig, Precision, TrainConfig};
use crate::data::batch::Batch;
use crate::data::encoded_dataset::EncodedDataset;
use crate::error::TrainError;
use crate::step::graph::StepGraphs;
use crate::step::loss::gradients;
use crate::step::loss_scale::LossScale;
use crate::step::metrics::StepMetrics;
use crate::step::param_groups::{DENOISER, TEXT_ENCODERS, TOKENS, param_group};
use crate::step::ranks::{Contribution, PendingContribution, Ranks};

/// The encoded data that steps sample from.
pub struct StepData<'a> {
    /// The training images and captions.
    pub data: &'a EncodedDataset,
    /// Images of the class, for prior preservation.
    pub prior: Option<&'a EncodedDataset>,
    /// The noise schedule of the base model.
    pub schedule: &'a ForwardProcess,
}

impl StepData<'_> {
    /// A hash that differs for other data.
    pub(crate) fn digest(&self) -> String {
        let prior = self.prior.map_or("", EncodedDataset::digest);
        format!("{}{prior}", self.data.digest())
    }
}

/// A training in progress.
pub struct Trainer<'a> {
    /// The adapted networks on a plain device. Their parameters are those of the start.
    networks: Networks,
    params: BatchedParams,
    /// The newest parameters that are known to give a finite loss. These are the parameters before the last
    /// step.
    last_finite: BatchedParams,
    config: &'a TrainConfig,
    optimizer: AdapterOptimizer,
    ema: Option<Ema>,
    shards: BatchShards,
    /// Only in f16.
    loss_scale: Option<LossScale>,
    graphs: StepGraphs,
    ranks: Ranks,
    step: usize,
    /// This rank's samples of the step of this number, drawn while the device computed the step before it.
    next: Option<(usize, Vec<Batch>)>,
}

/// The state of a [`Trainer`] that its configuration does not determine.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TrainerState {
    /// The number of finished steps.
    pub step: usize,
    /// The adapters' parameters by path. A path starts with the network's name.
    pub adapter: BTreeMap<String, TensorData>,
    /// The moving average of the parameters by path; empty without one.
    pub average: BTreeMap<String, TensorData>,
    /// The moments of the optimizer.
    pub optimizer: OptimizerState,
    /// The loss scale, only in f16.
    pub loss_scale: Option<LossScale>,
}

/// Which parameter groups a step trains. The denoiser is always trained.
#[derive(Clone, Copy)]
struct TrainedGroups {
    text_encoders: bool,
    tokens: bool,
}

impl TrainedGroups {
    fn at(step: usize, config: &TrainConfig) -> Self {
        let text_encoder = config.trained_text_encoder();
        let tokens = config.trained_tokens();
        Self {
            text_encoders: text_encoder.is_some_and(|text| text.trains_at(step, config.steps)),
            tokens: tokens.is_some_and(|tokens| tokens.trains_at(step, config.steps)),
        }
    }

    fn contain(self, group: &ParamGroup) -> bool {
        match group {
            group if *group == TEXT_ENCODERS => self.text_encoders,
            group if *group == TOKENS => self.tokens,
            _ => true,
        }
    }
}

/// The number of samples of one batch. Samples of the class are in the same batch if all images have one
/// size.
fn samples_per_batch(config: &TrainConfig) -> usize {
    let with_prior = config.prior.is_some() && config.buckets.is_none();
    config.batch_size * if with_prior { 2 } else { 1 }
}

fn is_set(stop: &AtomicBool) -> bool {
    stop.load(Ordering::Relaxed)
}

fn loss_scale_config(config: &TrainConfig) -> LossScaleConfig {
    config.loss_scale.unwrap_or_default()
}

impl<'a> Trainer<'a> {
    /// A trainer at step 0.
    ///
    /// `networks` (or a denoiser alone) have their adapters attached and are on a plain device. Without text
    /// encoders every batch must have encoded prompts.
    ///
    /// # Errors
    /// A number of shards that the system has no threads for; a learning rate of a group with Prodigy.
    pub fn new<M: Method>(
        networks: impl Into<Networks>,
        method: &M,
        config: &'a TrainConfig,
    ) -> Result<Self, TrainError> {
        let networks = networks.into();
        let params = BatchedParams::with_groups(method, &networks, param_group);
        let mut optimizer = AdapterOptimizer::new(&config.optimizer.adapter_optimizer());
        let text_lr = config.trained_text_encoder().and_then(|text| text.learning_rate);
        let token_lr = config.trained_tokens().and_then(|tokens| tokens.learning_rate);
        for (group, lr) in [(TEXT_ENCODERS, text_lr), (TOKENS, token_lr)] {
            if let Some(lr) = lr {
                optimizer = optimizer.with_group_lr(group, lr)?;
            }
        }
        let shards = config.shards.unwrap_or(1).min(samples_per_batch(config));
        let is_f16 = config.precision == Precision::F16;
        Ok(Self {
            optimizer,
            ema: config.optimizer.ema_decay.map(|decay| Ema::new(decay, params.clone())),
            shards: BatchShards::new(shards)?,
            loss_scale: is_f16.then(|| LossScale::new(&loss_scale_config(config))),
            graphs: StepGraphs::new(false),
            ranks: Ranks::default(),
            step: 0,
            next: None,
            last_finite: params.clone(),
            params,
            networks,
            config,
        })
    }

    /// Replays steps from CUDA graphs, one for each shape of a batch, where the device can capture them.
    ///
    /// A step is then one launch instead of thousands, for as much more memory as a step takes. Shapes for
    /// whose graph the memory has no room run without one. Text encoders that are trained stay outside the
    /// graph. No other thread of the process may use the device while a step captures a graph.
    #[must_use]
    pub fn with_graph(self) -> Self {
        Self { graphs: StepGraphs::new(true), ..self }
    }

    /// Whether steps are replayed from CUDA graphs.
    pub(crate) fn has_graphs(&self) -> bool {
        self.graphs.are_used()
    }

    /// Shares each step with other processes. All of them have the same settings and data.
    #[must_use]
    pub fn with_ranks(self, ranks: Ranks) -> Self {
        Self { ranks, ..self }
    }

    /// The parameters.
    pub(super) fn params(&self) -> &BatchedParams {
        &self.params
    }

    /// The number of finished steps.
    pub fn steps_done(&self) -> usize {
        self.step
    }

    /// Does the next step, on this rank's samples of `data`.
    ///
    /// # Errors
    /// As [`Trainer::step_on`].
    pub fn step(&mut self, data: &StepData<'_>) -> Result<StepMetrics, TrainError> {
        self.step_unless(data, &AtomicBool::new(false)).map(|(metrics, _)| metrics)
    }

    /// Does the next step, and returns whether `stop` was set on any rank. All ranks return the same.
    pub(crate) fn step_unless(
        &mut self,
        data: &StepData<'_>,
        stop: &AtomicBool,
    ) -> Result<(StepMetrics, bool), TrainError> {
        let known = self.next.take().filter(|(step, _)| *step == self.step);
        let batches = known.map_or_else(|| self.samples(data, self.step), |(_, batches)| batches);
        let pending = self.accumulate(&batches);
        // A GPU computes meanwhile.
        let next = self.step + 1;
        if self.graphs.are_used() && next < self.config.steps {
            self.next = Some((next, self.samples(data, next)));
        }
        let metrics = self.finish_step(pending, stop)?;
        Ok((metrics, self.ranks.stopped() || self.ranks.world() == 1 && is_set(stop)))
    }

    /// This rank's samples of a step.
    pub(super) fn samples(&self, data: &StepData<'_>, step: usize) -> Vec<Batch> {
        let StepData { data, prior, schedule } = *data;
        let batches = Batch::sample(data, prior, schedule, self.config, step);
        Batch::share(batches, self.ranks.rank(), self.ranks.world())
    }

    /// Does the next step, on the samples of `batch`. With several ranks each gives its own.
    ///
    /// # Errors
    /// A loss or a gradient that is not finite. The parameters have not moved then; see
    /// [`Trainer::last_finite`]. In f16 a step whose gradient is not finite is skipped, and is an error only
    /// if no loss scale helps.
    pub fn step_on(&mut self, batch: &Batch) -> Result<StepMetrics, TrainError> {
        let pending = self.accumulate(std::slice::from_ref(batch));
        self.finish_step(pending, &AtomicBool::new(false))
    }

    /// Adds the gradients of all ranks and moves the parameters.
    fn finish_step(
        &mut self,
        pending: PendingContribution,
        stop: &AtomicBool,
    ) -> Result<StepMetrics, TrainError> {
        let trained = TrainedGroups::at(self.step, self.config);
        let Contribution { loss, grads } = self.ranks.sum(pending.read(), || is_set(stop))?;
        // The optimizer would turn an infinite gradient of a finite loss into an infinite adapter.
        let norm = grads.norm().map_or(0.0, |norm| norm.into_scalar::<f32>());
        if loss.is_finite() {
            self.last_finite = self.params.clone();
        }
        if !self.update_loss_scale(loss, norm)? {
            self.step += 1;
            return Ok(StepMetrics { loss, grad_norm: norm, ..StepMetrics::default() });
        }
        if !loss.is_finite() || !norm.is_finite() {
            let value = if loss.is_finite() { norm } else { loss };
            return Err(TrainError::Diverged { step: self.step + 1, value, kept: None });
        }
        Ok(self.move_parameters(loss, norm, &grads, trained))
    }

    /// Stops tracking gradients of text encoders and embeddings whose training has ended.
    fn freeze_finished(&mut self, trained: TrainedGroups) {
        let Networks { text_encoder, text_encoder_2, .. } = &mut self.networks;
        for slot in [text_encoder, text_encoder_2] {
            let Some(mut encoder) = slot.take() else { continue };
            let new = encoder.text_model.embeddings.new_tokens.take();
            if !trained.text_encoders {
                encoder = encoder.no_grad();
            }
            let frozen = |new: NewTokens| if trained.tokens { new } else { new.no_grad() };
            encoder.text_model.embeddings.new_tokens = new.map(frozen);
            *slot = Some(encoder);
        }
    }

    /// The loss of all `batches` and its gradients, without the loss scale. Waits for nothing.
    pub(super) fn accumulate(&mut self, batches: &[Batch]) -> PendingContribution {
        self.freeze_finished(TrainedGroups::at(self.step, self.config));
        let scale = self.loss_scale.map_or(1.0, |scale| scale.value);
        let samples: usize = batches.iter().map(Batch::len).sum();
        // A process that stands for several ranks takes their batches one after the other.
        let ranks_here = self.config.ranks.unwrap_or(1).div_ceil(self.ranks.world());
        let micro_batch = samples.div_ceil(self.config.accumulation * ranks_here).max(1);
        let micro_batches =
            batches.iter().flat_map(|batch| batch.split(batch.len().div_ceil(micro_batch)));
        let mut losses = Vec::new();
        let mut sum: Option<BatchedParams> = None;
        for batch in micro_batches {
            // A fixed order of additions gives the same bits for every order in which the threads finish.
            for (loss, grads) in self.shard_gradients(&batch, scale) {
                losses.push(loss);
                sum = Some(match sum {
                    Some(sum) => sum + grads,
                    None => grads,
                });
            }
        }
        let grads = sum.unwrap_or_else(|| self.params.scaled(0.0));
        let grads = match self.loss_scale {
            Some(scale) => grads.scaled(scale.value.recip()),
            None => grads,
        };
        PendingContribution { losses, scale, grads }
    }

    /// Losses and gradients of the shards of `batch`, times the loss scale.
    fn shard_gradients(&mut self, batch: &Batch, scale: f32) -> Vec<(Tensor<1>, BatchedParams)> {
        let (networks, params, config) = (&self.networks, &self.params, self.config);
        if self.shards.count() == 1 {
            return vec![self.graphs.gradients(networks, params, batch, config, scale)];
        }
        let networks = params.write_to(networks.clone());
        let shards = batch.split(self.shards.count());
        let shards = shards.into_iter().map(|shard| (networks.clone(), shard)).collect();
        let shard_gradients =
            |(networks, shard): (Networks, Batch)| gradients(&networks, &shard, config, scale);
        let results = self.shards.map(shards, shard_gradients);
        results.into_iter().map(|(loss, grads)| (loss, params.batch_gradients(grads))).collect()
    }

    /// Updates the loss scale of f16. Returns whether the parameters move in this step.
    fn update_loss_scale(&mut self, loss: f32, norm: f32) -> Result<bool, TrainError> {
        let Some(scale) = self.loss_scale.filter(|_| loss.is_finite()) else { return Ok(true) };
        let next = scale.after_step(norm.is_finite(), &loss_scale_config(self.config));
        let collapsed = || TrainError::ScaleCollapsed { step: self.step + 1, kept: None };
        self.loss_scale = Some(next.ok_or_else(collapsed)?);
        Ok(norm.is_finite())
    }

    /// Moves the parameters and their average.
    fn move_parameters(
        &mut self,
        loss: f32,
        norm: f32,
        grads: &BatchedParams,
        trained: TrainedGroups,
    ) -> StepMetrics {
        let factor = self.config.optimizer.factor(self.step, self.config.steps);
        let moved = self.optimizer.step_batched(&self.params, grads, factor);
        // Momentum would move a group whose training has ended, even without a gradient.
        self.params =
            moved.zip(
                &self.params,
                |batch, new, old| {
                    if trained.contain(batch.group()) { new } else { old }
                },
            );
        self.step += 1;
        if let Some(ema) = &mut self.ema {
            ema.update(&self.params, self.step);
        }
        let flat_lr = |group: &ParamGroup| match trained.contain(group) {
            true => self.optimizer.flat_lr(group, factor) as f32,
            false => 0.0,
        };
        StepMetrics {
            loss,
            grad_norm: norm,
            rotation_lr: self.optimizer.rotation_lr(&DENOISER, factor) as f32,
            flat_lr: flat_lr(&DENOISER),
            text_lr: flat_lr(&TEXT_ENCODERS),
            token_lr: flat_lr(&TOKENS),
        }
    }

    /// The adapted networks with the moving average of the parameters, or with the parameters if there is no
    /// average.
    pub fn networks(&self) -> Networks {
        self.ema.as_ref().map_or(&self.params, Ema::params).write_to(self.networks.clone())
    }

    /// Compares the parameters of all ranks, which must be the same bits.
    ///
    /// # Errors
    /// The first rank that has other parameters than rank 0, or a rank that has gone.
    pub(crate) fn agree(&self) -> Result<(), TrainError> {
        self.ranks.agree_on_params(&self.params, self.step)
    }

    /// The loss scale, only in f16.
    pub fn loss_scale(&self) -> Option<LossScale> {
        self.loss_scale
    }

    /// The networks with the newest parameters that are known to give a finite loss, without averaging.
    pub fn last_finite(&self) -> Networks {
        self.last_finite.write_to(self.networks.clone())
    }

    /// The state to store.
    pub fn state(&self) -> TrainerState {
        TrainerState {
            step: self.step,
            adapter: self.params.to_data(),
            average: self.ema.as_ref().map(|ema| ema.params().to_data()).unwrap_or_default(),
            optimizer: self.optimizer.state(),
            loss_scale: self.loss_scale,
        }
    }

    /// Continues from a stored state; `None` if the state belongs to another configuration.
    #[must_use]
    pub fn restored(mut self, state: TrainerState) -> Option<Self> {
        if self.ema.is_none() != state.average.is_empty()
            || self.loss_scale.is_some() != state.loss_scale.is_some()
        {
            return None;
        }
        let device = self.networks.denoiser.device();
        if let Some(ema) = &mut self.ema {
            ema.set_params(self.params.from_data(state.average).ok()?);
        }
        self.params = self.params.from_data(state.adapter).ok()?;
        self.last_finite = self.params.clone();
        self.optimizer = self.optimizer.restored(state.optimizer, &device).ok()?;
        self.loss_scale = state.loss_scale;
        self.step = state.step;
        self.next = None;
        Some(self)
    }
}
