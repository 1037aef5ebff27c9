//! What a file of another tool is, by its tensor names, shapes and metadata alone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use safetensors::Dtype;
use serde_json::Value;
use soda_models::weights::SafetensorsReader;

use super::key_names::{PEFT, Role, parse};
use crate::component::Component;
use crate::error::PipelineError;

/// What a safetensors file of another tool is.
#[derive(Clone, Debug, PartialEq)]
pub struct Description {
    /// The contents.
    pub kind: FileKind,
    /// The family of the base model, if names, shapes or metadata tell it.
    pub family: Option<&'static str>,
    /// The words that call the subject, by the metadata and by the embeddings in the file.
    pub words: Vec<String>,
}

/// The contents of a file.
#[derive(Clone, Debug, PartialEq)]
pub enum FileKind {
    /// An adapter.
    Adapter {
        /// The methods of its layers, in the order of their first layer.
        methods: Vec<&'static str>,
        /// The tool whose names the tensors have.
        names: Names,
        /// The number of layers of each network; `None` for a network that the names leave out.
        layers: BTreeMap<Option<Component>, usize>,
        /// The smallest and the largest rank of low-rank layers.
        ranks: Option<(usize, usize)>,
        /// The smallest and the largest `α`.
        alphas: Option<(f32, f32)>,
    },
    /// An embedding of Textual Inversion.
    Embedding,
    /// A whole model in one file, in the names of the original code.
    Checkpoint,
    /// One network of a model.
    Network(&'static str),
    /// Something else.
    Unknown,
}

/// The names that an adapter's tensors have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    /// `lora_unet_…`, of kohya's sd-scripts, also with LyCORIS.
    Kohya,
    /// `lycoris_…`, of LyCORIS' own wrapper.
    Lycoris,
    /// `unet.…`, `transformer.…`.
    Diffusers,
    /// `base_model.model.…`.
    Peft,
    /// `diffusion_model.…`, of ComfyUI, ai-toolkit and OneTrainer.
    ComfyUi,
    /// None of these.
    Other,
}

impl Names {
    /// The tool, as a sentence has it.
    pub fn tool(self) -> &'static str {
        match self {
            Self::Kohya => "kohya's sd-scripts",
            Self::Lycoris => "LyCORIS",
            Self::Diffusers => "diffusers",
            Self::Peft => "PEFT",
            Self::ComfyUi => "ComfyUI",
            Self::Other => "no tool that is known here",
        }
    }

    fn of(key: &str) -> Self {
        const PREFIXES: [(&str, Names); 8] = [
            ("lora_", Names::Kohya),
            ("lycoris_", Names::Lycoris),
            ("oft_unet_", Names::Kohya),
            ("unet.", Names::Diffusers),
            ("transformer.", Names::Diffusers),
            ("text_encoder", Names::Diffusers),
            (PEFT, Names::Peft),
            ("diffusion_model.", Names::ComfyUi),
        ];
        let found = PREFIXES.iter().find(|(prefix, _)| key.starts_with(prefix));
        found.map_or(Self::Other, |(_, names)| *names)
    }
}

impl Description {
    /// The tools that load the file as it is.
    ///
    /// The code of these was read: ComfyUI 0.3.64, diffusers 0.42.1, the `Lora` extension of A1111. A tool is
    /// left out where its code leaves doubt, as with OFT, whose files have several layouts.
    pub fn readers(&self) -> Vec<&'static str> {
        let FileKind::Adapter { methods, names, .. } = &self.kind else { return Vec::new() };
        let only = |known: &[&str]| methods.iter().all(|method| known.contains(method));
        let (lora, known) = (only(&["LoRA"]), self.family.is_some());
        let is = |families: &[&str]| self.family.is_some_and(|family| families.contains(&family));
        let unet = self.family.is_some_and(|family| family.starts_with("Stable Diffusion"));
        let comfy_ui = known && only(&["LoRA", "DoRA", "LoHa", "LoKr", "delta"]);
        let readers: &[(bool, &'static str)] = match names {
            Names::Kohya => &[
                (unet && lora, "kohya's sd-scripts"),
                (unet && only(&["LoRA", "LoHa", "LoKr", "delta"]), "A1111"),
                (comfy_ui, "ComfyUI"),
                (lora && (unet || is(&["FLUX.2", "Z-Image"])), "diffusers"),
            ],
            // ComfyUI has the attention layers of a UNet by diffusers' old names only.
            Names::Diffusers => {
                &[(lora, "diffusers"), (lora && is(&["FLUX.1", "FLUX.2"]), "ComfyUI")]
            }
            Names::Peft => &[(true, "PEFT")],
            Names::ComfyUi => {
                &[(comfy_ui, "ComfyUI"), (lora && is(&["FLUX.2", "Z-Image"]), "diffusers")]
            }
            Names::Lycoris => &[(comfy_ui, "ComfyUI")],
            Names::Other => &[],
        };
        readers.iter().filter(|(loads, _)| *loads).map(|(_, tool)| *tool).collect()
    }
}

