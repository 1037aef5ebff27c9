//! Files and folders that appear whole or not at all, and locks.
//!
//! A staged file or folder lies beside its target, is synchronised and is renamed when it is complete. Its
//! permissions are those that the user's umask gives to any new file.
//!
//! [`has_room`] says whether a folder takes more bytes.
//!
//! A killed process leaves its staged files and folders. The next process that writes to the same folder
//! removes those whose owner is gone, see [`remove_leftovers`].

mod leftovers;
mod lock;
mod room;
mod staged;

pub use leftovers::remove_leftovers;
pub use lock::Lock;
pub use room::has_room;
pub use staged::{StagedFile, StagedFolder, write};
