//! A whole personalisation: check everything, draw before, train, draw after, judge, report.

use std::path::{Path, PathBuf};
use std::time::Instant;

use burn::module::Module;
use burn::tensor::Device;
use image::RgbImage;
use serde_json::json;
use soda_adapters::{AdapterFile, Geometry, Header, Leaf, Method, fingerprint, leaves};
use soda_models::image::{grid, read_rgb, resize_center_crop};
use soda_models::metrics::Judges;
use soda_models::pipeline::{GenerateConfig, Pipeline};

use crate::chart::loss_svg;
use crate::config::TrainConfig;
use crate::dataset::Dataset;
use crate::encode::Encoded;
use crate::error::TrainError;
use crate::evaluate::{Reference, Scores, score};
use crate::report::report;
use crate::run::RunFolder;
use crate::trainer::train;

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

impl Personalisation {
    /// Reads the model, the judges and the data set. `prompt` captions pictures without a caption.
    ///
    /// # Errors
    /// Anything the configuration names that is missing or unusable.
    pub fn new(
        config: TrainConfig,
        prompt: Option<&str>,
        device: &Device,
    ) -> Result<Self, TrainError> {
        config.check()?;
        let dataset = Dataset::read(&config.data, prompt)?;
        let judges =
            config.judges.as_deref().map(|folder| Judges::load(folder, device)).transpose()?;
        let pipeline = Pipeline::load(&config.base, device)?;
        // Unknown targets are a mistake of the settings: say so before anything is drawn.
        config.targets.select(&pipeline.unet)?;
        Ok(Self { config, dataset, pipeline, judges, device: device.clone() })
    }

    /// Runs the job in a new folder `root/name` (see [`RunFolder::create`]).
    ///
    /// # Errors
    /// A taken name, a picture that cannot be read, a loss that is not finite, a full disk.
    pub fn run(
        self,
        root: &Path,
        name: Option<&str>,
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
        let stem = config.data.file_name().and_then(|name| name.to_str()).unwrap_or("run");
        let folder = RunFolder::create(root, name, stem)?;
        folder.write("config.toml", config.to_toml()?.as_bytes())?;

        let before = sample(&pipeline, &config, "drawing before", on_event)?;

        on_event(Event::Stage { name: "decomposing" });
        let weights = config.targets.select(&pipeline.unet)?;
        let header = header(&config, &dataset, &fingerprint(&weights));
        let plan = config.method.plan(&config.targets, &pipeline.unet)?;
        let num_layers = plan.paths().len();
        let unet = plan.attach(pipeline.unet.clone());

        on_event(Event::Stage { name: "training" });
        let started = Instant::now();
        let mut losses = Vec::with_capacity(config.steps);
        let unet = train(
            unet,
            &config.method,
            &data,
            &pipeline.noise_schedule(),
            &config,
            |step, loss| {
                losses.push(loss);
                on_event(Event::Progress { done: step, total: config.steps, loss: Some(loss) });
            },
        )?;
        let seconds = started.elapsed().as_secs_f64();

        let orthogonality = orthogonality(&config.method, &leaves(&unet));
        let header = Header { training: summary(&config, &losses, seconds), ..header };
        let adapter = AdapterFile::capture(header, &unet);
        adapter.write(&folder.file("adapter.safetensors"))?;
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
        folder.write("report.md", report(&outcome).as_bytes())?;
        Ok(outcome)
    }
}

/// The pictures of the data set at the model's size.
struct Pictures {
    subject: Vec<RgbImage>,
    /// By prompt.
    truth: Vec<(String, RgbImage)>,
}

impl Pictures {
    fn read(dataset: &Dataset, size: u32) -> Result<Self, TrainError> {
        let read = |path: &Path| -> Result<RgbImage, TrainError> {
            Ok(resize_center_crop(&read_rgb(path)?, size, size))
        };
        let subject = dataset
            .examples
            .iter()
            .map(|example| read(&example.image))
            .collect::<Result<_, _>>()?;
        let truth = dataset
            .truth
            .iter()
            .map(|example| Ok((example.caption.clone(), read(&example.image)?)))
            .collect::<Result<_, TrainError>>()?;
        Ok(Self { subject, truth })
    }

    /// The truths of `prompts`, all or none.
    fn truths(&self, prompts: &[String]) -> Vec<RgbImage> {
        let truth = |prompt: &String| {
            self.truth.iter().find(|(caption, _)| caption == prompt).map(|(_, image)| image.clone())
        };
        prompts.iter().map(truth).collect::<Option<_>>().unwrap_or_default()
    }

    fn reference(&self, dataset: &Dataset, prompts: &[String]) -> Reference {
        Reference {
            prompts: prompts.iter().map(|prompt| dataset.without_identifier(prompt)).collect(),
            subject: self.subject.clone(),
            truth: self.truths(prompts),
        }
    }

    fn grid(&self, before: &[RgbImage], after: &[RgbImage]) -> RgbImage {
        grid(&[self.subject.clone(), before.to_vec(), after.to_vec()])
    }
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

fn summary(config: &TrainConfig, losses: &[f32], seconds: f64) -> serde_json::Value {
    json!({
        "steps": config.steps,
        "batch_size": config.batch_size,
        "seed": config.seed,
        "rotation_lr": config.optimizer.rotation_lr,
        "spectrum_lr": config.optimizer.spectrum_lr,
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
