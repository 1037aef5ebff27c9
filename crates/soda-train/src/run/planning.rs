//! The adapters of a run, made before its first step: calibration, then decompositions.

use soda_adapters::{AnyAdapter, Method as _, Plan};
use soda_linalg::SvdCache;
use soda_models::pipeline::{Networks, Pipeline};
use soda_models::scheduler::ForwardProcess;
use tracing::info_span;

use crate::config::TrainConfig;
use crate::data::cache::EncodeCache;
use crate::data::encoded_dataset::EncodedDataset;
use crate::error::TrainError;
use crate::event::Event;
use crate::run::fingerprint::RunFingerprint;
use crate::step::adapted_networks::{AdaptedNetworks, trained_networks};
use crate::step::calibration::{Calibrations, Probes};
use crate::step::trainer::StepData;

/// What the adapters of a run are made from, beside the data.
pub(crate) struct Planning<'a> {
    pub(crate) config: &'a TrainConfig,
    pub(crate) pipeline: &'a Pipeline,
    pub(crate) fingerprint: &'a RunFingerprint,
    pub(crate) svd_cache: Option<&'a SvdCache>,
    pub(crate) cache: Option<&'a EncodeCache>,
    /// Whether gradients are replayed from a CUDA graph.
    pub(crate) with_graph: bool,
}

impl Planning<'_> {
    /// Makes the adapters. A method that is calibrated sees samples of `data`.
    pub(crate) fn plan(
        &self,
        data: &EncodedDataset,
        schedule: &ForwardProcess,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<(AdaptedNetworks, Plan<AnyAdapter>), TrainError> {
        // The networks must not outlive this function: their weights in f32 would stay beside the cast ones.
        let networks = trained_networks(self.config, self.pipeline);
        let calibrations = self.calibrate(&networks, data, schedule, on_event)?;
        on_event(Event::Stage { name: "decomposing" });
        let _span = info_span!("decompose").entered();
        let mut on_progress = |done, total| on_event(Event::Progress { done, total, loss: None });
        AdaptedNetworks::plan(
            self.config,
            &networks,
            &calibrations,
            self.svd_cache,
            &mut on_progress,
        )
    }

    /// Measures the directions, or reads them from the cache.
    fn calibrate(
        &self,
        networks: &Networks,
        data: &EncodedDataset,
        schedule: &ForwardProcess,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<Calibrations, TrainError> {
        if self.config.method.calibration().is_none() {
            return Ok(Calibrations::default());
        }
        on_event(Event::Stage { name: "calibrating" });
        let _span = info_span!("calibrate").entered();
        let probes = Probes::plan(self.config, networks, self.svd_cache)?;
        let data = StepData { data, prior: None, schedule };
        let mut measure = || {
            let on_progress = &mut |done, total| {
                on_event(Event::Progress { done, total, loss: None });
            };
            probes.measure(self.config, networks, &data, self.with_graph, on_progress)
        };
        match self.cache {
            None => measure(),
            Some(cache) => cache.calibration(
                &[&self.fingerprint.of_first_gradient(), &data.digest()],
                |tensors| probes.stored(tensors),
                Calibrations::to_tensors,
                measure,
            ),
        }
    }
}
