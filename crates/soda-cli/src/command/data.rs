//! `soda data`

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use soda_pipeline::counted;
use soda_train::{CaptionTokenizers, DataCheck, DataCheckConfig, Event};

use crate::base_model::find_base;
use crate::progress::{Progress, print_result};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  soda data check photos/mug --trigger \"sks mug\" --resolution 512
  soda data check photos/mug --base models/sd15 --json")]
pub(crate) struct DataArgs {
    #[command(subcommand)]
    pub(crate) action: DataAction,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DataAction {
    /// Check the pictures, captions and masks of a data folder
    #[command(after_help = "\
Warnings do not change the exit code. It is 1 if a training would refuse the folder.
Near-duplicates are found by dHash: at most 10 of its 64 bits differ (docs/reference/files.md).")]
    Check(CheckArgs),
}

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// The folder of training images
    pub(crate) folder: PathBuf,
    /// The words that every caption must have; by default those of subject.json or style.json
    #[arg(long, value_name = "WORDS", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub(crate) trigger: Option<String>,
    /// The side of the training images in pixels; without it no picture is too small
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(8..=16384))]
    pub(crate) resolution: Option<u32>,
    /// The base model, whose tokenizers measure the captions: a diffusers directory, or a name on a hub
    #[arg(long, value_name = "DIR|NAME")]
    pub(crate) base: Option<PathBuf>,
    /// Caption of images that have none
    #[arg(long, value_name = "TEXT")]
    pub(crate) prompt: Option<String>,
    /// Print the findings as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

pub(crate) fn run(args: DataArgs) -> Result<()> {
    match args.action {
        DataAction::Check(args) => check(&args),
    }
}

fn check(args: &CheckArgs) -> Result<()> {
    let base = args.base.as_deref().map(|base| find_base(base, None)).transpose()?;
    let tokenizers = base.as_deref().map(CaptionTokenizers::from_dir).transpose()?;
    let config = DataCheckConfig {
        prompt: args.prompt.as_deref(),
        trigger: args.trigger.as_deref(),
        resolution: args.resolution,
        tokenizers: tokenizers.as_ref(),
        checked: None,
    };
    let mut progress = Progress::default();
    progress.show(Event::Stage { name: "reading" });
    let found = DataCheck::new(&args.folder, &config, &mut |done, total| {
        progress.show(Event::Progress { done, total, loss: None });
    });
    progress.finish();
    let found = found?;
    match args.json {
        true => print_result(&to_json(&found).to_string()),
        false => print(&found),
    }
    if found.prevents_training() {
        bail!("`soda train` would refuse {}", args.folder.display());
    }
    Ok(())
}

fn print(found: &DataCheck) {
    for finding in &found.findings {
        let severity = if finding.kind.prevents_training() { "error" } else { "warning" };
        print_result(&format!("{severity}: {finding}"));
    }
    for part in &found.unchecked {
        print_result(&format!("note: {part}"));
    }
    let errors = found.findings.iter().filter(|found| found.kind.prevents_training()).count();
    let warnings = found.findings.len() - errors;
    let images = found.images.len();
    let counts = [(images, "picture"), (errors, "error"), (warnings, "warning")];
    print_result(&counts.map(|(number, noun)| counted(number, noun)).join(", "));
}

fn to_json(found: &DataCheck) -> Value {
    let findings = found.findings.iter().map(|finding| {
        json!({
            "path": finding.path.to_string_lossy(),
            "kind": finding.kind.name(),
            "message": finding.to_string(),
            "prevents_training": finding.kind.prevents_training(),
        })
    });
    json!({
        "pictures": found.images.len(),
        "findings": findings.collect::<Vec<_>>(),
        "unchecked": found.unchecked.iter().map(|part| part.name()).collect::<Vec<_>>(),
    })
}
