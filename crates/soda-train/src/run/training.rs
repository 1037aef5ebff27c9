//! All steps of a run, with checkpoints in between.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use burn::module::Module as _;
use burn::tensor::Tensor;
use soda_adapters::{Geometry, Header, Leaf, Method, leaves};
use soda_linalg::stiefel::defect;
use soda_models::pipeline::Networks;

use crate::config::TrainConfig;
use crate::error::TrainError;
use crate::eval::sampling::Sampler;
use crate::eval::validation::Validation;
use crate::event::Event;
use crate::output::run_folder::{ADAPTER, CHECKPOINTS, RunFolder};
use crate::output::tensorboard::Events;
use crate::run::checkpoint::Checkpoint;
use crate::run::history::{History, Measured};
use crate::step::adapted_networks::Parts;
use crate::step::trainer::{Material, Trainer};

/// The stage's name.
pub(crate) const TRAINING: &str = "training";

/// What the steps work with.
pub(crate) struct Training<'a> {
    pub(crate) config: &'a TrainConfig,
    pub(crate) folder: &'a RunFolder,
    pub(crate) header: &'a Header,
    pub(crate) parts: &'a Parts,
    pub(crate) material: Material<'a>,
    /// Where the settings ask for it.
    pub(crate) validation: Option<Validation>,
    /// Where the settings ask for it.
    pub(crate) events: Option<&'a mut Events>,
}

/// What came of them.
pub(crate) struct Trained {
    /// Adapted, on a plain device.
    pub(crate) networks: Networks,
    pub(crate) history: History,
    /// Of the steps themselves.
    pub(crate) seconds: f64,
}

impl Training<'_> {
    /// Goes on from the newest checkpoint, if there is one, to the last step.
    pub(crate) fn run(
        mut self,
        trainer: Trainer<'_>,
        sampler: &mut Sampler<'_>,
        stop: &AtomicBool,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<Trained, TrainError> {
        let checkpoints = self.folder.file(CHECKPOINTS);
        let newest = Checkpoint::newest(&checkpoints, |damaged| {
            on_event(Event::Warning(&damaged.to_string()));
        })?;
        let data = self.material.digest();
        let (mut trainer, mut history, mut seconds) = match newest {
            None => (trainer, History::default(), 0.0),
            Some(Checkpoint { data: other, .. }) if other != data => {
                return Err(TrainError::OtherData(self.config.data.clone()));
            }
            Some(Checkpoint { state, history, seconds, .. }) => {
                let other = || TrainError::OtherSettings(checkpoints.clone());
                (trainer.restored(state).ok_or_else(other)?, history, seconds)
            }
        };
        let total = self.config.steps;
        if history.steps.is_empty() {
            self.measure(&trainer, &mut history)?;
        }
        while trainer.steps_done() < total {
            let started = Instant::now();
            let step = match trainer.step(&self.material) {
                Err(error) => {
                    let path = self.folder.file(ADAPTER);
                    let Some(error) = error.keeping(&path) else { return Err(error) };
                    let good = trainer.last_good();
                    let words = sampler.pipeline.words_of(&good);
                    self.parts.file(self.header.clone(), &good, words).write(&path)?;
                    return Err(error);
                }
                Ok(step) => step,
            };
            seconds += started.elapsed().as_secs_f64();
            history.steps.push(step);
            let done = trainer.steps_done();
            if let Some(scale) = trainer.scale().filter(|_| !step.grad_norm.is_finite()) {
                let text = format!(
                    "step {done} overflowed f16 and was passed over; the loss scale is {} now",
                    scale.value
                );
                on_event(Event::Note(&text));
            }
            if let Some(events) = &mut self.events {
                events.scalars(done, &step.named())?;
            }
            on_event(Event::Progress { done, total, loss: Some(step.loss) });
            if due(self.config.validation.every, done) || done == total {
                self.measure(&trainer, &mut history)?;
            }
            if due(self.config.samples.every, done) && done < total {
                // Constant for as long as it draws: folded in once instead of in each of its steps.
                let drawn = sampler.record(trainer.networks().materialize(), done, on_event)?;
                if let Some(events) = &mut self.events {
                    drawn.show(events)?;
                }
                on_event(Event::Stage { name: TRAINING });
            }
            let stop = stop.load(Ordering::Relaxed) && done < total;
            if stop || due(self.config.checkpoints.every, done) {
                let (state, history, data) = (trainer.state(), history.clone(), data.clone());
                Checkpoint { state, history, seconds, data }
                    .write(&checkpoints, self.config.checkpoints.keep)?;
            }
            if stop {
                let folder = self.folder.path().to_owned();
                return Err(TrainError::Stopped { step: done, folder });
            }
        }
        Ok(Trained { networks: trainer.networks(), history, seconds })
    }

    fn measure(&mut self, trainer: &Trainer<'_>, history: &mut History) -> Result<(), TrainError> {
        let Some(validation) = &self.validation else { return Ok(()) };
        let networks = trainer.networks();
        let measured = Measured {
            step: trainer.steps_done(),
            loss: validation.loss(&networks),
            orthogonality: orthogonality(&self.config.method, &leaves(&networks)),
        };
        if let Some(events) = &mut self.events {
            events.scalars(measured.step, &measured.named())?;
        }
        history.validation.push(measured);
        Ok(())
    }
}

/// `max |QᵀQ - I|` over the factors on the Stiefel manifold; 0 where there are none, NaN where one cannot be read.
pub(crate) fn orthogonality<M: Method>(method: &M, leaves: &[Leaf]) -> f32 {
    let factors = leaves.iter().filter(|leaf| method.geometry(&leaf.path) == Geometry::Stiefel);
    let defect = |leaf: &Leaf| {
        let q: Tensor<2> = leaf.value().reshape([leaf.shape[0], leaf.shape[1]]);
        defect(&q).map_or(f32::NAN, |defect| defect as f32)
    };
    factors.map(defect).fold(0.0, f32::max)
}

/// Whether something that happens `every` so many steps happens after `done` of them; never at 0.
fn due(every: usize, done: usize) -> bool {
    every > 0 && done.is_multiple_of(every)
}
