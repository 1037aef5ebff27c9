//! `soda merge`

use anyhow::{Result, ensure};
use soda_models::pipeline::LoadOptions;

use crate::args::MergeArgs;
use crate::command::load_merged;
use crate::progress::say_result;

pub(crate) fn run(args: MergeArgs) -> Result<()> {
    ensure!(!args.out.exists(), "{} exists; merge writes a new directory", args.out.display());
    let device = args.device.device.open()?;
    let options = LoadOptions::default();
    let pipeline = load_merged(&args.base, &options, &args.adapter, args.strength, &device)?;
    pipeline.save(&args.out)?;
    say_result(&args.out.display().to_string());
    Ok(())
}
