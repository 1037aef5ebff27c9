//! The adapted networks of a run: which weights are adapted, and the adapter file.

use burn::module::Module;
use burn::tensor::Tensor;
use soda_adapters::{
    Adaptation, AdapterError, AdapterFile, AnyAdapter, Component, Header, Method as _, Plan,
    Recipe, SvdCache, Targets,
};
use soda_models::pipeline::{Networks, Pipeline, TokenEmbedding};

use crate::config::TrainConfig;
use crate::error::TrainError;

/// The networks that the settings train: all of the pipeline, or the denoiser alone.
pub(crate) fn trained_networks(config: &TrainConfig, pipeline: &Pipeline) -> Networks {
    match config.trains_text_encoder() {
        true => pipeline.networks(),
        false => pipeline.denoiser.clone().into(),
    }
}

/// Refuses targets that match no weight of a network.
pub(crate) fn check_targets(config: &TrainConfig, pipeline: &Pipeline) -> Result<(), TrainError> {
    let Networks { unet, text_encoder, text_encoder_2 } = trained_networks(config, pipeline);
    config.targets.select(&unet)?;
    if let Some(text) = config.trained_text_encoder() {
        for encoder in [text_encoder, text_encoder_2].into_iter().flatten() {
            text.targets.select(&encoder)?;
        }
    }
    Ok(())
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
        cache: Option<&SvdCache>,
        on_progress: &mut dyn FnMut(usize, usize),
    ) -> Result<(Self, Plan<AnyAdapter>), TrainError> {
        let (mut adapted, mut all) = (Self::default(), Plan::default());
        let Networks { unet, text_encoder, text_encoder_2 } = networks;
        let mut add = |planned: Result<(Component, Recipe, Plan<AnyAdapter>), AdapterError>| {
            let (component, recipe, plan) = planned?;
            adapted.0.push((component, recipe));
            all = std::mem::take(&mut all).and(plan.within(component));
            Ok::<_, AdapterError>(())
        };
        let targets = &config.targets;
        add(plan_of(Component::Unet, unet, config, targets, cache, on_progress))?;
        let encoders =
            [(Component::TextEncoder, text_encoder), (Component::TextEncoder2, text_encoder_2)];
        for (component, encoder) in encoders {
            if let (Some(text), Some(encoder)) = (config.trained_text_encoder(), encoder) {
                let targets = &text.targets;
                add(plan_of(component, encoder, config, targets, cache, on_progress))?;
            }
        }
        Ok((adapted, all))
    }

    /// The file with the adapters of `networks` and the embeddings of new `words`.
    pub(crate) fn adapter_file(
        &self,
        header: Header,
        networks: &Networks,
        words: impl IntoIterator<Item = TokenEmbedding>,
    ) -> AdapterFile {
        let capture = |component, recipe| match component {
            Component::Unet => Adaptation::capture(recipe, &networks.unet),
            Component::TextEncoder => Adaptation::capture(recipe, &networks.text_encoder),
            Component::TextEncoder2 => Adaptation::capture(recipe, &networks.text_encoder_2),
        };
        let file = self.0.iter().fold(AdapterFile::new(header), |file, (component, recipe)| {
            file.with(*component, capture(*component, recipe.clone()))
        });
        let first = |vectors: Tensor<2>| (Component::TextEncoder, vectors.into_data());
        let second = |vectors: Tensor<2>| (Component::TextEncoder2, vectors.into_data());
        let vectors = |word: TokenEmbedding| {
            let all = [first(word.first)].into_iter().chain(word.second.map(second));
            (word.token, all.collect())
        };
        AdapterFile { words: words.into_iter().map(vectors).collect(), ..file }
    }
}

fn plan_of<N: Module>(
    component: Component,
    network: &N,
    config: &TrainConfig,
    targets: &Targets,
    cache: Option<&SvdCache>,
    on_progress: &mut dyn FnMut(usize, usize),
) -> Result<(Component, Recipe, Plan<AnyAdapter>), AdapterError> {
    let recipe = Recipe::new(config.method.clone(), targets.clone(), network)?;
    let plan = config.method.plan_with(targets, network, cache, on_progress)?;
    Ok((component, recipe, plan))
}
