//! `soda train`

use anyhow::{Context as _, Result};
use soda_adapters::soda::RotationConfig;
use soda_adapters::{MethodConfig, Targets};
use soda_train::{Outcome, Personalisation, TrainConfig};

use crate::args::TrainArgs;
use crate::progress::{Progress, say_result};

pub(crate) fn run(args: TrainArgs) -> Result<()> {
    let device = args.device.device.open()?;
    let config = resolve(&args)?;
    let job = Personalisation::new(config, args.prompt.as_deref(), &device)?;
    let mut progress = Progress::default();
    let outcome = job.run(&args.runs, args.name.as_deref(), &mut |event| progress.show(event))?;
    progress.finish();
    summarise(&outcome);
    Ok(())
}

/// What was typed over what the file says over the defaults.
fn resolve(args: &TrainArgs) -> Result<TrainConfig> {
    let mut config = match (&args.config, &args.base, &args.data) {
        (Some(path), _, _) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read the configuration {}", path.display()))?;
            TrainConfig::from_toml(&text).with_context(|| path.display().to_string())?
        }
        (None, Some(base), Some(data)) => TrainConfig::toybox(base.clone(), data.clone()),
        (None, _, _) => anyhow::bail!("give --config, or --base and --data"),
    };
    let set = |field: &mut f64, value: Option<f64>| *field = value.unwrap_or(*field);
    set(&mut config.optimizer.rotation_lr, args.rotation_lr);
    set(&mut config.optimizer.spectrum_lr, args.spectrum_lr);
    config.base = args.base.clone().unwrap_or(config.base);
    config.data = args.data.clone().unwrap_or(config.data);
    config.judges = args.judges.clone().or(config.judges);
    config.steps = args.steps.unwrap_or(config.steps);
    config.batch_size = args.batch_size.unwrap_or(config.batch_size);
    config.seed = args.seed.unwrap_or(config.seed);
    if !args.target.is_empty() {
        config.targets = Targets(args.target.clone());
    }
    if !args.sample.is_empty() {
        config.samples.prompts.clone_from(&args.sample);
    }
    if let Some(name) = &args.method {
        config.method = MethodConfig::preset(name)?;
    }
    if args.factors.is_some() || args.no_rotation || args.no_spectrum {
        let MethodConfig::Soda(soda) = &mut config.method else {
            anyhow::bail!("--factors, --no-rotation and --no-spectrum are settings of SODA");
        };
        if let Some(factors) = args.factors {
            soda.rotation =
                Some(RotationConfig { factors, ..soda.rotation.take().unwrap_or_default() });
        }
        if args.no_rotation {
            soda.rotation = None;
        }
        if args.no_spectrum {
            soda.spectrum = None;
        }
    }
    Ok(config)
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
