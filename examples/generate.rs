//! Loads an adapter onto the bundled model and generates a picture, as `soda generate` does.
//!
//! `cargo run -p soda-examples --example generate [ADAPTER PROMPT]`
//!
//! The default adapter is the one that the example `train` writes.

use std::error::Error;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use soda_models::pipeline::{GenerateConfig, Pipeline};
use soda_pipeline::{AdapterFile, LoadAdapterOptions, fuse_adapter};

#[allow(clippy::print_stdout, reason = "an example shows what it does")]
fn main() -> Result<(), Box<dyn Error>> {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("toybox/base");
    let mut args = std::env::args().skip(1);
    let adapter = args.next().map_or(PathBuf::from("runs/mug/adapter.safetensors"), Into::into);
    let prompt = args.next().unwrap_or_else(|| "a photo of a sks mug in the snow".to_owned());

    let mut pipeline = Pipeline::load(&base, &Device::default())?;
    let request = GenerateConfig { prompts: vec![prompt], ..GenerateConfig::default() };
    let before = pipeline.generate(&request, &mut |_, _| {})?;

    // The weights of the pipeline are replaced by adapted ones.
    let adapter = AdapterFile::read(&adapter)?;
    let options = LoadAdapterOptions { strength: 1.0, ..LoadAdapterOptions::default() };
    fuse_adapter(&mut pipeline, &adapter, options)?;
    let after = pipeline.generate(&request, &mut |_, _| {})?;

    for (name, images) in [("before.png", before), ("after.png", after)] {
        for image in images {
            image.save(name)?;
        }
        println!("wrote {name}");
    }
    Ok(())
}
