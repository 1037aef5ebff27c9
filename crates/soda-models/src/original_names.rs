//! Names of a transformer's layers in the code of its authors.
//!
//! The files of the original code, and those of ComfyUI, ai-toolkit and kohya's scripts, have these names.
//! The original code has one layer for queries, keys and values, where diffusers has three.
//!
//! A [`TransformerNames`] serves adapter files and single files of the whole transformer.

/// The rows of an original layer's weight `[out, in]` that are a layer of diffusers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// All of them.
    All,
    /// The third with this index.
    Third(usize),
    /// All of them, with the second half before the first.
    HalvesSwapped,
}

/// Names of layers: diffusers', the original one, and its rows.
pub(crate) type LayerNames = &'static [(&'static str, &'static str, Rows)];

/// The names of a transformer in the original code, and how its files are recognised.
#[derive(Debug)]
pub struct TransformerNames {
    /// What the model is called in messages.
    pub(crate) model: &'static str,
    /// Keys that every file of the transformer has. No file of another model or in diffusers' names has all
    /// of them.
    pub(crate) marks: &'static [&'static str],
    /// The blocks: diffusers' name, the original one, and their layers.
    pub(crate) blocks: &'static [(&'static str, &'static str, LayerNames)],
    /// The layers outside of the blocks.
    pub(crate) outside: LayerNames,
    /// The parameters that belong to no layer. They have one name in both.
    pub(crate) parameters: &'static [&'static str],
    /// What the original code calls the weight of a norm of queries or keys. Some tools write `weight`.
    pub(crate) norm_weight: &'static str,
    /// The beginnings of keys that no network uses.
    pub(crate) unused: &'static [&'static str],
}

impl TransformerNames {
    /// Returns the original name of a layer, and the rows of the original layer that it has. `None` for a
    /// layer that the transformer lacks.
    ///
    /// ```
    /// use soda_models::{flux2, original_names::Rows};
    ///
    /// let found = flux2::ORIGINAL_NAMES.of("transformer_blocks.3.attn.to_v");
    /// assert_eq!(found, Some(("double_blocks.3.img_attn.qkv".to_owned(), Rows::Third(2))));
    /// ```
    pub fn of(&self, layer: &str) -> Option<(String, Rows)> {
        for (blocks, original, names) in self.blocks {
            let inside = layer.strip_prefix(blocks).and_then(|rest| rest.strip_prefix('.'));
            let Some((block, layer)) = inside.and_then(|rest| rest.split_once('.')) else {
                continue;
            };
            let (name, rows) = find(names, layer)?;
            return Some((format!("{original}.{block}.{name}"), rows));
        }
        find(self.outside, layer).map(|(name, rows)| (name.to_owned(), rows))
    }
}

fn find(names: LayerNames, layer: &str) -> Option<(&'static str, Rows)> {
    names.iter().find(|(own, ..)| *own == layer).map(|(_, original, rows)| (*original, *rows))
}
