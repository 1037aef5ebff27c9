//! `soda generate`

use crate::args::{AdapterArg, CacheArg, DeviceArg};
use crate::device::{Precision, shards};
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use clap::Args as ClapArgs;
use clap::ValueEnum;
use soda_models::image::{png_with_parameters, read_rgb};
use soda_models::pipeline::{GenerateConfig, LoadOptions, Pipeline, Start, model_name};
use soda_models::scheduler::SamplerKind;
use soda_models::scheduler::config::Algorithm;
use soda_train::{Event, write_file};

use crate::base::find;
use crate::command::load_merged;
use crate::progress::{Progress, say_result};

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  soda generate --base models/toy --prompt \"a photo of a red mug on a beach\"
  soda generate --base models/toy --adapter runs/mug-1/adapter.safetensors \\
      --prompt \"a sks mug in the snow\" --prompt \"pixel art of a sks mug\" --count 4 --out pictures
  soda generate --base models/toy --adapter mug.safetensors --strength 0.6 --prompt \"a sks mug\"
  soda generate --base stabilityai/stable-diffusion-xl-base-1.0 --variant fp16 --dtype f16 --prompt \"a fox\"
  soda generate --base models/sdxl --dtype f16 --scheduler dpm++ --karras --steps 20 --width 1216 \\
      --height 832 --prompt \"a lighthouse in a storm\"
  soda generate --base models/toy --init photo.png --strength-of-init 0.5 --prompt \"a blue mug\"

Each picture is a PNG that says in `parameters` how it was made.")]
pub(crate) struct GenerateArgs {
    /// The base model: a diffusers directory, or a name such as stabilityai/sd-turbo
    #[arg(long, value_name = "DIR|NAME")]
    pub(crate) base: PathBuf,
    /// What to draw; may be given several times
    #[arg(long, value_name = "TEXT", required = true)]
    pub(crate) prompt: Vec<String>,
    /// What to avoid
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(crate) negative: String,
    /// Pictures of each prompt
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) count: u32,
    /// Seed of the starting noise
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Steps of the sampler
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) steps: u32,
    /// Classifier-free guidance; 1 leaves it out
    #[arg(long, default_value_t = 5.0)]
    pub(crate) guidance: f64,
    /// The sampler; by default the model's own
    #[arg(long, value_enum)]
    pub(crate) scheduler: Option<SamplerName>,
    /// Space the noise levels as Karras et al.: euler, dpm++ and dpm++-sde
    #[arg(long)]
    pub(crate) karras: bool,
    /// Width of the pictures in pixels; by default what the model was trained on
    #[arg(long)]
    pub(crate) width: Option<u32>,
    /// Height of the pictures in pixels
    #[arg(long)]
    pub(crate) height: Option<u32>,
    /// A picture to start from instead of noise alone
    #[arg(long, value_name = "FILE")]
    pub(crate) init: Option<PathBuf>,
    /// How much of it is drawn again: above 0, and at 1 nothing of it is left
    #[arg(long, default_value_t = 0.6, requires = "init")]
    pub(crate) strength_of_init: f64,
    /// Layers of the text encoder left out at the end
    #[arg(long, default_value_t = 0)]
    pub(crate) clip_skip: u32,
    /// Code pictures larger than those of training in tiles, which bounds memory
    #[arg(long)]
    pub(crate) tiling: bool,
    /// Precision of the weights in memory
    #[arg(long, value_enum, default_value_t)]
    pub(crate) dtype: Precision,
    /// Variant of the model's files, such as fp16
    #[arg(long)]
    pub(crate) variant: Option<String>,
    #[command(flatten)]
    pub(crate) adapter: AdapterArg,
    /// Folder for the pictures
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(crate) out: PathBuf,
    #[command(flatten)]
    pub(crate) cache: CacheArg,
    #[command(flatten)]
    pub(crate) device: DeviceArg,
}

/// The samplers, by the names people know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SamplerName {
    Ddpm,
    Ddim,
    Pndm,
    Euler,
    /// Euler's method with fresh noise after each step
    EulerA,
    /// DPM-Solver++ 2M
    #[value(name = "dpm++")]
    Dpm,
    /// DPM-Solver++ 2M with fresh noise after each step
    #[value(name = "dpm++-sde")]
    DpmSde,
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
        }
    }
}

