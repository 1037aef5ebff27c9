//! Runs: the list, one run, and what starts and ends them.

use std::collections::BTreeSet;

use serde::de::DeserializeOwned;
use serde_json::json;
use soda_adapters::MethodConfig;
use soda_train::{PRESETS, RunFolder, TrainConfig};

use super::App;
use crate::http::{Request, Response};
use crate::runs::{Run, RunDetails, RunState, RunSummary, find, list};
use crate::settings::{RunForm, stem};

impl App {
    pub(super) fn list_runs(&self) -> Response {
        let mut runs: Vec<RunSummary> = list(&self.config.runs).iter().map(Run::summary).collect();
        runs.sort_by(|a, b| b.created.total_cmp(&a.created));
        let mut jobs = self.jobs();
        let starts = jobs.starts();
        Response::json(&json!({ "runs": runs, "starts": starts, "queue": jobs.queue().list() }))
    }

    pub(super) fn run(&self, id: &str) -> Response {
        let Some(run) = find(&self.config.runs, id) else { return Response::not_found() };
        let mut details: RunDetails = run.details();
        let mut jobs = self.jobs();
        // A run that is resumed reads its base before it takes its folder.
        let is_alive = jobs.is_alive(&run.name);
        let over = [RunState::Stopped, RunState::Failed, RunState::Interrupted];
        if is_alive && over.contains(&details.summary.state) {
            details.summary.state = RunState::Starting;
        }
        Response::json(&json!({ "run": details, "output": jobs.output(&run.name) }))
    }

    pub(super) fn run_image(&self, id: &str, name: &str) -> Response {
        let image = find(&self.config.runs, id).and_then(|run| run.read_image(name));
        image.map_or_else(Response::not_found, Response::png)
    }

    pub(super) fn comparison(&self, id: &str) -> Response {
        let run = find(&self.config.runs, id);
        run.map_or_else(Response::not_found, |run| Response::json(&run.comparison()))
    }

    pub(super) fn choices(&self) -> Response {
        let presets =
            PRESETS.iter().map(|preset| json!({"name": preset.name, "about": preset.about}));
        let (mut bases, mut data) = (BTreeSet::new(), BTreeSet::new());
        for run in list(&self.config.runs) {
            if let Some((base, folder)) = run.inputs() {
                bases.insert(base.display().to_string());
                data.insert(folder.display().to_string());
            }
        }
        data.extend(self.config.data.iter().map(|folder| folder.display().to_string()));
        Response::json(&json!({
            "presets": presets.collect::<Vec<_>>(),
            "methods": MethodConfig::NAMES,
            "bases": bases,
            "data": data,
        }))
    }

    pub(super) fn check_settings(&self, request: &Request) -> Response {
        let form: RunForm = match read_json(request) {
            Ok(form) => form,
            Err(refusal) => return refusal,
        };
        let checked = form.checked_name().and_then(|_| form.config());
        match checked.and_then(|config| config.to_toml().map_err(|error| error.to_string())) {
            Ok(toml) => Response::json(&json!({ "toml": toml })),
            // What is not right yet is an answer, and no failure, while the form is filled.
            Err(sentence) => Response::json(&json!({ "error": sentence })),
        }
    }

    pub(super) fn start_run(&self, request: &Request) -> Response {
        let (form, config, toml) = match read_form(request) {
            Ok(form) => form,
            Err(refusal) => return refusal,
        };
        let mut jobs = self.jobs();
        let name = match form.name.trim() {
            "" => {
                let stem = stem(&config);
                let names = (1..=100_000).map(|number| format!("{stem}-{number}"));
                match names.into_iter().find(|name| !jobs.has(name)) {
                    Some(name) => name,
                    None => return Response::error(409, "no number is free: give a name"),
                }
            }
            name if jobs.has(name) => {
                return Response::error(
                    409,
                    &format!("there is a run `{name}`: give another name"),
                );
            }
            name => name.to_owned(),
        };
        if form.queue {
            return match jobs.queue().add(&name, &toml) {
                Ok(()) => Response::json(&json!({ "name": name })),
                Err(error) => Response::error(500, &format!("cannot queue the run: {error}")),
            };
        }
        match jobs.start(&name, &toml) {
            Ok(()) => {
                Response::json(&json!({ "name": name, "id": crate::id::id_of(name.as_ref()) }))
            }
            Err(error) => Response::error(500, &format!("cannot start `soda train`: {error}")),
        }
    }

