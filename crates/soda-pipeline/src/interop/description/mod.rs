//! What a file of another tool is, by its tensor names, shapes and metadata alone.

mod family;
mod header;
mod names;
mod readers;
mod schedule;
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use safetensors::Dtype;
use soda_models::scheduler::SchedulerOverrides;
use soda_models::weights::SafetensorsReader;

use self::family::{family_of_metadata, family_of_tensors};
use self::header::Tensor;
pub use self::names::{LayerNames, Names};
use self::schedule::schedule;
use self::words::{trigger, words};
use super::key_names::{Role, parse};
use crate::component::Component;
use crate::error::PipelineError;

/// What a safetensors file of another tool is.
#[derive(Clone, Debug, PartialEq)]
pub struct Description {
    /// The contents.
    pub kind: FileKind,
    /// The family of the base model, if names, shapes or metadata tell it.
    pub family: Option<&'static str>,
    /// The words that call the subject: [`Description::trigger`], or else the tag that most captions of the
    /// training had.
    pub words: Vec<String>,
    /// The words that call the subject, by the metadata and by the embeddings in the file.
    pub trigger: Vec<String>,
    /// What the denoiser predicts and the noise schedule, as far as the metadata tells.
    pub schedule: SchedulerOverrides,
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
        /// What the names of a transformer's layers tell.
        layer_names: BTreeSet<LayerNames>,
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
    {
        // Kohya's names call every denoiser a UNet, and those of PEFT and LyCORIS leave the network out.
        let denoiser = [Some(Component::Unet), None].map(|component| layers.remove(&component));
        let count: usize = denoiser.into_iter().flatten().sum();
        if count > 0 {
            *layers.entry(Some(Component::Transformer)).or_default() += count;
        }
    }
    let (words, trigger) = (words(metadata, &tensors), trigger(metadata, &tensors));
    Ok(Description { kind, family, words, trigger, schedule: schedule(metadata) })
}

fn kind(tensors: &[Tensor<'_>], alphas: Option<(f32, f32)>) -> FileKind {
    let has = |part: &str| tensors.iter().any(|(key, ..)| key.starts_with(part));
    let mut modules: BTreeMap<(Option<Component>, String), &'static str> = BTreeMap::new();
    let (mut names, mut layer_names, mut ranks) = (Names::Other, BTreeSet::new(), None);
    for (key, _, shape) in tensors {
        let Some(name) = parse(key) else { continue };
        let Some(method) = method(name.role) else { continue };
        if names == Names::Other {
            names = Names::of(key);
        }
        layer_names.extend(LayerNames::of(key));
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
        return FileKind::Adapter { methods, names, layer_names, layers, ranks, alphas };
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
            layer_names: BTreeSet::new(),
            layers: layers.into(),
            ranks: Some((2, 4)),
            alphas: None,
        };
        assert_eq!(found, expected);
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
    fn alpha_is_read_in_each_type() {
        assert_eq!(number(Dtype::F16, &[0, 0x4c]), Some(16.0));
        assert_eq!(number(Dtype::BF16, &[0x80, 0x41]), Some(16.0));
        assert_eq!(number(Dtype::F32, &f32::NAN.to_le_bytes()), None);
        assert_eq!(number(Dtype::F32, &[0; 8]), None);
    }
}
