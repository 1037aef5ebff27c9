//! `soda evaluate`

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use image::RgbImage;
use soda_compare::EvaluationScores;
use soda_files::StagedFolder;
use soda_models::image::grid;
use soda_models::metrics::Judges;
use soda_models::pipeline::{GenerateConfig, LoadOptions, Pipeline};
use soda_train::{
    Dataset, DatasetImages, Event, Example, RunFolder, TrainError, expand_trigger, has_placeholder,
    score, write_file, write_png,
};

use crate::adapter_loading::load_with_adapters;
use crate::args::{
    DeviceArg, MergedArgs, ToArgv as _, WeightsArgs, finite, option, repeated, seed,
};
use crate::base_model::{find_base, load_base_to_draw, warn_of_sampler};
use crate::device::shards;
use crate::progress::{Progress, print_result};
use crate::usage::{UsageError, require};

#[derive(Clone, Debug, PartialEq, Args)]
#[command(after_help = "\
Examples:
  soda evaluate --base models/toy --judges eval --data photos/mug --out scores/base
  soda evaluate --base models/toy --judges eval --data photos/mug --adapter mug.safetensors \\
      --strength 0.6 --out scores/mug-0.6
  soda evaluate --base models/toy --judges eval --data photos/mug --like photos/chalk \\
      --subject mug.safetensors --style chalk.safetensors --mode geodesic \\
      --prompt \"a sks mug on a beach in zwx style\" --out scores/chalk-mug

Writes three files, all of them or none:
  samples.png    the images of --data, then the generated images
  unrelated.png  the images of --unrelated by the base, then by the adapted model
  scores.json")]
pub(crate) struct EvaluateArgs {
    /// The base model: a diffusers directory, or a name on a hub
    #[arg(long, value_name = "DIR|NAME")]
    pub(crate) base: PathBuf,
    /// Evaluation models (clip/ and dino/)
    #[arg(long, value_name = "DIR")]
    pub(crate) judges: PathBuf,
    /// The data set: images to compare with, and the prompts if --prompt is not given
    #[arg(long, value_name = "DIR")]
    pub(crate) data: PathBuf,
    /// The trigger words, which replace `[trigger]` in prompts. The judges' prompts omit the first of several
    /// words, unless the data set names its identifier
    #[arg(long, value_name = "WORDS")]
    pub(crate) trigger: Option<String>,
    /// Compare with the fraction of the images that a run with this --seed holds out (validation.held_out)
    #[arg(long, value_name = "PART", default_value_t = 0.0, value_parser = finite)]
    pub(crate) held_out: f64,
    /// A folder of images of a style, which are compared by CLIP-I only
    #[arg(long, value_name = "DIR")]
    pub(crate) like: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) merged: MergedArgs,
    /// A prompt to generate; may be given several times
    #[arg(long, value_name = "TEXT")]
    pub(crate) prompt: Vec<String>,
    /// A prompt unrelated to the training data; may be given several times. The drift is the distance of
    /// its image from that of the base
    #[arg(long, value_name = "TEXT")]
    pub(crate) unrelated: Vec<String>,
    /// Seed of the initial noise
    #[arg(long, default_value_t = 0, value_parser = seed)]
    pub(crate) seed: u64,
    /// Number of sampler steps
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) steps: u32,
    /// Scale of classifier-free guidance, as of `soda generate`
    #[arg(long, value_parser = finite)]
    pub(crate) guidance: Option<f64>,
    /// Side of the generated images in pixels; by default that of the model's training
    #[arg(long, value_name = "PIXELS")]
    pub(crate) resolution: Option<usize>,
    #[command(flatten)]
    pub(crate) weights: WeightsArgs,
    /// The directory to write; it must not exist
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    #[command(flatten)]
    pub(crate) device: DeviceArg,
}

