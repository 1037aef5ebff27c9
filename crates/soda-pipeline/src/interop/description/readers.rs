//! The tools that load a file.

use super::{Description, FileKind, LayerNames, Names};

impl Description {
    /// The tools that load the file as it is.
    ///
    /// The code of these was read: ComfyUI 0.3.64 (for Z-Image that of August 2026), diffusers 0.42.1, the
    /// `Lora` extension of A1111, musubi-tuner of August 2026. A tool is left out where its code leaves
    /// doubt, as with OFT, whose files have several layouts.
    pub fn readers(&self) -> Vec<&'static str> {
        let FileKind::Adapter { methods, names, layer_names, alphas, .. } = &self.kind else {
            return Vec::new();
        };
        let only = |known: &[&str]| methods.iter().all(|method| known.contains(method));
        let (lora, known) = (only(&["LoRA"]), self.family.is_some());
        let is = |families: &[&str]| self.family.is_some_and(|family| families.contains(&family));
        let unet = self.family.is_some_and(|family| family.starts_with("Stable Diffusion"));
        let comfy_ui = known && only(&["LoRA", "DoRA", "LoHa", "LoKr", "delta"]);
        let z_image = is(&["Z-Image"]);
        // The names of Z-Image's layers decide; those of other families do not yet.
        let lacks = |names: &[LayerNames]| {
            !z_image || names.iter().all(|names| !layer_names.contains(names))
        };
        let diffusers_names = lacks(&[LayerNames::Original, LayerNames::OriginalEnds]);
        let original_names = lacks(&[LayerNames::Diffusers]);
        let in_blocks = lacks(&[LayerNames::Outside]);
        let musubi = z_image && diffusers_names && in_blocks && only(&["LoRA", "LoHa", "LoKr"]);
        let readers: &[(bool, &'static str)] = match names {
            Names::Kohya => &[
                (unet && lora, "kohya's sd-scripts"),
                (musubi, "musubi-tuner"),
                (unet && only(&["LoRA", "LoHa", "LoKr", "delta"]), "A1111"),
                (comfy_ui && original_names, "ComfyUI"),
                (lora && (unet || is(&["FLUX.2"])), "diffusers"),
                (lora && z_image && lacks(&[LayerNames::OriginalEnds]), "diffusers"),
            ],
            // ComfyUI has the attention layers of a UNet by diffusers' old names only.
            // diffusers takes an `α` for Z-Image as a sign of other names, and then finds no layer.
            Names::Diffusers => &[
                (lora && diffusers_names && !(z_image && alphas.is_some()), "diffusers"),
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
    use std::collections::BTreeMap;

    use super::*;

    fn readers(
        method: &'static str,
        names: Names,
        layer_names: &[LayerNames],
        family: Option<&'static str>,
    ) -> Vec<&'static str> {
        let kind = FileKind::Adapter {
            methods: vec![method],
            names,
            layer_names: layer_names.iter().copied().collect(),
            layers: BTreeMap::new(),
            ranks: None,
            alphas: None,
        };
        let (words, trigger, schedule) = Default::default();
        Description { kind, family, words, trigger, schedule }.readers()
    }

    #[test]
    fn a_tool_is_named_only_for_what_its_code_loads() {
        let readers = |method, names, family| readers(method, names, &[], family);
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
        use LayerNames::{Diffusers, Original, OriginalEnds, Outside};
        for (method, names, layer_names, expected) in [
            ("LoRA", Names::Kohya, &[Diffusers][..], &["musubi-tuner", "diffusers"][..]),
            ("LoRA", Names::Kohya, &[Diffusers, Outside], &["diffusers"]),
            ("LoHa", Names::Kohya, &[Diffusers], &["musubi-tuner"]),
            ("LoRA", Names::Kohya, &[Original, Outside], &["ComfyUI", "diffusers"]),
            ("LoRA", Names::Kohya, &[Original, OriginalEnds], &["ComfyUI"]),
            ("delta", Names::Kohya, &[Original], &["ComfyUI"]),
            ("LoRA", Names::Diffusers, &[Diffusers], &["diffusers", "ComfyUI"]),
            ("LoRA", Names::ComfyUi, &[Diffusers], &["ComfyUI", "diffusers"]),
            ("LoKr", Names::ComfyUi, &[Diffusers], &["ComfyUI", "diffusers"]),
            ("LoRA", Names::ComfyUi, &[Original], &["ComfyUI"]),
            ("LoKr", Names::Lycoris, &[Original], &[]),
        ] {
            let found = readers(method, names, layer_names, Some("Z-Image"));
            assert_eq!(found, expected, "{method} {names:?} {layer_names:?}");
        }
    }
}
