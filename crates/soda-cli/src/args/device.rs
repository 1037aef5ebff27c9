//! The option `--device`.

use std::ffi::OsString;

use clap::Args;

use super::argv::{ToArgv, option};
use crate::device::{DeviceChoice, help};

#[derive(Clone, Debug, Default, PartialEq, Args)]
pub(crate) struct DeviceArg {
    #[arg(long, value_name = "DEVICE", default_value_t, help = help())]
    pub(crate) device: DeviceChoice,
}

impl ToArgv for DeviceArg {
    fn append_to(&self, argv: &mut Vec<OsString>) {
        argv.push(option("device", self.device.to_string()));
    }
}
