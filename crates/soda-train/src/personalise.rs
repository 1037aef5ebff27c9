//! A whole personalisation: check everything, draw before, train, draw after, judge, report.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use burn::module::Module;
use burn::tensor::Device;
use image::RgbImage;
use serde_json::json;
use soda_adapters::{AdapterFile, Geometry, Header, Leaf, Method, fingerprint, leaves};
use soda_models::metrics::Judges;
use soda_models::pipeline::{GenerateConfig, Pipeline};

use crate::chart::loss_svg;
use crate::class;
use crate::config::TrainConfig;
use crate::dataset::Dataset;
use crate::encode::Encoded;
use crate::error::TrainError;
use crate::evaluate::{Scores, score};
use crate::pictures::Pictures;
use crate::report::report;
use crate::run::{ADAPTER, CHECKPOINTS, CONFIG, REPORT, RunFolder};
use crate::trainer::{Material, Trainer};
use crate::training::{Trained, Training};

/// What a run tells while it goes on.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A stage begins.
    Stage {
        /// What is done, for people.
        name: &'a str,
    },
    /// Parts of the stage are done.
    Progress {
        /// How many.
        done: usize,
        /// Of how many.
        total: usize,
        /// The loss of the step, while training.
        loss: Option<f32>,
    },
    /// Something that does not stop the run, but that a person should know.
    Warning(&'a str),
}

/// A checked job: everything is read, nothing is written yet.
pub struct Personalisation {
    config: TrainConfig,
    dataset: Dataset,
    pipeline: Pipeline,
    judges: Option<Judges>,
    device: Device,
}

