//! `soda bench`: the time and memory of a training step on this machine.
//!
//! A step is the forward pass, the backward pass to the adapter's parameters, and the optimizer. The
//! network has a named architecture, random weights and an adapter on its attention, or is one linear layer.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use burn::module::Module;
use burn::nn::LinearConfig;
use burn::tensor::{Device, FloatDType};
use clap::builder::RangedU64ValueParser;
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use soda_adapters::{Method as _, MethodConfig, PlanOptions, Probe, Targets};
use soda_kernels::{CapturedGraph, MemoryUsage, memory_usage, to_preferred_memory_format};
use soda_models::pipeline::LoadWarning;
use soda_models::weights::{WeightStorage, store};
use soda_optim::{AdapterOptimizer, AdapterOptimizerConfig, BatchedParams};
use soda_pipeline::TARGET_PRESETS;
use soda_train::GradientCheckpointing;

use crate::args::{DeviceArg, StorageArgs};
use crate::device::{Precision, is_processor};
use crate::memory_meter::{kib, peak_of_process};
use crate::progress::{Progress, print_result};
use crate::synthetic::{
    Architecture, BatchSizes, DenoiserStep, LayerStep, RandomBatch, RandomWeights, Workload,
    batch_numbers, layer_numbers,
};
use crate::usage::UsageError;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  soda bench
  soda bench --arch sd15 --method lora --rank 32 --dtype bf16 --batch 4 --json
  soda bench --arch sdxl --method lora --dtype bf16 --checkpointing block
  soda bench --arch flux2-klein-4b --method soda-subspace --dtype bf16 --checkpointing block
  soda bench --layer 3072x27648 --method soda-subspace --dtype bf16")]
pub(crate) struct BenchArgs {
    /// The architecture of the network
    #[arg(long, value_enum, default_value_t)]
    pub(crate) arch: Architecture,
    /// One linear layer of these widths instead of a network
    #[arg(long, value_name = "INxOUT", value_parser = layer, conflicts_with_all = ["arch", "latents", "checkpointing", "base_precision", "activation_precision", "offload"])]
    pub(crate) layer: Option<[usize; 2]>,
    /// Rows of the layer's input for each image
    #[arg(long, default_value_t = 4096, value_parser = positive(), requires = "layer")]
    pub(crate) rows: usize,
    /// The method, by its name in a configuration
    #[arg(long, default_value = "soda")]
    pub(crate) method: String,
    /// Rank of a LoRA
    #[arg(long, value_parser = positive())]
    pub(crate) rank: Option<usize>,
    /// Images per step
    #[arg(long, default_value_t = 1, value_parser = positive())]
    pub(crate) batch: usize,
    /// Side of the latents: an eighth of the image's side, a 16th with FLUX.2 klein; by default that of the
    /// network's training
    #[arg(long, value_parser = positive())]
    pub(crate) latents: Option<usize>,
    /// Precision of the network; adapters are f32
    #[arg(long, value_enum, default_value_t)]
    pub(crate) dtype: Precision,
    #[command(flatten)]
    pub(crate) storage: StorageArgs,
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

/// Reads the widths of a layer.
fn layer(text: &str) -> Result<[usize; 2], String> {
    /// The widest layer. Its weight alone would have 4 TB.
    const MAX_WIDTH: usize = 1 << 20;
    let width = |text: &str| text.parse().ok().filter(|width| (1..=MAX_WIDTH).contains(width));
    let widths =
        text.split_once('x').and_then(|(input, output)| Some([width(input)?, width(output)?]));
    widths.ok_or_else(|| format!("give two widths from 1 to {MAX_WIDTH}, such as 1280x1280"))
}

/// The number of steps before the timed ones. They compile kernels and grow memory pools.
const WARM_UP: usize = 3;

pub(crate) fn run(args: BenchArgs) -> Result<()> {
    let start = Instant::now();
    let method = method(&args)?;
    let device = args.device.device.open()?;
    let dtype = FloatDType::from(args.dtype);
    let precision = (dtype, args.storage.denoiser()?);
    if let Some(warning) = LoadWarning::of_activations(precision.1, &device) {
        Progress::default().warn(&warning.to_string());
    }
    let checkpointing = GradientCheckpointing::from(args.checkpointing);
    let (times, what) = match args.layer {
        Some(widths) => {
            require_room(layer_numbers(widths, args.batch * args.rows), &device)?;
            let layer = LinearConfig::new(widths[0], widths[1]).with_bias(false).init(&device);
            let adapted = Adapted::new(layer, "^weight$", &method, precision, &device)?;
            let rows = args.batch * args.rows;
            let times =
                adapted.time(&args, start, |layer| LayerStep::new(layer, rows, dtype, &device))?;
            (times, json!({ "layer": widths, "rows": args.rows }))
        }
        None => {
            let latents = args.latents.unwrap_or(args.arch.latents());
            let config = args.arch.config()?;
            require_room(batch_numbers(&config, args.batch, latents), &device)?;
            let adapted =
                Adapted::new(config.init(&device), "attention", &method, precision, &device)?;
            let sizes = BatchSizes { images: args.batch, latents, tokens: args.arch.tokens() };
            let batch = || RandomBatch::new(&config, sizes, dtype, &device);
            let step = |denoiser| DenoiserStep { denoiser, batch: batch(), checkpointing };
            (
                adapted.time(&args, start, step)?,
                json!({ "arch": args.arch.name(), "latents": latents, "tokens": sizes.tokens }),
            )
        }
    };
    let Times { built, planned, trained, steps, stages } = times;
    let after = memory_usage(&device);

    let mut report = json!({
        "program": concat!("soda ", env!("CARGO_PKG_VERSION")),
        "device": format!("{device:?}"),
        "method": args.method,
        "batch": args.batch,
        "checkpointing": checkpointing,
        "dtype": args.dtype.to_possible_value().map(|value| value.get_name().to_owned()),
        "base_precision": args.storage.format_name(),
        "activation_precision": args.storage.activation_format_name(),
        "offload": args.storage.denoiser()?.offload,
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
        "peak_mib": after.map(|m| (m.reserved + m.workspace) >> 20).or_else(|| peak_of_process("self").map(|peak| peak >> 20)),
        "in_use_mib": stages.memory.map(|m| (m.in_use + m.workspace) >> 20),
        "scratch_mib": after.map(|m| m.workspace >> 20),
    });
    if let (Value::Object(report), Value::Object(what)) = (&mut report, what) {
        report.extend(what);
    }
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

/// A network with random weights and its adapters.
struct Adapted<'a, N> {
    network: N,
    parameters: BatchedParams,
    built: Duration,
    planned: Duration,
    device: &'a Device,
}

/// All that is measured.
struct Times {
    /// Making the network.
    built: Duration,
    /// Making the adapters.
    planned: Duration,
    /// The number of trained parameters.
    trained: usize,
    steps: StepTimes,
    stages: StageTimes,
}

impl<'a, N: Module> Adapted<'a, N> {
    /// Draws the weights of `network`, and plans adapters of the weights that `target` names.
    fn new(
        network: N,
        target: &str,
        method: &MethodConfig,
        (dtype, storage): (FloatDType, WeightStorage),
        device: &'a Device,
    ) -> Result<Self> {
        let start = Instant::now();
        let network = to_preferred_memory_format(network.map(&mut RandomWeights(dtype)));
        device.sync().context("the device does not run")?;
        // The memory that drawing the weights took is no part of a step.
        device.memory_cleanup();
        let built = start.elapsed();
        let mut options = PlanOptions { presets: TARGET_PRESETS, ..PlanOptions::default() };
        let targets = Targets(vec![target.to_owned()]);
        // The time does not depend on the directions, and those of a gradient of zero are as good as any.
        let probes = method.plan_probes(&targets, &network, &mut options)?;
        let calibration = Probe::measure(probes.adapters(), &BTreeMap::new())?;
        options.calibration = Some(&calibration);
        let plan = method.plan_with(&targets, &network, &mut options)?;
        device.sync().context("the adapters cannot be made")?;
        let planned = start.elapsed() - built;
        let network = store(network, storage, dtype);
        device.memory_cleanup();
        let network = plan.attach(network);
        let parameters = BatchedParams::new(method, &network);
        Ok(Self { network, parameters, built, planned, device })
    }

