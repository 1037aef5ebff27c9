//! The tools that load a file.

use super::{Description, FileKind, LayerNames, Names};

impl Description {
    /// The tools that load the file as it is.
    ///
    /// The code of these was read: ComfyUI 0.3.64 (for Z-Image that of August 2026), diffusers 0.42.1, the
    /// `Lora` extension of A1111, musubi-tuner of August 2026. A tool is left out where its code leaves doubt,
    /// as with OFT, whose files have several layouts.
    pub fn readers(&self) -> Vec<&'static str> {
        let FileKind::Adapter { methods, names, layer_names, .. } = &self.kind else {
            return Vec::new();
        };
        let only = |known: &[&str]| methods.iter().all(|method| known.contains(method));
        let (lora, known) = (only(&["LoRA"]), self.family.is_some());
        let is = |families: &[&str]| self.family.is_some_and(|family| families.contains(&family));
        let unet = self.family.is_some_and(|family| family.starts_with("Stable Diffusion"));
        let comfy_ui = known && only(&["LoRA", "DoRA", "LoHa", "LoKr", "delta"]);
        let z_image = is(&["Z-Image"]);
        // Whether a tool that reads Z-Image by other names than these reads all layers.
        let has_no = |other| !z_image || !layer_names.contains(&other);
        let (diffusers_names, original_names) =
            (has_no(LayerNames::Original), has_no(LayerNames::Diffusers));
        let readers: &[(bool, &'static str)] = match names {
            Names::Kohya => &[
                (unet && lora, "kohya's sd-scripts"),
                (z_image && diffusers_names && only(&["LoRA", "LoHa", "LoKr"]), "musubi-tuner"),
                (unet && only(&["LoRA", "LoHa", "LoKr", "delta"]), "A1111"),
                (comfy_ui && original_names, "ComfyUI"),
                (lora && (unet || is(&["FLUX.2", "Z-Image"])), "diffusers"),
            ],
            // ComfyUI has the attention layers of a UNet by diffusers' old names only.
            Names::Diffusers => &[
                (lora && diffusers_names, "diffusers"),
                (lora && diffusers_names && is(&["FLUX.1", "FLUX.2", "Z-Image"]), "ComfyUI"),
            ],
            Names::Peft => &[(true, "PEFT")],
            Names::ComfyUi => &[
                (comfy_ui, "ComfyUI"),
                (lora && is(&["FLUX.2", "Z-Image"]) && diffusers_names, "diffusers"),
                (z_image && only(&["LoKr"]) && diffusers_names, "diffusers"),
            ],
            Names::Lycoris => &[(comfy_ui && diffusers_names, "ComfyUI")],
            Names::Other => &[],
        };
        readers.iter().filter(|(loads, _)| *loads).map(|(_, tool)| *tool).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    fn readers(
        method: &'static str,
        names: Names,
        layer_names: Option<LayerNames>,
        family: Option<&'static str>,
    ) -> Vec<&'static str> {
        let kind = FileKind::Adapter {
            methods: vec![method],
            names,
            layer_names: layer_names.into_iter().collect::<BTreeSet<_>>(),
            layers: BTreeMap::new(),
            ranks: None,
            alphas: None,
        };
        Description { kind, family, words: Vec::new() }.readers()
    }

    #[test]
    fn a_tool_is_named_only_for_what_its_code_loads() {
        let readers = |method, names, family| readers(method, names, None, family);
        let (sd1, flux2) = (Some("Stable Diffusion 1"), Some("FLUX.2"));
        assert_eq!(readers("LoRA", Names::Diffusers, sd1), ["diffusers"]);
        assert_eq!(readers("LoRA", Names::Diffusers, flux2), ["diffusers", "ComfyUI"]);
        assert_eq!(readers("LoKr", Names::Kohya, sd1), ["A1111", "ComfyUI"]);
        assert_eq!(readers("LoRA", Names::Kohya, flux2), ["ComfyUI", "diffusers"]);
        assert_eq!(readers("LoKr", Names::Lycoris, sd1), ["ComfyUI"]);
        assert!(readers("OFT", Names::Kohya, sd1).is_empty());
        assert!(readers("LoRA", Names::ComfyUi, None).is_empty());
    }

    #[test]
    fn tools_read_z_image_by_the_names_that_they_know() {
        use LayerNames::{Diffusers, Original};
        for (method, names, layer_names, expected) in [
            ("LoRA", Names::Kohya, Diffusers, &["musubi-tuner", "diffusers"][..]),
            ("LoHa", Names::Kohya, Diffusers, &["musubi-tuner"]),
            ("LoRA", Names::Kohya, Original, &["ComfyUI", "diffusers"]),
            ("delta", Names::Kohya, Original, &["ComfyUI"]),
            ("LoRA", Names::Diffusers, Diffusers, &["diffusers", "ComfyUI"]),
            ("LoRA", Names::ComfyUi, Diffusers, &["ComfyUI", "diffusers"]),
            ("LoKr", Names::ComfyUi, Diffusers, &["ComfyUI", "diffusers"]),
            ("LoRA", Names::ComfyUi, Original, &["ComfyUI"]),
            ("LoKr", Names::Lycoris, Original, &[]),
        ] {
            let found = readers(method, names, Some(layer_names), Some("Z-Image"));
            assert_eq!(found, expected, "{method} {names:?} {layer_names:?}");
        }
    }
}
