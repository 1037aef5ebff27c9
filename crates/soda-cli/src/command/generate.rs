//! `soda generate`

use anyhow::{Context as _, Result, ensure};
use soda_models::pipeline::{GenerateConfig, Pipeline};
use soda_train::{Event, write_png};

use crate::args::GenerateArgs;
use crate::command::load_merged;
use crate::progress::{Progress, say_result};

pub(crate) fn run(args: GenerateArgs) -> Result<()> {
    ensure!(args.guidance.is_finite(), "--guidance must be a finite number");
    let device = args.device.device.open()?;
    let mut progress = Progress::default();

    let prompts: Vec<String> = args
        .prompt
        .iter()
        .flat_map(|prompt| std::iter::repeat_n(prompt.clone(), args.count as usize))
        .collect();
    let files: Vec<_> = (0..prompts.len())
        .map(|index| args.out.join(format!("seed{}-{index:02}.png", args.seed)))
        .collect();
    // Before the long part, not after it.
    for file in &files {
        ensure!(
            !file.exists(),
            "{} exists; give another --out or --seed, or remove it",
            file.display()
        );
    }
    std::fs::create_dir_all(&args.out)
        .with_context(|| format!("cannot create {}", args.out.display()))?;

    let pipeline = match &args.adapter.adapter {
        Some(adapter) => load_merged(&args.base, adapter, args.adapter.strength, &device)?,
        None => Pipeline::load(&args.base, &device)?,
    };
    for prompt in &args.prompt {
        if pipeline.tokenizer.encode(prompt).truncated {
            let start: String = prompt.chars().take(60).collect();
            progress.say(&format!(
                "warning: the prompt is too long for the text encoder and was cut: {start}..."
            ));
        }
    }
    let config = GenerateConfig {
        prompts,
        negative_prompt: args.negative.clone(),
        steps: args.steps as usize,
        guidance: args.guidance,
        seed: args.seed,
        ..GenerateConfig::default()
    };
    progress.show(Event::Stage { name: "drawing" });
    let images = pipeline.generate(&config, &mut |done, total| {
        progress.show(Event::Progress { done, total, loss: None });
    })?;
    progress.finish();
    for (file, image) in files.iter().zip(&images) {
        write_png(file, image)?;
        say_result(&file.display().to_string());
    }
    Ok(())
}
