//! What every rank of a run does before its first step, in one order: comparisons, encodings, adapters.

use std::path::PathBuf;

use soda_adapters::{AnyAdapter, Plan};
use soda_kernels::release_unused;
use soda_linalg::SvdCache;
use soda_models::pipeline::Pipeline;
use tracing::info_span;

use crate::config::TrainConfig;
use crate::data::cache::EncodeCache;
use crate::data::dataset::Dataset;
use crate::data::encode::{EncodeConfig, EncodeOptions};
use crate::data::encoded_dataset::EncodedDataset;
use crate::data::folder::Example;
use crate::data::masks;
use crate::error::TrainError;
use crate::eval::validation::Validation;
use crate::event::Event;
use crate::run::base_model;
use crate::run::data_notes::describe_data;
use crate::run::fingerprint::RunFingerprint;
use crate::run::planning::Planning;
use crate::run::rank_start;
use crate::step::adapted_networks::{AdaptedNetworks, trained_networks};
use crate::step::precision::frozen_denoiser;
use crate::step::ranks::Ranks;
use crate::step::trainer::Trainer;

/// The encoded data of a run, and the caches.
pub(super) struct Encodings {
    pub(super) svd_cache: Option<SvdCache>,
    pub(super) cache: Option<EncodeCache>,
    pub(super) data: EncodedDataset,
    /// The validation, if the settings ask for it.
    pub(super) validation: Option<Validation>,
}

impl Encodings {
    /// Encodes the data, as far as the folder `cache` lacks it, and compares it with rank 0.
    pub(super) fn new(
        config: &TrainConfig,
        pipeline: &Pipeline,
        dataset: &Dataset,
        held_out: &[Example],
        cache: Option<PathBuf>,
        ranks: &Ranks,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<Self, TrainError> {
        on_event(Event::Stage { name: "encoding" });
        let _span = info_span!("encode data").entered();
        base_model::describe(pipeline, on_event);
        let svd_cache = cache.as_ref().map(SvdCache::new);
        let cache = cache.map(|folder| EncodeCache::new(folder, pipeline));
        let cache = if ranks.rank() > 0 { cache.map(EncodeCache::read_only) } else { cache };
        let (data, validation) =
            encode(config, pipeline, dataset, held_out, cache.as_ref(), ranks, on_event)?;
        // Pages of the memory pools that pictures of this size needed are of no use to what follows.
        release_unused(&pipeline.device);
        describe_data(config, &data, dataset, on_event);
        rank_start::agree_on_data(ranks, &data)?;
        Ok(Self { svd_cache, cache, data, validation })
    }

    /// Makes the adapters. Returns them with the pipeline in the precisions of the training.
    pub(super) fn plan(
        &self,
        config: &TrainConfig,
        mut pipeline: Pipeline,
        fingerprint: &RunFingerprint,
        ranks: &Ranks,
        with_graph: bool,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<(Pipeline, AdaptedNetworks, Plan<AnyAdapter>), TrainError> {
        let schedule = pipeline.forward_process();
        let planning = Planning {
            config,
            pipeline: &pipeline,
            fingerprint,
            svd_cache: self.svd_cache.as_ref(),
            cache: self.cache.as_ref(),
            ranks,
            with_graph,
        };
        let (adapted, plan) = planning.plan(&self.data, &schedule, on_event)?;
        let _span = info_span!("cast").entered();
        pipeline.denoiser = frozen_denoiser(config, pipeline.denoiser);
        let pipeline = pipeline.in_drawing_format();
        release_unused(&pipeline.device);
        Ok((pipeline, adapted, plan))
    }
}

/// Attaches the adapters to the networks of `pipeline` that are trained.
pub(super) fn trainer<'a>(
    config: &'a TrainConfig,
    pipeline: &Pipeline,
    plan: Plan<AnyAdapter>,
    ranks: &Ranks,
    with_graph: bool,
) -> Result<Trainer<'a>, TrainError> {
    let _span = info_span!("attach").entered();
    // So are those that drew the samples before training.
    release_unused(&pipeline.device);
    let networks = plan.attach(trained_networks(config, pipeline)).with_trainable_tokens();
    let trainer = Trainer::new(networks, &config.method, config)?.with_ranks(ranks.clone());
    Ok(if with_graph { trainer.with_graph() } else { trainer })
}

/// Encodes the training images and, where the settings ask for it, the validation. Refuses settings with
/// masks for images without any.
fn encode(
    config: &TrainConfig,
    pipeline: &Pipeline,
    dataset: &Dataset,
    held_out: &[Example],
    cache: Option<&EncodeCache>,
    ranks: &Ranks,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<(EncodedDataset, Option<Validation>), TrainError> {
    let mut encode = |examples: &[Example], encode: &EncodeConfig| {
        let on_progress = &mut |done, total| on_event(Event::Progress { done, total, loss: None });
        let options = EncodeOptions { cache, on_progress: Some(on_progress) };
        EncodedDataset::divided(pipeline, examples, encode, options, ranks.division())
    };
    let settings = EncodeConfig::from_train_config(config);
    let data = encode(&dataset.examples, &settings)?;
    let schedule = pipeline.forward_process();
    let validation = match (config.validation.every, held_out) {
        (0, _) => None,
        (_, []) => Some(Validation::new(&data, &schedule, config)),
        (_, held_out) => {
            let held_out = encode(held_out, &settings.without_augmentation())?;
            Some(Validation::new(&held_out, &schedule, config))
        }
    };
    if let Some(masks) = config.masks.as_ref().filter(|_| !data.is_masked()) {
        return Err(masks::no_masks(masks, &config.data).into());
    }
    Ok((data, validation))
}
