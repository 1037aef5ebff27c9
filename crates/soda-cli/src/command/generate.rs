//! `soda generate`

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use burn::tensor::Device;
use clap::{Args, ValueEnum};
use serde_json::json;
use soda_models::image::{GenerationParameters, png_with_parameters, read_rgb};
use soda_models::input_file::{self, SizeLimit};
use soda_models::pipeline::{GenerateConfig, InitImage, LoadOptions, Pipeline, model_name};
use soda_models::scheduler::{AlgorithmType, SamplerKind};
use soda_pipeline::AdapterFile;
use soda_train::{Event, RunFolder, expand_trigger, has_placeholder, write_file};
use tracing::info_span;

use crate::adapter_loading::load_with_adapters;
use crate::args::{DeviceArg, MergedArgs, PromptEncodingArgs, WeightsArgs, finite, seed};
use crate::base_model::{find_base, load_base_to_draw, usage_or_error, warn_of_sampler};
use crate::device::shards;
use crate::progress::{Progress, print_result};
use crate::prompt_syntax::foreign_part;
use crate::sampler_label::sampler_label;
use crate::usage::{UsageError, require};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  soda generate --base models/toy --prompt \"a photo of a red mug on a beach\"
  soda generate --base models/toy --adapter runs/mug-1/adapter.safetensors \\
      --prompt \"a sks mug in the snow\" --prompt \"pixel art of a sks mug\" --count 4 --out pictures
  soda generate --base models/toy --adapter mug.safetensors --strength 0.6 --prompt \"a sks mug\"
  soda generate --base models/toy --subject mug.safetensors --style chalk.safetensors \\
      --weights 0.8,0.6 --prompt \"a sks mug\"
  soda generate --base stabilityai/stable-diffusion-xl-base-1.0 --variant fp16 --dtype f16 --prompt \"a fox\"
  soda generate --base models/sdxl --dtype f16 --scheduler dpm++ --karras --steps 20 --width 1216 \\
      --height 832 --prompt \"a lighthouse in a storm\"
  soda generate --base models/toy --init photo.png --strength-of-init 0.5 --prompt \"a blue mug\"

Each image is a PNG file with its generation settings in the text chunk `parameters`.")]
pub(crate) struct GenerateArgs {
    /// The base model: a diffusers directory, or a name such as stabilityai/sd-turbo
    #[arg(long, value_name = "DIR|NAME")]
    pub(crate) base: PathBuf,
    /// The prompt; may be given several times
    #[arg(long, value_name = "TEXT", required = true)]
    pub(crate) prompt: Vec<String>,
    /// The negative prompt
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(crate) negative: String,
    /// Number of images per prompt
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) count: u32,
    /// Seed of the initial noise
    #[arg(long, default_value_t = 0, value_parser = seed)]
    pub(crate) seed: u64,
    /// Number of sampler steps
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) steps: u32,
    /// Scale of classifier-free guidance, as diffusers' pipeline of the model counts it: 1 turns it off, and
    /// 0 with Z-Image; by default 5, and 4 for FLUX.2 klein
    #[arg(long, value_parser = finite)]
    pub(crate) guidance: Option<f64>,
    /// The sampler; by default the model's own
    #[arg(long, value_enum)]
    pub(crate) scheduler: Option<SamplerName>,
    /// Use the noise schedule of Karras et al.; for the samplers euler, dpm++, dpm++-sde, unipc, deis, lms,
    /// heun, dpm2 and dpm2-a
    #[arg(long)]
    pub(crate) karras: bool,
    /// Width of the images in pixels; by default that of the model's training
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) width: Option<u32>,
    /// Height of the images in pixels; by default that of the model's training
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) height: Option<u32>,
    /// Image-to-image: the image to start from instead of noise alone
    #[arg(long, value_name = "FILE")]
    pub(crate) init: Option<PathBuf>,
    /// Image-to-image: how much of the image is replaced, above 0 and up to 1
    #[arg(long, default_value_t = 0.6, value_parser = finite, requires = "init")]
    pub(crate) strength_of_init: f64,
    /// Number of final layers of the text encoder that are skipped
    #[arg(long, default_value_t = 0)]
    pub(crate) clip_skip: u32,
    /// Decode images larger than those of the training in tiles, which bounds memory
    #[arg(long)]
    pub(crate) tiling: bool,
    /// Decode images larger than a tile of this side in pixels in tiles
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u16).range(64..=16384))]
    pub(crate) tile_size: Option<u16>,
    #[command(flatten)]
    pub(crate) weights: WeightsArgs,
    /// Variant of the model's files, such as fp16
    #[arg(long, value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub(crate) variant: Option<String>,
    #[command(flatten)]
    pub(crate) prompt_encoding: PromptEncodingArgs,
    #[command(flatten)]
    pub(crate) merged: MergedArgs,
    /// Folder for the images
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(crate) out: PathBuf,
    #[command(flatten)]
    pub(crate) device: DeviceArg,
}

