//! Adapters in the formats of other tools, by child processes `soda export`, `soda merge` and `soda convert`.
//!
//! What is written lies in the folder `exports` of the run. The folder `.ui/exports/RUN` has the output of
//! each process, which says what the format loses.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use serde::{Deserialize, Serialize};
use soda_train::{RunFolder, TrainConfig};

use super::process;
use crate::id::is_file_below;
use crate::runs::Run;

/// The folder of what is written, in the folder of the run.
const FOLDER: &str = "exports";
/// The most bytes of an output: a line for each layer of a large model.
const MAX_OUTPUT: usize = 256 << 10;
/// The value of `soda export --error` by default, which no name has.
const DEFAULT_ERROR: f64 = 0.05;
/// Strengths that are allowed.
const STRENGTHS: std::ops::RangeInclusive<f64> = -10.0..=10.0;

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    /// A LoRA for ComfyUI, A1111 and diffusers.
    Kohya,
    /// A LoRA for diffusers.
    Diffusers,
    /// A folder for PEFT.
    Peft,
    /// The full changes of the weights.
    Diff,
    /// The new words of textual inversion.
    Embeddings,
    /// A model with the adapter in its weights.
    Model,
    /// That model as a single file.
    Single,
}

/// A request to write the adapter of a run.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ExportForm {
    kind: Kind,
    /// The strength of the adapter, 1 by default.
    strength: Option<f64>,
    /// The largest relative error of a layer of a LoRA.
    error: Option<f64>,
}

/// Something that was written or is to be.
#[derive(Debug, Serialize)]
pub(crate) struct Export {
    name: String,
    path: String,
    /// `running`, `done` or `failed`.
    state: &'static str,
    /// What the process wrote.
    output: String,
}

/// The processes of one server that write adapters.
pub(crate) struct Exports {
    /// The folder of the outputs.
    folder: PathBuf,
    program: PathBuf,
    options: Vec<OsString>,
    children: HashMap<PathBuf, Child>,
}

impl Exports {
    /// Exports whose outputs are in `folder`.
    pub(super) fn new(folder: PathBuf, program: PathBuf, options: Vec<OsString>) -> Self {
        Self { folder, program, options, children: HashMap::new() }
    }

    /// What was written for a run, by name.
    pub(crate) fn list(&mut self, run: &Run) -> Vec<Export> {
        self.children.retain(|_, child| matches!(child.try_wait(), Ok(None)));
        let folder = self.folder.join(&run.name);
        let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        let mut exports: Vec<Export> = entries
            .filter_map(|entry| {
                let file = entry.file_name().into_string().ok()?;
                let name = file.strip_suffix(".log")?.to_owned();
                let (path, log) = (run.path.join(FOLDER).join(&name), entry.path());
                let goes_on = self.children.contains_key(&log) || process::is_running(&log);
                let state = match (goes_on, path.exists()) {
                    (true, _) => "running",
                    (false, true) => "done",
                    (false, false) => "failed",
                };
                let output = process::end_of(&log, MAX_OUTPUT);
                Some(Export { name, path: path.display().to_string(), state, output })
            })
            .collect();
        exports.sort_by(|a, b| a.name.cmp(&b.name));
        exports
    }