pub(crate) fn run(args: GenerateArgs) -> Result<()> {
    ensure!(args.guidance.is_finite(), "--guidance must be a finite number");
    let karras = [SamplerName::Euler, SamplerName::Dpm, SamplerName::DpmSde].map(Some);
    ensure!(
        !args.karras || karras.contains(&args.scheduler),
        "--karras needs --scheduler euler, dpm++ or dpm++-sde"
    );
    let device = args.device.device.open()?;
    let mut progress = Progress::default();

    let prompts: Vec<String> = args
        .prompt
        .iter()
        .flat_map(|prompt| std::iter::repeat_n(prompt.clone(), args.count as usize))
        .collect();
    let files: Vec<_> = (0..prompts.len())
        .map(|index| args.out.join(format!("seed{}-{index:02}.png", args.seed)))
        .collect();
    // Before the long part, not after it.
    for file in &files {
        ensure!(
            !file.exists(),
            "{} exists; give another --out or --seed, or remove it",
            file.display()
        );
    }
    let start = match &args.init {
        Some(file) => Some(Start { picture: read_rgb(file)?, strength: args.strength_of_init }),
        None => None,
    };
    std::fs::create_dir_all(&args.out)
        .with_context(|| format!("cannot create {}", args.out.display()))?;

    let options = LoadOptions {
        dtype: args.dtype.into(),
        variant: args.variant.clone(),
        ..LoadOptions::default()
    };
    let base = find(&args.base, options.variant.as_deref())?;
    let mut pipeline = match &args.adapter.adapter {
        Some(adapter) => {
            let cache = args.cache.open();
            let strength = args.adapter.strength;
            load_merged(&base, &options, adapter, strength, cache.as_ref(), &device)?
        }
        None => Pipeline::load_with(&base, &options, &device)?,
    };
    let scheduler = &mut pipeline.scheduler;
    scheduler.use_karras_sigmas |= args.karras;
    if args.scheduler == Some(SamplerName::DpmSde) {
        scheduler.algorithm_type = Algorithm::SdeDpmSolverPlusPlus;
    }
    for prompt in args.prompt.iter().chain([&args.negative]) {
        if pipeline.is_cut(prompt) {
            let start: String = prompt.chars().take(60).collect();
            progress.say(&format!(
                "warning: the prompt is too long for the text encoder and was cut: {start}..."
            ));
        }
    }
    let side = pipeline.image_size();
    let [height, width] = [args.height, args.width].map(|s| s.map_or(side, |s| s as usize));
    let config = GenerateConfig {
        prompts,
        negative_prompt: args.negative.clone(),
        steps: args.steps as usize,
        guidance: args.guidance,
        seed: args.seed,
        scheduler: args.scheduler.map(SamplerName::kind),
        size: Some([height, width]),
        clip_skip: args.clip_skip as usize,
        start,
        tiling: args.tiling,
        shards: shards(&device),
    };
    progress.show(Event::Stage { name: "drawing" });
    let images = pipeline.generate(&config, &mut |done, total| {
        progress.show(Event::Progress { done, total, loss: None });
    })?;
    progress.finish();
    for ((index, file), image) in files.iter().enumerate().zip(&images) {
        let text = parameters(&args, &config, index, &pipeline);
        let bytes = png_with_parameters(image, &text)
            .with_context(|| format!("{} cannot be encoded", file.display()))?;
        write_file(file, &bytes)?;
        say_result(&file.display().to_string());
    }
    Ok(())
}

/// How picture `index` was made, in the form that the programs of the field write and read.
fn parameters(
    args: &GenerateArgs,
    config: &GenerateConfig,
    index: usize,
    pipeline: &Pipeline,
) -> String {
    let mut text = config.prompts[index].clone();
    if !config.negative_prompt.is_empty() {
        text += &format!("\nNegative prompt: {}", config.negative_prompt);
    }
    let sampler = match args.scheduler.and_then(|name| name.to_possible_value()) {
        Some(name) => name.get_name().to_owned(),
        None => format!("{:?}", pipeline.scheduler.class),
    };
    let name = |path: &std::path::Path| {
        path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
    };
    let [height, width] = config.size.unwrap_or_default();
    text += &format!(
        "\nSteps: {}, Sampler: {sampler}, CFG scale: {}, Seed: {}, Picture: {index}, Size: {width}x{height}, Model: {}",
        config.steps,
        config.guidance,
        config.seed,
        model_name(&pipeline.source),
    );
    if pipeline.scheduler.use_karras_sigmas {
        text += ", Schedule type: Karras";
    }
    if config.clip_skip > 0 {
        text += &format!(", Clip skip: {}", config.clip_skip + 1);
    }
    if let Some(start) = &config.start {
        text += &format!(", Denoising strength: {}", start.strength);
    }
    if let Some(adapter) = &args.adapter.adapter {
        text += &format!(", Adapter: {} {}", name(adapter), args.adapter.strength);
    }
    text + &format!(", Version: soda {}", env!("CARGO_PKG_VERSION"))
}
