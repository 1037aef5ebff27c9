//! `soda evaluate`

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use clap::Args as ClapArgs;
use serde_json::json;
use soda_models::image::grid;
use soda_models::metrics::Judges;
use soda_models::pipeline::{GenerateConfig, Pipeline};
use soda_train::{Dataset, Event, Example, Pictures, Scores, said, score, write_file, write_png};

use crate::args::DeviceArg;
use crate::base::find;
use crate::command::fold::FoldArgs;
use crate::device::shards;
use crate::progress::{Progress, say_result};

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  soda evaluate --base models/toy --judges eval --data photos/mug --out scores/base
  soda evaluate --base models/toy --judges eval --data photos/mug --adapter mug.safetensors \\
      --strength 0.6 --out scores/mug-0.6
  soda evaluate --base models/toy --judges eval --data photos/mug --like photos/chalk \\
      --subject mug.safetensors --style chalk.safetensors --mode geodesic \\
      --prompt \"a sks mug on a beach in zwx style\" --out scores/chalk-mug

Writes samples.png (the pictures of --data, then what was drawn), unrelated.png (--unrelated by the base, then what was drawn)
and scores.json.")]
pub(crate) struct EvaluateArgs {
    /// The base model: a diffusers directory, or a name on a hub
    #[arg(long, value_name = "DIR|NAME")]
    pub(crate) base: PathBuf,
    /// Evaluation models (clip/ and dino/)
    #[arg(long, value_name = "DIR")]
    pub(crate) judges: PathBuf,
    /// The pictures to compare with, and the prompts to draw where none are given
    #[arg(long, value_name = "DIR")]
    pub(crate) data: PathBuf,
    /// Words that call the subject up: what `[trigger]` in prompts stands for. The first of several is what the judges are
    /// not told, where the data names nothing
    #[arg(long, value_name = "WORDS")]
    pub(crate) trigger: Option<String>,
    /// Compare with the part of the pictures that a run of this --seed holds out (validation.held_out)
    #[arg(long, value_name = "PART", default_value_t = 0.0)]
    pub(crate) held_out: f64,
    /// Pictures of a style, which are compared by CLIP-I alone
    #[arg(long, value_name = "DIR")]
    pub(crate) like: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) fold: FoldArgs,
    /// What to draw; may be given several times
    #[arg(long, value_name = "TEXT")]
    pub(crate) prompt: Vec<String>,
    /// A prompt that has nothing to do with what was learnt: how far its picture has moved from the base's is
    /// the drift; may be given several times
    #[arg(long, value_name = "TEXT")]
    pub(crate) unrelated: Vec<String>,
    /// Seed of the starting noise
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Steps of the sampler
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) steps: u32,
    /// Classifier-free guidance; 1 leaves it out
    #[arg(long, default_value_t = 5.0)]
    pub(crate) guidance: f64,
    /// The directory to write; it must not exist
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    #[command(flatten)]
    pub(crate) device: DeviceArg,
}

pub(crate) fn run(args: EvaluateArgs) -> Result<()> {
    let out = &args.out;
    ensure!(!out.exists(), "{} exists; evaluate writes a new directory", out.display());
    ensure!(args.guidance.is_finite(), "--guidance must be a finite number");
    let device = args.device.device.open()?;
    // Captions are not used, so that pictures without one will do.
    let read = |folder: &PathBuf| Dataset::read(folder, Some(""));
    let (mut data, style) = (read(&args.data)?, args.like.as_ref().map(read).transpose()?);
    let mut asked = args.prompt.clone();
    if let Some(trigger) = &args.trigger {
        data = data.called(trigger);
        asked.iter_mut().for_each(|prompt| *prompt = said(prompt, trigger));
    }
    ensure!((0.0..1.0).contains(&args.held_out), "--held-out must be from 0 up to, but not, 1");
    let held_out = data.hold_out(args.held_out, args.seed)?;
    let judges = Judges::load(&args.judges, &device)?;
    let base = find(&args.base, None)?;
    let pipeline = match args.fold.load(&base, &device)? {
        Some(pipeline) => pipeline,
        None => Pipeline::load(&base, &device)?,
    };
    let prompts = match (&asked[..], &data.eval_prompts[..]) {
        ([], []) => anyhow::bail!("{} has no prompts to draw; give --prompt", args.data.display()),
        ([], own) => own.to_vec(),
        (given, _) => given.to_vec(),
    };
    let side = pipeline.image_size() as u32;
    let pictures = Pictures::read(&data, &held_out, side)?;
    let style_pictures =
        style.as_ref().map(|style| Pictures::read(style, &[], side)).transpose()?;

    let mut progress = Progress::default();
    progress.show(Event::Stage { name: "drawing" });
    let config = GenerateConfig {
        prompts: prompts.iter().chain(&args.unrelated).cloned().collect(),
        steps: args.steps as usize,
        guidance: args.guidance,
        seed: args.seed,
        shards: shards(&device),
        ..GenerateConfig::default()
    };
    let mut draw = |pipeline: &Pipeline, config: &GenerateConfig| {
        pipeline.generate(config, &mut |done, total| {
            progress.show(Event::Progress { done, total, loss: None });
        })
    };
    let mut drawn = draw(&pipeline, &config)?;
    let moved = drawn.split_off(prompts.len());
    let untuned = if moved.is_empty() {
        Vec::new()
    } else {
        // The same list, so that each prompt has the same noise.
        draw(&Pipeline::load(&base, &device)?, &config)?.split_off(prompts.len())
    };
    progress.show(Event::Stage { name: "judging" });
    let mut reference = pictures.reference(&data, &prompts);
    if let Some(style) = &style {
        let known = |prompt: &String| style.without_identifier(prompt);
        reference.prompts = reference.prompts.iter().map(known).collect();
    }
    let scores = score(&judges, &drawn, &reference)?.with_drift(&judges, &moved, &untuned)?;
    let style = style_pictures.map(|style| judges.clip_i(&drawn, &style.subject)).transpose()?;
    let style = style.map(|scores| scores.iter().sum::<f32>() / scores.len().max(1) as f32);
    progress.finish();

    std::fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    write_png(&out.join("samples.png"), &grid(&[reference.subject, drawn]))?;
    if !moved.is_empty() {
        write_png(&out.join("unrelated.png"), &grid(&[untuned, moved]))?;
    }
    let names: Vec<String> = held_out.iter().map(Example::name).collect();
    let file = json!({
        "prompts": prompts,
        "identifier": data.identifier,
        "held_out": names,
        "scores": scores,
        "style_clip_i": style,
    });
    write_file(&out.join("scores.json"), format!("{file:#}\n").as_bytes())?;
    say(&scores, style);
    Ok(())
}

fn say(scores: &Scores, style: Option<f32>) {
    let lines = [
        ("CLIP-T", Some(scores.clip_t)),
        ("CLIP-I", Some(scores.clip_i)),
        ("DINO", Some(scores.dino)),
        ("DINO to the truth of each prompt", scores.truth_dino),
        ("CLIP-I to --like", style),
        ("drift of --unrelated", scores.drift),
    ];
    for (name, score) in lines {
        if let Some(score) = score {
            say_result(&format!("{name:<7} {score:.3}"));
        }
    }
}
