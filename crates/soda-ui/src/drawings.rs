//! Pictures of one adapter at several strengths, or of two adapters merged, drawn ahead by child processes
//! `soda generate`.
//!
//! With two adapters the first one has its weight in all pictures, and the second one from 0 to its weight.
//!
//! The hidden folder `.ui/drawing` has the pictures of the newest request, in a folder for each strength. A
//! child ends with the server, and with the next request.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use soda_models::input_file::{self, SizeLimit};
use soda_train::{RunFolder, TrainConfig};

use crate::id::is_file_below;
use crate::runs::Run;

/// The strengths, in the order of the slider.
pub(crate) const STRENGTHS: [f64; 5] = [0.0, 0.25, 0.5, 0.75, 1.0];
/// The order in which they are drawn: the ends first.
const ORDER: [usize; 5] = [4, 0, 2, 3, 1];
/// The most characters of a prompt.
const MAX_PROMPT: usize = 4000;
/// The most steps of the sampler.
const MAX_STEPS: u32 = 200;
/// Weights that are allowed.
const WEIGHTS: std::ops::RangeInclusive<f64> = -10.0..=10.0;
/// The most bytes of an error that are shown.
const MAX_ERROR: usize = 2000;
/// The environment variable by which a child of `soda` ends with its parent.
const ENDS_WITH_PARENT: &str = "SODA_ENDS_WITH_PARENT";

/// What is to be drawn.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DrawingForm {
    /// The id of the run.
    pub(crate) run: String,
    pub(crate) prompt: String,
    pub(crate) seed: u64,
    pub(crate) steps: u32,
    /// The id of the run whose adapter is merged with the other one.
    #[serde(default)]
    pub(crate) second: Option<String>,
    /// The weights of the two.
    #[serde(default = "one_each")]
    weights: [f64; 2],
    #[serde(default)]
    mode: Mode,
}

/// How two adapters are merged, see `soda merge --mode`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    #[default]
    Residual,
    Geodesic,
    Compose,
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Self::Residual => "residual",
            Self::Geodesic => "geodesic",
            Self::Compose => "compose",
        }
    }
}

fn one_each() -> [f64; 2] {
    [1.0, 1.0]
}

/// The adapters of a drawing.
#[derive(Clone, Copy)]
pub(crate) struct Adapters<'a> {
    pub(crate) first: &'a Run,
    /// The adapter that is merged with it.
    pub(crate) second: Option<&'a Run>,
}

/// How far the drawing is.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct DrawingState {
    /// The number of the request, which an address of a picture has.
    pub(crate) number: u64,
    /// The request. `None` before the first one.
    pub(crate) form: Option<DrawingForm>,
    /// Which strengths are drawn, in the order of the slider.
    pub(crate) drawn: [bool; 5],
    /// Whether a child works on it.
    pub(crate) is_running: bool,
    /// What the child that failed wrote.
    pub(crate) error: Option<String>,
}

/// The newest drawing of a server.
pub(crate) struct Drawings {
    folder: PathBuf,
    program: PathBuf,
    options: Vec<OsString>,
    shared: Arc<Mutex<Newest>>,
}

#[derive(Default)]
struct Newest {
    state: DrawingState,
    child: Option<Child>,
}

impl DrawingForm {
    /// Checks the numbers and the length of the prompt.
    ///
    /// # Errors
    /// A sentence that names the field.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.prompt.trim().is_empty() || self.prompt.chars().count() > MAX_PROMPT {
            return Err(format!("`prompt` must have 1 to {MAX_PROMPT} characters"));
        }
        if !(1..=MAX_STEPS).contains(&self.steps) {
            return Err(format!("`steps` must be 1 to {MAX_STEPS}"));
        }
        if !self.weights.iter().all(|weight| WEIGHTS.contains(weight)) {
            return Err("`weights` must be numbers from -10 to 10".to_owned());
        }
        Ok(())
    }
}

impl Drawings {
    /// Drawings in the folder `.ui` of the runs.
    pub(crate) fn new(runs: &Path, program: PathBuf, options: Vec<OsString>) -> Self {
        let folder = runs.join(crate::jobs::FOLDER).join("drawing");
        Self { folder, program, options, shared: Arc::default() }
    }

