//! `soda bench`: what one training step costs on this machine.
//!
//! A network of a named architecture with random weights (speed does not depend on them), an adapter on its
//! attention, and whole steps: forward, backward to the adapter's parameters, optimizer.

use std::time::{Duration, Instant};

use crate::args::DeviceArg;
use crate::device::Precision;
use anyhow::{Context as _, Result, ensure};
use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{DType, Device, Distribution, FloatDType, Tensor};
use clap::{Args as ClapArgs, ValueEnum};
use serde_json::{Value, json};
use soda_adapters::{Method as _, MethodConfig, Targets};
use soda_kernels::{Memory, Recording, laid_out, lasting, memory};
use soda_models::unet::{AddedCondition, Condition, Unet, UnetConfig};
use soda_train::{AdapterOptimizer, Call, Checkpointing, OptimizerConfig, Stacks};

use crate::progress::say_result;

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  soda bench
  soda bench --arch sd15 --method lora --rank 32 --dtype bf16 --batch 4 --json
  soda bench --arch sdxl --method lora --dtype bf16 --checkpointing block")]
pub(crate) struct BenchArgs {
    /// The network
    #[arg(long, value_enum, default_value_t)]
    pub(crate) arch: Architecture,
    /// The method, by the name of its settings
    #[arg(long, default_value = "soda")]
    pub(crate) method: String,
    /// Rank of a LoRA
    #[arg(long)]
    pub(crate) rank: Option<usize>,
    /// Pictures per step
    #[arg(long, default_value_t = 1)]
    pub(crate) batch: usize,
    /// Side of the latents, an eighth of the picture's; by default what the network was trained on
    #[arg(long)]
    pub(crate) latents: Option<usize>,
    /// What the network computes in; adapters are f32
    #[arg(long, value_enum, default_value_t)]
    pub(crate) dtype: Precision,
    /// What the backward pass keeps of the UNet's blocks
    #[arg(long, value_enum, default_value_t)]
    pub(crate) checkpointing: Kept,
    /// Steps that are timed, after three that are not
    #[arg(long, default_value_t = 10)]
    pub(crate) steps: usize,
    /// Ask for every operation of every step by itself, as on a device that records nothing
    #[arg(long)]
    pub(crate) unrecorded: bool,
    /// One line of JSON instead of a table
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) device: DeviceArg,
}

/// Networks that `bench` knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Architecture {
    /// The bundled one
    #[default]
    Toybox,
    /// Stable Diffusion 1.5
    Sd15,
    /// Stable Diffusion XL
    Sdxl,
}

/// What is kept for the backward pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kept {
    /// Everything
    #[default]
    None,
    /// What is between the blocks; the rest is computed again
    Block,
}

impl From<Kept> for Checkpointing {
    fn from(kept: Kept) -> Self {
        match kept {
            Kept::None => Self::None,
            Kept::Block => Self::Block,
        }
    }
}

/// Steps that are run and not counted: kernels are compiled and pools grow in them.
const WARM_UP: usize = 3;