/// Describes the safetensors file `path`.
///
/// # Errors
/// [`PipelineError::Model`] for a file that is no safetensors file.
pub fn describe(path: &Path) -> Result<Description, PipelineError> {
    let file = SafetensorsReader::open(path)?;
    let tensors: Vec<_> = file.tensors().collect();
    let metadata = file.metadata();
    // An alpha is one number. Another tensor of that name can be as large as its maker likes.
    let is_alpha =
        |key: &str, shape: &[usize]| key.ends_with(".alpha") && shape.iter().all(|n| *n == 1);
    let alphas = tensors.iter().filter(|(key, _, shape)| is_alpha(key, shape));
    let alphas = alphas.filter_map(|(key, dtype, _)| number(*dtype, &file.read(key).ok()?));
    let alphas = alphas.fold(None, |range, alpha| Some(widened(range, alpha)));
    let family = family_of_metadata(metadata).or_else(|| family_of_tensors(&tensors));
    let mut kind = kind(&tensors, alphas);
    if let FileKind::Adapter { layers, .. } = &mut kind
        && family.is_some_and(|family| !family.starts_with("Stable"))
        && let Some(count) = layers.remove(&Some(Component::Unet))
    {
        // Kohya's names call every denoiser a UNet.
        *layers.entry(Some(Component::Transformer)).or_default() += count;
    }
    Ok(Description { kind, family, words: words(metadata, &tensors) })
}

type Tensor<'a> = (&'a str, Dtype, &'a [usize]);

fn kind(tensors: &[Tensor<'_>], alphas: Option<(f32, f32)>) -> FileKind {
    let has = |part: &str| tensors.iter().any(|(key, ..)| key.starts_with(part));
    let mut modules: BTreeMap<(Option<Component>, String), &'static str> = BTreeMap::new();
    let (mut names, mut ranks) = (Names::Other, None);
    for (key, _, shape) in tensors {
        let Some(name) = parse(key) else { continue };
        let Some(method) = method(name.role) else { continue };
        if names == Names::Other {
            names = Names::of(key);
        }
        if name.role == Role::Down {
            ranks = Some(widened(ranks, shape.first().copied().unwrap_or_default()));
        }
        let module = modules.entry((name.component, format!("{:?}", name.module)));
        let of_module = module.or_insert(method);
        // A magnitude makes LoRA a DoRA, in whatever order the tensors are.
        if (method, *of_module) == ("DoRA", "LoRA") || *of_module == "DoRA" {
            *of_module = "DoRA";
        }
    }
    if !modules.is_empty() {
        let mut layers = BTreeMap::new();
        let mut methods: Vec<&'static str> = Vec::new();
        for ((component, _), method) in &modules {
            *layers.entry(*component).or_default() += 1;
            if !methods.contains(method) {
                methods.push(method);
            }
        }
        return FileKind::Adapter { methods, names, layers, ranks, alphas };
    }
    if has("model.diffusion_model.") || has("first_stage_model.") || has("cond_stage_model.") {
        FileKind::Checkpoint
    } else if has("double_blocks.") || has("transformer_blocks.") || has("noise_refiner.") {
        FileKind::Network("transformer")
    } else if has("down_blocks.") && has("conv_in.") {
        FileKind::Network("UNet")
    } else if has("decoder.conv_in.") {
        FileKind::Network("autoencoder")
    } else if has("text_model.") || has("model.layers.") {
        FileKind::Network("text encoder")
    } else if is_embedding(tensors) {
        FileKind::Embedding
    } else {
        FileKind::Unknown
    }
}

/// The method of a layer that has a tensor of this role.
fn method(role: Role) -> Option<&'static str> {
    Some(match role {
        Role::Down | Role::Up | Role::Mid | Role::UpBias => "LoRA",
        Role::Magnitude | Role::DoraScale => "DoRA",
        Role::HadaW1A | Role::HadaW1B | Role::HadaW2A | Role::HadaW2B => "LoHa",
        Role::HadaT1 | Role::HadaT2 => "LoHa",
        Role::LokrW1 | Role::LokrW1A | Role::LokrW1B => "LoKr",
        Role::LokrW2 | Role::LokrW2A | Role::LokrW2B | Role::LokrT1 | Role::LokrT2 => "LoKr",
        Role::Skew | Role::ScaledSkew | Role::OftBlocks | Role::KohyaOftBlocks => "OFT",
        Role::BoftBlocks | Role::BoftScale => "BOFT",
        Role::Reflections => "HRA",
        Role::Diff => "delta",
        Role::Alpha | Role::Rescale | Role::Vector | Role::Scalar => return None,
    })
}