    /// Begins to draw, and ends what was drawn before. Returns the number of the drawing.
    pub(crate) fn start(
        &self,
        adapters: Adapters<'_>,
        config: &TrainConfig,
        form: &DrawingForm,
    ) -> u64 {
        let mut newest = lock(&self.shared);
        if let Some(mut child) = newest.child.take() {
            let _ = child.kill().and_then(|()| child.wait());
        }
        let number = newest.state.number + 1;
        newest.state = DrawingState {
            number,
            form: Some(form.clone()),
            is_running: true,
            ..DrawingState::default()
        };
        let folder = self.folder.join(number.to_string());
        let commands = ORDER.map(|index| {
            let mut command = Command::new(&self.program);
            command.args(arguments(adapters, config, form, STRENGTHS[index]));
            command.args(&self.options);
            command.arg(option("out", folder.join(index.to_string())));
            command.env(ENDS_WITH_PARENT, "1").stdin(Stdio::piped());
            command.stdout(Stdio::null()).stderr(Stdio::piped());
            (index, command)
        });
        let (shared, all) = (Arc::clone(&self.shared), self.folder.clone());
        std::thread::spawn(move || {
            remove_others(&all, number);
            draw_all(&shared, number, commands);
        });
        number
    }

    /// How far the newest drawing is.
    pub(crate) fn state(&self) -> DrawingState {
        lock(&self.shared).state.clone()
    }

    /// The picture of a drawing at a strength, by its place in [`STRENGTHS`].
    pub(crate) fn picture(&self, number: &str, index: &str) -> Option<Vec<u8>> {
        let (number, index): (u64, usize) = (number.parse().ok()?, index.parse().ok()?);
        let state = self.state();
        if state.number != number || !*state.drawn.get(index)? {
            return None;
        }
        let folder = self.folder.join(number.to_string()).join(index.to_string());
        let paths = std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
        let is_png = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "png");
        let path = paths.filter(is_png).find(|path| is_file_below(&self.folder, path))?;
        input_file::read(&path, SizeLimit::IMAGE).ok()
    }
}

/// The option `--name=value`.
fn option(name: &str, value: impl AsRef<OsStr>) -> OsString {
    let mut option = OsString::from(format!("--{name}="));
    option.push(value);
    option
}

/// The options of `soda generate` for a drawing, but the folder. Guidance, size and precisions are those of
/// the first adapter's run.
fn arguments(
    adapters: Adapters<'_>,
    config: &TrainConfig,
    form: &DrawingForm,
    strength: f64,
) -> Vec<OsString> {
    let adapter = |run: &Run| run.path.join(RunFolder::ADAPTER);
    let mut args = vec![
        OsString::from("generate"),
        option("base", &config.base),
        option("prompt", form.prompt.trim()),
        option("seed", form.seed.to_string()),
        option("steps", form.steps.to_string()),
        option("guidance", config.samples.guidance.to_string()),
    ];
    args.push(option("dtype", config.precision.name()));
    args.extend(config.base_precision.map(|format| option("base-precision", format.name())));
    let activations = config.activation_precision.map(|format| format.name());
    args.extend(activations.map(|format| option("activation-precision", format)));
    let offloads =
        [("offload", config.offload), ("text-encoder-offload", config.text_encoder_offload)];
    args.extend(offloads.map(|(name, blocks)| option(name, blocks.to_string())));
    args.extend(config.samples.tile_size.map(|side| option("tile-size", side.to_string())));
    match adapters.second {
        Some(second) => {
            let [first_weight, second_weight] = form.weights;
            let weights = format!("{first_weight},{}", second_weight * strength);
            args.push(option("subject", adapter(adapters.first)));
            args.push(option("style", adapter(second)));
            args.push(option("weights", weights));
            args.push(option("mode", form.mode.name()));
        }
        None => {
            args.push(option("adapter", adapter(adapters.first)));
            args.push(option("strength", strength.to_string()));
        }
    }
    if let Some(side) = config.resolution {
        args.extend(["width", "height"].map(|name| option(name, side.to_string())));
    }
    args
}

fn lock(shared: &Mutex<Newest>) -> MutexGuard<'_, Newest> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes the pictures of earlier drawings, also those of an earlier server.
fn remove_others(folder: &Path, number: u64) {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    for path in entries.map(|entry| entry.path()) {
        if !path.ends_with(number.to_string()) || number == 1 {
            crate::jobs::remove_folder(&path);
        }
    }
}

/// Draws one picture after the other, until one fails or another drawing began.
fn draw_all(shared: &Mutex<Newest>, number: u64, commands: [(usize, Command); 5]) {
    for (index, mut command) in commands {
        let spawned = {
            // Under the lock, so that the next drawing finds every child that was started.
            let mut newest = lock(shared);
            if newest.state.number != number {
                return;
            }
            command.spawn().map(|mut child| {
                let output = child.stderr.take();
                newest.child = Some(child);
                output
            })
        };
        let ended = match spawned {
            Err(error) => Err(format!("cannot start `soda generate`: {error}")),
            Ok(output) => {
                let mut text = Vec::new();
                if let Some(mut output) = output {
                    let _ = std::io::Read::read_to_end(&mut output, &mut text);
                }
                wait(shared, number).and_then(|is_success| match is_success {
                    true => Ok(()),
                    false => Err(end_of(&text)),
                })
            }
        };
        let mut newest = lock(shared);
        if newest.state.number != number {
            return;
        }
        match ended {
            Ok(()) => newest.state.drawn[index] = true,
            Err(sentence) => {
                newest.state.error = Some(sentence);
                break;
            }
        }
    }
    let mut newest = lock(shared);
    if newest.state.number == number {
        newest.state.is_running = false;
    }
}

