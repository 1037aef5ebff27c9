//! Keys of checkpoints that differ from the paths of burn's parameters.

/// Key renames of older files, as (regular expression, replacement), applied in order.
///
/// diffusers renamed the autoencoder's attention in version 0.13. Every Stable Diffusion 1.x file has the old
/// names, and diffusers applies the same table when it loads one.
pub const KEY_RENAMES: &[(&str, &str)] = &[
    (r"(mid_block\.attentions\.0)\.query\.", "$1.to_q."),
    (r"(mid_block\.attentions\.0)\.key\.", "$1.to_k."),
    (r"(mid_block\.attentions\.0)\.value\.", "$1.to_v."),
    (r"(mid_block\.attentions\.0)\.proj_attn\.", "$1.to_out.0."),
];

/// Ends of keys that no forward pass reads: the numbers 0, 1, 2, ... of older exporters, the mask token of
/// DINOv2's training, and the batches that statistics of latents were taken of.
pub(super) const BUFFERS: &[&str] = &["position_ids", "mask_token", "bn.num_batches_tracked"];

/// The checkpoint's key of a burn parameter. Only the parameters of norms have other names.
pub(super) fn checkpoint_key(name: &str, module: &str) -> String {
    match name.rsplit_once('.') {
        Some((layer, "gamma")) if module.ends_with("Norm") => format!("{layer}.weight"),
        Some((layer, "beta")) if module.ends_with("Norm") => format!("{layer}.bias"),
        _ => name.to_string(),
    }
}
