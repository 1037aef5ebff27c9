//! Adapter files of other tools: reading ([`import`]) and writing ([`write_peft`] and the others).
//!
//! | format | names of the UNet's tensors |
//! |---|---|
//! | PEFT directory | `base_model.model.<module>.lora_A.weight`, `….oft_R.weight`, `….hra_u` |
//! | diffusers LoRA | `unet.<module>.lora_A.weight`, `….lora.down.weight` |
//! | diffusers LoRA, old | `unet.<module>.processor.to_q_lora.down.weight` |
//! | kohya LoRA | `lora_unet_<module with _ for .>.lora_down.weight`, names of SDXL's original code |
//! | kohya OFT | `oft_unet_<module with _ for .>.oft_blocks` |
//! | LyCORIS | `lora_unet_<module with _ for .>.hada_w1_a`, `….lokr_w1`, `….oft_blocks`; `lycoris_` |
//! | OneTrainer OFT | `lora_unet_<module with _ for .>.oft_R.weight` |
//! | LyCORIS `diff` | `lora_unet_<module with _ for .>.diff` |
//!
//! Files for FLUX.2 have `transformer.` for `unet.`, and often the names of Black Forest Labs' code:
//!
//! | format | names of the transformer's tensors |
//! |---|---|
//! | diffusers LoRA | `transformer.<module>.lora_A.weight` |
//! | SimpleTuner, LyCORIS' wrapper | `<module>.lokr_w1`, `lycoris_<module with _ for .>.lokr_w1` |
//! | ComfyUI, ai-toolkit | `diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight` |
//! | kohya LoRA | `lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight` |
//!
//! Those for Z-Image have diffusers' names after any of these prefixes, or the names of its authors:
//!
//! | format | names of the transformer's tensors |
//! |---|---|
//! | diffusers, OneTrainer | `transformer.layers.0.attention.to_q.lora_A.weight`, `….lora_down.weight` |
//! | ai-toolkit | `diffusion_model.layers.0.attention.to_q.lora_A.weight`, `….lokr_w1` |
//! | musubi-tuner | `lora_unet_layers_0_attention_to_q.lora_down.weight`, `….hada_w1_a`, `….lokr_w1` |
//! | ComfyUI | `diffusion_model.layers.0.attention.qkv.lora_A.weight` |
//! | kohya LoRA | `lora_unet_layers_0_attention_qkv.lora_down.weight` |
//!
//! The original code of both has one layer for queries, keys and values. It is divided exactly, whatever the
//! method.
//!
//! | format | read | written |
//! |---|---|---|
//! | PEFT directory | LoRA, DoRA, PiSSA, OFT, BOFT, LoHa, LoKr, HRA | LoRA, DoRA, OFT, HRA, exactly |
//! | diffusers LoRA | LoRA, DoRA | LoRA |
//! | kohya LoRA | LoRA, DoRA, OFT | LoRA |
//! | LyCORIS | LoRA, LoHa, LoKr, each with DoRA's magnitude, and OFT | |
//! | LyCORIS `diff` | yes | any method, exactly |
//!
//! Every tensor and every field of a configuration is used, listed in [`Imported`], or refused by name. A
//! network has one method here. Layers of other methods than the rest become whole deltas.
//!
//! | format | names of the first text encoder | of the second |
//! |---|---|---|
//! | PEFT | a directory `text_encoder` beside `unet` | `text_encoder_2` |
//! | diffusers | `text_encoder.` | `text_encoder_2.` |
//! | kohya, LyCORIS | `lora_te_`; with two text encoders `lora_te1_` | `lora_te2_` |
//!
//! Embeddings (Textual Inversion) in files of their own or in a LoRA's file:
//!
//! | format | names | read | written |
//! |---|---|---|---|
//! | diffusers' Textual Inversion | `<token>` | yes | for one text encoder |
//! | kohya's scripts | `emb_params`; `clip_l` and `clip_g` | yes | for two text encoders |
//! | bundled with a LoRA | `bundle_emb.<token>.…` | yes | |
//!
//! [`describe`] tells what a file is without a base model.
//!
//! An adapter that is not a LoRA becomes one by a truncated SVD of its delta ([`compress_to_lora`]). Each
//! layer has the rank that its error budget needs, and a report of its error.

mod architecture;
mod compress;
mod convert;
mod description;
mod embedding_files;
mod export;
mod export_peft;
mod export_settings;
mod import;
mod key_names;
mod layer_tensors;
mod layers;
mod ordered_json;
mod original_names;
mod pattern_table;
mod peft;
mod sgm_names;
mod staging;
mod weight_names;

pub use compress::{
    AlphaRule, CompressedLora, CompressionBudget, LayerReport, LoraLayer, compress_to_lora,
};
pub use description::{Description, FileKind, LayerNames, Names, describe};
pub use embedding_files::write_embeddings;
pub use export::{write_diff, write_diffusers, write_kohya};
pub use export_peft::{round_for_peft, write_peft};
pub use export_settings::{ExportSettings, iso_8601};
pub use import::{Imported, import};
