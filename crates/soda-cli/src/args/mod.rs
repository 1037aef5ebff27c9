//! Options that several commands share.

mod argv;
mod cache;
mod device;
mod merged;
mod number;
mod prompt_encoding;
mod settings;
mod storage;
mod weights;

pub(crate) use self::argv::{ToArgv, option, repeated};
pub(crate) use self::cache::CacheArg;
pub(crate) use self::device::DeviceArg;
pub(crate) use self::merged::{MergeModeName, MergedArgs};
pub(crate) use self::number::{finite, seed};
pub(crate) use self::prompt_encoding::PromptEncodingArgs;
pub(crate) use self::settings::SettingsArgs;
pub(crate) use self::storage::StorageArgs;
pub(crate) use self::weights::WeightsArgs;
