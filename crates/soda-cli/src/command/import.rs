//! `soda import`

use anyhow::{Context as _, Result, ensure};
use soda_adapters::interop::{Imported, import};
use soda_models::pipeline::Pipeline;

use crate::args::ImportArgs;
use crate::progress::{Progress, say_result};

pub(crate) fn run(args: ImportArgs) -> Result<()> {
    ensure!(!args.out.exists(), "{} exists; give another --out", args.out.display());
    let pipeline = Pipeline::load(&args.base, &args.device.device.open()?)?;
    let name = args.base.file_name().unwrap_or_default().to_string_lossy();
    let Imported { mut file, matched, unmatched } = import(&args.path, &pipeline.unet, &name)
        .with_context(|| format!("cannot import {}", args.path.display()))?;
    file.header.trigger = args.trigger;
    file.write(&args.out)?;
    let progress = Progress::default();
    for name in &unmatched {
        progress.say(&format!("warning: {name} is of no weight of this UNet and was left out"));
    }
    say_result(&format!(
        "{}: {} weights matched, {} names left out",
        args.out.display(),
        matched.len(),
        unmatched.len()
    ));
    Ok(())
}
