//! The parameter groups of a run: which have their own learning rate and their own last step.

use soda_optim::ParamGroup;
use soda_pipeline::Component;

/// Adapters of the denoiser, and parameters of a module that is no pipeline's.
pub(crate) const DENOISER: ParamGroup = ParamGroup::new("denoiser");
/// Adapters of the text encoders.
pub(crate) const TEXT_ENCODERS: ParamGroup = ParamGroup::new("text");
/// Embeddings of new words.
pub(crate) const TOKENS: ParamGroup = ParamGroup::new("tokens");

/// The group of the parameter at `path`, which starts with the network's name in a pipeline.
pub(crate) fn param_group(path: &str) -> ParamGroup {
    match Component::split_path(path) {
        Some((Component::TextEncoder | Component::TextEncoder2, inside)) => {
            if inside.contains(".new_tokens.") { TOKENS } else { TEXT_ENCODERS }
        }
        _ => DENOISER,
    }
}
