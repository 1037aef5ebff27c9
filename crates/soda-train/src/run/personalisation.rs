//! A whole run: check everything, sample, train, sample again, score, report.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::Device;
use soda_adapters::{for_inference, named_params};
use soda_kernels::{memory_usage, release_unused};
use soda_models::image::grid;
use soda_models::input_file::SizeLimit;
use soda_models::metrics::Judges;
use soda_models::pipeline::Pipeline;
use tracing::info_span;

use crate::config::TrainConfig;
use crate::data::dataset::{Dataset, expand_trigger, has_placeholder};
use crate::data::encode::buckets_for;
use crate::data::folder::Example;
use crate::data::masks;
use crate::data::prior;
use crate::data::text_file::read_text;
use crate::error::{ConfigError, RunFolderError, TrainError};
use crate::eval::dataset_images::DatasetImages;
use crate::eval::sampling::{Sampler, evaluation_prompts};
use crate::event::{Event, SAMPLING_AFTER, SAMPLING_BEFORE, TRAINING};
use crate::output::event_log::EventLog;
use crate::output::run_folder::RunFolder;
use crate::output::tensorboard::Events;
use crate::run::base_model;
use crate::run::checkpoint::Checkpoint;
use crate::run::data_notes::bucket_sizes;
use crate::run::fingerprint::RunFingerprint;
use crate::run::leader::{Leader, TrainedRun, orthogonality_defect};
use crate::run::preparation::{self, Encodings};
use crate::run::rank_start;
use crate::run::report::ReportImages;
use crate::run::results::{adapter_file, finish, header, score, write_training_results};
use crate::run::summary::RunSummary;
use crate::step::adapted_networks::{check_method, check_targets};
use crate::step::ranks::Ranks;
use crate::step::trainer::StepData;

/// A checked run. All inputs have been read; nothing has been written.
pub struct Personalisation {
    pub(super) config: TrainConfig,
    pub(super) dataset: Dataset,
    pub(super) pipeline: Pipeline,
    pub(super) judges: Option<Judges>,
    pub(super) cache: Option<PathBuf>,
    pub(super) with_graph: bool,
    pub(super) ranks: Ranks,
}

/// The folder that a run writes to.
pub enum RunTarget<'a> {
    /// A new folder `root/name`, see [`RunFolder::create`].
    New {
        /// The folder of all runs.
        root: &'a Path,
        /// The run's name; without one it is the name of the data folder and a number.
        name: Option<&'a str>,
    },
    /// The folder of a stopped run, which continues from its newest checkpoint.
    Resumed(RunFolder),
}

impl RunTarget<'_> {
    /// The newest checkpoint of a stopped run, of the same base model and settings.
    fn checkpoint(
        &self,
        fingerprint: &RunFingerprint,
        config: &TrainConfig,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<Option<Checkpoint>, TrainError> {
        let Self::Resumed(folder) = self else { return Ok(None) };
        let damaged = |error: &TrainError| on_event(Event::Warning(&error.to_string()));
        let newest = Checkpoint::newest(&folder.file(RunFolder::CHECKPOINTS), damaged)?;
        if let Some(checkpoint) = &newest {
            fingerprint.check_against(&checkpoint.fingerprint, config)?;
        }
        Ok(newest)
    }

    /// Opens the folder; a new one gets the settings of the run.
    fn open(self, config: &TrainConfig) -> Result<RunFolder, TrainError> {
        match self {
            Self::Resumed(folder) => Ok(folder),
            Self::New { root, name } => {
                let stem = config.data.file_name().and_then(|name| name.to_str()).unwrap_or("run");
                let settings = with_absolute_paths(config)?.to_toml()?;
                RunFolder::create(root, name, stem, &settings)
            }
        }
    }
}