    /// Begins to predict the memory of a run.
    pub(super) fn plan_memory(&self, request: &Request) -> Response {
        let (_, _, toml) = match read_form(request) {
            Ok(form) => form,
            Err(refusal) => return refusal,
        };
        match self.jobs().plan_memory(&toml) {
            Ok(true) => Response::json(&json!({})),
            Ok(false) => {
                Response::error(409, "a run goes on, and a prediction would take its memory: wait")
            }
            Err(error) => Response::error(500, &format!("cannot start `soda train`: {error}")),
        }
    }

    /// How far the newest prediction is.
    pub(super) fn memory_plan(&self) -> Response {
        Response::json(&self.jobs().memory_plan().report())
    }

    pub(super) fn change_queue(&self, id: &str, change: &str) -> Response {
        let jobs = self.jobs();
        let is_done = match change {
            "remove" => jobs.queue().remove(id),
            _ => jobs.queue().move_up(id),
        };
        if is_done { Response::json(&json!({})) } else { Response::not_found() }
    }

    /// Asks the process of a run to stop, for samples, or for its adapter.
    pub(super) fn ask_run(&self, id: &str, request: &str) -> Response {
        let Some(run) = find(&self.config.runs, id) else { return Response::not_found() };
        if run.is_over() {
            return Response::error(409, &format!("no process works on `{}`", run.name));
        }
        let asked = match request {
            "sample" => RunFolder::request_samples(&run.path),
            "save" => RunFolder::request_adapter(&run.path),
            _ => RunFolder::request_stop(&run.path),
        };
        match asked {
            Ok(()) => Response::json(&json!({})),
            Err(error) => Response::error(500, &error.to_string()),
        }
    }

    pub(super) fn resume_run(&self, id: &str) -> Response {
        let Some(run) = find(&self.config.runs, id) else { return Response::not_found() };
        let mut jobs = self.jobs();
        let state = run.summary().state;
        if jobs.is_alive(&run.name) || [RunState::Running, RunState::Finished].contains(&state) {
            return Response::error(409, &format!("`{}` cannot be resumed now", run.name));
        }
        match jobs.resume(&run) {
            Ok(()) => Response::json(&json!({})),
            Err(error) => Response::error(500, &format!("cannot start `soda train`: {error}")),
        }
    }

    pub(super) fn discard_start(&self, id: &str) -> Response {
        match self.jobs().discard(id) {
            Some(true) => Response::json(&json!({})),
            Some(false) => Response::error(
                409,
                "another `soda ui` started it: wait until it has read its base, and stop it then",
            ),
            None => Response::not_found(),
        }
    }
}

/// The form of a new run, its settings, and these as TOML.
fn read_form(request: &Request) -> Result<(RunForm, TrainConfig, String), Response> {
    let form: RunForm = read_json(request)?;
    let checked = form.checked_name().and_then(|_| form.config());
    let checked = checked.and_then(|config| match config.to_toml() {
        Ok(toml) => Ok((config, toml)),
        Err(error) => Err(error.to_string()),
    });
    match checked {
        Ok((config, toml)) => Ok((form, config, toml)),
        Err(sentence) => Err(Response::error(422, &sentence)),
    }
}

/// The body of a request.
pub(super) fn read_json<T: DeserializeOwned>(request: &Request) -> Result<T, Response> {
    serde_json::from_slice(&request.body)
        .map_err(|error| Response::error(400, &format!("the body is not understood: {error}")))
}
