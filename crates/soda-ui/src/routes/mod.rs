//! What each address answers.
//!
//! | address | answer |
//! |---|---|
//! | `GET /`, `GET /assets/...` | the page |
//! | `GET /api/runs` | all runs, starts, and runs that wait |
//! | `POST /api/runs` | starts a run, or lets it wait |
//! | `POST /api/queue/ID/up`, `.../remove` | moves or removes a run that waits |
//! | `POST /api/settings` | the settings of a form as TOML, or what is wrong with them |
//! | `POST /api/memory-plan`, `GET ...` | predicts the memory of a run, and how far that is |
//! | `GET /api/choices` | presets, methods, known bases and data folders |
//! | `GET /api/runs/ID` | a run |
//! | `GET /api/runs/ID/events` | its log, as server-sent events |
//! | `GET /api/runs/ID/images/NAME` | a grid of samples |
//! | `GET /api/runs/ID/comparison` | its curves, settings and scores |
//! | `POST /api/runs/ID/stop`, `.../resume` | stops or resumes it |
//! | `POST /api/runs/ID/sample`, `.../save` | asks it for samples or for its adapter |
//! | `GET /api/runs/ID/exports`, `POST ...` | what its adapter was written to, or writes it |
//! | `POST /api/starts/ID/discard` | ends a run that has no folder yet, or forgets it |
//! | `GET /api/data`, `GET /api/data/ID` | data folders, and some pictures of one: `from=300` |
//! | `GET /api/data/ID/check` | findings |
//! | `GET /api/data/ID/images/ID`, `.../masks/ID` | a picture or its mask, reduced |
//! | `PUT /api/data/ID/masks/ID` | writes a mask |
//! | `POST /api/data/ID/pictures` | stores a picture |
//! | `PUT /api/data/ID/captions/ID` | writes a caption |
//! | `GET /api/adapters` | runs with an adapter |
//! | `POST /api/drawings` | draws with an adapter at several strengths, or with two |
//! | `GET /api/drawing`, `GET /api/drawings/NUMBER/INDEX` | how far it is, and its pictures |

mod data;
mod events;
mod exports;
mod play;
mod runs;

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::assets::asset;
use crate::config::UiConfig;
use crate::data::DataFolders;
use crate::drawings::Drawings;
use crate::error::UiError;
use crate::http::{Answer, Method, Request, Response};
use crate::jobs::Jobs;
use crate::uploads::Uploads;

/// What all connections share.
pub(crate) struct App {
    config: UiConfig,
    jobs: Mutex<Jobs>,
    folders: DataFolders,
    drawings: Drawings,
    uploads: Uploads,
}

impl App {
    pub(crate) fn new(mut config: UiConfig) -> Result<Self, UiError> {
        let runs = |source| UiError::Runs { path: config.runs.clone(), source };
        // Children may have another folder.
        let absolute = std::path::absolute(&config.runs).map_err(runs)?;
        let jobs =
            Jobs::new(absolute.clone(), config.program.clone(), config.train_options.clone());
        let jobs = Mutex::new(jobs.map_err(runs)?);
        let options = config.train_options.clone();
        let drawings = Drawings::new(&absolute, config.program.clone(), options);
        config.runs = absolute;
        let (folders, uploads) = (DataFolders::default(), Uploads::default());
        Ok(Self { config, jobs, folders, drawings, uploads })
    }

    fn jobs(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the next run that waits, if it is its turn.
    pub(crate) fn advance(&self) {
        self.jobs().advance();
    }

    /// The most bytes of the body of a request.
    pub(crate) fn body_limit(&self, request: &Request) -> usize {
        let path: Vec<&str> = request.path.split('/').skip(1).collect();
        match (request.method, path.as_slice()) {
            (Method::Post, ["api", "data", _, "pictures"]) => crate::uploads::MAX_BODY,
            (Method::Put, ["api", "data", _, "masks", _]) => crate::masks::MAX_BODY,
            _ => crate::http::MAX_BODY,
        }
    }

    /// The answer to a request that the guard lets pass.
    pub(crate) fn answer(&self, request: &Request) -> Answer {
        let path: Vec<&str> = request.path.split('/').skip(1).collect();
        match (request.method, path.as_slice()) {
            (Method::Get, ["api", "runs"]) => self.list_runs().into(),
            (Method::Post, ["api", "runs"]) => self.start_run(request).into(),
            (Method::Post, ["api", "settings"]) => self.check_settings(request).into(),
            (Method::Post, ["api", "memory-plan"]) => self.plan_memory(request).into(),
            (Method::Get, ["api", "memory-plan"]) => self.memory_plan().into(),
            (Method::Get, ["api", "choices"]) => self.choices().into(),
            (Method::Get, ["api", "runs", id]) => self.run(id).into(),
            (Method::Get, ["api", "runs", id, "events"]) => self.events(id, request),
            (Method::Get, ["api", "runs", id, "comparison"]) => self.comparison(id).into(),
            (Method::Get, ["api", "runs", id, "images", name]) => self.run_image(id, name).into(),
            (Method::Get, ["api", "runs", id, "exports"]) => self.list_exports(id).into(),
            (Method::Post, ["api", "runs", id, "exports"]) => self.export(id, request).into(),
            (Method::Post, ["api", "runs", id, request @ ("stop" | "sample" | "save")]) => {
                self.ask_run(id, request).into()
            }
            (Method::Post, ["api", "runs", id, "resume"]) => self.resume_run(id).into(),
            (Method::Post, ["api", "queue", id, change @ ("up" | "remove")]) => {
                self.change_queue(id, change).into()
            }
            (Method::Post, ["api", "starts", id, "discard"]) => self.discard_start(id).into(),
            (Method::Get, ["api", "data"]) => self.list_data().into(),
            (Method::Get, ["api", "data", id]) => self.data_folder(id, request).into(),
            (Method::Get, ["api", "data", id, "check"]) => self.check_data(id, request).into(),
            (Method::Get, ["api", "data", id, "images", image]) => {
                self.data_image(id, image, request).into()
            }
            (Method::Get, ["api", "data", id, "masks", image]) => {
                self.data_mask(id, image, request).into()
            }
            (Method::Put, ["api", "data", id, "masks", image]) => {
                self.store_mask(id, image, request).into()
            }
            (Method::Post, ["api", "data", id, "pictures"]) => {
                self.store_picture(id, request).into()
            }
            (Method::Put, ["api", "data", id, "captions", image]) => {
                self.write_caption(id, image, request).into()
            }
            (Method::Get, ["api", "adapters"]) => self.adapters().into(),
            (Method::Post, ["api", "drawings"]) => self.draw(request).into(),
            (Method::Get, ["api", "drawing"]) => self.drawing().into(),
            (Method::Get, ["api", "drawings", number, index]) => {
                self.drawn_picture(number, index).into()
            }
            (Method::Get, _) => match asset(&request.path) {
                Some(asset) => Response::file(asset.content_type, asset.bytes.to_vec()).into(),
                None => Response::not_found().into(),
            },
            _ => Response::not_found().into(),
        }
    }
}
