//! `soda bench`: the time and memory of a training step on this machine.
//!
//! A step is the forward pass, the backward pass to the adapter's parameters, and the optimizer. The
//! network has a named architecture, random weights and an adapter on its attention.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use burn::module::Module as _;
use burn::tensor::{Device, FloatDType};
use clap::builder::RangedU64ValueParser;
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use soda_adapters::{Method as _, MethodConfig, PlanOptions, Probe, Targets};
use soda_kernels::{CapturedGraph, MemoryUsage, memory_usage, to_preferred_memory_format};
use soda_models::unet::{Unet, UnetConfig};
use soda_optim::{AdapterOptimizer, AdapterOptimizerConfig, BatchedParams};
use soda_pipeline::TARGET_PRESETS;
use soda_train::GradientCheckpointing;

use crate::args::DeviceArg;
use crate::device::Precision;
use crate::progress::print_result;
use crate::synthetic::{RandomBatch, RandomWeights};
use crate::usage::UsageError;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  soda bench
  soda bench --arch sd15 --method lora --rank 32 --dtype bf16 --batch 4 --json
  soda bench --arch sdxl --method lora --dtype bf16 --checkpointing block")]
pub(crate) struct BenchArgs {
    /// The architecture of the network
    #[arg(long, value_enum, default_value_t)]
    pub(crate) arch: Architecture,
    /// The method, by its name in a configuration
    #[arg(long, default_value = "soda")]
    pub(crate) method: String,
    /// Rank of a LoRA
    #[arg(long, value_parser = positive())]
    pub(crate) rank: Option<usize>,
    /// Images per step
    #[arg(long, default_value_t = 1, value_parser = positive())]
    pub(crate) batch: usize,
    /// Side of the latents, an eighth of the image's side; by default that of the network's training
    #[arg(long, value_parser = positive())]
    pub(crate) latents: Option<usize>,
    /// Precision of the network; adapters are f32
    #[arg(long, value_enum, default_value_t)]
    pub(crate) dtype: Precision,
    /// Gradient checkpointing of the denoiser's blocks
    #[arg(long, value_enum, default_value_t)]
    pub(crate) checkpointing: CheckpointingName,
    /// Number of timed steps, after three steps of warm-up
    #[arg(long, default_value_t = 10, value_parser = positive())]
    pub(crate) steps: usize,
    /// Launch every operation of every step, as on a device without graph capture
    #[arg(long)]
    pub(crate) unrecorded: bool,
    /// Print one line of JSON instead of a table
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) device: DeviceArg,
}

/// The value of `--arch`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Architecture {
    /// The bundled network
    #[default]
    Toybox,
    /// Stable Diffusion 1.5
    Sd15,
    /// Stable Diffusion XL
    Sdxl,
}

/// The value of `--checkpointing`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum CheckpointingName {
    /// Keep every activation
    #[default]
    None,
    /// Keep the activations between blocks and recompute the others
    Block,
}

impl From<CheckpointingName> for GradientCheckpointing {
    fn from(name: CheckpointingName) -> Self {
        match name {
            CheckpointingName::None => Self::None,
            CheckpointingName::Block => Self::Block,
        }
    }
}

/// Counts from 1 to a million: more fit into no memory and no day.
fn positive() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=1_000_000)
}

/// The number of steps before the timed ones. They compile kernels and grow memory pools.
const WARM_UP: usize = 3;

