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
use crate::output::tensor_file::Tensors;
use crate::run::fingerprint::RunFingerprint;
use crate::step::adapted_networks::{AdaptedNetworks, trained_networks};
use crate::step::calibration::{Calibrations, Probes};
use crate::step::ranks::Ranks;
use crate::step::trainer::StepData;

/// What the adapters of a run are made from, beside the data.
pub(crate) struct Planning<'a> {
    pub(crate) config: &'a TrainConfig,
    pub(crate) pipeline: &'a Pipeline,
    pub(crate) fingerprint: &'a RunFingerprint,
    pub(crate) svd_cache: Option<&'a SvdCache>,
    pub(crate) cache: Option<&'a EncodeCache>,
    pub(crate) ranks: &'a Ranks,
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
            self.ranks.division(),
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
        let division = self.ranks.division();
        let probes = Probes::plan(self.config, networks, self.svd_cache, division)?;
        let data = StepData { data, prior: None, schedule };
        let mut measure = || {
            let on_progress = &mut |done, total| {
                on_event(Event::Progress { done, total, loss: None });
            };
            probes.measure(self.config, networks, &data, self.with_graph, division, on_progress)
        };
        // All ranks measure or none, as the cache of rank 0 says, which alone stores.
        let cache = self.cache.filter(|_| division.is_first());
        let parts = [self.fingerprint.of_first_gradient(), data.digest()];
        let parts = parts.each_ref().map(String::as_str);
        let unpack = |tensors: &Tensors| probes.stored(tensors);
        let find = |cache: &EncodeCache| cache.find_calibration(&parts, unpack);
        let own = cache.map(find).transpose()?.flatten();
        let found =
            division.found_by_rank_0("calibration", own, Calibrations::to_tensors, unpack)?;
        if let Some(found) = found {
            return Ok(found);
        }
        let measured = measure()?;
        if let Some(cache) = cache {
            cache.store_calibration(&parts, &measured.to_tensors())?;
        }
        Ok(measured)
    }
}