/// The value of `--scheduler`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SamplerName {
    Ddpm,
    Ddim,
    Pndm,
    Euler,
    /// Euler's method with new noise after each step
    EulerA,
    /// DPM-Solver++ 2M
    #[value(name = "dpm++")]
    Dpm,
    /// DPM-Solver++ 2M with new noise after each step
    #[value(name = "dpm++-sde")]
    DpmSde,
    /// UniPC
    #[value(name = "unipc")]
    UniPc,
    Deis,
    Lms,
    /// Heun's method, with two calls of the denoiser in a step
    Heun,
    /// DPM-Solver-2, with two calls of the denoiser in a step
    #[value(name = "dpm2")]
    Dpm2,
    /// DPM-Solver-2 with new noise after each step
    #[value(name = "dpm2-a")]
    Dpm2A,
    /// For latent consistency models
    Lcm,
}

impl SamplerName {
    fn kind(self) -> SamplerKind {
        match self {
            Self::Ddpm => SamplerKind::Ddpm,
            Self::Ddim => SamplerKind::Ddim,
            Self::Pndm => SamplerKind::Pndm,
            Self::Euler => SamplerKind::Euler,
            Self::EulerA => SamplerKind::EulerAncestral,
            Self::Dpm | Self::DpmSde => SamplerKind::DpmSolver,
            Self::UniPc => SamplerKind::UniPc,
            Self::Deis => SamplerKind::Deis,
            Self::Lms => SamplerKind::Lms,
            Self::Heun => SamplerKind::Heun,
            Self::Dpm2 => SamplerKind::Dpm2,
            Self::Dpm2A => SamplerKind::Dpm2Ancestral,
            Self::Lcm => SamplerKind::Lcm,
        }
    }

    /// Whether the sampler reads `--karras`.
    fn takes_karras(self) -> bool {
        !matches!(self, Self::Ddpm | Self::Ddim | Self::Pndm | Self::EulerA | Self::Lcm)
    }
}

pub(crate) fn run(mut args: GenerateArgs) -> Result<()> {
    args.merged.check()?;
    expand_triggers(&mut args)?;
    require(
        !args.karras || args.scheduler.is_some_and(SamplerName::takes_karras),
        "--karras needs --scheduler euler, dpm++, dpm++-sde, unipc, deis, lms, heun, dpm2 or dpm2-a",
    )?;
    require(
        args.strength_of_init > 0.0 && args.strength_of_init <= 1.0,
        "--strength-of-init must be above 0 and at most 1",
    )?;
    let device = args.device.device.open()?;
    let files = output_files(&args)?;
    let init_image = match &args.init {
        Some(file) => Some(InitImage { image: read_rgb(file)?, strength: args.strength_of_init }),
        None => None,
    };
    let folder = OutFolder::create(&args.out)?;

    let pipeline = load_pipeline(&args, &device)?;
    require(
        args.scheduler.is_none() || !pipeline.scheduler.is_flow(),
        "this model was trained by flow matching and has one sampler; leave out --scheduler",
    )?;
    let mut progress = Progress::default();
    warn_of_truncation(&args, &pipeline, &progress);
    if args.scheduler.is_none() {
        warn_of_sampler(&pipeline, &progress);
    }
    warn_of_guidance(&args, &pipeline, &progress);
    let prompts = args.prompt.iter().chain([&args.negative]);
    if let Some(text) = prompts.filter_map(|prompt| foreign_part(prompt)).next() {
        progress.warn(&text);
    }
    let side = pipeline.image_size();
    let [height, width] = [args.height, args.width].map(|s| s.map_or(side, |s| s as usize));
    let repeated = |prompt: &String| std::iter::repeat_n(prompt.clone(), args.count as usize);
    let config = GenerateConfig {
        prompts: args.prompt.iter().flat_map(repeated).collect(),
        negative_prompt: args.negative.clone(),
        steps: args.steps as usize,
        guidance_scale: args.guidance.unwrap_or(pipeline.default_guidance_scale()),
        seed: args.seed,
        sampler: args.scheduler.map(SamplerName::kind),
        size: Some([height, width]),
        clip_skip: args.clip_skip as usize,
        init_image,
        tiling: match args.tile_size {
            Some(side) => Some(pipeline.vae_config.tiles(side.into())),
            None => args.tiling.then(|| pipeline.vae_config.tiling()),
        },
        shards: shards(&device),
    };
    let texts: Vec<String> =
        (0..files.len()).map(|index| parameters(&args, &config, index, &pipeline)).collect();
    for (file, text) in files.iter().zip(&texts).filter(|(file, _)| file.exists()) {
        ensure!(has_text(&read_picture(file)?, text), exists(file));
    }
    progress.show(Event::Stage { name: "generating" });
    let images = pipeline.generate(&config, &mut |done, total| {
        progress.show(Event::Progress { done, total, loss: None });
    });
    let images = images.map_err(usage_or_error)?;
    progress.finish();
    let _span = info_span!("write images").entered();
    folder.ensure()?;
    for ((file, text), image) in files.iter().zip(&texts).zip(&images) {
        let bytes = png_with_parameters(image, text)
            .with_context(|| format!("{} cannot be encoded", file.display()))?;
        if file.exists() {
            ensure!(read_picture(file)? == bytes, exists(file));
        } else {
            write_file(file, &bytes)?;
        }
        print_result(&file.display().to_string());
    }
    Ok(())
}

