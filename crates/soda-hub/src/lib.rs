//! Downloads diffusers pipelines from the Hugging Face Hub into the cache of Python's `huggingface_hub`.
//!
//! This crate chooses which files of a repository a pipeline needs: `model_index.json`, configs, tokenizers,
//! and the safetensors weights of one variant. A file that the cache holds is not downloaded again.
//!
//! | term | meaning |
//! |---|---|
//! | repo id | `owner/name`, here with an optional `@revision` |
//! | revision | a branch, a tag or a commit; `main` if none is given |
//! | snapshot | the folder of the cache with the files of one commit |
//! | variant | a suffix of weight files, such as `fp16` |
//!
//! A hub is not trusted. Its names are checked before they become paths. Its files are checked by length and
//! digest before they get their names. The access token goes to the endpoint's own origin only. Every wait
//! has a limit.
//!
//! No other crate of the workspace opens a network connection.
//!
//! ```no_run
//! use soda_hub::Hub;
//!
//! let hub = Hub::from_env()?;
//! let repo_id = "stabilityai/stable-diffusion-xl-base-1.0";
//! let folder = hub.snapshot_download(repo_id, Some("fp16"), &mut |file, done, total| {
//!     eprintln!("{file}: {done} of {total} bytes");
//! })?;
//! assert!(folder.join("model_index.json").is_file());
//! # Ok::<(), soda_hub::HubError>(())
//! ```

mod cache;
mod download;
mod environment;
mod error;
mod failure;
mod http;
mod hub;
mod listing;
mod names;
mod pipeline_files;
mod repo_id;
mod retry;
mod snapshot;
mod weight_files;

#[cfg(test)]
mod fuzz;

pub use error::HubError;
pub use hub::Hub;
pub use repo_id::is_repo_id;
