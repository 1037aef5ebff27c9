//! A page in the browser that starts, shows and stops training runs.
//!
//! [`Server`] listens on one address and serves a page whose files are part of the program. A run is a child
//! process `soda train`, and its state is in the files of its folder: the page shows runs that were begun
//! on the command line as well, and a run goes on when the page or the server ends.
//!
//! | module | contents |
//! |---|---|
//! | `http` | requests, responses and connections of HTTP/1.1 |
//! | `guard` | which requests are answered: token, host, origin |
//! | `runs` | the runs of a folder and their states |
//! | `curves` | the curves of a run, for comparisons |
//! | `jobs` | child processes |
//! | `settings` | the settings of a new run |
//! | `data` | data folders, their captions and findings |
//! | `uploads` | pictures that the page sends |
//! | `masks` | masks that the page paints |
//! | `drawings` | pictures of an adapter at several strengths |
//! | `routes` | what each address answers |
//! | `assets` | the page |
//! | `server` | the listener |
//!
//! # Security
//!
//! The server listens on a loopback address unless a token is given. Every request needs the token as a
//! cookie, a known host, and no foreign origin. Runs, pictures and samples have ids, and no path from a
//! request reaches the file system. The crate prints nothing.

mod assets;
mod config;
mod curves;
mod data;
mod drawings;
mod error;
#[cfg(test)]
#[path = "fuzz_tests.rs"]
mod fuzz;
mod guard;
mod http;
mod id;
mod jobs;
mod masks;
mod routes;
mod runs;
mod server;
mod settings;
mod token;
mod uploads;

pub use config::UiConfig;
pub use error::UiError;
pub use server::Server;
