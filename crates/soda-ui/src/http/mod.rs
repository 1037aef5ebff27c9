//! HTTP/1.1, as far as a page on the own machine needs it.
//!
//! The crates for larger servers would add features to crates that the tensor library shares, and build it
//! again. A request has a bounded head and a bounded body with its length; everything else is refused.

mod connection;
mod request;
mod response;

pub(crate) use connection::serve;
pub(crate) use request::{MAX_BODY, Method, Request};
pub(crate) use response::{Answer, Response};
