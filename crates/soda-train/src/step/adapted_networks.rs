//! The networks of a run that learn: what is adapted in each, and the file that keeps it.

use burn::module::Module;
use burn::tensor::Tensor;
use soda_adapters::{
    Adaptation, AdapterError, AdapterFile, AnyAdapter, Component, Header, Method as _, Plan,
    Recipe, SvdCache, Targets,
};
use soda_models::pipeline::{Networks, Pipeline, Word};

use crate::config::TrainConfig;
use crate::error::TrainError;

/// The networks that learn with these settings; what a training does not change is left out.
pub(crate) fn learning(config: &TrainConfig, pipeline: &Pipeline) -> Networks {
    match config.trains_text_encoder() {
        true => pipeline.networks(),
        false => pipeline.unet.clone().into(),
    }
}

/// Refuses targets that are not there.
pub(crate) fn check(config: &TrainConfig, pipeline: &Pipeline) -> Result<(), TrainError> {
    let Networks { unet, text_encoder, text_encoder_2 } = learning(config, pipeline);
    config.targets.select(&unet)?;
    if let Some(text) = config.trained_text_encoder() {
        for encoder in [text_encoder, text_encoder_2].into_iter().flatten() {
            text.targets.select(&encoder)?;
        }
    }
    Ok(())
}

/// How each network is adapted.
#[derive(Debug, Default)]
pub(crate) struct Parts(Vec<(Component, Recipe)>);

impl Parts {
    /// The adapters of `networks`, which [learn](learning); `on_progress` is told of decompositions.
    pub(crate) fn plan(
        config: &TrainConfig,
        networks: &Networks,
        cache: Option<&SvdCache>,
        on_progress: &mut dyn FnMut(usize, usize),
    ) -> Result<(Self, Plan<AnyAdapter>), TrainError> {
        let (mut parts, mut all) = (Self::default(), Plan::default());
        let Networks { unet, text_encoder, text_encoder_2 } = networks;
        let mut add = |made: Result<(Component, Recipe, Plan<AnyAdapter>), AdapterError>| {
            let (component, recipe, plan) = made?;
            parts.0.push((component, recipe));
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
        Ok((parts, all))
    }

    /// The adapters and the words of `networks`.
    pub(crate) fn file(
        &self,
        header: Header,
        networks: &Networks,
        words: impl IntoIterator<Item = Word>,
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
        let vectors = |word: Word| {
            let all = [first(word.first)].into_iter().chain(word.second.map(second));
            (word.text, all.collect())
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
