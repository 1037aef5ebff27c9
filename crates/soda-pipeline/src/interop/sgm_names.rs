//! Module names of Stability's original code (`sgm`), which kohya's files for SDXL have.
//!
//! The original code numbers the blocks of a UNet through all levels: `input_blocks.4.1` is what diffusers
//! calls `down_blocks.1.attentions.0`. The numbers follow from how many layers each level has.

use std::collections::BTreeMap;

use burn::module::Module;
use soda_adapters::named_params;

use crate::component::Component;

/// Converts the names of a UNet's modules from diffusers' to those of the original code.
#[derive(Clone, Debug, Default)]
pub(super) struct SgmNames {
    /// The number of resnets of each down block.
    down: Vec<usize>,
    /// The number of resnets of each up block, and whether attentions follow them.
    up: Vec<(usize, bool)>,
}

impl SgmNames {
    /// Counts the layers of the UNet of `networks`, a module with a field for each component.
    pub(super) fn from_networks<M: Module>(networks: &M) -> Self {
        let params = named_params(networks);
        let module = |path| match Component::split_path(path) {
            Some((Component::Unet, weight)) => weight.strip_suffix(".weight"),
            _ => None,
        };
        Self::from_modules(params.iter().filter_map(|param| module(&param.path)))
    }

    /// Counts the layers of a UNet. `modules` are the paths of all its modules with weights.
    fn from_modules<'a>(modules: impl IntoIterator<Item = &'a str>) -> Self {
        let (mut down, mut up) = (BTreeMap::new(), BTreeMap::new());
        let mut with_attention = Vec::new();
        for module in modules {
            let Some(Block { blocks, level, kind, layer, .. }) = Block::parse(module) else {
                continue;
            };
            let levels = if blocks == "down_blocks" { &mut down } else { &mut up };
            let layers: &mut usize = levels.entry(level).or_default();
            if kind == "resnets" {
                *layers = (*layers).max(layer + 1);
            }
            if blocks == "up_blocks" && kind == "attentions" {
                with_attention.push(level);
            }
        }
        let up = up.into_iter().map(|(level, layers)| (layers, with_attention.contains(&level)));
        Self { up: up.collect(), down: down.into_values().collect() }
    }

    /// Returns the name of a module in the original code, with dots; `None` for a module that it lacks.
    pub(super) fn original(&self, module: &str) -> Option<String> {
        if let Some(rest) = module.strip_prefix("mid_block.") {
            let (kind, rest) = rest.split_once('.')?;
            let (layer, rest) = rest.split_once('.')?;
            let layer: usize = layer.parse().ok()?;
            return match kind {
                "resnets" => Some(format!("middle_block.{}.{}", 2 * layer, resnet(rest)?)),
                "attentions" => Some(format!("middle_block.{}.{rest}", 2 * layer + 1)),
                _ => None,
            };
        }
        let Some(Block { blocks, level, kind, layer, rest }) = Block::parse(module) else {
            let renamed = RENAMED.iter().find(|(name, _)| *name == module);
            return renamed.map(|(_, original)| (*original).to_owned());
        };
        if blocks == "down_blocks" {
            let layers = *self.down.get(level)?;
            // Block 0 is the first convolution. A downsampler is a block of its own.
            let first = 1 + self.down.iter().take(level).map(|layers| layers + 1).sum::<usize>();
            return match (kind, rest) {
                ("downsamplers", "conv") => Some(format!("input_blocks.{}.0.op", first + layers)),
                ("resnets", _) => {
                    Some(format!("input_blocks.{}.0.{}", first + layer, resnet(rest)?))
                }
                ("attentions", _) => Some(format!("input_blocks.{}.1.{rest}", first + layer)),
                _ => None,
            };
        }
        let (layers, attention) = *self.up.get(level)?;
        let first = self.up.iter().take(level).map(|(layers, _)| layers).sum::<usize>();
        match (kind, rest) {
            ("upsamplers", "conv") => {
                // The upsampler follows the attention, or takes its place in a level without attention.
                let (block, place) = ((first + layers).checked_sub(1)?, 1 + usize::from(attention));
                Some(format!("output_blocks.{block}.{place}.conv"))
            }
            ("resnets", _) => Some(format!("output_blocks.{}.0.{}", first + layer, resnet(rest)?)),
            ("attentions", _) => Some(format!("output_blocks.{}.1.{rest}", first + layer)),
            _ => None,
        }
    }
}