impl EvaluateArgs {
    /// The command line that gives these options.
    pub(crate) fn to_argv(&self) -> Vec<OsString> {
        let mut argv = vec!["evaluate".into()];
        argv.push(option("base", &self.base));
        argv.push(option("judges", &self.judges));
        argv.push(option("data", &self.data));
        argv.extend(repeated("trigger", &self.trigger));
        argv.push(option("held-out", self.held_out.to_string()));
        argv.extend(repeated("like", &self.like));
        self.merged.append_to(&mut argv);
        argv.extend(repeated("prompt", &self.prompt));
        argv.extend(repeated("unrelated", &self.unrelated));
        argv.push(option("seed", self.seed.to_string()));
        argv.push(option("steps", self.steps.to_string()));
        argv.extend(self.guidance.map(|scale| option("guidance", scale.to_string())));
        argv.extend(self.resolution.map(|side| option("resolution", side.to_string())));
        self.weights.append_to(&mut argv);
        argv.push(option("out", &self.out));
        self.device.append_to(&mut argv);
        argv
    }
}

pub(crate) fn run(args: EvaluateArgs) -> Result<()> {
    let out = &args.out;
    args.merged.check()?;
    require((0.0..1.0).contains(&args.held_out), "--held-out must be from 0 up to, but not, 1")?;
    ensure!(!out.exists(), "{} exists; evaluate writes a new directory", out.display());
    let device = args.device.device.open()?;
    // Captions are not used, so that images without one are accepted.
    let read = |folder: &PathBuf| Dataset::read(folder, Some(""));
    let (mut data, style) = (read(&args.data)?, args.like.as_ref().map(read).transpose()?);
    let mut progress = Progress::default();
    for skipped in data.skipped.iter().chain(style.iter().flat_map(|style| &style.skipped)) {
        progress.warn(&skipped.to_string());
    }
    let mut given = args.prompt.clone();
    if let Some(trigger) = args.trigger.clone().or_else(|| data.trigger.first().cloned()) {
        data = data.with_trigger(&trigger);
        given.iter_mut().for_each(|prompt| *prompt = expand_trigger(prompt, &trigger));
    }
    let held_out = data.hold_out(args.held_out, args.seed)?;
    let judges = Judges::load(&args.judges, &device)?;
    let base = find_base(&args.base, None)?;
    let prompts = match (&given[..], &data.eval_prompts[..]) {
        ([], []) => {
            let folder = args.data.display();
            let sentence = format!("{folder} has no prompts to draw; give --prompt");
            return Err(UsageError::new(sentence).into());
        }
        ([], own) => own.to_vec(),
        (given, _) => given.to_vec(),
    };
    require(
        !prompts.iter().any(|prompt| has_placeholder(prompt)),
        "a prompt has [trigger], and nothing says what it stands for: give --trigger",
    )?;
    // The last is the negative prompt.
    let all = prompts.iter().chain(&args.unrelated).cloned().chain([String::new()]).collect();
    let options = LoadOptions { resolution: args.resolution, ..args.weights.load_options(all)? };
    let pipeline = match load_with_adapters(&args.merged, &base, options.clone(), &device)? {
        Some(pipeline) => pipeline,
        None => load_base_to_draw(&base, &options, &device)?,
    };
    warn_of_sampler(&pipeline, &Progress::default());
    let side = pipeline.image_size() as u32;
    let images = DatasetImages::read(&data, &held_out, side)?;

    let config = GenerateConfig {
        prompts: prompts.iter().chain(&args.unrelated).cloned().collect(),
        steps: args.steps as usize,
        guidance_scale: args.guidance.unwrap_or(pipeline.default_guidance_scale()),
        seed: args.seed,
        shards: shards(&device),
        ..GenerateConfig::default()
    };
    let Generated { samples, unrelated, unrelated_base } =
        generate(pipeline, (&base, options), &config, prompts.len(), &mut progress)?;
    progress.show(Event::Stage { name: "scoring" });
    let mut reference = images.reference(&data, &prompts, Some(&judges))?;
    if let Some(style) = &style {
        let known = |prompt: &String| style.without_identifier(prompt);
        reference.prompts = reference.prompts.iter().map(known).collect();
    }
    let scores = score(&judges, &samples, &reference)?;
    let scores = scores.with_drift(&judges, &unrelated, &unrelated_base)?;
    let style_clip_i = match &style {
        Some(style) => {
            let images = DatasetImages::read(style, &[], side)?;
            let style = images.reference(style, &[], Some(&judges))?.subject;
            let scores = judges.clip_i(&samples, &style)?;
            Some(scores.iter().sum::<f32>() / scores.len().max(1) as f32)
        }
        None => None,
    };
    progress.finish();

    let cannot = || format!("cannot create {}", out.display());
    let staged = StagedFolder::new(out).with_context(cannot)?;
    let file = |name: &str| staged.path().join(name);
    let named = |error: TrainError| error.named(|path| staged.committed(path));
    let pictures = grid(&[images.shown_subject().to_vec(), samples]);
    write_png(&file(RunFolder::SAMPLES_GRID), &pictures).map_err(named)?;
    if !unrelated.is_empty() {
        let pictures = grid(&[unrelated_base, unrelated]);
        write_png(&file(RunFolder::UNRELATED_GRID), &pictures).map_err(named)?;
    }
    let held_out = held_out.iter().map(Example::name).collect();
    let identifier = data.identifier;
    let result = EvaluationScores { prompts, identifier, held_out, scores, style_clip_i };
    let text = format!("{:#}\n", serde_json::to_value(&result)?);
    write_file(&file(RunFolder::SCORES), text.as_bytes()).map_err(named)?;
    staged.commit().with_context(cannot)?;
    print_scores(&result);
    Ok(())
}

