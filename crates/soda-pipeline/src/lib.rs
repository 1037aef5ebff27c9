//! Adapters on diffusion pipelines: where the networks of [`soda_models`] and the methods of
//! [`soda_adapters`] meet.
//!
//! | task | items |
//! |---|---|
//! | read and write adapter files | [`AdapterFile`], [`Header`], [`EmbeddingVectors`] |
//! | put an adapter on a pipeline | [`load_adapter`], [`fuse_adapter`], [`fuse_plans`] |
//! | merge adapters into a pipeline | [`merge_adapters`], [`plan_merge`], [`MergeMode`] |
//! | name the networks and their usual targets | [`Component`], [`TARGET_PRESETS`] |
//! | count things in messages | [`counted`] |
//! | convert files of PEFT, diffusers, kohya's scripts and LyCORIS | [`interop`] |
//!
//! ```no_run
//! use burn::tensor::Device;
//! use soda_models::pipeline::Pipeline;
//! use soda_pipeline::{AdapterFile, LoadAdapterOptions, fuse_adapter};
//!
//! let mut pipeline = Pipeline::load("models/toy".as_ref(), &Device::default())?;
//! let adapter = AdapterFile::read("mug.safetensors".as_ref())?;
//! let options = LoadAdapterOptions { strength: 0.8, ..LoadAdapterOptions::default() };
//! fuse_adapter(&mut pipeline, &adapter, options)?;
//! # Ok::<(), soda_pipeline::PipelineError>(())
//! ```

mod component;
mod counted;
mod error;
mod file;
mod fuse;
mod header;
pub mod interop;
mod load;
mod merge;
mod safetensors_file;
mod target_presets;
mod textual_inversion;

pub use component::Component;
pub use counted::counted;
pub use error::{FormatError, InteropError, PipelineError};
pub use file::{AdapterFile, EmbeddingVectors};
pub use fuse::fuse_plans;
pub use header::Header;
pub use load::{LoadAdapterOptions, configure_pipeline, fuse_adapter, load_adapter};
pub use merge::{MergeMode, MergeOptions, merge_adapters, plan_merge};
pub use target_presets::TARGET_PRESETS;
pub use textual_inversion::embedding_vectors;
