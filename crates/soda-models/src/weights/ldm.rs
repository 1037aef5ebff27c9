//! The keys of the original checkpoints (Latent Diffusion's, OpenCLIP's and those of transformers) and
//! diffusers' keys for them.
//!
//! A [`Layout`] is the table of keys of one network and works in both directions. It is made from the config,
//! since the original numbers all blocks in sequence where diffusers has levels. An entry is a prefix if the
//! rest of the key is the same in both, and otherwise a whole key.

use std::collections::BTreeMap;

use crate::clip::ClipTextConfig;
use crate::original_names::{LayerNames, Rows, TransformerNames};
use crate::unet::{DownBlockType, UnetConfig, UpBlockType};
use crate::vae::VaeConfig;
use crate::weights::checkpoint::Checkpoint;
use crate::weights::safetensors::Entry;

/// How the original stores a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// As diffusers does.
    Same,
    /// A matrix, stored as a 1x1 convolution.
    Kernel,
    /// A transposed matrix.
    Transposed,
    /// One of three tensors that are concatenated along the first axis.
    Third(usize),
    /// The second half of the rows is stored before the first.
    HalvesSwapped,
}

/// A prefix of keys, or a whole key, in both namings.
#[derive(Debug, Clone)]
struct Pair {
    original: String,
    diffusers: String,
    form: Form,
}

/// The keys of one network.
#[derive(Debug, Default)]
pub(crate) struct Layout {
    /// The prefix of all keys in the original, with the dot.
    pub(crate) prefix: &'static str,
    pairs: Vec<Pair>,
    /// Keys of the original that diffusers does not use.
    unread: Vec<String>,
}

impl Layout {
    fn pair(&mut self, original: impl Into<String>, diffusers: impl Into<String>) {
        self.form(Form::Same, original, diffusers);
    }

    fn form(&mut self, form: Form, original: impl Into<String>, diffusers: impl Into<String>) {
        let (original, diffusers) = (original.into(), diffusers.into());
        self.pairs.push(Pair { original, diffusers, form });
    }

    fn pairs_of(&mut self, original: &str, diffusers: &str, names: &[(&str, &str)]) {
        for (a, b) in names {
            self.pair(format!("{original}.{a}"), format!("{diffusers}.{b}"));
        }
    }

    /// Selects the network's tensors from a single file, under diffusers' keys.
    ///
    /// Unknown keys are kept and reported when the network is loaded.
    pub(crate) fn read(&self, file: &Checkpoint) -> Checkpoint {
        let mut names: BTreeMap<&str, Vec<&Pair>> = BTreeMap::new();
        for pair in &self.pairs {
            names.entry(&pair.original).or_default().push(pair);
        }
        let mut entries = BTreeMap::new();
        for (key, entry) in &file.entries {
            let Some(key) = key.strip_prefix(self.prefix) else { continue };
            if self.unread.iter().any(|unread| key.starts_with(unread)) {
                continue;
            }
            let Some((pairs, rest)) = prefixes(key)
                .find_map(|(prefix, rest)| names.get(prefix).map(|pairs| (pairs, rest)))
            else {
                entries.insert(key.to_string(), entry.clone());
                continue;
            };
            for pair in pairs {
                let name = format!("{}{rest}", pair.diffusers);
                entries.insert(name, as_diffusers(entry, pair.form));
            }
        }
        Checkpoint { path: file.path.clone(), entries }
    }

    /// The original key of a diffusers key, and how the tensor is stored there.
    pub(crate) fn original(&self, key: &str) -> Option<(String, Form)> {
        prefixes(key).find_map(|(prefix, rest)| {
            let pair = self.pairs.iter().find(|pair| pair.diffusers == prefix)?;
            Some((format!("{}{}{rest}", self.prefix, pair.original), pair.form))
        })
    }