/// The images of an evaluation.
struct Generated {
    /// The images of the prompts.
    samples: Vec<RgbImage>,
    /// The images of the unrelated prompts.
    unrelated: Vec<RgbImage>,
    /// The images of the unrelated prompts by the base.
    unrelated_base: Vec<RgbImage>,
}

/// Generates the prompts of `config`: `num_prompts` prompts, and then the unrelated ones, which the base
/// draws as well.
fn generate(
    pipeline: Pipeline,
    (base, options): (&Path, LoadOptions),
    config: &GenerateConfig,
    num_prompts: usize,
    progress: &mut Progress,
) -> Result<Generated> {
    progress.show(Event::Stage { name: "generating" });
    let mut draw = |pipeline: &Pipeline| {
        pipeline.generate(config, &mut |done, total| {
            progress.show(Event::Progress { done, total, loss: None });
        })
    };
    let mut samples = draw(&pipeline)?;
    let unrelated = samples.split_off(num_prompts);
    let unrelated_base = if unrelated.is_empty() {
        Vec::new()
    } else {
        let options = LoadOptions { prompt_encoding: pipeline.text.prompt_encoding(), ..options };
        let device = pipeline.device.clone();
        // There may not be room for two models.
        drop(pipeline);
        let base = Pipeline::load_with(base, &options, &device)?.in_drawing_format();
        // The base draws all prompts, so that each prompt has the same noise.
        draw(&base)?.split_off(num_prompts)
    };
    Ok(Generated { samples, unrelated, unrelated_base })
}

fn print_scores(file: &EvaluationScores) {
    let scores = &file.scores;
    let lines = [
        ("CLIP-T", Some(scores.clip_t)),
        ("CLIP-I", Some(scores.clip_i)),
        ("DINO", Some(scores.dino)),
        ("DINO to the truth of each prompt", scores.truth_dino),
        ("CLIP-I to --like", file.style_clip_i),
        ("drift of --unrelated", scores.drift),
    ];
    for (name, score) in lines {
        if let Some(score) = score {
            print_result(&format!("{name:<7} {score:.3}"));
        }
    }
}