/// Replaces `[trigger]` in the prompts by the first trigger of the adapters.
fn expand_triggers(args: &mut GenerateArgs) -> Result<()> {
    if !args.prompt.iter().any(|prompt| has_placeholder(prompt)) {
        return Ok(());
    }
    let merged = &args.merged;
    for path in [&merged.adapter, &merged.subject, &merged.style].into_iter().flatten() {
        let file: AdapterFile = AdapterFile::read(path)?;
        if let Some(trigger) = file.header.trigger.first() {
            let expanded = args.prompt.iter().map(|prompt| expand_trigger(prompt, trigger));
            args.prompt = expanded.collect();
            return Ok(());
        }
    }
    let reason =
        "a --prompt has [trigger], and no adapter says what it stands for: write the words";
    Err(UsageError::new(reason).into())
}

/// The folder of the images. It is made before the work, so that one that cannot be made is told at once.
///
/// Dropping the value removes the folders that were made and are still empty: a command that is refused
/// leaves none behind.
struct OutFolder {
    path: PathBuf,
    /// The folders that did not exist, the innermost first.
    made: Vec<PathBuf>,
}

impl OutFolder {
    fn create(path: &Path) -> Result<Self> {
        let is_missing = |folder: &&Path| !folder.as_os_str().is_empty() && !folder.exists();
        let made = path.ancestors().take_while(is_missing).map(Path::to_owned).collect();
        let folder = Self { path: path.to_owned(), made };
        folder.ensure()?;
        Ok(folder)
    }

    /// Makes the folder again where another command removed it while it was empty.
    fn ensure(&self) -> Result<()> {
        std::fs::create_dir_all(&self.path)
            .with_context(|| format!("cannot create {}", self.path.display()))
    }
}

impl Drop for OutFolder {
    fn drop(&mut self) {
        // A folder that is not empty is not removed, and then none around it.
        let _ = self.made.iter().try_for_each(std::fs::remove_dir);
    }
}

/// The files to write. Fails before any computation if all of them exist.
///
/// Some of them can exist: the command goes on where it was killed. They have to be its own pictures.
fn output_files(args: &GenerateArgs) -> Result<Vec<PathBuf>> {
    let count = args.prompt.len() * args.count as usize;
    let file = |index| args.out.join(format!("seed{}-{index:02}.png", args.seed));
    let files: Vec<PathBuf> = (0..count).map(file).collect();
    let is_new = files.iter().any(|file| !file.exists());
    match files.first() {
        Some(first) if !is_new => bail!(exists(first)),
        _ => Ok(files),
    }
}

fn exists(file: &Path) -> String {
    format!("{} exists; give another --out or --seed, or remove it", file.display())
}

fn read_picture(file: &Path) -> Result<Vec<u8>> {
    input_file::read(file, SizeLimit::IMAGE)
        .with_context(|| format!("cannot read {}", file.display()))
}

/// Whether a picture has the text with its settings, which the file holds as it is.
fn has_text(picture: &[u8], text: &str) -> bool {
    picture.windows(text.len().max(1)).any(|part| part == text.as_bytes())
}

