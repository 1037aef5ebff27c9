//! The cache on disk, in the layout of Python's `huggingface_hub`.
//!
//! | path in the folder of a repository | content |
//! |---|---|
//! | `refs/REVISION` | the commit of a branch or a tag |
//! | `blobs/ETAG` | a file, named by its content |
//! | `blobs/ETAG.incomplete` | the first part of a file |
//! | `snapshots/COMMIT/PATH` | a link to a blob, or the file itself where links cannot be made |
//!
//! The folder `.locks` of the cache holds a lock for each blob. This is the part of the crate that writes.

mod digest;
mod layout;
mod lock;
mod partial;
mod whole;

#[cfg(test)]
mod fuzz;

pub(crate) use digest::Digest;
pub(crate) use layout::RepoCache;
pub(crate) use partial::Partial;
pub(crate) use whole::{damage_of, is_digest_of};
