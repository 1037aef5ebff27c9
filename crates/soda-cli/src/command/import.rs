//! `soda import`

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use serde_json::{Value, json};
use soda_models::pipeline::{LoadOptions, model_name};
use soda_models::scheduler::{SchedulerConfig, SchedulerOverrides};
use soda_pipeline::interop::{Description, Imported, describe, import};
use soda_pipeline::{configure_pipeline, counted};

use crate::args::{DeviceArg, PromptEncodingArgs};
use crate::base_model::{find_base, load_base};
use crate::progress::{Progress, print_result};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  soda import mug-lora.safetensors --base models/toy --out mug.safetensors
  soda import peft-directory --base models/toy --out mug.safetensors --trigger \"sks mug\"
  soda import learned_embeds.safetensors --base models/toy --out word.safetensors

The embedding of a new word (textual inversion) is an adapter too. The word is in the file, or
is the file's name.")]
pub(crate) struct ImportArgs {
    /// An adapter file of diffusers, kohya, LyCORIS, OneTrainer, ComfyUI or ai-toolkit (LoRA, DoRA, LoHa,
    /// LoKr, OFT, diff); a textual inversion file of diffusers or kohya; a PEFT directory; or a directory
    /// with one PEFT directory per network: unet or transformer, text_encoder, text_encoder_2
    pub(crate) path: PathBuf,
    /// The base model it is for: a diffusers directory, or a name on a hub
    #[arg(long, value_name = "DIR|NAME")]
    pub(crate) base: PathBuf,
    /// The adapter file to write
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Trigger words of the subject; may be given several times
    #[arg(long, value_name = "TEXT")]
    pub(crate) trigger: Vec<String>,
    #[command(flatten)]
    pub(crate) prompt_encoding: PromptEncodingArgs,
    #[command(flatten)]
    pub(crate) device: DeviceArg,
}

pub(crate) fn run(args: ImportArgs) -> Result<()> {
    ensure!(!args.out.exists(), "{} exists; give another --out", args.out.display());
    let base = find_base(&args.base, None)?;
    let device = args.device.device.open()?;
    let options =
        LoadOptions { prompt_encoding: args.prompt_encoding.encoding(), ..LoadOptions::default() };
    let mut pipeline = load_base(&base, &options, &device)?;
    let name = model_name(&base);
    let Imported { mut file, matched, unmatched, unread, absent } =
        import(&args.path, &pipeline.networks(), &name)
            .with_context(|| format!("cannot import {}", args.path.display()))?;
    // Files of other tools do not say it.
    file.header.prompt_encoding = args.prompt_encoding.encoding();
    file.header.trigger = args.trigger;
    // A PEFT directory has no metadata of this kind.
    let description = if args.path.is_file() { describe(&args.path).ok() } else { None };
    if let Some(Description { trigger, schedule, .. }) = description {
        if file.header.trigger.is_empty() {
            file.header.trigger = trigger;
        }
        file.header.schedule = changes(schedule, &pipeline.scheduler);
    }
    if file.header.trigger.is_empty() {
        file.header.trigger = file.embeddings.keys().cloned().collect();
    }
    // An adapter that this base cannot use is refused here, and not at its first use.
    configure_pipeline(&mut pipeline, &file)?;
    file.write(&args.out)?;
    let progress = Progress::default();
    if let Some(example) = unmatched.first() {
        progress.warn(&format!(
            "{} of no weight of this base (such as {example}), and left out",
            count(unmatched.len())
        ));
    }
    if let Some(example) = unread.first() {
        progress.warn(&format!(
            "{} of a kind that is not read (such as {example}; changes of biases and of normalization \
             layers are among them), which is left out, so that the result is not all that the file holds",
            count(unread.len())
        ));
    }
    for (component, names) in &absent {
        progress.warn(&format!(
            "{} for a {component} (such as {}), which this base does not have, and left out",
            count(names.len()),
            names[0]
        ));
    }
    print_result(&format!(
        "{}: {}; {} matched, {} left out",
        args.out.display(),
        file.summary(),
        counted(matched.len(), "weight"),
        counted(
            unmatched.len() + unread.len() + absent.values().map(Vec::len).sum::<usize>(),
            "name"
        )
    ));
    Ok(())
}

/// What a file's schedule changes of the base's, as a header has it.
fn changes(schedule: SchedulerOverrides, base: &SchedulerConfig) -> Value {
    let SchedulerOverrides { prediction_type, rescale_betas_zero_snr } = schedule;
    let change = SchedulerOverrides {
        prediction_type: prediction_type.filter(|own| *own != base.prediction_type),
        rescale_betas_zero_snr: rescale_betas_zero_snr && !base.rescale_betas_zero_snr,
    };
    if change == SchedulerOverrides::default() { Value::Null } else { json!(change) }
}

fn count(tensors: usize) -> String {
    let verb = if tensors == 1 { "is" } else { "are" };
    format!("{} {verb}", counted(tensors, "tensor"))
}