/// Loads the base, merges the adapter and applies the options of the sampler.
fn load_pipeline(args: &GenerateArgs, device: &Device) -> Result<Pipeline> {
    let prompts = args.prompt.iter().chain([&args.negative]).cloned().collect();
    let options = LoadOptions {
        variant: args.variant.clone(),
        prompt_encoding: args.prompt_encoding.encoding(),
        ..args.weights.load_options(prompts)?
    };
    let base = find_base(&args.base, options.variant.as_deref())?;
    let adapted = load_with_adapters(&args.merged, &base, options.clone(), device)?;
    let mut pipeline = match adapted {
        Some(pipeline) => pipeline,
        None => load_base_to_draw(&base, &options, device)?,
    };
    let scheduler = &mut pipeline.scheduler;
    scheduler.use_karras_sigmas |= args.karras;
    if args.scheduler == Some(SamplerName::DpmSde) {
        scheduler.algorithm_type = AlgorithmType::SdeDpmSolverPlusPlus;
    }
    Ok(pipeline)
}

fn warn_of_truncation(args: &GenerateArgs, pipeline: &Pipeline, progress: &Progress) {
    for prompt in args.prompt.iter().chain([&args.negative]) {
        if pipeline.is_truncated(prompt) {
            let start: String = prompt.chars().take(60).collect();
            progress.warn(&format!(
                "the prompt is too long for the text encoder and was cut: {start}..."
            ));
        }
    }
}

fn warn_of_guidance(args: &GenerateArgs, pipeline: &Pipeline, progress: &Progress) {
    let ignored = |scale: f64| scale > 1.0 && pipeline.guidance_factor(scale).is_none();
    if args.guidance.is_some_and(ignored) {
        progress.warn("--guidance has no effect, since the model is distilled to draw without it");
    }
}

/// The adapters with their strength or weights, and how two are merged.
fn adapter_label(args: &MergedArgs) -> Option<String> {
    if let Some(file) = &args.adapter {
        return Some(format!("{} {}", adapter_name(file), args.strength));
    }
    let (subject, style) = (args.subject.as_ref()?, args.style.as_ref()?);
    let mode = args.mode.to_possible_value();
    let mode = mode.as_ref().map_or("", |mode| mode.get_name());
    let [first, second] = [args.weights.first(), args.weights.get(1)].map(|w| w.unwrap_or(&1.0));
    let [subject, style] = [subject, style].map(|file| adapter_name(file));
    Some(format!("{subject} {first} + {style} {second} {mode}"))
}

/// The name of an adapter's file. Every run's file has one name, which the name of the run's folder precedes.
fn adapter_name(file: &Path) -> String {
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let (own, folder) = (name(file).unwrap_or_default(), file.parent().and_then(name));
    match folder {
        Some(folder) if own == RunFolder::ADAPTER => format!("{folder}/{own}"),
        _ => own,
    }
}

/// The generation settings of image `index`, in the format of A1111 that other programs read.
fn parameters(
    args: &GenerateArgs,
    config: &GenerateConfig,
    index: usize,
    pipeline: &Pipeline,
) -> String {
    let class = config.sampler.map_or_else(|| json!(pipeline.scheduler.class), |kind| json!(kind));
    let (sampler, schedule) = sampler_label(&class, &pipeline.scheduler);
    let [height, width] = config.size.unwrap_or_default();
    let optional = |name, value: Option<String>| value.map(|value| (name, value));
    let init = config.init_image.as_ref().map(|init_image| init_image.strength.to_string());
    let adapter = adapter_label(&args.merged);
    let skipped = (config.clip_skip > 0).then(|| (config.clip_skip + 1).to_string());
    let encoding = pipeline.text.chosen_prompt_encoding().map(|encoding| encoding.to_string());
    let fields = [
        Some(("Steps", config.steps.to_string())),
        Some(("Sampler", sampler)),
        optional("Schedule type", schedule.map(str::to_owned)),
        Some(("CFG scale", config.guidance_scale.to_string())),
        Some(("Seed", config.seed.to_string())),
        Some(("Picture", index.to_string())),
        Some(("Size", format!("{width}x{height}"))),
        Some(("Model", model_name(&pipeline.source))),
        optional("Clip skip", skipped),
        optional("Prompt encoding", encoding),
        optional("Denoising strength", init),
        optional("Adapter", adapter),
    ];
    let version = ("Version", format!("soda {}", env!("CARGO_PKG_VERSION")));
    GenerationParameters {
        prompt: config.prompts[index].clone(),
        negative_prompt: config.negative_prompt.clone(),
        fields: fields
            .into_iter()
            .flatten()
            .chain(args.weights.labels())
            .chain([version])
            .collect(),
    }
    .to_string()
}
