//! What a server shows and where it listens.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

/// What a server shows and where it listens.
#[derive(Clone, Debug)]
pub struct UiConfig {
    /// The folder of the runs, which is created if it is missing.
    pub runs: PathBuf,
    /// Data folders to show besides those of the runs.
    pub data: Vec<PathBuf>,
    /// The address to listen on.
    pub host: IpAddr,
    /// The port to listen on. With 0 the operating system chooses one.
    pub port: u16,
    /// The token. Without one it is random, which needs a loopback address.
    pub token: Option<String>,
    /// The program `soda`, which does the runs.
    pub program: PathBuf,
    /// Options of every run and drawing, such as `--device=cpu`.
    pub train_options: Vec<OsString>,
}

impl UiConfig {
    /// The settings for runs in `runs` by `program`: 127.0.0.1, any port, a random token.
    pub fn new(runs: PathBuf, program: PathBuf) -> Self {
        Self {
            runs,
            data: Vec::new(),
            host: Ipv4Addr::LOCALHOST.into(),
            port: 0,
            token: None,
            program,
            train_options: Vec::new(),
        }
    }
}