impl Personalisation {
    /// Checks the settings and reads the base model, the judges and the data set.
    ///
    /// # Errors
    /// A setting, a file or a model that cannot be used.
    pub fn new(mut config: TrainConfig, device: &Device) -> Result<Self, TrainError> {
        config.check()?;
        for precision in [config.precision, config.encoder_precision] {
            if !precision.is_supported(device) {
                return Err(ConfigError::UnsupportedPrecision(format!("{precision:?}")).into());
            }
        }
        let mut dataset = info_span!("read data")
            .in_scope(|| Dataset::read(&config.data, config.prompt.as_deref()))?;
        dataset = with_trigger(dataset, &mut config)?;
        let load_judges =
            |folder| info_span!("load judges").in_scope(|| Judges::load(folder, device));
        let judges = config.judges.as_deref().map(load_judges).transpose()?;
        let pipeline =
            info_span!("load base").in_scope(|| base_model::load(&config, &dataset, device))?;
        // Unknown targets are an error of the settings, reported before any image is generated.
        check_targets(&config, &pipeline)?;
        check_method(&config, device)?;
        check_words(&config, &dataset)?;
        config.objective.check_timesteps(pipeline.forward_process().num_train_timesteps())?;
        buckets_for(&pipeline, config.buckets.as_ref())?;
        if let Some(masks) = &config.masks {
            let images = dataset.examples.iter().map(|example| example.image.as_path());
            masks::check(masks, &config.data, images)?;
        }
        let ranks = Ranks::default();
        Ok(Self { config, dataset, pipeline, judges, cache: None, with_graph: false, ranks })
    }

    /// The settings of the run.
    pub fn config(&self) -> &TrainConfig {
        &self.config
    }

    /// Shares the steps with other processes. Rank 0 calls [`Personalisation::run`], and the others
    /// [`Personalisation::follow`].
    pub fn with_ranks(self, ranks: Ranks) -> Self {
        Self { ranks, ..self }
    }

    /// Keeps singular value decompositions, latents and text states in the folder `cache`.
    pub fn with_cache(self, cache: Option<PathBuf>) -> Self {
        Self { cache, ..self }
    }

    /// Replays training steps from a CUDA graph, see [`Trainer::with_graph`](crate::Trainer::with_graph).
    pub fn with_graph(self) -> Self {
        Self { with_graph: true, ..self }
    }

    /// Reads a stopped run. Pass both results on: `run.run(RunTarget::Resumed(folder), ..)`.
    ///
    /// # Errors
    /// Those of [`Personalisation::new`]; a folder without a run; a run that is in use or finished.
    pub fn resume(folder: &Path, device: &Device) -> Result<(Self, RunFolder), TrainError> {
        let folder = RunFolder::open(folder)?;
        if folder.file(RunFolder::REPORT).exists() {
            // The run may have been killed before it removed them itself.
            folder.remove_subfolder(RunFolder::CHECKPOINTS)?;
            return Err(RunFolderError::Finished(folder.path().to_owned()).into());
        }
        let path = folder.file(RunFolder::CONFIG);
        let text = read_text(&path, SizeLimit::LIST)?;
        Ok((Self::new(TrainConfig::from_toml(&text)?, device)?, folder))
    }

