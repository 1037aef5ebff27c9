//! Reading `config.json` files: every field is honoured or refused, none is ignored.
//!
//! diffusers' configs list every argument of a constructor, most of them at the value that switches a feature
//! off. A reader that skipped unknown fields would load a model whose feature is *on*, and generate other
//! images.
//!
//! So a config struct lists the fields that it honours. A table lists the other fields with the values at
//! which they have no effect.

pub(crate) mod bounds;
mod file;
pub(crate) mod pretrained;

pub(crate) use file::json_text;
pub use file::{ConfigFile, InvalidField, read};