/// What came of it.
pub struct Outcome {
    /// The run's name.
    pub name: String,
    /// The run's folder.
    pub folder: PathBuf,
    /// The settings, as resolved.
    pub config: TrainConfig,
    /// Number of training pictures.
    pub examples: usize,
    /// Prompts of the samples.
    pub prompts: Vec<String>,
    /// Loss of every step.
    pub losses: Vec<f32>,
    /// Seconds of training.
    pub seconds: f64,
    /// Adapted layers.
    pub num_layers: usize,
    /// Trained numbers.
    pub num_params: usize,
    /// `max |QᵀQ - I|` over all rotation factors.
    pub orthogonality: f32,
    /// Scores of the untuned model.
    pub before: Option<Scores>,
    /// Scores of the tuned one.
    pub after: Option<Scores>,
    /// Scores of the truth itself: what a perfect fine-tune would reach.
    pub truth: Option<Scores>,
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
    pub fn new(config: TrainConfig, device: &Device) -> Result<Self, TrainError> {
        config.check()?;
        let dataset = Dataset::read(&config.data, config.prompt.as_deref())?;
        let judges =
            config.judges.as_deref().map(|folder| Judges::load(folder, device)).transpose()?;
        let pipeline = Pipeline::load(&config.base, device)?;
        // Unknown targets are a mistake of the settings: say so before anything is drawn.
        config.targets.select(&pipeline.unet)?;
        config.objective.check_timesteps(pipeline.noise_schedule().num_train_timesteps())?;
        Ok(Self { config, dataset, pipeline, judges, device: device.clone() })
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
        let Self { mut config, dataset, mut pipeline, judges, device } = self;
        config.samples.prompts = prompts(&config, &dataset);
        let prompts = config.samples.prompts.clone();

        on_event(Event::Stage { name: "encoding" });
        let data = Encoded::new(&pipeline, &dataset.examples, &device)?;
        for caption in &data.cut {
            on_event(Event::Warning(&format!(
                "a caption is too long for the text encoder and was cut: {caption}"
            )));
        }
        let pictures = Pictures::read(&dataset, pipeline.image_size() as u32)?;
        let folder = match place {
            Place::Stopped(folder) => folder,
            Place::New { root, name } => {
                let stem = config.data.file_name().and_then(|name| name.to_str()).unwrap_or("run");
                let folder = RunFolder::create(root, name, stem)?;
                folder.write(CONFIG, portable(&config)?.to_toml()?.as_bytes())?;
                folder
            }
        };
        let class = class::encode(&pipeline, &config, &folder, &device, on_event)?;
        let before = sample(&pipeline, &config, "drawing before", on_event)?;

        on_event(Event::Stage { name: "decomposing" });
        let weights = config.targets.select(&pipeline.unet)?;
        let header = header(&config, &dataset, &fingerprint(&weights));
        let plan = config.method.plan(&config.targets, &pipeline.unet)?;
        let num_layers = plan.paths().len();
        let trainer = Trainer::new(plan.attach(pipeline.unet.clone()), &config.method, &config)?;

        on_event(Event::Stage { name: "training" });
        let schedule = pipeline.noise_schedule();
        let material = Material { data: &data, class: class.as_ref(), schedule: &schedule };
        let trained = Training { config: &config, folder: &folder, header: &header, material }
            .run(trainer, stop, on_event)?;
        let Trained { unet, losses, seconds } = trained;

        let orthogonality = orthogonality(&config.method, &leaves(&unet));
        let header = Header { training: summary(&config, &losses, seconds), ..header };
        let adapter = AdapterFile::capture(header, &unet);
        adapter.write(&folder.file(ADAPTER))?;
        folder.write("loss.csv", csv(&losses).as_bytes())?;
        folder.write("loss.svg", loss_svg(&losses).as_bytes())?;

        // Constant from here on: fold the adapter in once instead of in each of the sampler's steps.
        pipeline.unet = unet.materialize();
        let after = sample(&pipeline, &config, "drawing after", on_event)?;
        folder.write_png("samples.png", &pictures.grid(&before, &after))?;

        let mut outcome = Outcome {
            name: folder.path().file_name().unwrap_or_default().to_string_lossy().into_owned(),
            folder: folder.path().to_owned(),
            examples: dataset.examples.len(),
            prompts,
            losses,
            seconds,
            num_layers,
            num_params: adapter.num_params(),
            orthogonality,
            before: None,
            after: None,
            truth: None,
            config,
        };
        if let Some(judges) = judges {
            on_event(Event::Stage { name: "judging" });
            let reference = pictures.reference(&dataset, &outcome.prompts);
            outcome.before = Some(score(&judges, &before, &reference)?);
            outcome.after = Some(score(&judges, &after, &reference)?);
            if !reference.truth.is_empty() {
                outcome.truth = Some(score(&judges, &reference.truth, &reference)?);
            }
            let scores =
                json!({ "before": outcome.before, "after": outcome.after, "truth": outcome.truth });
            folder.write("scores.json", format!("{scores:#}\n").as_bytes())?;
        }
        folder.write(REPORT, report(&outcome).as_bytes())?;
        // The report says that the run is finished: nothing will go on from a checkpoint.
        folder.remove_folder(CHECKPOINTS)?;
        Ok(outcome)
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

fn prompts(config: &TrainConfig, dataset: &Dataset) -> Vec<String> {
    if !config.samples.prompts.is_empty() {
        return config.samples.prompts.clone();
    }
    if !dataset.eval_prompts.is_empty() {
        return dataset.eval_prompts.clone();
    }
    dataset.examples.iter().map(|example| example.caption.clone()).collect()
}

fn sample(
    pipeline: &Pipeline,
    config: &TrainConfig,
    stage: &str,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Vec<RgbImage>, TrainError> {
    let generate = GenerateConfig {
        prompts: config.samples.prompts.clone(),
        steps: config.samples.steps,
        guidance: config.samples.guidance,
        seed: config.seed,
        shards: config.shards.unwrap_or(1),
        ..GenerateConfig::default()
    };
    on_event(Event::Stage { name: stage });
    let images = pipeline.generate(&generate, &mut |done, total| {
        on_event(Event::Progress { done, total, loss: None });
    })?;
    Ok(images)
}

fn header(config: &TrainConfig, dataset: &Dataset, base_hash: &str) -> Header {
    Header {
        method: config.method.clone(),
        targets: config.targets.clone(),
        base: config.base.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        base_hash: base_hash.to_owned(),
        trigger: dataset.trigger.clone(),
        training: json!({}),
    }
}

/// What the adapter's file says about its training: the whole configuration, and how it went.
fn summary(config: &TrainConfig, losses: &[f32], seconds: f64) -> serde_json::Value {
    json!({
        "config": config,
        "final_loss": crate::chart::running_mean(losses).last(),
        "seconds": seconds,
    })
}

fn csv(losses: &[f32]) -> String {
    let mut text = "step,loss\n".to_owned();
    for (step, loss) in losses.iter().enumerate() {
        text.push_str(&format!("{},{loss}\n", step + 1));
    }
    text
}

/// `max |QᵀQ - I|` over the factors on the Stiefel manifold; 0 where there are none.
fn orthogonality<M: Method>(method: &M, leaves: &[Leaf]) -> f32 {
    leaves
        .iter()
        .filter(|leaf| method.geometry(&leaf.path) == Geometry::Stiefel)
        .map(|leaf| {
            let q = leaf.value.clone().reshape([leaf.shape[0], leaf.shape[1]]);
            let identity = burn::tensor::Tensor::eye(leaf.shape[1], &q.device());
            (q.clone().transpose().matmul(q) - identity).abs().max().into_scalar::<f32>()
        })
        .fold(0.0, f32::max)
}