/// Waits for the child of a drawing. An error if another drawing began.
fn wait(shared: &Mutex<Newest>, number: u64) -> Result<bool, String> {
    loop {
        {
            let mut newest = lock(shared);
            if newest.state.number != number {
                return Err(String::new());
            }
            let Some(child) = &mut newest.child else { return Err(String::new()) };
            match child.try_wait() {
                Ok(Some(status)) => {
                    newest.child = None;
                    return Ok(status.success());
                }
                Ok(None) => {}
                Err(error) => return Err(format!("cannot wait for `soda generate`: {error}")),
            }
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The end of what a child wrote.
fn end_of(output: &[u8]) -> String {
    let end = &output[output.len().saturating_sub(MAX_ERROR)..];
    let text = String::from_utf8_lossy(end).trim().to_owned();
    let last = text.lines().last().unwrap_or("`soda generate` failed");
    last.trim_start_matches("error: ").to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use super::*;

    fn words(form: &serde_json::Value, has_second: bool, more: &str) -> Vec<String> {
        let run = |name: &str| Run {
            id: String::new(),
            path: Path::new("runs").join(name),
            name: name.to_owned(),
        };
        let (first, second) = (run("mug"), run("chalk"));
        let adapters = Adapters { first: &first, second: has_second.then_some(&second) };
        let text = format!("base='b'\ndata='d'\nsteps=1\nbatch_size=1\n{more}");
        let config = TrainConfig::from_toml(&text).unwrap();
        let form: DrawingForm = serde_json::from_value(form.clone()).unwrap();
        form.check().unwrap();
        let words = arguments(adapters, &config, &form, 0.5).into_iter();
        words.map(|word| word.into_string().unwrap()).collect()
    }

    #[track_caller]
    fn assert_all(words: &[String], wanted: &[&str]) {
        for word in wanted {
            assert!(words.iter().any(|found| found == word), "{word}: {words:?}");
        }
    }

    #[test]
    fn a_drawing_has_the_guidance_and_the_size_of_the_runs_samples() {
        let form = serde_json::json!({ "run": "id", "prompt": " --a mug ", "seed": 7, "steps": 9 });
        let sized = words(&form, false, "resolution=48\n[samples]\nguidance=2.5");
        assert_all(&sized, &["--prompt=--a mug", "--seed=7", "--steps=9", "--guidance=2.5"]);
        assert_all(&sized, &["--width=48", "--height=48", "--strength=0.5"]);
        assert_all(&sized, &["--adapter=runs/mug/adapter.safetensors"]);
        let is_size = |word: &&String| word.starts_with("--width") || word.starts_with("--height");
        assert_eq!(words(&form, false, "").iter().filter(is_size).count(), 0);
    }

    #[test]
    fn a_drawing_holds_the_weights_as_the_run_does() {
        let form = serde_json::json!({ "run": "id", "prompt": "a mug", "seed": 7, "steps": 9 });
        let small = "precision='bf16'\nbase_precision='nf4'\noffload=3\ntext_encoder_offload=2\n";
        let of = |settings: &str| words(&form, false, settings);
        let words = of(&format!("{small}[samples]\ntile_size=512"));
        assert_all(&words, &["--dtype=bf16", "--base-precision=nf4", "--offload=3"]);
        assert_all(&words, &["--text-encoder-offload=2", "--tile-size=512"]);
        let fp8 = of("base_precision='fp8'\nactivation_precision='fp8'");
        assert_all(&fp8, &["--base-precision=fp8", "--activation-precision=fp8"]);
    }

    #[test]
    fn the_second_adapter_grows_and_the_first_one_stays() {
        let form = serde_json::json!({
            "run": "id", "prompt": "a mug", "seed": 7, "steps": 9, "second": "other",
            "weights": [0.8, -0.5], "mode": "geodesic",
        });
        let words = words(&form, true, "");
        assert_all(&words, &["--subject=runs/mug/adapter.safetensors", "--mode=geodesic"]);
        assert_all(&words, &["--style=runs/chalk/adapter.safetensors", "--weights=0.8,-0.25"]);
        assert!(!words.iter().any(|word| word.starts_with("--strength")), "{words:?}");
    }
}
