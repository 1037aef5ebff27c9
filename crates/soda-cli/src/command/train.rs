//! `soda train`

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result};
use soda_train::{Outcome, Personalisation, Place};

use crate::args::TrainArgs;
use crate::command::settings::resolve;
use crate::device::is_cpu;
use crate::progress::{Progress, say_result};

pub(crate) fn run(args: TrainArgs) -> Result<()> {
    let device = args.device.device.open()?;
    let (job, place) = match &args.resume {
        Some(folder) => {
            let (job, folder) = Personalisation::resume(folder, &device)?;
            (job, Place::Stopped(folder))
        }
        None => {
            let mut config = resolve(&args.settings)?;
            if is_cpu(&device) {
                let threads = rayon::current_num_threads().min(config.batch_size.max(1));
                config.shards.get_or_insert(threads);
            }
            let place = Place::New { root: &args.runs, name: args.name.as_deref() };
            (Personalisation::new(config, &device)?, place)
        }
    };
    let stop = on_interrupt()?;
    let mut progress = Progress::default();
    let outcome = job.run(place, &stop, &mut |event| progress.show(event));
    progress.finish();
    summarise(&outcome?);
    Ok(())
}

/// Set by the first Ctrl-C; the second ends the process.
fn on_interrupt() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let set = Arc::clone(&stop);
    ctrlc::set_handler(move || {
        if set.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    })
    .context("cannot listen for Ctrl-C")?;
    Ok(stop)
}

fn summarise(outcome: &Outcome) {
    say_result(&format!(
        "{}: {} trained numbers on {} layers, {} steps in {:.0} s",
        outcome.folder.display(),
        outcome.num_params,
        outcome.num_layers,
        outcome.config.steps,
        outcome.seconds,
    ));
    if let (Some(before), Some(after)) = (outcome.before, outcome.after) {
        for (name, before, after) in [
            ("CLIP-T", before.clip_t, after.clip_t),
            ("CLIP-I", before.clip_i, after.clip_i),
            ("DINO", before.dino, after.dino),
        ] {
            say_result(&format!("  {name:<7} {before:.3} -> {after:.3}"));
        }
        if let (Some(before), Some(after)) = (before.truth_dino, after.truth_dino) {
            say_result(&format!("  DINO to the truth of each prompt {before:.3} -> {after:.3}"));
        }
    }
    say_result(&format!("  see {}", outcome.folder.join("report.md").display()));
}
