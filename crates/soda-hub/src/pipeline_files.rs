//! The files of a repository that a diffusers pipeline needs.
//!
//! The subfolders are those that both `model_index.json` and [`SUBFOLDERS`] name, hence no safety checker and
//! no feature extractor. A path that the server lists is requested only if it is a known subfolder and a
//! plain file name, without further separators.

use serde_json::{Map, Value};

use crate::error::HubError;

/// The file that names the components of a pipeline.
pub(crate) const MODEL_INDEX: &str = "model_index.json";

/// The subfolders of a pipeline, and the stem of their weight files.
const SUBFOLDERS: &[(&str, Option<&str>)] = &[
    ("scheduler", None),
    ("tokenizer", None),
    ("tokenizer_2", None),
    ("text_encoder", Some("model")),
    ("text_encoder_2", Some("model")),
    ("unet", Some("diffusion_pytorch_model")),
    ("vae", Some("diffusion_pytorch_model")),
];

/// The file name extensions of Python pickles.
const PICKLE_EXTENSIONS: &[&str] = &[".bin", ".ckpt", ".pt", ".pth"];

/// Selects the files of `listed` that the pipeline of `model_index` needs.
///
/// `listed` are paths in the repository. Without a variant, the weights without a suffix are selected, or
/// else the only variant there is. A local pipeline directory is read by the same rule.
///
/// # Errors
///
/// - [`HubError::InvalidModelIndex`] if `model_index` is not a JSON object.
/// - [`HubError::PickleOnly`] or [`HubError::NoWeights`] if a subfolder has no safetensors of the variant.
pub(crate) fn required_files(
    repo_id: &str,
    model_index: &[u8],
    listed: &[String],
    variant: Option<&str>,
) -> Result<Vec<String>, HubError> {
    let model_index: Map<String, Value> = serde_json::from_slice(model_index)
        .map_err(|source| HubError::InvalidModelIndex { repo_id: repo_id.to_owned(), source })?;
    let mut files = Vec::new();
    for (subfolder, stem) in SUBFOLDERS {
        // `["diffusers", "AutoencoderKL"]`, or `[null, null]` for a component that was left out.
        if model_index.get(*subfolder).and_then(|class| class.get(1)).is_none_or(Value::is_null) {
            continue;
        }
        let in_subfolder = |path: &String| -> Option<String> {
            let (folder, file) = path.split_once('/')?;
            let is_plain = !file.contains(['/', '\\']) && !file.starts_with('.');
            (folder == *subfolder && is_plain).then(|| file.to_owned())
        };
        let present: Vec<String> = listed.iter().filter_map(in_subfolder).collect();
        let is_config = |file: &&String| {
            (file.ends_with(".json") || file.ends_with(".txt")) && !file.contains(".safetensors.")
        };
        let mut required: Vec<String> = present.iter().filter(is_config).cloned().collect();
        if let Some(stem) = stem {
            required.extend(weight_files(repo_id, subfolder, &present, stem, variant)?);
        }
        files.extend(required.into_iter().map(|file| format!("{subfolder}/{file}")));
    }
    Ok(files)
}

/// Selects the weights of one variant among the files of a subfolder: one file, or a shard index and its
/// shards.
fn weight_files(
    repo_id: &str,
    subfolder: &str,
    present: &[String],
    stem: &str,
    variant: Option<&str>,
) -> Result<Vec<String>, HubError> {
    let entry_files: Vec<(Option<&str>, &String)> =
        present.iter().filter_map(|file| Some((entry_variant(file, stem)?, file))).collect();
    let exact = entry_files.iter().find(|(found, _)| *found == variant);
    let selected = exact.or_else(|| match (variant, &entry_files[..]) {
        (None, [only]) => Some(only),
        _ => None,
    });
    let Some((variant_found, file)) = selected else {
        let is_pickle = |file: &String| PICKLE_EXTENSIONS.iter().any(|end| file.ends_with(end));
        let (repo_id, subfolder) = (repo_id.to_owned(), subfolder.to_owned());
        if entry_files.is_empty() && present.iter().any(is_pickle) {
            return Err(HubError::PickleOnly { repo_id, subfolder });
        }
        return Err(HubError::NoWeights {
            repo_id,
            subfolder,
            variant: variant.map(str::to_owned),
            found: entry_files.into_iter().map(|(_, file)| file.clone()).collect(),
        });
    };
    let mut files = vec![(*file).clone()];
    if file.ends_with(".json") {
        files.extend(present.iter().filter(|file| is_shard(file, stem, *variant_found)).cloned());
    }
    Ok(files)
}

