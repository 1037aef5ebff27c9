//! Requests to a hub: URLs, redirects, the access token's rule, timeouts, and what headers say of a file.

mod client;
mod metadata;
mod redirect;
mod url;

pub(crate) use client::{Answer, Client};
pub(crate) use metadata::{FileMetadata, file_metadata, range_of};
pub(crate) use url::Url;

#[cfg(test)]
pub(crate) use metadata::Hops;
#[cfg(test)]
pub(crate) use redirect::target;
