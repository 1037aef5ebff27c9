//! A whole personalisation: check everything, draw before, train, draw after, judge, report.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use burn::module::Module;
use burn::tensor::Device;
use serde_json::{Value, json};
use soda_adapters::{Header, SvdCache, leaves};
use soda_models::metrics::Judges;
use soda_models::pipeline::{Pipeline, model_name};
use soda_models::scheduler::ScheduleChange;

use crate::config::TrainConfig;
use crate::data::cache::EncodeCache;
use crate::data::dataset::{Dataset, Example, expand_trigger};
use crate::data::encode::{EncodeConfig, EncodedDataset, buckets_of};
use crate::data::masks;
use crate::data::prior;
use crate::error::TrainError;
use crate::eval::pictures::DatasetImages;
use crate::eval::sampling::{Sampler, prompts, read_snapshots};
use crate::eval::validation::Validation;
use crate::event::Event;
use crate::output::run_folder::{
    ADAPTER, CHECKPOINTS, CONFIG, REPORT, RunFolder, SHEET, TENSORBOARD,
};
use crate::output::tensorboard::Events;
use crate::run::base_model;
use crate::run::history::{History, running_mean};
use crate::run::report::{losses, report};
use crate::run::summary::Outcome;
use crate::run::training::{TRAINING, Trained, Training, orthogonality};
use crate::step::adapted_networks::{Parts, check, learning};
use crate::step::trainer::{Material, Trainer};

/// A checked job: everything is read, nothing is written yet.
pub struct Personalisation {
    config: TrainConfig,
    dataset: Dataset,
    pipeline: Pipeline,
    judges: Option<Judges>,
    cache: Option<PathBuf>,
    recording: bool,
}

/// Where a run lives.
pub enum Place<'a> {
    /// A new folder `root/name`, see [`RunFolder::create`].
    New {
        /// The folder of all runs.
        root: &'a Path,
        /// Its name; without one the data's name and a number.
        name: Option<&'a str>,
    },
    /// The folder of a run that was stopped, to go on from its newest checkpoint.
    Stopped(RunFolder),
}

impl Personalisation {
    /// Reads the model, the judges and the data set.
    ///
    /// # Errors
    /// Anything the configuration names that is missing or unusable.
    pub fn new(mut config: TrainConfig, device: &Device) -> Result<Self, TrainError> {
        config.check()?;
        for precision in [config.precision, config.encoder_precision] {
            if !precision.is_supported(device) {
                return Err(TrainError::UnsupportedPrecision(format!("{precision:?}")));
            }
        }
        let mut dataset = Dataset::read(&config.data, config.prompt.as_deref())?;
        if let Some(trigger) = &config.trigger {
            dataset = dataset.with_trigger(trigger);
            let prompts = config.samples.prompts.iter();
            config.samples.prompts =
                prompts.map(|prompt| expand_trigger(prompt, trigger)).collect();
        }
        let judges =
            config.judges.as_deref().map(|folder| Judges::load(folder, device)).transpose()?;
        let pipeline = base_model::load(&config, device)?;
        // Unknown targets are a mistake of the settings: say so before anything is drawn.
        check(&config, &pipeline)?;
        config.objective.check_timesteps(pipeline.noise_schedule().num_train_timesteps())?;
        buckets_of(&pipeline, config.buckets.as_ref())?;
        if let Some(masks) = &config.masks {
            let pictures = dataset.examples.iter().map(|example| example.image.as_path());
            masks::check(masks, &config.data, pictures)?;
        }
        Ok(Self { config, dataset, pipeline, judges, cache: None, recording: false })
    }

    /// The same job with a folder that keeps what only depends on the base and the data: singular value
    /// decompositions, latents, text states.
    pub fn with_cache(self, cache: Option<PathBuf>) -> Self {
        Self { cache, ..self }
    }

    /// The same job with steps from a recording, see [`Trainer::recording`].
    pub fn with_recording(self) -> Self {
        Self { recording: true, ..self }
    }

    /// Reads a stopped run, to be given to [`Personalisation::run`].
    ///
    /// # Errors
    /// No run there, one that still goes on or is finished; and as [`Personalisation::new`].
    pub fn resume(folder: &Path, device: &Device) -> Result<(Self, RunFolder), TrainError> {
        let folder = RunFolder::open(folder)?;
        if folder.file(REPORT).exists() {
            return Err(TrainError::Finished(folder.path().to_owned()));
        }
        let path = folder.file(CONFIG);
        let text = std::fs::read_to_string(&path).map_err(TrainError::io("read", &path))?;
        Ok((Self::new(TrainConfig::from_toml(&text)?, device)?, folder))
    }

