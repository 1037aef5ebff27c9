//! The files that a run writes: its folder, charts, HTML pages, TensorBoard events and tensor files.
//!
//! Only `event_log`, `files`, `run_folder` and `tensorboard` change the disk. All other code of the crate
//! writes through them.

pub(crate) mod event_log;
pub(crate) mod files;
pub mod page;
pub mod plot;
pub(crate) mod run_folder;
pub(crate) mod tensor_file;
pub(crate) mod tensorboard;