    /// The layout of the UNet.
    pub(crate) fn unet(config: &UnetConfig) -> Self {
        let mut names = Self { prefix: "model.diffusion_model.", ..Self::default() };
        for (original, diffusers) in [
            ("time_embed.0", "time_embedding.linear_1"),
            ("time_embed.2", "time_embedding.linear_2"),
            ("label_emb.0.0", "add_embedding.linear_1"),
            ("label_emb.0.2", "add_embedding.linear_2"),
            ("input_blocks.0.0", "conv_in"),
            ("out.0", "conv_norm_out"),
            ("out.2", "conv_out"),
            ("middle_block.1", "mid_block.attentions.0"),
        ] {
            names.pair(original, diffusers);
        }
        names.resnet("middle_block.0", "mid_block.resnets.0");
        names.resnet("middle_block.2", "mid_block.resnets.1");
        let last = config.block_out_channels.len() - 1;
        let mut block = 1;
        for level in 0..=last {
            let attention = config.down_block_types[level] == DownBlockType::CrossAttnDownBlock2D;
            let to = format!("down_blocks.{level}");
            for layer in 0..config.layers_per_block.get(level) {
                let from = format!("input_blocks.{block}");
                names.resnet(&format!("{from}.0"), &format!("{to}.resnets.{layer}"));
                if attention {
                    names.pair(format!("{from}.1"), format!("{to}.attentions.{layer}"));
                }
                block += 1;
            }
            if level < last {
                let down = format!("{to}.downsamplers.0.conv");
                names.pair(format!("input_blocks.{block}.0.op"), down);
                block += 1;
            }
        }
        let mut block = 0;
        for (i, kind) in config.up_block_types.iter().enumerate() {
            let attention = *kind == UpBlockType::CrossAttnUpBlock2D;
            let to = format!("up_blocks.{i}");
            let layers = config.layers_per_block.get(last - i);
            for layer in 0..=layers {
                let from = format!("output_blocks.{block}");
                names.resnet(&format!("{from}.0"), &format!("{to}.resnets.{layer}"));
                if attention {
                    names.pair(format!("{from}.1"), format!("{to}.attentions.{layer}"));
                }
                if layer == layers && i < last {
                    // The upsampling layer follows the attention, if there is one.
                    let place = 1 + usize::from(attention);
                    let up = format!("{to}.upsamplers.0.conv");
                    names.pair(format!("{from}.{place}.conv"), up);
                }
                block += 1;
            }
        }
        names
    }

    fn resnet(&mut self, original: &str, diffusers: &str) {
        const NAMES: &[(&str, &str)] = &[
            ("in_layers.0", "norm1"),
            ("in_layers.2", "conv1"),
            ("emb_layers.1", "time_emb_proj"),
            ("out_layers.0", "norm2"),
            ("out_layers.3", "conv2"),
            ("skip_connection", "conv_shortcut"),
        ];
        self.pairs_of(original, diffusers, NAMES);
    }

    /// The layout of the autoencoder.
    pub(crate) fn vae(config: &VaeConfig) -> Self {
        let mut names = Self { prefix: "first_stage_model.", ..Self::default() };
        names.pair("quant_conv", "quant_conv");
        names.pair("post_quant_conv", "post_quant_conv");
        let last = config.block_out_channels.len() - 1;
        for (part, down) in [("encoder", true), ("decoder", false)] {
            for (original, diffusers) in
                [("conv_in", "conv_in"), ("norm_out", "conv_norm_out"), ("conv_out", "conv_out")]
            {
                names.pair(format!("{part}.{original}"), format!("{part}.{diffusers}"));
            }
            for block in 0..2 {
                let to = format!("{part}.mid_block.resnets.{block}");
                names.vae_resnet(&format!("{part}.mid.block_{}", block + 1), &to);
            }
            let (from, to) =
                (format!("{part}.mid.attn_1"), format!("{part}.mid_block.attentions.0"));
            names.pair(format!("{from}.norm"), format!("{to}.group_norm"));
            for (original, diffusers) in
                [("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0")]
            {
                let (from, to) = (format!("{from}.{original}"), format!("{to}.{diffusers}"));
                names.form(Form::Kernel, format!("{from}.weight"), format!("{to}.weight"));
                names.pair(format!("{from}.bias"), format!("{to}.bias"));
            }
            for level in 0..=last {
                let (from, to, change, layers) = if down {
                    let to = format!("{part}.down_blocks.{level}");
                    let change = ("downsample.conv", "downsamplers.0.conv");
                    (format!("{part}.down.{level}"), to, change, config.layers_per_block)
                } else {
                    let to = format!("{part}.up_blocks.{}", last - level);
                    let change = ("upsample.conv", "upsamplers.0.conv");
                    (format!("{part}.up.{level}"), to, change, config.layers_per_block + 1)
                };
                for layer in 0..layers {
                    let to = format!("{to}.resnets.{layer}");
                    names.vae_resnet(&format!("{from}.block.{layer}"), &to);
                }
                names.pairs_of(&from, &to, &[change]);
            }
        }
        names
    }

    fn vae_resnet(&mut self, original: &str, diffusers: &str) {
        const NAMES: &[(&str, &str)] = &[
            ("norm1", "norm1"),
            ("conv1", "conv1"),
            ("norm2", "norm2"),
            ("conv2", "conv2"),
            ("nin_shortcut", "conv_shortcut"),
        ];
        self.pairs_of(original, diffusers, NAMES);
    }