pub(crate) fn run(args: BenchArgs) -> Result<()> {
    let start = Instant::now();
    let method = method(&args)?;
    let device = args.device.device.open()?;
    let latents = args.latents.unwrap_or(args.arch.latents());
    let dtype = FloatDType::from(args.dtype);
    let config = args.arch.config()?;

    let denoiser = to_preferred_memory_format(config.init(&device).map(&mut RandomWeights(dtype)));
    device.sync().context("the device does not run")?;
    // The memory that drawing the weights took is no part of a step.
    device.memory_cleanup();
    let built = start.elapsed();
    let mut options = PlanOptions { presets: TARGET_PRESETS, ..PlanOptions::default() };
    let targets = Targets(vec!["attention".to_owned()]);
    // The time does not depend on the directions, and those of a gradient of zero are as good as any.
    let probes = method.plan_probes(&targets, &denoiser, &mut options)?;
    let calibration = Probe::measure(probes.adapters(), &BTreeMap::new())?;
    options.calibration = Some(&calibration);
    let plan = method.plan_with(&targets, &denoiser, &mut options)?;
    let planned = start.elapsed() - built;
    let denoiser = plan.attach(denoiser);
    let parameters = BatchedParams::new(&method, &denoiser);
    let trained: usize = parameters.flattened().iter().map(|batch| batch.dims()[0]).sum();
    let checkpointing = GradientCheckpointing::from(args.checkpointing);
    let mut trainer = Trainer {
        batch: RandomBatch::new(&config, args.batch, latents, dtype, &device),
        optimizer: AdapterOptimizer::new(&AdapterOptimizerConfig::default()),
        denoiser,
        parameters,
        checkpointing,
        device,
    };
    let steps = trainer.time_steps(start, args.steps, !args.unrecorded)?;
    let stages = trainer.time_stages()?;
    let after = memory_usage(&trainer.device);

    let report = json!({
        "program": concat!("soda ", env!("CARGO_PKG_VERSION")),
        "device": format!("{:?}", trainer.device),
        "arch": args.arch.name(),
        "method": args.method,
        "batch": args.batch,
        "latents": latents,
        "checkpointing": checkpointing,
        "dtype": args.dtype.to_possible_value().map(|value| value.get_name().to_owned()),
        "trained": trained,
        "recorded": steps.captured,
        "build_s": round(built.as_secs_f64()),
        "plan_s": round(planned.as_secs_f64()),
        "first_step_s": round(steps.first.as_secs_f64()),
        "step_ms": round(steps.sorted_ms[steps.sorted_ms.len() / 2]),
        "step_ms_min": round(steps.sorted_ms[0]),
        "forward_ms": round(stages.forward_ms),
        "backward_ms": round(stages.backward_ms),
        "optimizer_ms": round(stages.optimizer_ms),
        "peak_mib": after.map(|m| (m.reserved + m.workspace) >> 20).or_else(peak_mib),
        "in_use_mib": stages.memory.map(|m| (m.in_use + m.workspace) >> 20),
        "scratch_mib": after.map(|m| m.workspace >> 20),
    });
    if args.json {
        print_result(&report.to_string());
    } else {
        print_table(&report);
    }
    Ok(())
}

/// The settings of `--method`, with `--rank`.
fn method(args: &BenchArgs) -> Result<MethodConfig, UsageError> {
    let mut method = MethodConfig::preset(&args.method).map_err(UsageError::new)?;
    match (&mut method, args.rank) {
        (MethodConfig::Lora(lora), Some(rank)) => lora.rank = rank,
        (_, Some(_)) => {
            return Err(UsageError::new("--rank belongs to the methods of the LoRA family"));
        }
        (_, None) => {}
    }
    Ok(method)
}

/// The state of the timed training.
struct Trainer {
    denoiser: Unet,
    parameters: BatchedParams,
    batch: RandomBatch,
    optimizer: AdapterOptimizer,
    checkpointing: GradientCheckpointing,
    device: Device,
}

/// The times of whole steps.
struct StepTimes {
    /// From the start of the command to the end of the first step.
    first: Duration,
    /// The times of the steps after the warm-up in ms, sorted.
    sorted_ms: Vec<f64>,
    /// Whether the steps were replayed from a captured graph.
    captured: bool,
}

