//! Adapters in the formats of other tools.

use serde_json::json;

use super::App;
use super::runs::read_json;
use crate::http::{Request, Response};
use crate::jobs::ExportForm;
use crate::runs::find;

impl App {
    pub(super) fn list_exports(&self, id: &str) -> Response {
        let Some(run) = find(&self.config.runs, id) else { return Response::not_found() };
        Response::json(&json!({ "exports": self.jobs().exports().list(&run) }))
    }

    pub(super) fn export(&self, id: &str, request: &Request) -> Response {
        let form: ExportForm = match read_json(request) {
            Ok(form) => form,
            Err(refusal) => return refusal,
        };
        let Some(run) = find(&self.config.runs, id) else { return Response::not_found() };
        let Some(config) = run.config() else {
            return Response::error(422, &format!("the settings of `{}` cannot be read", run.name));
        };
        match self.jobs().exports().start(&run, &config, &form) {
            Ok(()) => Response::json(&json!({})),
            Err(sentence) => Response::error(422, &sentence),
        }
    }
}
