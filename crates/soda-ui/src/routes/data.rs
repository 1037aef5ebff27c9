//! Data folders: their pictures, captions and findings.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::json;
use soda_train::{MaskSource, TrainConfig, TrainError};

use super::App;
use super::runs::read_json;
use crate::data::{CheckSettings, LARGE, Listing, THUMBNAIL};
use crate::http::{Request, Response};
use crate::id::id_of;
use crate::masks::MaskForm;
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

    /// Some pictures of a folder. The first ones are those of the folder as it is now.
    pub(super) fn data_folder(&self, id: &str, request: &Request) -> Response {
        let Some(folder) = self.find_folder(id) else { return Response::not_found() };
        let start = request.query.strip_prefix("from=").and_then(|text| text.parse().ok());
        let listing = match (start, self.folders.known(id)) {
            (Some(1..), Some(listing)) => Ok(listing),
            _ => self.folders.list(&folder),
        };
        let answer = |listing: Arc<Listing>| {
            let (count, masked) = listing.counts();
            Ok(Response::json(&json!({
                "path": folder.display().to_string(),
                "count": count,
                "masked": masked,
                "mask_source": self.mask_source(&folder),
                "pictures": listing.shown(start.unwrap_or(0))?,
            })))
        };
        let answer: Result<Response, TrainError> = listing.and_then(answer);
        answer.unwrap_or_else(|error| Response::error(422, &error.to_string()))
    }

    pub(super) fn check_data(&self, id: &str, request: &Request) -> Response {
        let Some(folder) = self.find_folder(id) else { return Response::not_found() };
        let last = self.last_config(&folder);
        let resolution = request.query.strip_prefix("resolution=");
        let settings = CheckSettings {
            resolution: resolution
                .and_then(|text| text.parse().ok())
                .filter(|side| RESOLUTIONS.contains(side)),
            base: last.as_ref().map(|config| config.base.clone()),
            prompt: last.as_ref().and_then(|config| config.prompt.clone()),
            trigger: last.and_then(|config| config.trigger),
        };
        match self.folders.check(&folder, &settings) {
            Ok((findings, unchecked)) => {
                Response::json(&json!({ "findings": findings, "unchecked": unchecked }))
            }
            Err(error) => Response::error(422, &error.to_string()),
        }
    }

    pub(super) fn data_image(&self, id: &str, image: &str, request: &Request) -> Response {
        let listing = self.listing(id);
        let picture = listing.and_then(|listing| listing.picture(image, side(request)));
        picture.map_or_else(Response::not_found, Response::png)
    }

    pub(super) fn data_mask(&self, id: &str, image: &str, request: &Request) -> Response {
        let source = match has(request, "source=alpha") {
            true => MaskSource::Alpha,
            false => MaskSource::Files,
        };
        let listing = self.listing(id);
        let mask = listing.and_then(|listing| listing.mask(image, source, side(request)));
        mask.map_or_else(Response::not_found, Response::png)
    }

    pub(super) fn store_mask(&self, id: &str, image: &str, request: &Request) -> Response {
        let form: MaskForm = match read_json(request) {
            Ok(form) => form,
            Err(refusal) => return refusal,
        };
        let Some(listing) = self.listing(id) else { return Response::not_found() };
        match self.uploads.store_mask(&listing, image, &form) {
            Ok(true) => Response::json(&json!({})),
            Ok(false) => Response::not_found(),
            Err(sentence) => Response::error(422, &sentence),
        }
    }

    /// The settings of a run on a folder: the last one by name.
    fn last_config(&self, folder: &Path) -> Option<TrainConfig> {
        let runs = list(&self.config.runs);
        let mut configs = runs.iter().rev().filter_map(|run| run.config());
        configs.find(|config| config.data == folder)
    }

    /// The source of the masks of the last run on a folder.
    fn mask_source(&self, folder: &Path) -> MaskSource {
        let masks = self.last_config(folder).and_then(|config| config.masks);
        masks.map_or_else(MaskSource::default, |masks| masks.source)
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

/// The longer side of a picture that a request asks for.
fn side(request: &Request) -> u32 {
    if has(request, "size=large") { LARGE } else { THUMBNAIL }
}

/// Whether the address of a request has an option.
fn has(request: &Request, option: &str) -> bool {
    request.query.split('&').any(|part| part == option)
}
