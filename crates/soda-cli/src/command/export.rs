//! `soda export`

use anyhow::{Result, ensure};
use soda_adapters::interop::{
    Budget, Compressed, compress, write_diff, write_diffusers, write_kohya, write_peft,
};

use crate::args::{ExportArgs, ExportFormat};
use soda_models::pipeline::LoadOptions;

use crate::command::load_plan;
use crate::progress::say_result;

pub(crate) fn run(args: ExportArgs) -> Result<()> {
    ensure!(!args.out.exists(), "{} exists; give another --out", args.out.display());
    ensure!(
        args.error.is_finite() && args.error >= 0.0,
        "--error must be a number from 0 (lossless) up"
    );
    let device = args.device.device.open()?;
    let (pipeline, file, plan) =
        load_plan(&args.base, &LoadOptions::default(), &args.adapter, args.strength, &device)?;
    if args.format == ExportFormat::Diff {
        write_diff(&plan, &pipeline.unet, &args.out)?;
        say_result(&format!("{}: {} deltas, exact", args.out.display(), plan.paths().len()));
        return Ok(());
    }
    let budget = Budget { error: args.error, max_rank: args.max_rank };
    let lora = compress(&plan, &pipeline.unet, budget)?;
    match args.format {
        ExportFormat::Kohya => write_kohya(&lora, &file.header.trigger, &args.out)?,
        ExportFormat::Diffusers => write_diffusers(&lora, &args.out)?,
        ExportFormat::Peft => {
            // A strength is a point, not a parameter: then only the LoRA says it.
            ensure!(
                args.strength == 1.0,
                "PEFT keeps adapters as they were trained; leave --strength to it, or export as kohya"
            );
            write_peft(&file.header.method, &plan, &lora, &args.out)?;
        }
        ExportFormat::Diff => {}
    }
    report(&lora);
    say_result(&format!(
        "{}: {} layers, ranks up to {}, relative error {:.2e} over all",
        args.out.display(),
        lora.losses.len(),
        lora.losses.iter().map(|loss| loss.rank).max().unwrap_or_default(),
        lora.error
    ));
    Ok(())
}

fn report(lora: &Compressed) {
    say_result("  rank     error  |delta|/|weight|  weight");
    for loss in &lora.losses {
        say_result(&format!(
            "  {:>4}  {:>8.2e}  {:>16.2e}  {}",
            loss.rank, loss.error, loss.delta, loss.path
        ));
    }
}