    /// Does the run. Setting `stop` from another thread, or [`RunFolder::request_stop`] from another process,
    /// ends it after the current step, with a checkpoint.
    ///
    /// # Errors
    /// A name that is taken, an image that cannot be read, a loss that is not finite, a full disk;
    /// [`TrainError::Stopped`] or [`TrainError::StoppedSampling`] after `stop` was set.
    pub fn run(
        self,
        target: RunTarget<'_>,
        stop: &AtomicBool,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<RunSummary, TrainError> {
        let log = OnceCell::new();
        let result = self.run_logged(target, stop, &log, on_event);
        if let Some(log) = log.get() {
            log.end(result.as_ref().map(|summary| summary.device_memory));
        }
        result
    }

    /// Completes the settings, holds examples out, and compares everything with rank 0. Returns the examples
    /// that are held out.
    pub(super) fn begin(
        &mut self,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<(Vec<Example>, RunFingerprint), TrainError> {
        let Self { config, dataset, pipeline, judges, ranks, .. } = self;
        let captions = dataset.examples.len();
        let of_captions = config.samples.prompts.is_empty() && dataset.eval_prompts.is_empty();
        config.samples.prompts = evaluation_prompts(config, dataset);
        let prompts = config.samples.prompts.len();
        if of_captions && prompts < captions {
            on_event(Event::Note(&format!(
                "samples are of {prompts} of the {captions} captions: `samples.prompts` sets other prompts"
            )));
        }
        let held_out = dataset.hold_out(config.validation.held_out, config.seed)?;
        let judges = judges.as_ref();
        let fingerprint = info_span!("fingerprint")
            .in_scope(|| RunFingerprint::new(config, pipeline, dataset, judges))?;
        release_unused(&pipeline.device);
        rank_start::agree(ranks, config, &fingerprint, dataset, judges)?;
        Ok((held_out, fingerprint))
    }

    /// Does the run, and puts its log into `log` as soon as there is a folder for it.
    fn run_logged(
        mut self,
        target: RunTarget<'_>,
        stop: &AtomicBool,
        log: &OnceCell<EventLog>,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<RunSummary, TrainError> {
        let (held_out, fingerprint) = self.begin(on_event)?;
        let Self { config, dataset, pipeline, judges, cache, with_graph, ranks } = self;
        let on_event: &mut dyn FnMut(Event<'_>) = &mut |event| {
            ranks.reduce().alive();
            on_event(event);
        };
        let checkpoint = target.checkpoint(&fingerprint, &config, on_event)?;
        rank_start::give_checkpoint(&ranks, checkpoint.as_ref())?;
        rank_start::describe(&ranks, &config, on_event);

        let encodings =
            Encodings::new(&config, &pipeline, &dataset, &held_out, cache, &ranks, on_event)?;
        let images = DatasetImages::read(&dataset, &held_out, pipeline.image_size() as u32)?;
        let folder = target.open(&config)?;
        let opened = EventLog::open(&folder)?;
        let log = log.get_or_init(|| opened);
        let on_event: &mut dyn FnMut(Event<'_>) = &mut |event| {
            log.observe(event);
            if matches!(event, Event::Progress { .. }) && folder.takes_request(RunFolder::STOP) {
                stop.store(true, Ordering::Relaxed);
            }
            on_event(event);
        };

        let schedule = pipeline.forward_process();
        let (mut pipeline, adapted, plan) =
            encodings.plan(&config, pipeline, &fingerprint, &ranks, with_graph, on_event)?;
        let Encodings { cache, data, validation, .. } = encodings;
        let num_layers = plan.paths().len();
        // Class images need the final precision, which before the cast only a part of the network has.
        let division = ranks.division();
        let class = prior::images(&pipeline, &config, Some(&folder), division, stop, on_event)?;
        rank_start::give_class_images(&ranks, &config, &folder)?;
        let encode = |class: Vec<Example>| {
            prior::encode(&pipeline, &config, &class, cache.as_ref(), division, on_event)
        };
        let prior = class.map(encode).transpose()?;
        if let Some(cache) = &cache {
            on_event(Event::Note(&format!("cache: {cache}")));
        }
        let reference = images.reference(&dataset, &config.samples.prompts, judges.as_ref())?;
        let mut sampler = Sampler {
            base_unrelated: BTreeMap::new(),
            pipeline: &mut pipeline,
            config: &config,
            folder: Some(&folder),
            judges: judges.as_ref(),
            reference: &reference,
            stop,
            division,
        };
        let before = sampler.sample_base(SAMPLING_BEFORE, on_event)?;
        folder.write_png(RunFolder::BEFORE_GRID, &grid(std::slice::from_ref(&before.images)))?;

        let trainer = preparation::trainer(&config, sampler.pipeline, plan, &ranks, with_graph)?;
        on_event(Event::Stage { name: TRAINING });
        let header = header(&config, &dataset, sampler.pipeline.text.prompt_encoding());
        let tensorboard = folder.file(RunFolder::TENSORBOARD);
        let mut events = config.tensorboard.then(|| Events::create(&tensorboard)).transpose()?;
        let leader = Leader {
            config: &config,
            folder: &folder,
            header: &header,
            adapted: &adapted,
            data: StepData { data: &data, prior: prior.as_ref(), schedule: &schedule },
            validation,
            fingerprint: &fingerprint,
            events: events.as_mut(),
            log,
            ranks: &ranks,
            sampler: &mut sampler,
            stop,
            on_event,
        };
        let span = info_span!("train").entered();
        let trained = leader.run(trainer, checkpoint)?;
        span.exit();
        let span = info_span!("write adapter").entered();
        let orthogonality = orthogonality_defect(&config.method, &named_params(&trained.networks));
        let adapter = adapter_file(&config, header, &adapted, &trained, &sampler);
        write_training_results(&folder, &adapter, &trained.history)?;
        span.exit();
        let TrainedRun { networks, history, seconds } = trained;
        let networks =
            info_span!("materialize").in_scope(|| for_inference(networks, &config.method));
        let device = sampler.pipeline.device.clone();
        let held = || memory_usage(&device).map(|usage| usage.reserved + usage.workspace);
        let of_steps = held();
        // The steps' pages are of no use to pictures.
        release_unused(&device);
        let after = sampler.sample_with(networks, SAMPLING_AFTER, on_event);
        let after =
            after.map_err(|error| error.with_resumable(folder.path(), history.steps.len()))?;
        images.write(&folder, &before, &after)?;
        let held_out: Vec<String> = held_out.iter().map(Example::name).collect();
        let scores =
            score(&sampler, &folder, &before, &after, held_out.clone(), events.as_mut(), on_event)?;

        let summary = RunSummary {
            name: folder.path().file_name().unwrap_or_default().to_string_lossy().into_owned(),
            folder: folder.path().to_owned(),
            examples: dataset.examples.len(),
            held_out,
            prompts: config.samples.prompts.clone(),
            history,
            seconds,
            device_memory: of_steps.max(held()),
            num_layers,
            num_params: adapter.num_params(),
            orthogonality,
            before: scores.as_ref().map(|scores| scores.before),
            after: scores.as_ref().map(|scores| scores.after),
            truth: scores.and_then(|scores| scores.truth),
            folders: dataset.describe_folders(),
            buckets: config.buckets.is_some().then(|| bucket_sizes(&data)),
            settings: with_absolute_paths(&config)?.to_toml()?,
            config,
        };
        let (training, truth) = (&images.training, &reference.truth);
        let images = ReportImages { training, before: &before, after: &after, truth };
        finish(&folder, &summary, &images)?;
        Ok(summary)
    }
}

/// Puts the trigger of the settings, or else of the data folder, into captions and prompts.
fn with_trigger(mut dataset: Dataset, config: &mut TrainConfig) -> Result<Dataset, ConfigError> {
    if let Some(trigger) = &config.trigger {
        dataset = dataset.with_trigger(trigger);
    } else if let Some(trigger) = dataset.trigger.first().cloned() {
        dataset.expand(&trigger);
    }
    let samples = &mut config.samples;
    let prompts = || samples.prompts.iter().chain(&samples.unrelated);
    match dataset.trigger.first() {
        Some(trigger) => {
            let prompts = samples.prompts.iter();
            samples.prompts = prompts.map(|prompt| expand_trigger(prompt, trigger)).collect();
        }
        None if dataset.has_placeholder() || prompts().any(|prompt| has_placeholder(prompt)) => {
            return Err(ConfigError::Conflict(
                "a caption or prompt has `[trigger]`, and nothing says what it stands for: set `trigger`",
            ));
        }
        None => {}
    }
    Ok(dataset)
}

/// Checks that the new words are in captions, where they learn.
fn check_words(config: &TrainConfig, dataset: &Dataset) -> Result<(), ConfigError> {
    let captions = || dataset.examples.iter().map(|example| &example.caption);
    let words = config.trained_tokens().into_iter().flat_map(|tokens| tokens.words.keys());
    match words.into_iter().find(|word| !captions().any(|caption| caption.contains(*word))) {
        Some(word) => Err(ConfigError::UnusedWord(word.clone())),
        None => Ok(()),
    }
}

/// The settings with paths that are valid from every folder.
fn with_absolute_paths(config: &TrainConfig) -> Result<TrainConfig, TrainError> {
    let absolute =
        |path: &Path| std::path::absolute(path).map_err(TrainError::io("find the path of", path));
    let mut config = config.clone();
    config.base = absolute(&config.base)?;
    config.data = absolute(&config.data)?;
    config.judges = config.judges.as_deref().map(absolute).transpose()?;
    if let Some(prior) = &mut config.prior {
        prior.data = prior.data.as_deref().map(absolute).transpose()?;
    }
    Ok(config)
}