    /// Begins to write the adapter of a run.
    ///
    /// # Errors
    /// A sentence that says what is in the way.
    pub(crate) fn start(
        &mut self,
        run: &Run,
        config: &TrainConfig,
        form: &ExportForm,
    ) -> Result<(), String> {
        let strength = form.strength.filter(|strength| STRENGTHS.contains(strength));
        if strength != form.strength {
            return Err("`strength` must be a number from -10 to 10".to_owned());
        }
        if form.error.is_some_and(|error| !(0.0..1.0).contains(&error)) {
            return Err("`error` must be from 0 (lossless) to less than 1".to_owned());
        }
        if self.list(run).iter().any(|export| export.state == "running") {
            return Err(format!("another export of `{}` goes on: wait for its end", run.name));
        }
        let (name, args) = arguments(run, config, form)?;
        if run.path.join(FOLDER).join(&name).exists() {
            return Err(format!("`{FOLDER}/{name}` exists already: remove or rename it"));
        }
        let failed = |error: io::Error| format!("cannot start `soda {}`: {error}", args.verb);
        let log = self.folder.join(&run.name).join(format!("{name}.log"));
        self.prepare(run, &log).map_err(failed)?;
        let mut command = Command::new(&self.program);
        command.arg(args.verb).args(&args.options);
        if args.verb != "convert" {
            command.args(&self.options);
        }
        let child = process::start(&mut command, &log).map_err(failed)?;
        self.children.insert(log, child);
        Ok(())
    }

    /// Makes the folders, and removes the output of an earlier attempt.
    fn prepare(&self, run: &Run, log: &Path) -> io::Result<()> {
        std::fs::create_dir_all(self.folder.join(&run.name))?;
        let folder = run.path.join(FOLDER);
        if folder.is_symlink() {
            return Err(io::Error::other(format!("`{FOLDER}` is a link")));
        }
        std::fs::create_dir_all(folder)?;
        match std::fs::remove_file(log) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// A subcommand of `soda` and its options.
struct Arguments {
    verb: &'static str,
    options: Vec<OsString>,
}

/// The name of what is written, and the command that writes it.
fn arguments(
    run: &Run,
    config: &TrainConfig,
    form: &ExportForm,
) -> Result<(String, Arguments), String> {
    let option = |name: &str, value: &Path| {
        let mut option = OsString::from(format!("--{name}="));
        option.push(value);
        option
    };
    let text = |name: &str, value: &str| OsString::from(format!("--{name}={value}"));
    let (format, end) = match form.kind {
        Kind::Kohya => ("kohya", ".safetensors"),
        Kind::Diffusers => ("diffusers", ".safetensors"),
        Kind::Diff => ("diff", ".safetensors"),
        Kind::Peft => ("peft", ""),
        Kind::Embeddings => ("embeddings", ""),
        Kind::Model => ("model", ""),
        Kind::Single => ("model", ".safetensors"),
    };
    let has_error = matches!(form.kind, Kind::Kohya | Kind::Diffusers | Kind::Peft);
    let has_strength = !matches!(form.kind, Kind::Peft | Kind::Embeddings);
    let strength = form.strength.filter(|strength| has_strength && *strength != 1.0);
    let error = form.error.filter(|error| has_error && *error != DEFAULT_ERROR);
    // The suffix of PEFT's folder would be that of a file.
    let part = |letter: &str, value: Option<f64>| {
        value.map_or_else(String::new, |value| format!("-{letter}{value}")).replace('.', "_")
    };
    let stem = format!("{format}{}{}", part("s", strength), part("e", error));
    let name = format!("{stem}{end}");
    let out = run.path.join(FOLDER).join(&name);
    if form.kind == Kind::Single {
        let model = run.path.join(FOLDER).join(&stem);
        if !model.is_dir() {
            return Err(format!("`{FOLDER}/{stem}` is missing: make the model folder first"));
        }
        let options = vec![option("base", &model), option("out", &out)];
        return Ok((name, Arguments { verb: "convert", options }));
    }
    let adapter = run.path.join(RunFolder::ADAPTER);
    if !is_file_below(&run.path, &adapter) {
        return Err(format!("`{}` has no adapter yet", run.name));
    }
    let base = option("base", &config.base);
    let mut options = vec![base, option("adapter", &adapter), option("out", &out)];
    options.extend(strength.map(|strength| text("strength", &strength.to_string())));
    options.extend(error.map(|error| text("error", &error.to_string())));
    if form.kind == Kind::Model {
        return Ok((name, Arguments { verb: "merge", options }));
    }
    options.push(text("format", format));
    Ok((name, Arguments { verb: "export", options }))
}
