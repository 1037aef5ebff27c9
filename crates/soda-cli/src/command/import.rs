//! `soda import`

use crate::args::DeviceArg;
use crate::base::find;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use clap::Args as ClapArgs;
use soda_adapters::interop::{Imported, import};
use soda_models::pipeline::{Pipeline, model_name};

use crate::command::{parts, prepare};
use crate::progress::{Progress, say_result};

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  soda import mug-lora.safetensors --base models/toy --out mug.safetensors
  soda import peft-directory --base models/toy --out mug.safetensors --trigger \"sks mug\"
  soda import learned_embeds.safetensors --base models/toy --out word.safetensors

The vectors of a learnt word (Textual Inversion) are an adapter too: its word is in the file, or the file's name.")]
pub(crate) struct ImportArgs {
    /// A LoRA, LoHa or LoKr file of diffusers, kohya or LyCORIS, a learnt word of diffusers or kohya, or a directory of
    /// PEFT, or one with a directory of PEFT for each network: unet, text_encoder, text_encoder_2
    pub(crate) path: PathBuf,
    /// The base model it is for: a diffusers directory, or a name on a hub
    #[arg(long, value_name = "DIR|NAME")]
    pub(crate) base: PathBuf,
    /// The adapter file to write
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Words that call the subject up; may be given several times
    #[arg(long, value_name = "TEXT")]
    pub(crate) trigger: Vec<String>,
    #[command(flatten)]
    pub(crate) device: DeviceArg,
}

pub(crate) fn run(args: ImportArgs) -> Result<()> {
    ensure!(!args.out.exists(), "{} exists; give another --out", args.out.display());
    let base = find(&args.base, None)?;
    let mut pipeline = Pipeline::load(&base, &args.device.device.open()?)?;
    let name = model_name(&base);
    let Imported { mut file, matched, unmatched, absent } =
        import(&args.path, &pipeline.networks(), &name)
            .with_context(|| format!("cannot import {}", args.path.display()))?;
    file.header.trigger = args.trigger;
    if file.header.trigger.is_empty() {
        file.header.trigger = file.words.keys().cloned().collect();
    }
    // Refused now, and not when it is used.
    prepare(&file, &args.path, &mut pipeline)?;
    file.write(&args.out)?;
    let progress = Progress::default();
    for name in &unmatched {
        progress.say(&format!("warning: {name} is of no weight of this base and was left out"));
    }
    for (component, names) in &absent {
        progress.say(&format!(
            "warning: {} tensors are for a {component} (such as {}), which this base does not have, and were left out",
            names.len(),
            names[0]
        ));
    }
    say_result(&format!(
        "{}: {}; {} weights matched, {} names left out",
        args.out.display(),
        parts(&file),
        matched.len(),
        unmatched.len() + absent.values().map(Vec::len).sum::<usize>()
    ));
    Ok(())
}
