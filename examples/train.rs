//! Fine-tunes the bundled model on a folder of pictures, as `soda train` does.
//!
//! `cargo run -p soda-examples --example train [FOLDER NAME]`
//!
//! The default folder is a bundled subject. The adapter is written to `runs/NAME/adapter.safetensors`.

use std::error::Error;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use burn::tensor::Device;
use soda_train::{
    Event, Personalisation, RunFolder, RunTarget, TrainConfig, apply_setting, preset,
};

#[allow(clippy::print_stdout, reason = "an example shows what it does")]
fn main() -> Result<(), Box<dyn Error>> {
    let toybox = Path::new(env!("CARGO_MANIFEST_DIR")).join("toybox");
    let mut args = std::env::args().skip(1);
    let data = args.next().map_or(toybox.join("subjects/castle_mug"), Into::into);
    let name = args.next().unwrap_or_else(|| "mug".to_owned());

    // A preset, and what it does not know.
    let mut settings = preset("toybox")?;
    for (key, value) in [
        ("base", toybox.join("base").display().to_string()),
        ("data", data.display().to_string()),
        ("judges", toybox.join("eval").display().to_string()),
        ("steps", "100".to_owned()),
    ] {
        apply_setting(&mut settings, &format!("{key}={value}"))?;
    }
    let config = TrainConfig::from_table(settings)?;

    // Everything that the settings name is read here, before anything is written.
    let run = Personalisation::new(config, &Device::default())?;
    let mut show = |event: Event<'_>| match event {
        Event::Stage { name } => println!("{name}"),
        Event::Progress { done, total, loss: Some(loss) } if done % 20 == 0 => {
            println!("  step {done} of {total}, loss {loss:.4}");
        }
        Event::Warning(text) | Event::Note(text) => println!("  {text}"),
        Event::Progress { .. } => {}
    };
    // Another thread may set this to stop the run after its step.
    let stop = AtomicBool::new(false);
    let target = RunTarget::New { root: Path::new("runs"), name: Some(&name) };
    let summary = run.run(target, &stop, &mut show)?;

    if let (Some(before), Some(after)) = (&summary.before, &summary.after) {
        println!("DINO {:.3} -> {:.3}", before.dino, after.dino);
    }
    println!(
        "{} parameters in {}",
        summary.num_params,
        summary.folder.join(RunFolder::ADAPTER).display()
    );
    Ok(())
}