/// Returns the variant of a file that leads to all weights: the whole weights, or an index of shards.
///
/// The outer `None` means that `file` is neither, the inner that it has no variant.
fn entry_variant<'a>(file: &'a str, stem: &str) -> Option<Option<&'a str>> {
    let rest = file.strip_prefix(stem)?;
    let middle = match rest.strip_prefix(".safetensors.index") {
        Some(rest) => rest.strip_suffix(".json")?,
        None => rest.strip_suffix(".safetensors")?,
    };
    match middle {
        "" => Some(None),
        middle => {
            let variant = middle.strip_prefix('.')?;
            (!variant.contains("-of-")).then_some(Some(variant))
        }
    }
}

/// Returns whether `file` is a shard of `variant`, as `model.fp16-00001-of-00002` or
/// `model-00001-of-00002.fp16`.
fn is_shard(file: &str, stem: &str, variant: Option<&str>) -> bool {
    let middle = file.strip_prefix(stem).and_then(|rest| rest.strip_suffix(".safetensors"));
    let Some(middle) = middle.filter(|middle| middle.contains("-of-")) else { return false };
    match variant {
        None => !middle.contains('.'),
        Some(variant) => {
            let before = middle.strip_prefix('.').and_then(|rest| rest.strip_prefix(variant));
            let after = middle.strip_suffix(variant).and_then(|rest| rest.strip_suffix('.'));
            before.is_some_and(|rest| rest.starts_with('-')) || after.is_some()
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::{HubError, required_files};

    const MODEL_INDEX: &str = r#"{
        "_class_name": "StableDiffusionXLPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "text_encoder_2": [null, null]
    }"#;

    fn select(listed: &[&str], variant: Option<&str>) -> Result<Vec<String>, HubError> {
        let configs = ["scheduler/scheduler_config.json", "unet/config.json"];
        let listed: Vec<String> =
            configs.iter().chain(listed).map(|file| (*file).to_owned()).collect();
        let files = required_files("owner/name", MODEL_INDEX.as_bytes(), &listed, variant)?;
        Ok(files[2..].to_vec())
    }

    /// Several forms of the same weights, and files that a pipeline never needs.
    const LISTED: &[&str] = &[
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "safety_checker/model.safetensors",
        "text_encoder_2/model.safetensors",
        "unet/../../evil.json",
        "sd_xl_base_1.0.safetensors",
    ];

    #[test]
    fn one_variant_of_the_weights_is_selected() {
        assert_eq!(select(LISTED, None).unwrap(), ["unet/diffusion_pytorch_model.safetensors"]);
        assert_eq!(
            select(LISTED, Some("fp16")).unwrap(),
            ["unet/diffusion_pytorch_model.fp16.safetensors"]
        );
        assert_eq!(select(&LISTED[..2], None).unwrap().len(), 1);
    }

    #[test]
    fn an_index_selects_the_shards_of_its_variant() {
        let shards = [
            "unet/diffusion_pytorch_model.safetensors.index.json",
            "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
            "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
            "unet/diffusion_pytorch_model.safetensors.index.fp16.json",
            "unet/diffusion_pytorch_model.fp16-00001-of-00001.safetensors",
            "unet/diffusion_pytorch_model-00001-of-00001.fp16.safetensors",
        ];
        assert_eq!(select(&shards, None).unwrap(), shards[..3]);
        assert_eq!(select(&shards, Some("fp16")).unwrap(), shards[3..]);
    }

    #[test]
    fn errors_name_the_missing_weights() {
        let error = |listed: &[&str], variant| select(listed, variant).unwrap_err().to_string();
        let fp8 = error(LISTED, Some("fp8"));
        assert!(fp8.contains("fp8") && fp8.contains("fp16.safetensors"), "{fp8}");
        let pickle = error(&LISTED[..1], None);
        assert!(pickle.contains("unet") && pickle.contains("save_pretrained"), "{pickle}");
        let several = error(&[LISTED[1], LISTED[3]], None);
        assert!(several.contains("--variant") && several.contains("non_ema"), "{several}");
        assert!(error(&[], None).contains("no weights"));
        assert!(required_files("a/b", b"[1]", &[], None).unwrap_err().to_string().contains("a/b"));
    }
}