/// A module in a block, as `down_blocks.<level>.<kind>.<layer>.<rest>`.
struct Block<'a> {
    blocks: &'a str,
    level: usize,
    kind: &'a str,
    layer: usize,
    rest: &'a str,
}

impl<'a> Block<'a> {
    fn parse(module: &'a str) -> Option<Self> {
        let mut parts = module.splitn(5, '.');
        let blocks = parts.next().filter(|name| matches!(*name, "down_blocks" | "up_blocks"))?;
        let level = parts.next()?.parse().ok()?;
        let kind = parts.next()?;
        let layer = parts.next()?.parse().ok()?;
        Some(Self { blocks, level, kind, layer, rest: parts.next()? })
    }
}

/// Modules outside of the blocks, by diffusers' name.
const RENAMED: &[(&str, &str)] = &[
    ("conv_in", "input_blocks.0.0"),
    ("conv_out", "out.2"),
    ("time_embedding.linear_1", "time_embed.0"),
    ("time_embedding.linear_2", "time_embed.2"),
    ("add_embedding.linear_1", "label_emb.0.0"),
    ("add_embedding.linear_2", "label_emb.0.2"),
];

/// Converts the name of a layer inside a resnet.
fn resnet(layer: &str) -> Option<&'static str> {
    Some(match layer {
        "conv1" => "in_layers.2",
        "conv2" => "out_layers.3",
        "time_emb_proj" => "emb_layers.1",
        "conv_shortcut" => "skip_connection",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::key_names::flatten;
    use super::*;

    /// The names in a LoRA that kohya's scripts saved for SDXL's blocks, one of each kind and position.
    /// diffusers 0.42 (`lora_conversion_utils`, `convert_from_ckpt`) has the same pairs.
    const PAIRS: &[(&str, &str)] = &[
        (
            "input_blocks.4.1.transformer_blocks.0.attn1.to_q",
            "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
        ),
        ("input_blocks.1.0.in_layers.2", "down_blocks.0.resnets.0.conv1"),
        ("input_blocks.3.0.op", "down_blocks.0.downsamplers.0.conv"),
        ("input_blocks.4.0.skip_connection", "down_blocks.1.resnets.0.conv_shortcut"),
        ("input_blocks.6.0.op", "down_blocks.1.downsamplers.0.conv"),
        ("input_blocks.8.0.emb_layers.1", "down_blocks.2.resnets.1.time_emb_proj"),
        ("input_blocks.8.1.proj_in", "down_blocks.2.attentions.1.proj_in"),
        ("middle_block.0.in_layers.2", "mid_block.resnets.0.conv1"),
        ("middle_block.1.proj_out", "mid_block.attentions.0.proj_out"),
        ("middle_block.2.out_layers.3", "mid_block.resnets.1.conv2"),
        ("output_blocks.0.0.out_layers.3", "up_blocks.0.resnets.0.conv2"),
        ("output_blocks.2.2.conv", "up_blocks.0.upsamplers.0.conv"),
        ("output_blocks.5.1.proj_in", "up_blocks.1.attentions.2.proj_in"),
        ("output_blocks.5.2.conv", "up_blocks.1.upsamplers.0.conv"),
        ("output_blocks.8.0.skip_connection", "up_blocks.2.resnets.2.conv_shortcut"),
        ("label_emb.0.2", "add_embedding.linear_2"),
        ("input_blocks.0.0", "conv_in"),
    ];

    #[test]
    fn modules_have_the_names_of_the_original_code() {
        // The last resnets of some blocks are not in the list.
        let rest = ["down_blocks.0.resnets.1.conv1", "down_blocks.1.resnets.1.conv1"];
        let more = [
            "up_blocks.0.attentions.2.proj_in",
            "up_blocks.0.resnets.2.conv1",
            "up_blocks.1.resnets.2.conv1",
        ];
        let all = PAIRS.iter().map(|(_, diffusers)| *diffusers).chain(rest).chain(more);
        let names = SgmNames::from_modules(all);
        for (original, diffusers) in PAIRS {
            assert_eq!(names.original(diffusers).as_deref(), Some(*original), "{diffusers}");
        }
        for unknown in ["down_blocks.9.resnets.0.conv1", "up_blocks.0.resnets.0.norm1", "conv"] {
            assert_eq!(names.original(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn an_upsampler_takes_the_place_of_a_missing_attention() {
        let modules = ["up_blocks.0.resnets.1.conv1", "up_blocks.0.upsamplers.0.conv"];
        let names = SgmNames::from_modules(modules);
        assert_eq!(names.original(modules[1]).as_deref(), Some("output_blocks.1.1.conv"));
    }

    /// The modules that kohya's scripts adapt in a UNet of SDXL's blocks with 2 and 3 transformer blocks.
    fn modules_of_sdxl() -> BTreeSet<String> {
        let mut modules = BTreeSet::new();
        let mut add = |at: &str, names: &[&str]| {
            modules.extend(names.iter().map(|name| format!("{at}.{name}")));
        };
        for (blocks, layers) in [("down_blocks", 2), ("up_blocks", 3), ("mid_block", 2)] {
            let levels = if blocks == "mid_block" { 1 } else { 3 };
            for level in 0..levels {
                let (at, depth) = match blocks {
                    "down_blocks" => (format!("{blocks}.{level}"), [0, 2, 3][level]),
                    "up_blocks" => (format!("{blocks}.{level}"), [3, 2, 0][level]),
                    _ => (blocks.to_owned(), 3),
                };
                for layer in 0..layers {
                    let resnet = format!("{at}.resnets.{layer}");
                    add(&resnet, &["conv1", "conv2", "time_emb_proj"]);
                    // The width changes at the first resnet of a level, and at every one on the way up.
                    let wider = blocks == "down_blocks" && layer == 0 && level > 0;
                    if wider || blocks == "up_blocks" {
                        add(&resnet, &["conv_shortcut"]);
                    }
                    if depth == 0 || (blocks == "mid_block" && layer == 1) {
                        continue;
                    }
                    let attention = format!("{at}.attentions.{layer}");
                    add(&attention, &["proj_in", "proj_out"]);
                    for block in 0..depth {
                        let at = format!("{attention}.transformer_blocks.{block}");
                        add(&at, &["ff.net.0.proj", "ff.net.2"]);
                        for kind in ["attn1", "attn2"] {
                            let at = format!("{at}.{kind}");
                            add(&at, &["to_q", "to_k", "to_v", "to_out.0"]);
                        }
                    }
                }
                match (blocks, level) {
                    ("down_blocks", 0 | 1) => add(&at, &["downsamplers.0.conv"]),
                    ("up_blocks", 0 | 1) => add(&at, &["upsamplers.0.conv"]),
                    _ => {}
                }
            }
        }
        modules
    }

    /// The fixture has the UNet's modules in a file that kohya's sd-scripts saved for such a model.
    #[test]
    fn the_names_of_sdxl_are_those_of_kohyas_files() {
        let modules = modules_of_sdxl();
        let names = SgmNames::from_modules(modules.iter().map(String::as_str));
        let name = |module: &String| {
            format!("lora_unet_{}", flatten(&names.original(module).unwrap_or_default()))
        };
        let ours: BTreeSet<String> = modules.iter().map(name).collect();
        let theirs = include_str!("../../tests/fixtures/kohya-sdxl-names.txt");
        let theirs: BTreeSet<String> = theirs.lines().map(str::to_owned).collect();
        assert_eq!(theirs.len(), 368);
        let missing: Vec<_> = theirs.difference(&ours).collect();
        let other: Vec<_> = ours.difference(&theirs).collect();
        assert!(missing.is_empty() && other.is_empty(), "{missing:?}, {other:?}");
    }
}
