//! Adapter files for transformers in the names of several tools, against diffusers 0.42, PEFT 0.21, LyCORIS
//! 3.2 and ComfyUI.
//!
//! `docs/parity/flux2/lora.py` and `docs/parity/z_image/lora.py` write the files, and the change that each
//! tool makes of every weight.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

#[path = "../../../soda-models/tests/common/mod.rs"]
mod common;
mod files;
mod flux2;
mod z_image;