    /// Runs the job. `stop` asks it to store a checkpoint and to end.
    ///
    /// # Errors
    /// A taken name, a picture that cannot be read, a loss that is not finite, a full disk;
    /// [`TrainError::Stopped`] if it was asked to stop.
    pub fn run(
        self,
        place: Place<'_>,
        stop: &AtomicBool,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<Outcome, TrainError> {
        let Self { mut config, mut dataset, mut pipeline, judges, cache, recording } = self;
        config.samples.prompts = prompts(&config, &dataset);
        let held_out = dataset.hold_out(config.validation.held_out, config.seed)?;

        on_event(Event::Stage { name: "encoding" });
        let svd_cache = cache.as_ref().map(SvdCache::new);
        let cache = cache.map(|folder| EncodeCache::new(folder, &pipeline));
        let mut encode = |examples: &[Example], encode: &EncodeConfig| {
            let progress = &mut |done, total| on_event(Event::Progress { done, total, loss: None });
            EncodedDataset::new(&pipeline, examples, encode, cache.as_ref(), progress)
        };
        let data = encode(&dataset.examples, &EncodeConfig::from_train_config(&config))?;
        let schedule = pipeline.noise_schedule();
        let validation = match (config.validation.every, held_out.as_slice()) {
            (0, _) => None,
            (_, []) => Some(Validation::new(&data, &schedule, &config)),
            (_, held_out) => {
                let held_out = encode(
                    held_out,
                    &EncodeConfig::from_train_config(&config).without_augmentation(),
                )?;
                Some(Validation::new(&held_out, &schedule, &config))
            }
        };
        if let Some(masks) = config.masks.as_ref().filter(|_| !data.is_masked()) {
            return Err(masks::none(masks, &config.data));
        }
        warn(&data, &dataset, on_event);
        let unused = dataset.examples.iter().filter(|e| masks::file(&e.image).is_some()).count();
        if config.masks.is_none() && unused > 0 {
            let text = format!("{unused} of the pictures have masks, which only `masks={{}}` uses");
            on_event(Event::Warning(&text));
        }
        if config.buckets.is_some() {
            on_event(Event::Note(&format!("buckets: {}", count(&data))));
        }
        if config.trains_text_encoder() {
            on_event(Event::Note(
                "text encoders or new words learn: captions are read in every step, and not kept in a cache",
            ));
        }
        let pictures = DatasetImages::read(&dataset, &held_out, pipeline.image_size() as u32)?;
        let folder = match place {
            Place::Stopped(folder) => folder,
            Place::New { root, name } => {
                let stem = config.data.file_name().and_then(|name| name.to_str()).unwrap_or("run");
                let folder = RunFolder::create(root, name, stem)?;
                folder.write(CONFIG, portable(&config)?.to_toml()?.as_bytes())?;
                folder
            }
        };
        let header = header(&config, &dataset);
        on_event(Event::Stage { name: "decomposing" });
        let mut decomposed = |done, total| on_event(Event::Progress { done, total, loss: None });
        let networks = learning(&config, &pipeline);
        let (parts, plan) = Parts::plan(&config, &networks, svd_cache.as_ref(), &mut decomposed)?;
        // Or what is adapted would stay in f32 beside its cast.
        drop(networks);
        let num_layers = plan.paths().len();
        pipeline.unet = config.precision.of(pipeline.unet);
        // Drawn by the network as it will be trained: before this line only a part of it has its precision.
        let class = prior::encode(&pipeline, &config, &folder, cache.as_ref(), stop, on_event)?;
        if let Some(cache) = &cache {
            on_event(Event::Note(&format!("cache: {cache}")));
        }
        let networks = learning(&config, &pipeline);
        let reference = pictures.reference(&dataset, &config.samples.prompts);
        let mut sampler = Sampler {
            untuned: Vec::new(),
            pipeline: &mut pipeline,
            config: &config,
            folder: &folder,
            judges: judges.as_ref(),
            reference: &reference,
        };
        let before = sampler.draw("drawing before", on_event)?;
        sampler.untuned.clone_from(&before.unrelated);

        let networks = plan.attach(networks).with_learning_words();
        let trainer = Trainer::new(networks, &config.method, &config)?;
        let trainer = if recording { trainer.recording() } else { trainer };

        on_event(Event::Stage { name: TRAINING });
        let material = Material { data: &data, class: class.as_ref(), schedule: &schedule };
        let mut events =
            config.tensorboard.then(|| Events::create(&folder.file(TENSORBOARD))).transpose()?;
        let training = Training {
            config: &config,
            folder: &folder,
            header: &header,
            parts: &parts,
            material,
            validation,
            events: events.as_mut(),
        };
        let Trained { networks, history, seconds } =
            training.run(trainer, &mut sampler, stop, on_event)?;

        let orthogonality = orthogonality(&config.method, &leaves(&networks));
        let header = Header { training: summary(&config, &history, seconds), ..header };
        let adapter = parts.file(header, &networks, sampler.pipeline.words_of(&networks));
        adapter.write(&folder.file(ADAPTER))?;
        folder.write("loss.csv", history.csv().as_bytes())?;
        folder.write("loss.svg", losses(&history).as_bytes())?;

        let after = sampler.draw_with(networks.materialize(), "drawing after", on_event)?;
        pictures.write(&folder, &before, &after)?;
        on_event(Event::Stage { name: "judging" });
        let (before, after) = (sampler.judge(&before)?, sampler.judge(&after)?);
        let truth = sampler.judge_truth()?;
        if let Some(events) = &mut events {
            for (step, scores) in [(0, before), (config.steps, after)] {
                if let Some(scores) = scores {
                    events.scalars(step, &scores.named())?;
                }
            }
        }
        let held_out: Vec<String> = held_out.iter().map(Example::name).collect();
        if judges.is_some() {
            let scores =
                json!({ "before": before, "after": after, "truth": truth, "held_out": held_out });
            folder.write("scores.json", format!("{scores:#}\n").as_bytes())?;
        }
        let outcome = Outcome {
            name: folder.path().file_name().unwrap_or_default().to_string_lossy().into_owned(),
            folder: folder.path().to_owned(),
            examples: dataset.examples.len(),
            held_out,
            prompts: config.samples.prompts.clone(),
            history,
            seconds,
            num_layers,
            num_params: adapter.num_params(),
            orthogonality,
            before,
            after,
            truth,
            buckets: config.buckets.is_some().then(|| count(&data)),
            settings: portable(&config)?.to_toml()?,
            config,
        };
        let sheet = folder.file(SHEET);
        let sheet = std::fs::read(&sheet).map_err(TrainError::io("read", &sheet))?;
        folder.write(REPORT, report(&outcome, &sheet, &read_snapshots(&folder)?).as_bytes())?;
        // The report says that the run is finished: nothing will go on from a checkpoint.
        folder.remove_folder(CHECKPOINTS)?;
        Ok(outcome)
    }
}

/// How many pictures each bucket has.
fn count(data: &EncodedDataset) -> String {
    let bucket =
        |([width, height], count): ([u32; 2], usize)| format!("{count} of {width} x {height}");
    data.buckets().map(bucket).collect::<Vec<_>>().join(", ")
}

/// What a person should know of the data.
fn warn(data: &EncodedDataset, dataset: &Dataset, on_event: &mut dyn FnMut(Event<'_>)) {
    for caption in &data.truncated_captions {
        on_event(Event::Warning(&format!(
            "a caption is too long for the text encoder and was cut: {caption}"
        )));
    }
    if let Some(first) = data.upscaled.first() {
        on_event(Event::Warning(&format!(
            "{} of {} pictures are smaller than what they are learnt at and are enlarged, such as {}",
            data.upscaled.len(),
            dataset.examples.len(),
            first.display()
        )));
    }
    for path in &dataset.unsupported {
        on_event(Event::Warning(&format!(
            "{} is passed over: save it as PNG, JPEG, WebP, BMP or TIFF",
            path.display()
        )));
    }
}

/// The configuration with paths that mean the same from another folder.
fn portable(config: &TrainConfig) -> Result<TrainConfig, TrainError> {
    let absolute =
        |path: &Path| std::path::absolute(path).map_err(TrainError::io("find the path of", path));
    let mut portable = config.clone();
    portable.base = absolute(&config.base)?;
    portable.data = absolute(&config.data)?;
    portable.judges = config.judges.as_deref().map(absolute).transpose()?;
    if let Some(prior) = &mut portable.prior {
        prior.data = prior.data.as_deref().map(absolute).transpose()?;
    }
    Ok(portable)
}

fn header(config: &TrainConfig, dataset: &Dataset) -> Header {
    let words = config.trained_tokens().into_iter().flat_map(|tokens| tokens.words.keys());
    let new = words.filter(|word| !dataset.trigger.iter().any(|trigger| trigger.contains(*word)));
    let change = config.objective.change();
    Header {
        base: model_name(&config.base),
        trigger: dataset.trigger.iter().chain(new).cloned().collect(),
        schedule: if change == ScheduleChange::default() { Value::Null } else { json!(change) },
        training: json!({}),
    }
}

/// What the adapter's file says about its training: the whole configuration, and how it went.
fn summary(config: &TrainConfig, history: &History, seconds: f64) -> Value {
    json!({
        "config": config,
        "final_loss": running_mean(&history.losses()).last(),
        "seconds": seconds,
    })
}
