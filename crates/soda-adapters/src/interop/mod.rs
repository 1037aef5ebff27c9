//! Adapter files of other tools, in and out.
//!
//! | format | names of the UNet | read | written |
//! |---|---|---|---|
//! | PEFT directory | `base_model.model.<module>.lora_A.weight`, `….oft_R.weight` | LoRA, DoRA, OFT | the same, exactly |
//! | diffusers LoRA | `unet.<module>.lora_A.weight`, `….lora.down.weight`, `….processor.to_q_lora.down.weight` | LoRA, DoRA | LoRA |
//! | kohya LoRA | `lora_unet_<module with _ for .>.lora_down.weight`, SDXL's sgm names too | LoRA, DoRA | LoRA |
//! | LyCORIS | `lora_unet_<module with _ for .>.hada_w1_a`, `….lokr_w1` | LoHa, LoKr | |
//! | LyCORIS `diff` | `lora_unet_<module with _ for .>.diff` | | any method, exactly |
//!
//! | the text encoders' names | first | second |
//! |---|---|---|
//! | PEFT | a directory `text_encoder` beside `unet` | `text_encoder_2` |
//! | diffusers | `text_encoder.` | `text_encoder_2.` |
//! | kohya, LyCORIS | `lora_te_`, where there are two `lora_te1_` | `lora_te2_` |
//!
//! Words that were learnt beside a LoRA, or alone, are in [`write_embeddings`] and [`import`]:
//!
//! | format | names | read | written |
//! |---|---|---|---|
//! | diffusers' Textual Inversion | `<word>` | yes | of one text encoder |
//! | kohya's | `emb_params`; `clip_l` and `clip_g` | yes | of two |
//! | in a LoRA's file | `bundle_emb.<word>.…` | yes | |
//!
//! A method that is no LoRA becomes one by a truncated SVD of its delta, with a rank of each layer's own
//! from a budget for the error ([`compress`]), and a report that says what was lost.

mod compress;
mod config;
mod embedding;
mod lycoris;
mod names;
mod read;
mod write;

pub use compress::{Budget, Compressed, Loss, compress};
pub use embedding::write_embeddings;
pub use read::{Imported, import};
pub use write::{write_diff, write_diffusers, write_kohya, write_peft};
