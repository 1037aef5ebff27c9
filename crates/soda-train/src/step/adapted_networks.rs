//! The adapted networks of a run: which weights are adapted, and the adapter file.

use burn::module::Module;
use burn::nn::LinearConfig;
use burn::tensor::Device;
use soda_adapters::{
    AdapterError, AdapterState, AnyAdapter, DivideDecompositions, Method as _, Plan, PlanOptions,
    Recipe, Targets,
};
use soda_linalg::SvdCache;
use soda_models::pipeline::{Networks, Pipeline, TokenEmbedding};
use soda_pipeline::{AdapterFile, Component, Header, TARGET_PRESETS, embedding_vectors};

use crate::config::TrainConfig;
use crate::divided::Division;
use crate::error::TrainError;
use crate::step::calibration::Calibrations;

/// The networks that the settings train: all of the pipeline, or the denoiser alone.
pub(crate) fn trained_networks(config: &TrainConfig, pipeline: &Pipeline) -> Networks {
    match config.trains_text_encoder() {
        true => pipeline.networks(),
        false => pipeline.denoiser.clone().into(),
    }
}

/// Refuses targets that match no weight of a network.
pub(crate) fn check_targets(config: &TrainConfig, pipeline: &Pipeline) -> Result<(), TrainError> {
    let Networks { denoiser, text_encoder, text_encoder_2 } = trained_networks(config, pipeline);
    config.targets.select_within(&denoiser, "", TARGET_PRESETS)?;
    if let Some(text) = config.trained_text_encoder() {
        for encoder in [text_encoder, text_encoder_2].into_iter().flatten() {
            text.targets.select_within(&encoder, "", TARGET_PRESETS)?;
        }
    }
    Ok(())
}

/// Refuses settings of a method that no layer can have, before a run has a folder: a plan of one small layer
/// finds them.
///
/// # Errors
/// [`AdapterError::Config`].
pub fn check_method(config: &TrainConfig, device: &Device) -> Result<(), TrainError> {
    let layer = LinearConfig::new(8, 8).init(device);
    match config.method.plan(&Targets(vec!["^weight$".to_owned()]), &layer) {
        Err(error @ AdapterError::Config { .. }) => Err(error.into()),
        // Other errors are of the layer, or of a plan without a calibration.
        Ok(_) | Err(_) => Ok(()),
    }
}

/// The recipe of each adapted network.
#[derive(Debug, Default)]
pub(crate) struct AdaptedNetworks(Vec<(Component, Recipe)>);

impl AdaptedNetworks {
    /// Prepares the adapters of `networks`, which are [`trained_networks`]. `on_progress` gets the number of
    /// finished decompositions and their total.
    pub(crate) fn plan(
        config: &TrainConfig,
        networks: &Networks,
        calibrations: &Calibrations,
        cache: Option<&SvdCache>,
        division: Division<'_>,
        on_progress: &mut dyn FnMut(usize, usize),
    ) -> Result<(Self, Plan<AnyAdapter>), TrainError> {
        let (mut adapted, mut all) = (Self::default(), Plan::default());
        let Networks { denoiser, text_encoder, text_encoder_2 } = networks;
        let mut options = PlanOptions {
            presets: TARGET_PRESETS,
            cache,
            division: (division.world() > 1).then_some(&division as &dyn DivideDecompositions),
            on_progress: Some(on_progress),
            ..PlanOptions::default()
        };
        let mut add =
            |component: Component, planned: Result<(Recipe, Plan<AnyAdapter>), AdapterError>| {
                let (recipe, plan) = planned?;
                adapted.0.push((component, recipe));
                all.extend(plan.with_prefix(&component.prefix()));
                Ok::<_, AdapterError>(())
            };
        let component = Component::from(denoiser);
        options.network_dtype = Some(config.precision.dtype());
        options.calibration = calibrations.get(component);
        add(component, plan_of(denoiser, config, &config.targets, &mut options))?;
        let encoders =
            [(Component::TextEncoder, text_encoder), (Component::TextEncoder2, text_encoder_2)];
        for (component, encoder) in encoders {
            if let (Some(text), Some(encoder)) = (config.trained_text_encoder(), encoder) {
                options.network_dtype = None;
                options.calibration = calibrations.get(component);
                add(component, plan_of(encoder, config, &text.targets, &mut options))?;
            }
        }
        Ok((adapted, all))
    }

    /// The file with the adapters of `networks` and the embeddings of new tokens.
    pub(crate) fn adapter_file(
        &self,
        header: Header,
        networks: &Networks,
        embeddings: impl IntoIterator<Item = TokenEmbedding>,
    ) -> AdapterFile {
        let capture = |component, recipe| match component {
            Component::Unet | Component::Transformer => {
                AdapterState::capture(recipe, &networks.denoiser)
            }
            Component::TextEncoder => AdapterState::capture(recipe, &networks.text_encoder),
            Component::TextEncoder2 => AdapterState::capture(recipe, &networks.text_encoder_2),
        };
        let file = self.0.iter().fold(AdapterFile::new(header), |file, (component, recipe)| {
            file.with_adapter(*component, capture(*component, recipe.clone()))
        });
        AdapterFile { embeddings: embeddings.into_iter().map(embedding_vectors).collect(), ..file }
    }
}

fn plan_of<N: Module>(
    network: &N,
    config: &TrainConfig,
    targets: &Targets,
    options: &mut PlanOptions<'_>,
) -> Result<(Recipe, Plan<AnyAdapter>), AdapterError> {
    let method = match options.calibration {
        Some(calibration) => config.method.calibrated(calibration)?,
        None => config.method.clone(),
    };
    let plan = method.plan_with(targets, network, options)?;
    Ok((Recipe::with_presets(method, targets.clone(), network, TARGET_PRESETS)?, plan))
}
