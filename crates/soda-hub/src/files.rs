//! Which files of a repository a pipeline needs.
//!
//! The folders are those of its `model_index.json`, as far as a pipeline has them: no safety
//! checker, no feature extractor. Only names made here are asked for, whatever the server lists.

use serde_json::{Map, Value};

use crate::error::HubError;

/// The directory's table of contents.
pub const INDEX: &str = "model_index.json";

/// The folders of a pipeline, and what their weights are called.
const PARTS: &[(&str, Option<&str>)] = &[
    ("scheduler", None),
    ("tokenizer", None),
    ("tokenizer_2", None),
    ("text_encoder", Some("model")),
    ("text_encoder_2", Some("model")),
    ("unet", Some("diffusion_pytorch_model")),
    ("vae", Some("diffusion_pytorch_model")),
];

/// What Python's pickles are called.
const PICKLES: &[&str] = &[".bin", ".ckpt", ".pt", ".pth"];

/// The files of `listed` that a pipeline needs, by its `model_index.json`.
///
/// Without a variant the plain weights are taken, or else the only variant there is: the rule by
/// which a directory is read.
///
/// # Errors
///
/// An index that is no JSON object, and a folder without weights in safetensors of the variant.
pub fn needed(
    name: &str,
    index: &[u8],
    listed: &[String],
    variant: Option<&str>,
) -> Result<Vec<String>, HubError> {
    let index: Map<String, Value> = serde_json::from_slice(index)
        .map_err(|source| HubError::Index { name: name.to_owned(), source })?;
    let mut files = Vec::new();
    for (part, stem) in PARTS {
        // `["diffusers", "AutoencoderKL"]`, or `[null, null]` for what was left out.
        if index.get(*part).and_then(|class| class.get(1)).is_none_or(Value::is_null) {
            continue;
        }
        let inside = |file: &String| -> Option<String> {
            let (folder, file) = file.split_once('/')?;
            let plain = !file.contains(['/', '\\']) && !file.starts_with('.');
            (folder == *part && plain).then(|| file.to_owned())
        };
        let here: Vec<String> = listed.iter().filter_map(inside).collect();
        let settings = |file: &&String| {
            (file.ends_with(".json") || file.ends_with(".txt")) && !file.contains(".safetensors.")
        };
        let mut wanted: Vec<String> = here.iter().filter(settings).cloned().collect();
        if let Some(stem) = stem {
            wanted.extend(weights(name, part, &here, stem, variant)?);
        }
        files.extend(wanted.into_iter().map(|file| format!("{part}/{file}")));
    }
    Ok(files)
}

/// The weights of one variant among the files of a folder: one file, or an index and its shards.
fn weights(
    name: &str,
    part: &str,
    here: &[String],
    stem: &str,
    variant: Option<&str>,
) -> Result<Vec<String>, HubError> {
    let tops: Vec<(Option<&str>, &String)> =
        here.iter().filter_map(|file| Some((top(file, stem)?, file))).collect();
    let of = |variant: Option<&str>| tops.iter().find(|(found, _)| *found == variant);
    let found = of(variant).or_else(|| match (variant, &tops[..]) {
        (None, [only]) => Some(only),
        _ => None,
    });
    let Some((variant_found, file)) = found else {
        let pickle = |file: &&String| PICKLES.iter().any(|end| file.ends_with(end));
        if tops.is_empty() && here.iter().any(|file| pickle(&file)) {
            return Err(HubError::Pickle { name: name.to_owned(), part: part.to_owned() });
        }
        return Err(HubError::NoWeights {
            name: name.to_owned(),
            part: part.to_owned(),
            variant: variant.map(str::to_owned),
            found: tops.into_iter().map(|(_, file)| file.clone()).collect(),
        });
    };
    let mut files = vec![(*file).clone()];
    if file.ends_with(".json") {
        files.extend(here.iter().filter(|file| is_shard(file, stem, *variant_found)).cloned());
    }
    Ok(files)
}

/// The variant of a file that alone says where all weights are, if it is one: whole weights or an
/// index of shards.
fn top<'a>(file: &'a str, stem: &str) -> Option<Option<&'a str>> {
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

/// Both styles of names: `model.fp16-00001-of-00002` and `model-00001-of-00002.fp16`.
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

    use super::{HubError, needed};

    const INDEX: &str = r#"{
        "_class_name": "StableDiffusionXLPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "text_encoder_2": [null, null]
    }"#;

    fn check(listed: &[&str], variant: Option<&str>) -> Result<Vec<String>, HubError> {
        let scheduler = ["scheduler/scheduler_config.json", "unet/config.json"];
        let listed: Vec<String> =
            scheduler.iter().chain(listed).map(|file| (*file).to_owned()).collect();
        needed("owner/name", INDEX.as_bytes(), &listed, variant).map(|files| files[2..].to_vec())
    }

    const FORMS: &[&str] = &[
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
    fn one_form_of_the_weights() {
        assert_eq!(check(FORMS, None).unwrap(), ["unet/diffusion_pytorch_model.safetensors"]);
        assert_eq!(
            check(FORMS, Some("fp16")).unwrap(),
            ["unet/diffusion_pytorch_model.fp16.safetensors"]
        );
        assert_eq!(check(&FORMS[..2], None).unwrap().len(), 1);
    }

    #[test]
    fn shards_of_one_variant() {
        let shards = [
            "unet/diffusion_pytorch_model.safetensors.index.json",
            "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
            "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
            "unet/diffusion_pytorch_model.safetensors.index.fp16.json",
            "unet/diffusion_pytorch_model.fp16-00001-of-00001.safetensors",
            "unet/diffusion_pytorch_model-00001-of-00001.fp16.safetensors",
        ];
        assert_eq!(check(&shards, None).unwrap(), shards[..3]);
        assert_eq!(check(&shards, Some("fp16")).unwrap(), shards[3..]);
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = |listed: &[&str], variant| check(listed, variant).unwrap_err().to_string();
        let fp8 = error(FORMS, Some("fp8"));
        assert!(fp8.contains("fp8") && fp8.contains("fp16.safetensors"), "{fp8}");
        let pickle = error(&FORMS[..1], None);
        assert!(pickle.contains("unet") && pickle.contains("save_pretrained"), "{pickle}");
        let several = error(&[FORMS[1], FORMS[3]], None);
        assert!(several.contains("--variant") && several.contains("non_ema"), "{several}");
        assert!(error(&[], None).contains("no weights"));
        assert!(needed("a/b", b"[1]", &[], None).unwrap_err().to_string().contains("a/b"));
    }
}
