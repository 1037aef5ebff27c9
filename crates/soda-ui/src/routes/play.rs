//! Pictures of an adapter at several strengths, or of two adapters.

use serde_json::json;

use super::App;
use super::runs::read_json;
use crate::drawings::{Adapters, DrawingForm, STRENGTHS};
use crate::http::{Request, Response};
use crate::runs::{find, list};

impl App {
    /// The runs that have an adapter.
    pub(super) fn adapters(&self) -> Response {
        let runs = list(&self.config.runs);
        let with = runs.iter().filter(|run| run.has_adapter()).map(|run| {
            let summary = run.summary();
            let prompt = run.config().and_then(|config| config.samples.prompts.first().cloned());
            json!({ "id": run.id, "name": run.name, "base": summary.base, "prompt": prompt })
        });
        Response::json(&json!({ "adapters": with.collect::<Vec<_>>(), "strengths": STRENGTHS }))
    }

    pub(super) fn draw(&self, request: &Request) -> Response {
        let form: DrawingForm = match read_json(request) {
            Ok(form) => form,
            Err(refusal) => return refusal,
        };
        if let Err(sentence) = form.check() {
            return Response::error(422, &sentence);
        }
        let run = find(&self.config.runs, &form.run).filter(|run| run.has_adapter());
        let Some(run) = run else { return Response::not_found() };
        let Some(config) = run.config() else {
            return Response::error(422, &format!("the settings of `{}` cannot be read", run.name));
        };
        let second = form.second.as_deref().filter(|id| !id.is_empty());
        let second = match second.map(|id| find(&self.config.runs, id)) {
            None => None,
            Some(Some(second)) if second.has_adapter() => Some(second),
            Some(_) => return Response::not_found(),
        };
        if let Some(second) = &second
            && second.config().is_none_or(|other| other.base != config.base)
        {
            let (first, second) = (&run.name, &second.name);
            return Response::error(422, &format!("`{first}` and `{second}` have different bases"));
        }
        let adapters = Adapters { first: &run, second: second.as_ref() };
        Response::json(&json!({ "number": self.drawings.start(adapters, &config, &form) }))
    }

    pub(super) fn drawing(&self) -> Response {
        Response::json(&self.drawings.state())
    }

    pub(super) fn drawn_picture(&self, number: &str, index: &str) -> Response {
        self.drawings.picture(number, index).map_or_else(Response::not_found, Response::png)
    }
}
