//! Merging adapters into the weights of a pipeline.

use std::collections::BTreeMap;

use burn::tensor::FloatDType;
use soda_adapters::{AnyAdapter, MergeRule, Plan, PlanOptions};
use soda_linalg::SvdCache;
use soda_models::pipeline::Pipeline;

use crate::error::PipelineError;
use crate::file::{AdapterFile, EmbeddingVectors};
use crate::fuse::fuse_plans;
use crate::load::{apply_schedule, check_prompt_encoding, plan_on};
use crate::textual_inversion::add_embeddings;

/// How several adapters become one model.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum MergeMode {
    /// The weighted sum of the changes, `W0 + Σ λᵢ (Wᵢ - W0)`, for adapters of any methods.
    #[default]
    Residual,
    /// The weighted mean of the rotations along geodesics, `exp(Σ λᵢ log Rᵢ)`, for adapters of one method.
    Geodesic {
        /// How much of the angle that cancels is restored, from 0 (none) to 1 (all).
        restore: f64,
    },
    /// The product of the rotations, `R₁^λ₁ R₂^λ₂ ⋯`, for adapters of one method.
    Compose,
}

/// Options of [`merge_adapters`].
#[derive(Default)]
pub struct MergeOptions<'a> {
    /// How the adapters become one model.
    pub mode: MergeMode,
    /// The float type in which the networks will compute, if their weights are in another still.
    pub network_dtype: Option<FloatDType>,
    /// Cache of the base's decompositions.
    pub cache: Option<&'a SvdCache>,
    /// Called with the number of decomposed weights and of all weights of a network.
    pub on_progress: Option<&'a mut dyn FnMut(usize, usize)>,
    /// Called if the pipeline's weights are not those that an adapter was made for, as
    /// [`LoadAdapterOptions::on_other_base`](crate::LoadAdapterOptions::on_other_base).
    pub on_other_base: Option<&'a mut dyn FnMut()>,
}

/// Merges weighted adapters into the weights of the pipeline that they were trained on.
///
/// The pipeline gets the noise schedule and the embeddings of the adapters too.
///
/// ```no_run
/// use burn::tensor::Device;
/// use soda_models::pipeline::Pipeline;
/// use soda_pipeline::{AdapterFile, MergeMode, MergeOptions, merge_adapters};
///
/// let mut pipeline = Pipeline::load("models/toy".as_ref(), &Device::default())?;
/// let subject = AdapterFile::read("mug.safetensors".as_ref())?;
/// let style = AdapterFile::read("chalk.safetensors".as_ref())?;
/// let options =
///     MergeOptions { mode: MergeMode::Geodesic { restore: 1.0 }, ..MergeOptions::default() };
/// merge_adapters(&mut pipeline, &[(&subject, 0.8), (&style, 0.6)], options)?;
/// pipeline.save("models/chalk-mug".as_ref())?;
/// # Ok::<(), soda_pipeline::PipelineError>(())
/// ```
///
/// # Errors
/// [`PipelineError`] for weights that are not finite, a `restore` outside of 0 to 1, different noise
/// schedules, another encoding of prompts than the pipeline's, different embeddings of one token, an adapter
/// of another base, and adapters without a common form. After an error, the pipeline may have the noise
/// schedule and some embeddings of the adapters: read it again.
pub fn merge_adapters(
    pipeline: &mut Pipeline,
    adapters: &[(&AdapterFile, f64)],
    options: MergeOptions<'_>,
) -> Result<(), PipelineError> {
    let plans = plan_merge(pipeline, adapters, options)?;
    fuse_plans(pipeline, plans, &FloatDType::F32.into());
    Ok(())
}

/// Plans the merge of weighted adapters: their sum with the weights of the pipeline is the merged model.
///
/// The pipeline gets the noise schedule and the embeddings of the adapters.
///
/// # Errors
/// As [`merge_adapters`].
pub fn plan_merge(
    pipeline: &mut Pipeline,
    adapters: &[(&AdapterFile, f64)],
    options: MergeOptions<'_>,
) -> Result<Vec<(Plan<AnyAdapter>, f64)>, PipelineError> {
    let MergeOptions { mode, network_dtype, cache, on_progress, on_other_base } = options;
    check_options(adapters, mode)?;
    let Some((first, _)) = adapters.first() else { return Ok(Vec::new()) };
    check_schedules(adapters)?;
    for (adapter, _) in adapters {
        adapter.check_has_weights()?;
        check_prompt_encoding(pipeline, adapter)?;
    }
    let embeddings = new_embeddings(adapters)?;
    apply_schedule(pipeline, first)?;
    for ((adapter, _), embeddings) in adapters.iter().zip(&embeddings) {
        add_embeddings(pipeline, embeddings, &adapter.display_name())?;
    }
    let mut options =
        PlanOptions { network_dtype, cache, on_progress, on_other_base, ..PlanOptions::default() };
    let plans = adapters
        .iter()
        .map(|(adapter, weight)| Ok((plan_on(pipeline, adapter, &mut options)?, *weight)))
        .collect::<Result<Vec<_>, PipelineError>>()?;
    Ok(match mode {
        MergeMode::Residual => plans,
        MergeMode::Geodesic { restore } => {
            vec![(Plan::merge(plans, MergeRule::Geodesic { restore })?, 1.0)]
        }
        MergeMode::Compose => vec![(Plan::merge(plans, MergeRule::Compose)?, 1.0)],
    })
}

/// Checks that the weights are finite and `restore` is in its range.
fn check_options(adapters: &[(&AdapterFile, f64)], mode: MergeMode) -> Result<(), PipelineError> {
    if let Some((_, weight)) = adapters.iter().find(|(_, weight)| !weight.is_finite()) {
        let (option, expected) = ("the weight of an adapter", "a finite number");
        return Err(PipelineError::InvalidOption { option, expected, found: *weight });
    }
    match mode {
        MergeMode::Geodesic { restore } if !(0.0..=1.0).contains(&restore) => {
            let (option, expected) = ("restore", "from 0 to 1");
            Err(PipelineError::InvalidOption { option, expected, found: restore })
        }
        _ => Ok(()),
    }
}

/// Checks that all adapters were trained with one noise schedule.
fn check_schedules(adapters: &[(&AdapterFile, f64)]) -> Result<(), PipelineError> {
    let [(first, _), others @ ..] = adapters else { return Ok(()) };
    let differs =
        |(other, _): &&(&AdapterFile, f64)| other.header.schedule != first.header.schedule;
    match others.iter().find(differs) {
        Some((other, _)) => Err(PipelineError::DifferentSchedules {
            first: first.display_name(),
            second: other.display_name(),
        }),
        None => Ok(()),
    }
}

/// Returns the embeddings of each adapter that no earlier adapter has.
fn new_embeddings(
    adapters: &[(&AdapterFile, f64)],
) -> Result<Vec<BTreeMap<String, EmbeddingVectors>>, PipelineError> {
    let mut known: BTreeMap<&String, (&AdapterFile, &EmbeddingVectors)> = BTreeMap::new();
    let mut new = Vec::new();
    for (adapter, _) in adapters {
        let mut added = BTreeMap::new();
        for (token, vectors) in &adapter.embeddings {
            match known.get(token) {
                Some((_, same)) if *same == vectors => {}
                Some((first, _)) => {
                    return Err(PipelineError::EmbeddingClash {
                        token: token.clone(),
                        first: first.display_name(),
                        second: adapter.display_name(),
                    });
                }
                None => {
                    known.insert(token, (adapter, vectors));
                    added.insert(token.clone(), vectors.clone());
                }
            }
        }
        new.push(added);
    }
    Ok(new)
}