/// Whether all tensors are vectors of embeddings.
fn is_embedding(tensors: &[Tensor<'_>]) -> bool {
    const WIDTHS: [usize; 3] = [768, 1024, 1280];
    let is_vectors = |shape: &[usize]| matches!(shape, [.., width] if WIDTHS.contains(width));
    !tensors.is_empty()
        && tensors.iter().all(|(key, _, shape)| {
            shape.len() <= 2 && is_vectors(shape) && (!key.contains('.') || *key == "emb_params")
        })
}

/// The family by what kohya's scripts, OneTrainer and others write into the metadata.
fn family_of_metadata(metadata: &BTreeMap<String, String>) -> Option<&'static str> {
    const PARTS: [(&str, &str); 14] = [
        ("stable-diffusion-xl", "Stable Diffusion XL"),
        ("sdxl", "Stable Diffusion XL"),
        ("stable-diffusion-v1", "Stable Diffusion 1"),
        ("sd_v1", "Stable Diffusion 1"),
        ("stable-diffusion-v2", "Stable Diffusion 2"),
        ("sd_v2", "Stable Diffusion 2"),
        ("stable-diffusion-3", "Stable Diffusion 3"),
        ("sd3", "Stable Diffusion 3"),
        ("flux-2", "FLUX.2"),
        ("flux2", "FLUX.2"),
        ("flux.2", "FLUX.2"),
        ("flux_2", "FLUX.2"),
        ("flux", "FLUX.1"),
        ("z-image", "Z-Image"),
    ];
    ["modelspec.architecture", "ss_base_model_version"].iter().find_map(|field| {
        let value = metadata.get(*field)?.to_lowercase();
        let found = PARTS.iter().find(|(part, _)| value.contains(part));
        found.map(|(_, family)| *family)
    })
}