pub(crate) fn run(args: BenchArgs) -> Result<()> {
    let start = Instant::now();
    ensure!(args.batch > 0 && args.steps > 0, "--batch and --steps are at least 1");
    let device = args.device.device.open()?;
    let latents = args.latents.unwrap_or(args.arch.latents());
    let dtype = FloatDType::from(args.dtype);
    let config = args.arch.config()?;
    let mut method = MethodConfig::preset(&args.method)?;
    match (&mut method, args.rank) {
        (MethodConfig::Lora(lora), Some(rank)) => lora.rank = rank,
        (_, Some(_)) => anyhow::bail!("--rank belongs to the methods of the LoRA family"),
        (_, None) => {}
    }

    let unet = laid_out(config.init(&device).map(&mut Random(dtype)));
    device.sync().context("the device does not run")?;
    // What making the weights took is no part of a step.
    device.memory_cleanup();
    let built = start.elapsed();
    let plan = method.plan(&Targets::default(), &unet)?;
    let planned = start.elapsed() - built;
    let unet = plan.attach(unet);
    let mut parameters = Stacks::of(&method, &unet);
    let numbers: usize = parameters.flat().iter().map(|stack| stack.dims()[0]).sum();

    let batch = Batch::random(&config, args.batch, latents, dtype, &device);
    let mut optimizer = AdapterOptimizer::new(&OptimizerConfig::default());
    let checkpointing = Checkpointing::from(args.checkpointing);
    let mut recording = None;
    let mut step = |parameters: Stacks, count: usize| -> Result<(Stacks, Duration)> {
        let start = Instant::now();
        // As in a training, the first step runs as it is.
        if count == 1 && !args.unrecorded {
            recording = record(&unet, &parameters, &batch, checkpointing);
        }
        let grads = match &mut recording {
            Some(recording) => recording.repeat(parameters.flat()).clone(),
            None => batch.gradients(&unet, &parameters, checkpointing, || ()),
        };
        let parameters = optimizer.step_stacks(&parameters, &grads, 1.0);
        device.sync().context("a step failed")?;
        Ok((parameters, start.elapsed()))
    };
    let mut first = Duration::ZERO;
    for number in 0..WARM_UP {
        (parameters, _) = step(parameters, number)?;
        if number == 0 {
            first = start.elapsed();
        }
    }
    let mut times = Vec::with_capacity(args.steps);
    for _ in 0..args.steps {
        let time;
        (parameters, time) = step(parameters, WARM_UP)?;
        times.push(time.as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    // Its memory goes before the stages are timed.
    let recorded = recording.take().is_some();
    let ([forward, backward, update], between) =
        stages(&unet, &parameters, &batch, checkpointing, &mut optimizer, &device)?;
    let taken = memory(&device);
    drop(unet);

    let report = json!({
        "program": concat!("soda ", env!("CARGO_PKG_VERSION")),
        "device": format!("{device:?}"),
        "arch": args.arch.name(),
        "method": args.method,
        "batch": args.batch,
        "latents": latents,
        "checkpointing": checkpointing,
        "dtype": args.dtype.to_possible_value().map(|value| value.get_name().to_owned()),
        "trained": numbers,
        "recorded": recorded,
        "build_s": round(built.as_secs_f64()),
        "plan_s": round(planned.as_secs_f64()),
        "first_step_s": round(first.as_secs_f64()),
        "step_ms": round(times[times.len() / 2]),
        "step_ms_min": round(times[0]),
        "forward_ms": round(forward),
        "backward_ms": round(backward),
        "optimizer_ms": round(update),
        "peak_mib": taken.map(|m| (m.reserved + m.scratch) >> 20).or_else(peak_mib),
        "in_use_mib": between.map(|m| (m.in_use + m.scratch) >> 20),
        "scratch_mib": taken.map(|m| m.scratch >> 20),
    });
    if args.json {
        say_result(&report.to_string());
    } else {
        table(&report);
    }
    Ok(())
}

/// Forward, backward (with what it computes again) and optimizer by themselves, ms: together more than a step, in which the host runs ahead. And what
/// memory is taken between forward and backward, when all is there that is kept for a gradient.
fn stages(
    unet: &Unet,
    parameters: &Stacks,
    batch: &Batch,
    checkpointing: Checkpointing,
    optimizer: &mut AdapterOptimizer,
    device: &Device,
) -> Result<([f64; 3], Option<Memory>)> {
    let mut laps = [const { Vec::new() }; 3];
    let mut between = None;
    for _ in 0..3 {
        let mut start = Instant::now();
        let mut lap = |stage: usize| -> Result<()> {
            device.sync().context("a step failed")?;
            laps[stage].push(start.elapsed().as_secs_f64() * 1e3);
            start = Instant::now();
            Ok(())
        };
        let mut forward = Ok(());
        let grads = batch.gradients(unet, parameters, checkpointing, || {
            forward = lap(0);
            between = memory(device);
        });
        forward?;
        lap(1)?;
        let moved = optimizer.step_stacks(parameters, &grads, 1.0);
        lap(2)?;
        drop(moved);
    }
    let medians = laps.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    });
    Ok((medians, between))
}

/// The gradients from a recording, where the device makes one.
fn record(
    unet: &Unet,
    parameters: &Stacks,
    batch: &Batch,
    checkpointing: Checkpointing,
) -> Option<Recording<Stacks>> {
    let (unet, layout, batch) = (unet.clone(), parameters.clone(), batch.clone());
    Recording::new(parameters.flat(), move |inputs| {
        let parameters = layout.filled(inputs.iter().cloned());
        batch.gradients(&unet, &parameters, checkpointing, || ())
    })
}

fn table(report: &Value) {
    const ROWS: &[(&str, &str)] = &[
        ("arch", "architecture"),
        ("method", "method"),
        ("batch", "batch"),
        ("latents", "side of the latents"),
        ("dtype", "type"),
        ("checkpointing", "computed again"),
        ("device", "device"),
        ("trained", "trained numbers"),
        ("recorded", "steps repeated from a recording"),
        ("build_s", "building the network, s"),
        ("plan_s", "decomposing its weights, s"),
        ("first_step_s", "start to the end of step 1, s"),
        ("step_ms", "step, median, ms"),
        ("step_ms_min", "step, fastest, ms"),
        ("forward_ms", "  forward alone, ms"),
        ("backward_ms", "  backward alone, ms"),
        ("optimizer_ms", "  optimizer alone, ms"),
        ("peak_mib", "memory taken, MiB"),
        ("in_use_mib", "  in use between the passes, MiB"),
        ("scratch_mib", "  for libraries to work in, MiB"),
    ];
    for (key, label) in ROWS {
        let value = match &report[key] {
            Value::String(text) => text.clone(),
            Value::Null => "not known on this system".to_owned(),
            value => value.to_string(),
        };
        say_result(&format!("{label:<30} {value}"));
    }
}

fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// Every parameter in one type, in which matrices and kernels are drawn: the network is never there in another.
struct Random(FloatDType);

impl ModuleMapper for Random {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let dtype = self.0;
        if D == 1 {
            let cast = |value: Tensor<D>| lasting(value, |value| value.cast(dtype));
            return param.map(|value| cast(value).set_require_grad(false));
        }
        let (id, device, shape) = (param.id, param.lazy_device(), param.lazy_shape());
        // A linear layer is stored `[in, out]`, a convolution `[out, in, kh, kw]`.
        let inputs = if D == 2 { shape[0] } else { shape[1..].iter().product() };
        let bound = (inputs.max(1) as f64).powf(-0.5);
        let draw = |()| {
            let distribution = Distribution::Uniform(-bound, bound);
            Tensor::random(shape.clone(), distribution, (&device, DType::from(dtype)))
        };
        let value = device.memory_persistent_allocations((), draw);
        Param::initialized(id, value.set_require_grad(false))
    }
}

/// What a step sees.
#[derive(Clone)]
struct Batch {
    noisy: Tensor<4>,
    timesteps: Tensor<1>,
    condition: Condition,
    target: Tensor<4>,
}

impl Batch {
    fn random(
        config: &UnetConfig,
        size: usize,
        latents: usize,
        dtype: FloatDType,
        device: &Device,
    ) -> Self {
        let map = || normal([size, config.in_channels, latents, latents], dtype, device);
        let side = (8 * latents) as f32;
        let added = config.projection_class_embeddings_input_dim.map(|width| {
            let pooled = width - 6 * config.addition_time_embed_dim.unwrap_or(0);
            let ids = [side, side, 0.0, 0.0, side, side];
            AddedCondition {
                pooled: normal([size, pooled], dtype, device),
                time_ids: Tensor::<1>::from_floats(ids, device).unsqueeze().repeat_dim(0, size),
            }
        });
        Self {
            noisy: map(),
            timesteps: Tensor::full([size], 500.0, device),
            condition: Condition {
                text: normal([size, 77, config.cross_attention_dim.get(0)], dtype, device),
                added,
            },
            target: map(),
        }
    }

    /// The gradients of the squared error of `unet` with these parameters; `on_forward` is called between the passes.
    fn gradients(
        &self,
        unet: &Unet,
        parameters: &Stacks,
        checkpointing: Checkpointing,
        on_forward: impl FnOnce(),
    ) -> Stacks {
        let unet = parameters.put(unet.clone());
        let call = Call {
            noisy: self.noisy.clone(),
            timesteps: self.timesteps.clone(),
            condition: self.condition.clone(),
            wants_condition: false,
        };
        let found = checkpointing.backward(&unet, call, |prediction| {
            let error = prediction - Tensor::from_inner(self.target.clone());
            let loss = error.cast(FloatDType::F32).square().mean();
            on_forward();
            loss
        });
        parameters.gradients(found.adapters)
    }
}

fn normal<const D: usize>(shape: [usize; D], dtype: FloatDType, device: &Device) -> Tensor<D> {
    Tensor::<D>::random(shape, Distribution::Normal(0.0, 1.0), device).cast(dtype)
}

/// The process's peak, where memory is the host's.
fn peak_mib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib >> 10)
}

impl Architecture {
    fn name(self) -> &'static str {
        match self {
            Self::Toybox => "toybox",
            Self::Sd15 => "sd15",
            Self::Sdxl => "sdxl",
        }
    }

    /// Side of the latents that it was trained on.
    fn latents(self) -> usize {
        match self {
            Self::Toybox => 16,
            Self::Sd15 => 64,
            Self::Sdxl => 128,
        }
    }

    fn config(self) -> Result<UnetConfig> {
        let toybox = json!({
            "block_out_channels": [64, 128, 160],
            "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
            "layers_per_block": 1,
            "norm_num_groups": 16,
            "cross_attention_dim": 160,
            "attention_head_dim": 4,
        });
        match self {
            Self::Toybox => {
                serde_json::from_value(toybox).context("the bundled network's configuration")
            }
            Self::Sd15 => Ok(UnetConfig::sd15()),
            Self::Sdxl => Ok(UnetConfig::sdxl()),
        }
    }
}
