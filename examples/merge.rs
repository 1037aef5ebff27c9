//! Merges a subject and a style into one model, as `soda merge` does.
//!
//! ```sh
//! cargo run -p soda-examples --example train
//! cargo run -p soda-examples --example train examples/toybox/styles/chalkboard chalk
//! cargo run -p soda-examples --example merge
//! ```

use std::error::Error;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use soda_models::pipeline::{GenerateConfig, Pipeline};
use soda_pipeline::{AdapterFile, MergeMode, MergeOptions, merge_adapters};

#[allow(clippy::print_stdout, reason = "an example shows what it does")]
fn main() -> Result<(), Box<dyn Error>> {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("toybox/base");
    let mut args = std::env::args().skip(1).map(PathBuf::from);
    let subject = args.next().unwrap_or_else(|| "runs/mug/adapter.safetensors".into());
    let style = args.next().unwrap_or_else(|| "runs/chalk/adapter.safetensors".into());

    let mut pipeline = Pipeline::load(&base, &Device::default())?;
    let (subject, style) = (AdapterFile::read(&subject)?, AdapterFile::read(&style)?);
    // Rotations are averaged along geodesics, and the angle that cancels is restored.
    let mode = MergeMode::Geodesic { restore: 1.0 };
    let options = MergeOptions { mode, ..MergeOptions::default() };
    merge_adapters(&mut pipeline, &[(&subject, 1.0), (&style, 0.8)], options)?;

    let prompts = vec!["a photo of a sks mug in zwx style".to_owned()];
    let request = GenerateConfig { prompts, ..GenerateConfig::default() };
    for image in pipeline.generate(&request, &mut |_, _| {})? {
        image.save("merged.png")?;
    }
    // A diffusers directory without adapters, for any tool.
    pipeline.save(Path::new("merged"))?;
    println!("wrote merged.png and the model merged/");
    Ok(())
}
