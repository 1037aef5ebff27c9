//! Loading an adapter onto a pipeline.

use burn::tensor::FloatDType;
use soda_adapters::{AdapterError, AnyAdapter, Plan, PlanOptions};
use soda_linalg::{LinalgError, SvdCache};
use soda_models::pipeline::Pipeline;
use soda_models::scheduler::SchedulerOverrides;

use crate::error::PipelineError;
use crate::file::AdapterFile;
use crate::fuse::fuse_plans;
use crate::textual_inversion::add_embeddings;

/// Options of [`load_adapter`] and [`fuse_adapter`].
pub struct LoadAdapterOptions<'a> {
    /// Strength of the adapter: 0 is the base, 1 is the trained adapter. Rotations move along their geodesic.
    pub strength: f64,
    /// The float type in which the networks will compute, if their weights are in another still.
    pub network_dtype: Option<FloatDType>,
    /// Cache of the base's decompositions.
    pub cache: Option<&'a SvdCache>,
    /// Called with the number of decomposed weights and of all weights of a network.
    pub on_progress: Option<&'a mut dyn FnMut(usize, usize)>,
    /// Called if the pipeline's weights are not those that the adapter was made for, once for each network.
    ///
    /// LoRA, LoHa, LoKr and full deltas are then loaded all the same. Without this function they are refused,
    /// as other methods are in any case.
    pub on_other_base: Option<&'a mut dyn FnMut()>,
}

impl Default for LoadAdapterOptions<'_> {
    fn default() -> Self {
        Self {
            strength: 1.0,
            network_dtype: None,
            cache: None,
            on_progress: None,
            on_other_base: None,
        }
    }
}

/// Loads an adapter onto the pipeline that it was trained on, or a fine-tune of it.
///
/// The pipeline gets the noise schedule and the embeddings of the adapter. The returned plan has the adapters
/// of all networks at the given strength, by paths of `pipeline.networks()`. Attach it to keep the adapters
/// separate from the base, or call [`fuse_adapter`] instead.
///
/// ```no_run
/// use burn::tensor::Device;
/// use soda_models::pipeline::Pipeline;
/// use soda_pipeline::{AdapterFile, LoadAdapterOptions, load_adapter};
///
/// let mut pipeline = Pipeline::load("models/toy".as_ref(), &Device::default())?;
/// let adapter = AdapterFile::read("mug.safetensors".as_ref())?;
/// let plan = load_adapter(&mut pipeline, &adapter, LoadAdapterOptions::default())?;
/// pipeline.set_networks(plan.attach(pipeline.networks()));
/// # Ok::<(), soda_pipeline::PipelineError>(())
/// ```
///
/// # Errors
/// [`PipelineError::DoesNotFit`] for an adapter of another base, see
/// [`LoadAdapterOptions::on_other_base`]. [`PipelineError::OtherPromptEncoding`] for a pipeline that encodes
/// prompts otherwise. Other variants for a strength that is not finite, an unknown noise schedule, and an
/// embedding that the pipeline refuses. After an error, the pipeline may have the noise schedule and some
/// embeddings of the adapter: read it again.
pub fn load_adapter(
    pipeline: &mut Pipeline,
    adapter: &AdapterFile,
    options: LoadAdapterOptions<'_>,
) -> Result<Plan<AnyAdapter>, PipelineError> {
    let LoadAdapterOptions { strength, network_dtype, cache, on_progress, on_other_base } = options;
    if !strength.is_finite() {
        return Err(PipelineError::InvalidOption {
            option: "strength",
            expected: "a finite number",
            found: strength,
        });
    }
    configure_pipeline(pipeline, adapter)?;
    let mut options =
        PlanOptions { network_dtype, cache, on_progress, on_other_base, ..PlanOptions::default() };
    Ok(plan_on(pipeline, adapter, &mut options)?.at_strength(strength)?)
}

/// Loads an adapter and replaces the weights of the pipeline by the adapted ones, as diffusers' `fuse_lora`.
///
/// # Errors
/// As [`load_adapter`], and [`PipelineError::DependsOnTimestep`].
pub fn fuse_adapter(
    pipeline: &mut Pipeline,
    adapter: &AdapterFile,
    options: LoadAdapterOptions<'_>,
) -> Result<(), PipelineError> {
    adapter.check_has_weights()?;
    let plan = load_adapter(pipeline, adapter, options)?;
    fuse_plans(pipeline, [(plan, 1.0)], &FloatDType::F32.into());
    Ok(())
}

/// Gives the pipeline the noise schedule and the embeddings of an adapter, without its networks' adapters.
///
/// # Errors
/// Another encoding of prompts than the pipeline's, an unknown noise schedule, and an embedding that the
/// pipeline refuses.
pub fn configure_pipeline(
    pipeline: &mut Pipeline,
    adapter: &AdapterFile,
) -> Result<(), PipelineError> {
    check_prompt_encoding(pipeline, adapter)?;
    apply_schedule(pipeline, adapter)?;
    add_embeddings(pipeline, &adapter.embeddings, &adapter.display_name())
}

/// Checks that the pipeline encodes prompts as those of the adapter's training were encoded.
pub(crate) fn check_prompt_encoding(
    pipeline: &Pipeline,
    adapter: &AdapterFile,
) -> Result<(), PipelineError> {
    let (expected, found) = (&adapter.header.prompt_encoding, pipeline.text.prompt_encoding());
    if expected.is_met_by(&found) {
        return Ok(());
    }
    Err(PipelineError::OtherPromptEncoding {
        adapter: adapter.display_name(),
        expected: expected.clone(),
        found,
    })
}

/// Applies the changes of the noise schedule that an adapter was trained with.
pub(crate) fn apply_schedule(
    pipeline: &mut Pipeline,
    adapter: &AdapterFile,
) -> Result<(), PipelineError> {
    let schedule = &adapter.header.schedule;
    if schedule.is_null() {
        return Ok(());
    }
    let overrides: SchedulerOverrides =
        serde_json::from_value(schedule.clone()).map_err(|source| {
            PipelineError::UnknownSchedule { adapter: adapter.display_name(), source }
        })?;
    pipeline.scheduler = pipeline.scheduler.clone().with_overrides(overrides)?;
    Ok(())
}

/// Plans an adapter on the networks of a pipeline. An error that the two have together names both.
pub(crate) fn plan_on(
    pipeline: &Pipeline,
    adapter: &AdapterFile,
    options: &mut PlanOptions<'_>,
) -> Result<Plan<AnyAdapter>, PipelineError> {
    adapter.plan_with(&pipeline.networks(), options).map_err(|source| match source {
        // A cache that fails says nothing of the adapter.
        PipelineError::Adapter(AdapterError::Decomposition {
            source: LinalgError::Cache { .. },
            ..
        }) => source,
        source => PipelineError::DoesNotFit {
            adapter: adapter.display_name(),
            trained_on: adapter.header.base.clone(),
            base: pipeline.source.display().to_string(),
            source: Box::new(source),
        },
    })
}
