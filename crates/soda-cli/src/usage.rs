//! Mistakes on the command line, which end the program with exit code 2.

use std::ffi::OsString;
use std::fmt;
use std::path::Path;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use soda_train::{TrainConfig, TrainError, apply_setting, preset};

/// A command line that has to be typed in another way. Displays as one sentence.
#[derive(Debug)]
pub(crate) struct UsageError(String);

impl UsageError {
    pub(crate) fn new(sentence: impl fmt::Display) -> Self {
        Self(sentence.to_string())
    }
}

impl fmt::Display for UsageError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

/// Options of other trainers, and what has their meaning here.
const OTHER_NAMES: [(&[&str], &str); 7] = [
    (&["learning-rate", "lr", "unet-lr"], "--spectrum-lr, and --rotation-lr for rotations"),
    (&["max-train-steps", "num-steps"], "--steps"),
    (&["train-batch-size"], "--batch-size"),
    (&["instance-prompt", "caption"], "--prompt"),
    (&["instance-data-dir", "train-data-dir"], "--data"),
    (&["weight-decay"], "--set optimizer.spectrum_weight_decay=VALUE"),
    (&["network-dim", "lora-rank", "r"], "--set method.rank=VALUE"),
];

/// Replaces the tip of clap for an unknown option of `soda train` and `soda config`: clap names options that
/// are spelt alike, whatever they mean.
pub(crate) fn with_own_tip(mut error: clap::Error, argv: &[OsString]) -> clap::Error {
    let of_settings = argv.get(1).is_some_and(|verb| verb == "train" || verb == "config");
    let Some(ContextValue::String(option)) = error.get(ContextKind::InvalidArg) else {
        return error;
    };
    let name = option.trim_start_matches('-').to_owned();
    if !of_settings || error.kind() != ErrorKind::UnknownArgument {
        return error;
    }
    let other = OTHER_NAMES.iter().find(|(names, _)| names.contains(&&*name));
    let setting = || setting_named(&name.replace('-', "_"));
    let Some(remedy) = other
        .map(|(_, own)| (*own).to_owned())
        .or_else(|| Some(format!("--set {}=VALUE", setting()?)))
    else {
        return error;
    };
    let remedy =
        value_of(&name, argv).map_or(remedy.clone(), |value| remedy.replace("VALUE", value));
    error.remove(ContextKind::SuggestedArg);
    let tip = ContextValue::StyledStrs(vec![format!("give {remedy}").into()]);
    error.insert(ContextKind::Suggested, tip);
    error
}

/// The value that a command line gives to an option.
fn value_of<'a>(name: &str, argv: &'a [OsString]) -> Option<&'a str> {
    let option = format!("--{name}");
    let mut argv = argv.iter().filter_map(|arg| arg.to_str());
    let rest = argv.find_map(|arg| {
        arg.strip_prefix(&option).filter(|rest| rest.is_empty() || rest.starts_with('='))
    })?;
    rest.strip_prefix('=').or_else(|| argv.next().filter(|value| !value.starts_with('-')))
}

/// The path of a setting by its last name, such as `method.rank` by `rank`. The method is LoRA.
fn setting_named(name: &str) -> Option<String> {
    let mut table = preset("toybox").ok()?;
    for setting in ["base=b", "data=d", "method=lora"] {
        apply_setting(&mut table, setting).ok()?;
    }
    let all = toml::Table::try_from(TrainConfig::from_table(table.clone()).ok()?).ok()?;
    let below = all.iter().filter(|(_, value)| value.is_table());
    let below = below.map(|(key, _)| format!("{key}.{name}"));
    std::iter::once(name.to_owned()).chain(below).find(|path| {
        let mut table = table.clone();
        let is_set = apply_setting(&mut table, &format!("{path}=1")).is_ok();
        // A number may be of the wrong type. The field is known then.
        let unknown = |error: TrainError| error.to_string().contains("unknown field");
        is_set && !TrainConfig::from_table(table).is_err_and(unknown)
    })
}

/// Suffixes of single files with weights.
const WEIGHT_FILES: [&str; 6] = ["safetensors", "ckpt", "pt", "pth", "bin", "sft"];

/// Returns a [`UsageError`] of `sentence` if a folder to be written has the name of a file of weights.
pub(crate) fn require_folder_name(path: &Path, sentence: &str) -> Result<(), UsageError> {
    require(!WEIGHT_FILES.iter().any(|suffix| has_suffix(path, suffix)), sentence)
}

/// Returns a [`UsageError`] if a safetensors file that is to be written has the name of a pickle.
pub(crate) fn require_safetensors_name(path: &Path) -> Result<(), UsageError> {
    let is_pickle = WEIGHT_FILES[1..5].iter().any(|suffix| has_suffix(path, suffix));
    require(!is_pickle, "what is written is no pickle: let --out end with .safetensors")
}

/// Whether a path ends with a suffix, in upper or lower case.
pub(crate) fn has_suffix(path: &Path, suffix: &str) -> bool {
    path.extension().is_some_and(|found| found.eq_ignore_ascii_case(suffix))
}

/// Returns a [`UsageError`] of `sentence` unless `condition` holds.
pub(crate) fn require(condition: bool, sentence: &str) -> Result<(), UsageError> {
    if condition { Ok(()) } else { Err(UsageError::new(sentence)) }
}