    /// Times the steps of a workload on the network.
    fn time<W: Workload>(
        self,
        args: &BenchArgs,
        start: Instant,
        workload: impl FnOnce(N) -> W,
    ) -> Result<Times> {
        let Self { network, parameters, built, planned, device } = self;
        let trained = parameters.flattened().iter().map(|batch| batch.dims()[0]).sum();
        let mut trainer = Trainer {
            workload: workload(network),
            optimizer: AdapterOptimizer::new(&AdapterOptimizerConfig::default()),
            parameters,
            device: device.clone(),
        };
        let steps = trainer.time_steps(start, args.steps, !args.unrecorded)?;
        let stages = trainer.time_stages()?;
        Ok(Times { built, planned, trained, steps, stages })
    }
}

/// The state of the timed training.
struct Trainer<W> {
    workload: W,
    parameters: BatchedParams,
    optimizer: AdapterOptimizer,
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

impl<W: Workload> Trainer<W> {
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
        self.workload.gradients(&self.parameters, on_forward)
    }

    /// Captures the computation of the gradients as a graph, if the device supports it.
    fn capture(&self) -> Option<CapturedGraph<BatchedParams>> {
        let (workload, layout) = (self.workload.clone(), self.parameters.clone());
        CapturedGraph::capture(self.parameters.flattened(), move |inputs| {
            let parameters = layout.with_flattened(inputs.iter().cloned());
            workload.gradients(&parameters, || ())
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
        ("tokens", "tokens of a prompt"),
        ("layer", "widths of the layer"),
        ("rows", "rows for each image"),
        ("dtype", "dtype"),
        ("base_precision", "precision of linear weights"),
        ("activation_precision", "precision of their products"),
        ("offload", "blocks in host memory"),
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
        let Some(value) = report.get(key) else { continue };
        let value = match value {
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

/// Refuses a step of as many numbers that the machine has no room for: the system would end the program
/// without a sentence. A driver refuses what a GPU has no room for, but no GPU has 1 TB.
fn require_room(numbers: usize, device: &Device) -> Result<()> {
    // Two bytes are those of the smallest precision.
    let needed = (numbers as u64).saturating_mul(2) >> 10;
    let processor = || kib("/proc/meminfo", "MemTotal:").unwrap_or(1 << 32);
    ensure!(
        needed <= if is_processor(device) { processor() } else { 1 << 30 },
        "a step needs more memory than this machine has; give a smaller --batch, --latents, --layer or --rows"
    );
    Ok(())
}
