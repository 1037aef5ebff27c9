//! `soda ui`

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use soda_ui::{Server, UiConfig, UiError};

use crate::args::{CacheArg, DeviceArg, ToArgv as _};
use crate::progress::{print_result, print_stderr};
use crate::usage::UsageError;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  soda ui
  soda ui --runs runs --data photos/mug --port 7860 --no-open
  soda ui --host 192.168.1.7 --token correct-horse-battery

The page shows every run of the folder, also those of the command line. A run goes on when the page is closed
or this command ends. By default only this machine can open the page (docs/guide/ui.md).")]
pub(crate) struct UiArgs {
    /// Folder of the runs
    #[arg(long, value_name = "DIR", default_value = "runs")]
    pub(crate) runs: PathBuf,
    /// A data folder to show besides those of the runs; may be given several times
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Vec<PathBuf>,
    /// Port of the page; by default a free one
    #[arg(long, default_value_t = 0)]
    pub(crate) port: u16,
    /// Address to listen on; another one than 127.0.0.1 lets other machines in and needs --token
    #[arg(long, value_name = "ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub(crate) host: IpAddr,
    /// The token that opens the page, 16 letters or digits or more; by default a random one
    #[arg(long)]
    pub(crate) token: Option<String>,
    /// Open no browser
    #[arg(long)]
    pub(crate) no_open: bool,
    #[command(flatten)]
    pub(crate) cache: CacheArg,
    #[command(flatten)]
    pub(crate) device: DeviceArg,
}

pub(crate) fn run(args: UiArgs) -> Result<()> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut train_options = Vec::new();
    args.cache.append_to(&mut train_options);
    args.device.append_to(&mut train_options);
    for folder in &args.data {
        ensure!(
            folder.is_dir(),
            "{} is no folder: --data takes a folder of pictures",
            folder.display()
        );
    }
    let is_open_to_others = !args.host.is_loopback();
    let data = args.data.iter().map(std::path::absolute).collect::<Result<_, _>>();
    let config = UiConfig {
        data: data.context("cannot find the data folders")?,
        host: args.host,
        port: args.port,
        token: args.token,
        train_options,
        ..UiConfig::new(args.runs, program)
    };
    let server = Server::bind(config).map_err(|error| match error {
        UiError::Token | UiError::TokenRequired(_) => UsageError::new(error).into(),
        error => anyhow::Error::from(error),
    })?;
    if is_open_to_others {
        print_stderr(
            "warning: whoever has the token can start programs of yours from other machines, and the \
             connection is not encrypted",
        );
    }
    let url = server.url();
    print_result(&url);
    if !args.no_open && !open_browser(&url) {
        print_stderr("open this address in a browser");
    }
    server.run();
    Ok(())
}

/// Opens the page in the user's browser. False if no program for it can be started.
fn open_browser(url: &str) -> bool {
    let (program, args): (&str, &[&str]) = match () {
        () if cfg!(windows) => ("rundll32", &["url.dll,FileProtocolHandler"]),
        () if cfg!(target_os = "macos") => ("open", &[]),
        () => ("xdg-open", &[]),
    };
    let mut command = Command::new(program);
    command.args(args).arg(url);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().is_ok()
}
