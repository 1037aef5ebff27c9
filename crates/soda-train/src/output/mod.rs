//! Files that a run writes: its folder, figures, pages, TensorBoard events, tensors.

pub mod page;
pub mod plot;
pub(crate) mod run_folder;
pub(crate) mod tensor_file;
pub(crate) mod tensorboard;
