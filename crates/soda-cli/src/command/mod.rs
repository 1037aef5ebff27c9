//! One verb per file.

pub(crate) mod bench;
pub(crate) mod compare;
pub(crate) mod config;
pub(crate) mod convert;
pub(crate) mod evaluate;
pub(crate) mod export;
pub(crate) mod fold;
pub(crate) mod generate;
pub(crate) mod import;
pub(crate) mod inspect;
pub(crate) mod merge;
pub(crate) mod settings;
pub(crate) mod train;

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use burn::module::Module as _;
use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use soda_adapters::{
    Adaptation, AdapterError, AdapterFile, AnyAdapter, Component, Method as _, Plan, SvdCache,
    WordVectors,
};
use soda_models::pipeline::{LoadOptions, Pipeline, Word};
use soda_models::scheduler::ScheduleChange;
use soda_train::Event;

use crate::progress::Progress;

/// The base, with `strength` of an adapter folded in.
fn load_merged(
    base: &Path,
    options: &LoadOptions,
    adapter: &Path,
    strength: f64,
    cache: Option<&SvdCache>,
    device: &Device,
) -> Result<Pipeline> {
    let (mut pipeline, _, plan) = load_plan(base, options, adapter, strength, cache, device)?;
    pipeline.set_networks(plan.attach(pipeline.networks()).materialize());
    Ok(pipeline)
}

/// The base, an adapter file, and the adapter at `strength`, ready to be attached.
fn load_plan(
    base: &Path,
    options: &LoadOptions,
    adapter: &Path,
    strength: f64,
    cache: Option<&SvdCache>,
    device: &Device,
) -> Result<(Pipeline, AdapterFile, Plan<AnyAdapter>)> {
    ensure!(strength.is_finite(), "--strength must be a finite number");
    let file: AdapterFile = AdapterFile::read(adapter)?;
    let mut pipeline = Pipeline::load_with(base, options, device)?;
    prepare(&file, adapter, &mut pipeline)?;
    let dtype = options.dtype;
    let rounded = |error: anyhow::Error| {
        match error.downcast_ref() {
        Some(AdapterError::OtherBase { .. }) if dtype != FloatDType::F32 => error.context(format!(
            "in {dtype:?} the base's weights may be rounded, and an adapter is for them as they are; give --dtype f32, \
             or fold it in with `soda merge` and use that model"
        )),
        _ => error,
    }
    };
    let plan = plan(&file, adapter, &pipeline, base, cache).map_err(rounded)?;
    Ok((pipeline, file, plan.at_strength(strength)?))
}

/// Gives a pipeline what an adapter brings beside weights: its noise schedule and its words.
fn prepare(file: &AdapterFile, adapter: &Path, pipeline: &mut Pipeline) -> Result<()> {
    if !file.header.schedule.is_null() {
        let change: ScheduleChange = serde_json::from_value(file.header.schedule.clone())
            .with_context(|| format!("{} has an unknown noise schedule", adapter.display()))?;
        pipeline.scheduler = pipeline.scheduler.clone().changed(change)?;
    }
    for (text, vectors) in &file.words {
        let tensor = |component| {
            let data: &TensorData = vectors.get(&component)?;
            Some(Tensor::<2>::from_data(data.clone(), &pipeline.device))
        };
        let named = || adapter.display().to_string();
        let first = tensor(Component::TextEncoder)
            .with_context(|| format!("it has no vectors of `{text}` for the text encoder"))
            .with_context(named)?;
        let second = tensor(Component::TextEncoder2);
        pipeline.add_word(&Word { text: text.clone(), first, second }).with_context(named)?;
    }
    Ok(())
}

/// An adapter on a base, by their names; says what it found.
fn plan(
    file: &AdapterFile,
    adapter: &Path,
    pipeline: &Pipeline,
    base: &Path,
    cache: Option<&SvdCache>,
) -> Result<Plan<AnyAdapter>> {
    let mut progress = Progress::default();
    let mut decomposed = |done, total| {
        if !progress.is_shown() {
            progress.show(Event::Stage { name: "decomposing" });
        }
        progress.show(Event::Progress { done, total, loss: None });
    };
    let plan = file.plan_with(&pipeline.networks(), cache, &mut decomposed).with_context(|| {
        let (adapter, base) = (adapter.display(), base.display());
        format!("{adapter} (of {}) does not fit {base}", file.header.base)
    })?;
    progress.finish();
    progress.say(&format!(
        "{}: {}; all {} tensors matched",
        adapter.display(),
        parts(file),
        file.num_tensors()
    ));
    Ok(plan)
}

/// The parts of an adapter, in a sentence.
fn parts(file: &AdapterFile) -> String {
    let part = |(component, part): (&Component, &Adaptation)| {
        format!(
            "{} on {} weights of the {component} ({} numbers)",
            part.recipe.method.name(),
            part.num_weights(),
            part.num_params()
        )
    };
    let word = |(word, vectors): (&String, &WordVectors)| {
        let count = vectors.values().next().map_or(0, |data| data.shape()[0]);
        format!("the word {word} ({count} vectors)")
    };
    let parts = file.parts.iter().map(part).chain(file.words.iter().map(word));
    parts.collect::<Vec<_>>().join(", ")
}