/// The times of the stages of a step (medians), and the memory between its passes.
struct StageTimes {
    forward_ms: f64,
    backward_ms: f64,
    optimizer_ms: f64,
    memory: Option<MemoryUsage>,
}

impl Trainer {
    /// Runs the warm-up and `steps` timed steps. `capture` allows graph capture.
    fn time_steps(&mut self, start: Instant, steps: usize, capture: bool) -> Result<StepTimes> {
        let mut graph = None;
        let mut first = Duration::ZERO;
        let mut times = Vec::with_capacity(steps);
        for number in 0..WARM_UP + steps {
            let step = Instant::now();
            // As in training, the first step runs without graph capture.
            if number == 1 && capture {
                graph = self.capture();
            }
            let grads = match &mut graph {
                Some(graph) => graph.replay(self.parameters.flattened()).clone(),
                None => self.gradients(|| ()),
            };
            self.parameters = self.optimizer.step_batched(&self.parameters, &grads, 1.0);
            self.device.sync().context("a step failed")?;
            match number {
                0 => first = start.elapsed(),
                1..WARM_UP => {}
                _ => times.push(step.elapsed().as_secs_f64() * 1e3),
            }
        }
        times.sort_by(f64::total_cmp);
        Ok(StepTimes { first, sorted_ms: times, captured: graph.is_some() })
    }

    fn gradients(&self, on_forward: impl FnOnce()) -> BatchedParams {
        self.batch.gradients(&self.denoiser, &self.parameters, self.checkpointing, on_forward)
    }

    /// Captures the computation of the gradients as a graph, if the device supports it.
    fn capture(&self) -> Option<CapturedGraph<BatchedParams>> {
        let (denoiser, layout) = (self.denoiser.clone(), self.parameters.clone());
        let (batch, checkpointing) = (self.batch.clone(), self.checkpointing);
        CapturedGraph::capture(self.parameters.flattened(), move |inputs| {
            let parameters = layout.with_flattened(inputs.iter().cloned());
            batch.gradients(&denoiser, &parameters, checkpointing, || ())
        })
    }

    /// Measures the forward pass, the backward pass with recomputation, and the optimizer separately.
    ///
    /// Their sum exceeds a step, in which the host runs ahead of the device. The memory is that between
    /// forward and backward pass, when all activations for the gradients exist.
    fn time_stages(&mut self) -> Result<StageTimes> {
        let mut laps = [const { Vec::new() }; 3];
        let mut between = None;
        for _ in 0..3 {
            let mut start = Instant::now();
            let device = &self.device;
            let mut lap = |stage: usize| -> Result<()> {
                device.sync().context("a step failed")?;
                laps[stage].push(start.elapsed().as_secs_f64() * 1e3);
                start = Instant::now();
                Ok(())
            };
            let mut forward = Ok(());
            let grads = self.gradients(|| {
                forward = lap(0);
                between = memory_usage(device);
            });
            forward?;
            lap(1)?;
            let updated = self.optimizer.step_batched(&self.parameters, &grads, 1.0);
            lap(2)?;
            drop(updated);
        }
        let [forward_ms, backward_ms, optimizer_ms] = laps.map(|mut times| {
            times.sort_by(f64::total_cmp);
            times[times.len() / 2]
        });
        Ok(StageTimes { forward_ms, backward_ms, optimizer_ms, memory: between })
    }
}

fn print_table(report: &Value) {
    const ROWS: &[(&str, &str)] = &[
        ("arch", "architecture"),
        ("method", "method"),
        ("batch", "batch"),
        ("latents", "side of the latents"),
        ("dtype", "dtype"),
        ("checkpointing", "gradient checkpointing"),
        ("device", "device"),
        ("trained", "trainable parameters"),
        ("recorded", "steps replayed from a graph"),
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
        print_result(&format!("{label:<30} {value}"));
    }
}

fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// The peak resident memory of this process in MiB, for devices that use the host's memory.
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

    /// The side of the latents in the network's training.
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
