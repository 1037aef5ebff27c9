//! Data folders: their pictures, captions and findings.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::json;

use super::App;
use super::runs::read_json;
use crate::data::{CheckSettings, Listing, check};
use crate::http::{Request, Response};
use crate::id::id_of;
use crate::runs::list;
use crate::uploads::UploadForm;

/// The sides of training images that are checked, in pixels, as those of `soda data check`.
const RESOLUTIONS: std::ops::RangeInclusive<u32> = 8..=16384;

/// The body of a write of a caption.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CaptionForm {
    caption: String,
}

impl App {
    /// The folders that may be shown: those of the runs and of the command line.
    fn data_folders(&self) -> BTreeSet<PathBuf> {
        let runs = list(&self.config.runs);
        let of_runs = runs.iter().filter_map(|run| run.inputs()).map(|(_, data)| data);
        of_runs.chain(self.config.data.iter().cloned()).filter(|folder| folder.is_dir()).collect()
    }

    fn find_folder(&self, id: &str) -> Option<PathBuf> {
        self.data_folders().into_iter().find(|folder| id_of(folder) == id)
    }

    /// The listing of a folder, which is made if there is none.
    fn listing(&self, id: &str) -> Option<Arc<Listing>> {
        self.folders.known(id).or_else(|| self.folders.list(&self.find_folder(id)?).ok())
    }

    pub(super) fn list_data(&self) -> Response {
        let folders = self.data_folders();
        let folders = folders.iter().map(|folder| {
            let name = folder.file_name().unwrap_or(folder.as_os_str()).to_string_lossy();
            json!({ "id": id_of(folder), "name": name, "path": folder.display().to_string() })
        });
        Response::json(&folders.collect::<Vec<_>>())
    }

    pub(super) fn data_folder(&self, id: &str) -> Response {
        let Some(folder) = self.find_folder(id) else { return Response::not_found() };
        match self.folders.list(&folder) {
            Ok(listing) => Response::json(&json!({
                "path": folder.display().to_string(),
                "pictures": listing.pictures,
            })),
            Err(error) => Response::error(422, &error.to_string()),
        }
    }

    pub(super) fn check_data(&self, id: &str, request: &Request) -> Response {
        let Some(folder) = self.find_folder(id) else { return Response::not_found() };
        let runs = list(&self.config.runs);
        let configs = runs.iter().filter_map(|run| run.config());
        let mut configs = configs.filter(|config| config.data == folder);
        let last = configs.next_back();
        let resolution = request.query.strip_prefix("resolution=");
        let settings = CheckSettings {
            resolution: resolution
                .and_then(|text| text.parse().ok())
                .filter(|side| RESOLUTIONS.contains(side)),
            base: last.as_ref().map(|config| config.base.clone()),
            prompt: last.as_ref().and_then(|config| config.prompt.clone()),
            trigger: last.and_then(|config| config.trigger),
        };
        match check(&folder, &settings) {
            Ok((findings, unchecked)) => {
                Response::json(&json!({ "findings": findings, "unchecked": unchecked }))
            }
            Err(error) => Response::error(422, &error.to_string()),
        }
    }

    pub(super) fn data_image(&self, id: &str, image: &str) -> Response {
        let listing = self.listing(id);
        let picture = listing.and_then(|listing| listing.thumbnail(image));
        picture.map_or_else(Response::not_found, Response::png)
    }

    pub(super) fn data_mask(&self, id: &str, image: &str) -> Response {
        let mask = self.listing(id).and_then(|listing| listing.mask(image));
        mask.map_or_else(Response::not_found, Response::png)
    }

    pub(super) fn store_picture(&self, id: &str, request: &Request) -> Response {
        let form: UploadForm = match read_json(request) {
            Ok(form) => form,
            Err(refusal) => return refusal,
        };
        let Some(folder) = self.find_folder(id) else { return Response::not_found() };
        match self.uploads.store(&folder, &form) {
            Ok((name, is_new)) => Response::json(&json!({ "name": name, "is_new": is_new })),
            Err(sentence) => Response::error(422, &sentence),
        }
    }

    pub(super) fn write_caption(&self, id: &str, image: &str, request: &Request) -> Response {
        let form: CaptionForm = match read_json(request) {
            Ok(form) => form,
            Err(refusal) => return refusal,
        };
        let Some(listing) = self.listing(id) else { return Response::not_found() };
        match listing.write_caption(image, &form.caption) {
            Ok(true) => Response::json(&json!({})),
            Ok(false) => Response::not_found(),
            Err(sentence) => Response::error(422, &sentence),
        }
    }
}
