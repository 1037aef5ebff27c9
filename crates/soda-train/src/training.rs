//! All steps of a run, with checkpoints in between.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use soda_adapters::{AdapterFile, Header, Method};
use soda_models::unet::Unet;

use crate::checkpoint::Checkpoint;
use crate::config::TrainConfig;
use crate::error::TrainError;
use crate::personalise::Event;
use crate::run::{ADAPTER, CHECKPOINTS, RunFolder};
use crate::trainer::{Material, Trainer};

/// What the steps work with.
pub(crate) struct Training<'a, M: Method> {
    pub(crate) config: &'a TrainConfig,
    pub(crate) folder: &'a RunFolder,
    pub(crate) header: &'a Header<M>,
    pub(crate) material: Material<'a>,
}

/// What came of them.
pub(crate) struct Trained {
    /// Adapted, on a plain device.
    pub(crate) unet: Unet,
    pub(crate) losses: Vec<f32>,
    pub(crate) seconds: f64,
}

impl<M: Method> Training<'_, M> {
    /// Goes on from the newest checkpoint, if there is one, to the last step.
    pub(crate) fn run(
        self,
        trainer: Trainer<'_, M>,
        stop: &AtomicBool,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<Trained, TrainError> {
        let checkpoints = self.folder.file(CHECKPOINTS);
        let newest = Checkpoint::newest(&checkpoints, |damaged| {
            on_event(Event::Warning(&damaged.to_string()));
        })?;
        let (mut trainer, mut losses, before) = match newest {
            None => (trainer, Vec::with_capacity(self.config.steps), 0.0),
            Some(Checkpoint { state, losses, seconds }) => {
                let other = || TrainError::OtherSettings(checkpoints.clone());
                (trainer.restored(state).ok_or_else(other)?, losses, seconds)
            }
        };
        let started = Instant::now();
        let seconds = || before + started.elapsed().as_secs_f64();
        let total = self.config.steps;
        while trainer.steps_done() < total {
            let loss = match trainer.step(&self.material) {
                Err(TrainError::Diverged { step, value, .. }) => {
                    let path = self.folder.file(ADAPTER);
                    AdapterFile::capture(self.header.clone(), &trainer.unet()).write(&path)?;
                    return Err(TrainError::Diverged { step, value, kept: Some(path) });
                }
                result => result?,
            };
            losses.push(loss);
            let done = trainer.steps_done();
            on_event(Event::Progress { done, total, loss: Some(loss) });
            let stop = stop.load(Ordering::Relaxed) && done < total;
            let every = self.config.checkpoints.every;
            if stop || (every > 0 && done % every == 0) {
                let (state, losses, seconds) = (trainer.state(), losses.clone(), seconds());
                Checkpoint { state, losses, seconds }
                    .write(&checkpoints, self.config.checkpoints.keep)?;
            }
            if stop {
                let folder = self.folder.path().to_owned();
                return Err(TrainError::Stopped { step: done, folder });
            }
        }
        Ok(Trained { unet: trainer.unet(), losses, seconds: seconds() })
    }
}
