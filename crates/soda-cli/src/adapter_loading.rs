//! Loads adapters onto base models: maps options to soda-pipeline, and shows progress and messages.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Error, Result, anyhow};
use burn::tensor::{Device, FloatDType};
use soda_adapters::{AnyAdapter, Plan, attach_all};
use soda_linalg::SvdCache;
use soda_models::ModelError;
use soda_models::pipeline::{LoadOptions, Pipeline, PromptEncoding};
use soda_models::weights::{WeightPrecision, WeightStorage};
use soda_pipeline::{
    AdapterFile, Component, LoadAdapterOptions, MergeMode, MergeOptions, counted, fuse_plans,
    load_adapter, plan_merge,
};
use soda_train::Event;
use tracing::info_span;

use crate::args::{MergeModeName, MergedArgs};
use crate::base_model::{try_load_base, usage_or_error};
use crate::progress::Progress;

/// A base model and how it is loaded.
pub(crate) struct BaseModel<'a> {
    /// The directory of the base.
    pub(crate) path: &'a Path,
    pub(crate) options: LoadOptions,
    pub(crate) cache: Option<SvdCache>,
    pub(crate) device: &'a Device,
}

impl BaseModel<'_> {
    /// Loads the base with one adapter. The returned plan has the adapter at `strength`, ready to be
    /// attached.
    pub(crate) fn load_plan(
        &self,
        adapter: &Path,
        strength: f64,
    ) -> Result<(Pipeline, AdapterFile, Plan<AnyAdapter>)> {
        let file = AdapterFile::read(adapter)?;
        let mut pipeline = self.load_for(&[&file])?;
        let mut progress = Progress::default();
        let mut on_progress = |done, total| show_decomposition(&mut progress, done, total);
        let mut other_base = false;
        let mut on_other_base = || other_base = true;
        let options = LoadAdapterOptions {
            strength,
            network_dtype: Some(self.options.denoiser_precision().dtype),
            cache: self.cache.as_ref(),
            on_progress: Some(&mut on_progress),
            on_other_base: Some(&mut on_other_base),
        };
        let plan =
            info_span!("load adapter").in_scope(|| load_adapter(&mut pipeline, &file, options))?;
        progress.finish();
        if other_base {
            self.warn_of_other_base(&[&file], &progress);
        }
        print_match(&file, adapter, &progress);
        Ok((pipeline, file, plan))
    }

    /// Loads the base with one adapter at `strength`, to draw.
    pub(crate) fn load_to_draw(&self, adapter: &Path, strength: f64) -> Result<Pipeline> {
        let (pipeline, file, plan) = self.load_plan(adapter, strength)?;
        Ok(self.with_plans(pipeline, vec![(plan, 1.0)], file.depends_on_timestep()))
    }

    /// Puts adapters onto a pipeline that draws. They are merged into weights in floats. On a quantized base
    /// they stay attached, as in training, since codes would round their changes.
    fn with_plans(
        &self,
        mut pipeline: Pipeline,
        plans: Vec<(Plan<AnyAdapter>, f64)>,
        depends_on_timestep: bool,
    ) -> Pipeline {
        let _span = info_span!("merge adapter").entered();
        let precision = self.options.denoiser_precision();
        if depends_on_timestep || precision.storage.quantization.is_some() {
            pipeline = pipeline.stored(&self.options);
            pipeline.set_networks(attach_all(plans, pipeline.networks()));
        } else {
            fuse_plans(&mut pipeline, plans, &precision);
            pipeline = pipeline.stored(&self.options);
        }
        pipeline.in_drawing_format()
    }

    /// Loads the base with two adapters, to draw.
    fn load_two_merged(&self, subject: &Path, style: &Path, args: &MergedArgs) -> Result<Pipeline> {
        args.check()?;
        let (first, second) = (args.weights[0], args.weights[1]);
        let files = [AdapterFile::read(subject)?, AdapterFile::read(style)?];
        let mut pipeline = self.load_for(&[&files[0], &files[1]])?;
        let mut progress = Progress::default();
        let mut on_progress = |done, total| show_decomposition(&mut progress, done, total);
        let mut other_base = false;
        let mut on_other_base = || other_base = true;
        let options = MergeOptions {
            mode: match args.mode {
                MergeModeName::Residual => MergeMode::Residual,
                MergeModeName::Geodesic => MergeMode::Geodesic { restore: args.restore },
                MergeModeName::Compose => MergeMode::Compose,
            },
            network_dtype: Some(self.options.denoiser_precision().dtype),
            cache: self.cache.as_ref(),
            on_progress: Some(&mut on_progress),
            on_other_base: Some(&mut on_other_base),
        };
        let span = info_span!("load adapter").entered();
        let plans = plan_merge(&mut pipeline, &[(&files[0], first), (&files[1], second)], options)?;
        span.exit();
        progress.finish();
        if other_base {
            self.warn_of_other_base(&[&files[0], &files[1]], &progress);
        }
        for (file, path) in files.iter().zip([subject, style]) {
            print_match(file, path, &progress);
        }
        Ok(self.with_plans(pipeline, plans, false))
    }

    /// Loads the base with the encoding of prompts that the options or else the adapters ask for. Weights
    /// under adapters are in floats, and wait in host memory if they will not stay floats.
    fn load_for(&self, files: &[&AdapterFile]) -> Result<Pipeline> {
        let mut options = self.options.clone();
        let mut exact = BTreeSet::new();
        for file in files {
            options.prompt_encoding = options.prompt_encoding.or(&file.header.prompt_encoding);
            for (component, state) in &file.adapters {
                match component {
                    Component::Unet | Component::Transformer => {
                        exact.extend(state.paths().into_iter().map(str::to_owned));
                    }
                    Component::TextEncoder | Component::TextEncoder2 => {
                        options.storage = WeightStorage::default();
                        options.dtype = FloatDType::F32;
                    }
                }
            }
        }
        let precision = self.options.denoiser_precision();
        if precision != FloatDType::F32.into() {
            options.denoiser = Some(WeightPrecision { exact, ..precision });
        }
        try_load_base(self.path, &options, self.device)
            .map_err(|error| self.with_blame_of_encoding(error, files))
    }

    /// A prompt encoding that the base refuses is a mistake of usage, unless an adapter asks for it.
    fn with_blame_of_encoding(&self, error: ModelError, files: &[&AdapterFile]) -> Error {
        let chosen = &self.options.prompt_encoding;
        let is_chosen = match &error {
            ModelError::InvalidRequest { field: "max_sequence_length", .. } => {
                chosen.max_sequence_length.is_some()
            }
            ModelError::InvalidRequest { field: "text_encoder_out_layers", .. } => {
                chosen.text_encoder_out_layers.is_some()
            }
            _ => true,
        };
        let asks = |file: &&&AdapterFile| file.header.prompt_encoding != PromptEncoding::default();
        match files.iter().find(asks).filter(|_| !is_chosen) {
            Some(file) => anyhow!(
                "{} was trained with {}, which {} does not take; give the base that it was trained on",
                file.path.as_deref().unwrap_or(Path::new("the adapter")).display(),
                file.header.prompt_encoding,
                self.path.display()
            ),
            None => usage_or_error(error),
        }
    }

    /// Warns that the weights of the base are not those that an adapter was made for.
    fn warn_of_other_base(&self, files: &[&AdapterFile], progress: &Progress) {
        let bases: BTreeSet<_> = files.iter().map(|file| file.header.base.as_str()).collect();
        let bases = Vec::from_iter(bases).join(" and ");
        progress.warn(&format!(
            "the weights of {} are not those that the adapter was made for ({bases}): another model or \
             a fine-tune; the change is added to them as it is",
            self.path.display()
        ));
    }
}

/// Loads the base with the adapters of the options, to draw. Returns `None` if the options name no adapter.
pub(crate) fn load_with_adapters(
    args: &MergedArgs,
    base: &Path,
    options: LoadOptions,
    device: &Device,
) -> Result<Option<Pipeline>> {
    let cache = args.cache.open()?;
    let base = BaseModel { path: base, options, cache, device };
    match (&args.adapter, &args.subject, &args.style) {
        (Some(adapter), _, _) => base.load_to_draw(adapter, args.strength).map(Some),
        (None, Some(subject), Some(style)) => base.load_two_merged(subject, style, args).map(Some),
        (None, _, _) => Ok(None),
    }
}

fn show_decomposition(progress: &mut Progress, done: usize, total: usize) {
    if !progress.is_shown() {
        progress.show(Event::Stage { name: "decomposing" });
    }
    progress.show(Event::Progress { done, total, loss: None });
}

fn print_match(file: &AdapterFile, path: &Path, progress: &Progress) {
    progress.print(&format!(
        "{}: {}; all {} matched",
        path.display(),
        file.summary(),
        counted(file.num_tensors(), "tensor")
    ));
}