    /// The layout of a text encoder whose original keys are transformers' own.
    pub(crate) fn clip(prefix: &'static str) -> Self {
        let mut names = Self { prefix, ..Self::default() };
        names.pair("text_model", "text_model");
        names
    }

    /// The layout of a text encoder in OpenCLIP's keys.
    pub(crate) fn open_clip(prefix: &'static str, config: &ClipTextConfig) -> Self {
        let mut names = Self { prefix, ..Self::default() };
        let to = "text_model";
        let token = format!("{to}.embeddings.token_embedding");
        names.pair("token_embedding", token);
        let position = format!("{to}.embeddings.position_embedding.weight");
        names.pair("positional_embedding", position);
        names.pair("ln_final", format!("{to}.final_layer_norm"));
        names.unread.push("logit_scale".to_string());
        if config.projection_dim.is_some() {
            names.form(Form::Transposed, "text_projection", "text_projection.weight");
        } else {
            names.unread.push("text_projection".to_string());
        }
        for layer in 0..config.num_hidden_layers {
            let (from, to) =
                (format!("transformer.resblocks.{layer}"), format!("{to}.encoder.layers.{layer}"));
            const NAMES: &[(&str, &str)] = &[
                ("ln_1", "layer_norm1"),
                ("ln_2", "layer_norm2"),
                ("mlp.c_fc", "mlp.fc1"),
                ("mlp.c_proj", "mlp.fc2"),
                ("attn.out_proj", "self_attn.out_proj"),
            ];
            names.pairs_of(&from, &to, NAMES);
            for (third, part) in ["q", "k", "v"].into_iter().enumerate() {
                for kind in ["weight", "bias"] {
                    names.form(
                        Form::Third(third),
                        format!("{from}.attn.in_proj_{kind}"),
                        format!("{to}.self_attn.{part}_proj.{kind}"),
                    );
                }
            }
        }
        // SD 2 was trained on the states before the last layer, which diffusers leaves out.
        let beyond = config.num_hidden_layers;
        names.unread.push(format!("transformer.resblocks.{beyond}."));
        names
    }

    /// The layout of a transformer, in a file in which all keys begin with `prefix`. It has `counts` blocks
    /// of each kind.
    pub(crate) fn transformer<const KINDS: usize>(
        original: &TransformerNames,
        counts: [usize; KINDS],
        prefix: &'static str,
    ) -> Self {
        let mut names = Self { prefix, ..Self::default() };
        names.unread.extend(original.unused.iter().map(|unused| (*unused).to_owned()));
        let norm = original.norm_weight;
        for ((to, from, layers), count) in original.blocks.iter().zip(counts) {
            for block in 0..count {
                let (from, to) = (format!("{from}.{block}."), format!("{to}.{block}."));
                names.transformer_layers(&from, &to, layers, norm);
            }
        }
        names.transformer_layers("", "", original.outside, norm);
        for parameter in original.parameters {
            names.pair(*parameter, *parameter);
        }
        names
    }

    fn transformer_layers(
        &mut self,
        original: &str,
        diffusers: &str,
        layers: LayerNames,
        norm_weight: &str,
    ) {
        for (to, from, rows) in layers {
            let form = match rows {
                Rows::All => Form::Same,
                Rows::Third(index) => Form::Third(*index),
                Rows::HalvesSwapped => Form::HalvesSwapped,
            };
            let (from, to) = (format!("{original}{from}"), format!("{diffusers}{to}"));
            if from.ends_with("_norm") {
                // Written under this name, and read under any.
                self.pair(format!("{from}.{norm_weight}"), format!("{to}.weight"));
            }
            self.form(form, from, to);
        }
    }
}

/// The prefixes of a key that end at a dot, longest first, each with the rest of the key.
fn prefixes(key: &str) -> impl Iterator<Item = (&str, &str)> {
    let dots = key.match_indices('.').map(|(at, _)| at).collect::<Vec<_>>();
    std::iter::once(key.len()).chain(dots.into_iter().rev()).map(|at| key.split_at(at))
}

/// An original tensor as diffusers stores it. A tensor of unexpected shape is returned unchanged, and is
/// refused by its shape when it is loaded.
fn as_diffusers(entry: &Entry, form: Form) -> Entry {
    let mut entry = entry.clone();
    match form {
        Form::Same => {}
        Form::Kernel => {
            if let [_, _, 1, 1] = entry.shape[..] {
                entry.shape.truncate(2);
            }
        }
        Form::Transposed => entry.transposed = true,
        Form::Third(index) => return entry.part(index, 3).unwrap_or(entry),
        Form::HalvesSwapped => {
            let even = entry.shape.first().is_some_and(|rows| rows.is_multiple_of(2));
            entry.halves_swapped = even;
        }
    }
    entry
}