/// The family by names that only one family has, and by the width of the text that cross-attention reads.
fn family_of_tensors(tensors: &[Tensor<'_>]) -> Option<&'static str> {
    let any =
        |parts: &[&str]| tensors.iter().any(|(key, ..)| parts.iter().any(|p| key.contains(p)));
    if any(&["to_qkv_mlp_proj", "double_stream_modulation"]) {
        return Some("FLUX.2");
    }
    if any(&["noise_refiner", "context_refiner"]) {
        return Some("Z-Image");
    }
    if any(&["lora_te2_", "text_encoder_2.", "conditioner.embedders.1"]) {
        return Some("Stable Diffusion XL");
    }
    tensors.iter().find_map(|(key, _, shape)| {
        let single = key.contains("single_blocks") && key.contains("linear1");
        if single && (key.contains("up") || key.contains("lora_B")) {
            // Query, key, value and the MLP: 3 + 4 widths in FLUX.1, and 3 + 6 in FLUX.2.
            let outputs = shape.first().copied()?;
            return Some(if outputs == 21_504 { "FLUX.1" } else { "FLUX.2" });
        }
        let reads_text = key.contains("attn2") && (key.contains("to_k") || key.contains("to_v"));
        let is_down = key.contains("down.weight") || key.contains("lora_A");
        let whole = key.ends_with("to_k.weight") || key.ends_with("to_v.weight");
        if !reads_text || !(is_down || whole || key.contains(".diff")) {
            return None;
        }
        match shape.get(1)? {
            768 => Some("Stable Diffusion 1"),
            1024 => Some("Stable Diffusion 2"),
            2048 => Some("Stable Diffusion XL"),
            _ => None,
        }
    })
}

/// The trigger words of the metadata, and the tokens of embeddings that the file has.
fn words(metadata: &BTreeMap<String, String>, tensors: &[Tensor<'_>]) -> Vec<String> {
    let mut words = BTreeSet::new();
    for field in ["modelspec.trigger_phrase", "ss_trigger_words", "trigger_word"] {
        let texts = metadata.get(field).into_iter().flat_map(|text| text.split(','));
        words.extend(texts.map(|word| word.trim().to_owned()).filter(|word| !word.is_empty()));
    }
    let bundled = tensors.iter().filter_map(|(key, ..)| key.strip_prefix("bundle_emb."));
    words.extend(bundled.filter_map(|rest| Some(rest.split('.').next()?.to_owned())));
    if words.is_empty() {
        words.extend(most_frequent_tag(metadata));
    }
    words.into_iter().collect()
}

/// The tag that most captions of kohya's training had, by the metadata.
fn most_frequent_tag(metadata: &BTreeMap<String, String>) -> Option<String> {
    let folders: Value = serde_json::from_str(metadata.get("ss_tag_frequency")?).ok()?;
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for tags in folders.as_object()?.values().filter_map(Value::as_object) {
        for (tag, count) in tags {
            let sum = counts.entry(tag.trim().to_owned()).or_default();
            *sum = sum.saturating_add(count.as_u64().unwrap_or_default());
        }
    }
    let most =
        counts.into_iter().max_by_key(|(tag, count)| (*count, std::cmp::Reverse(tag.clone())));
    most.map(|(tag, _)| tag)
}

/// A single number of the bytes of a tensor. `None` for more numbers, and for other types.
fn number(dtype: Dtype, bytes: &[u8]) -> Option<f32> {
    let value = match (dtype, bytes) {
        (Dtype::F32, bytes) => f32::from_le_bytes(bytes.try_into().ok()?),
        (Dtype::F16, bytes) => half::f16::from_le_bytes(bytes.try_into().ok()?).to_f32(),
        (Dtype::BF16, bytes) => half::bf16::from_le_bytes(bytes.try_into().ok()?).to_f32(),
        (Dtype::F64, bytes) => f64::from_le_bytes(bytes.try_into().ok()?) as f32,
        _ => return None,
    };
    value.is_finite().then_some(value)
}

fn widened<T: PartialOrd + Copy>(range: Option<(T, T)>, value: T) -> (T, T) {
    let (least, most) = range.unwrap_or((value, value));
    (if value < least { value } else { least }, if value > most { value } else { most })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use super::*;

    fn kind_of(tensors: &[(&str, &[usize])]) -> FileKind {
        let tensors: Vec<_> =
            tensors.iter().map(|(key, shape)| (*key, Dtype::F32, *shape)).collect();
        kind(&tensors, None)
    }

    #[test]
    fn an_adapter_has_its_methods_its_ranks_and_its_networks() {
        let found = kind_of(&[
            ("lora_unet_a.dora_scale", &[8, 1]),
            ("lora_unet_a.lora_down.weight", &[4, 8]),
            ("lora_unet_a.lora_up.weight", &[8, 4]),
            ("lora_te1_b.lora_down.weight", &[2, 8]),
            ("lora_te1_b.lora_up.weight", &[8, 2]),
            ("lora_te1_b.alpha", &[]),
        ]);
        let layers = [(Some(Component::Unet), 1), (Some(Component::TextEncoder), 1)];
        let expected = FileKind::Adapter {
            methods: vec!["DoRA", "LoRA"],
            names: Names::Kohya,
            layers: layers.into(),
            ranks: Some((2, 4)),
            alphas: None,
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn a_tool_is_named_only_for_what_its_code_loads() {
        let readers = |method, names, family| {
            let (layers, ranks, alphas) = (BTreeMap::new(), None, None);
            let kind = FileKind::Adapter { methods: vec![method], names, layers, ranks, alphas };
            Description { kind, family, words: Vec::new() }.readers()
        };
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
    fn files_that_are_no_adapter_are_told_apart() {
        assert_eq!(kind_of(&[("model.diffusion_model.x.weight", &[2, 2])]), FileKind::Checkpoint);
        assert_eq!(kind_of(&[("emb_params", &[4, 768])]), FileKind::Embedding);
        assert_eq!(kind_of(&[("emb_params", &[4, 96])]), FileKind::Unknown);
        let unet = [("conv_in.weight", &[1][..]), ("down_blocks.0.x.weight", &[1])];
        assert_eq!(kind_of(&unet), FileKind::Network("UNet"));
        assert_eq!(kind_of(&[("double_blocks.0.x", &[1])]), FileKind::Network("transformer"));
        assert_eq!(kind_of(&[]), FileKind::Unknown);
    }

    #[test]
    fn the_family_is_that_of_the_text_or_of_a_name() {
        let family = |key, shape: &[usize]| family_of_tensors(&[(key, Dtype::F16, shape)]);
        let to_k = "lora_unet_x_attn2_to_k.lora_down.weight";
        assert_eq!(family(to_k, &[4, 768]), Some("Stable Diffusion 1"));
        assert_eq!(family(to_k, &[4, 2048]), Some("Stable Diffusion XL"));
        assert_eq!(family(to_k, &[4, 160]), None);
        let linear = "lora_unet_single_blocks_0_linear1.lora_up.weight";
        assert_eq!(family(linear, &[21_504, 4]), Some("FLUX.1"));
        assert_eq!(family(linear, &[27_648, 4]), Some("FLUX.2"));
        assert_eq!(family("lora_te2_x.alpha", &[]), Some("Stable Diffusion XL"));
        for (value, expected) in
            [("Flux.2-klein-4b/lora", "FLUX.2"), ("flux_2_klein", "FLUX.2"), ("flux1", "FLUX.1")]
        {
            let metadata = ("modelspec.architecture".to_owned(), value.to_owned());
            assert_eq!(family_of_metadata(&BTreeMap::from([metadata])), Some(expected), "{value}");
        }
    }

    #[test]
    fn words_are_those_of_the_metadata_or_the_most_frequent_tag() {
        let metadata = |key: &str, text: &str| BTreeMap::from([(key.to_owned(), text.to_owned())]);
        let phrase = metadata("modelspec.trigger_phrase", "sks mug, red");
        assert_eq!(words(&phrase, &[]), ["red", "sks mug"]);
        let tags =
            metadata("ss_tag_frequency", r#"{"5_x": {"a": 2, "sks mug": 9}, "b": {"a": 3}}"#);
        assert_eq!(words(&tags, &[]), ["sks mug"]);
        assert!(words(&metadata("ss_tag_frequency", "[1, {"), &[]).is_empty());
        let bundled = ("bundle_emb.<mug>.string_to_param.*", Dtype::F32, &[4, 768][..]);
        assert_eq!(words(&BTreeMap::new(), &[bundled]), ["<mug>"]);
    }

    #[test]
    fn alpha_is_read_in_each_type() {
        assert_eq!(number(Dtype::F16, &[0, 0x4c]), Some(16.0));
        assert_eq!(number(Dtype::BF16, &[0x80, 0x41]), Some(16.0));
        assert_eq!(number(Dtype::F32, &f32::NAN.to_le_bytes()), None);
        assert_eq!(number(Dtype::F32, &[0; 8]), None);
    }
}
