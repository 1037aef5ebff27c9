//! The files of a repository that a diffusers pipeline needs.
//!
//! The subfolders are those that both `model_index.json` and [`SUBFOLDERS`] name, hence no safety checker and
//! no feature extractor. A path that the server lists is requested only if it is a known subfolder and a
//! plain file name, without further separators.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::error::HubError;
use crate::names::is_file_name;
use crate::weight_files::Component;

/// The file that names the components of a pipeline.
pub(crate) const MODEL_INDEX: &str = "model_index.json";

/// The most files of a pipeline. Large models have some dozens of shards.
const MAX_FILES: usize = 1000;

/// A subfolder that a pipeline can have.
struct Subfolder {
    name: &'static str,
    /// The stem of its weight files.
    stem: Option<&'static str>,
    /// A file that it has in every pipeline.
    config: Option<&'static str>,
}

const SUBFOLDERS: &[Subfolder] = &[
    Subfolder { name: "scheduler", stem: None, config: Some("scheduler_config.json") },
    Subfolder { name: "tokenizer", stem: None, config: None },
    Subfolder { name: "tokenizer_2", stem: None, config: None },
    Subfolder { name: "text_encoder", stem: Some("model"), config: Some("config.json") },
    Subfolder { name: "text_encoder_2", stem: Some("model"), config: Some("config.json") },
    Subfolder {
        name: "transformer",
        stem: Some("diffusion_pytorch_model"),
        config: Some("config.json"),
    },
    Subfolder { name: "unet", stem: Some("diffusion_pytorch_model"), config: Some("config.json") },
    Subfolder { name: "vae", stem: Some("diffusion_pytorch_model"), config: Some("config.json") },
];

/// Selects the files of `listed` that the pipeline of `model_index` needs.
///
/// `listed` are paths in the repository. A variant is selected as diffusers does it: each component that has
/// it gives its weights of that variant, and every other component its plain ones. Without a variant, the
/// plain weights are selected, or else the only variant there is. A local pipeline directory is read by the
/// same rule.
///
/// # Errors
///
/// - [`HubError::InvalidModelIndex`] if `model_index` is not a JSON object.
/// - [`HubError::MissingFile`] if a component has no configuration.
/// - [`HubError::NoVariant`] if no component has the variant.
/// - [`HubError::PickleOnly`], [`HubError::NoWeights`] or [`HubError::MissingShards`] if a component has no
///   safetensors to select.
/// - [`HubError::TooManyFiles`] if there are more than a thousand.
pub(crate) fn required_files(
    repo_id: &str,
    model_index: &[u8],
    listed: &[String],
    variant: Option<&str>,
) -> Result<Vec<String>, HubError> {
    let model_index: Map<String, Value> = serde_json::from_slice(model_index)
        .map_err(|source| HubError::InvalidModelIndex { repo_id: repo_id.to_owned(), source })?;
    // `["diffusers", "AutoencoderKL"]`, or `[null, null]` for a component that was left out.
    let is_present = |subfolder: &&Subfolder| {
        let class = model_index.get(subfolder.name).and_then(|class| class.get(1));
        class.is_some_and(|class| !class.is_null())
    };
    let subfolders: Vec<(&Subfolder, Vec<String>)> = SUBFOLDERS
        .iter()
        .filter(is_present)
        .map(|subfolder| (subfolder, files_in(listed, subfolder.name)))
        .collect();
    let mut components = Vec::new();
    for (subfolder, files) in &subfolders {
        if let Some(stem) = subfolder.stem {
            components.push(Component { repo_id, subfolder: subfolder.name, stem, files });
        }
    }
    if let Some(variant) = variant {
        check_variant(repo_id, variant, &components)?;
    }

    let mut required = Vec::new();
    for (subfolder, files) in &subfolders {
        if let Some(config) = subfolder.config.filter(|config| !files.iter().any(|f| f == config)) {
            let file = format!("{}/{config}", subfolder.name);
            return Err(HubError::MissingFile { repo_id: repo_id.to_owned(), file });
        }
        let configs = files.iter().filter(|file| is_config(file));
        required.extend(configs.map(|file| format!("{}/{file}", subfolder.name)));
    }
    for component in &components {
        let weights = component.weights(variant)?.into_iter();
        required.extend(weights.map(|file| format!("{}/{file}", component.subfolder)));
    }
    match required.len() {
        count if count > MAX_FILES => {
            Err(HubError::TooManyFiles { repo_id: repo_id.to_owned(), count, limit: MAX_FILES })
        }
        _ => Ok(required),
    }
}

/// The plain names of the files that are directly in a subfolder.
fn files_in(listed: &[String], subfolder: &str) -> Vec<String> {
    let in_subfolder = |path: &String| {
        let (folder, file) = path.split_once('/')?;
        (folder == subfolder && is_file_name(file)).then(|| file.to_owned())
    };
    listed.iter().filter_map(in_subfolder).collect()
}

/// Whether a file is a configuration, a vocabulary or a chat template, and not an index of shards.
fn is_config(file: &str) -> bool {
    let known = [".json", ".txt", ".jinja"].iter().any(|extension| file.ends_with(extension));
    known && !file.contains(".index.")
}

/// # Errors
///
/// [`HubError::NoVariant`] if no component has the variant.
fn check_variant(
    repo_id: &str,
    variant: &str,
    components: &[Component<'_>],
) -> Result<(), HubError> {
    let found: BTreeSet<&str> =
        components.iter().flat_map(|component| component.variants()).flatten().collect();
    if found.contains(variant) {
        return Ok(());
    }
    Err(HubError::NoVariant {
        repo_id: repo_id.to_owned(),
        variant: variant.to_owned(),
        found: found.into_iter().map(str::to_owned).collect(),
    })
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
    fn a_variant_is_mixed_with_the_plain_files_of_other_components() {
        let index = r#"{"unet": ["diffusers", "A"], "vae": ["diffusers", "B"]}"#;
        let listed = [
            "unet/config.json",
            "unet/diffusion_pytorch_model.fp16.safetensors",
            "unet/diffusion_pytorch_model.safetensors",
            "vae/config.json",
            "vae/diffusion_pytorch_model.safetensors",
        ]
        .map(str::to_owned);
        let select = |variant| required_files("a/b", index.as_bytes(), &listed, variant);
        let mixed = ["unet/config.json", "vae/config.json", &listed[1], &listed[4]];
        assert_eq!(select(Some("fp16")).unwrap(), mixed);
        let plain = ["unet/config.json", "vae/config.json", &listed[2], &listed[4]];
        assert_eq!(select(None).unwrap(), plain);
        let error = select(Some("bf16")).unwrap_err().to_string();
        assert!(error.contains("bf16") && error.contains("fp16"), "{error}");
    }

    #[test]
    fn only_a_whole_pipeline_of_few_files_is_selected() {
        let index = r#"{"tokenizer": ["transformers", "CLIPTokenizer"]}"#;
        let listed: Vec<String> = (0..200_000).map(|i| format!("tokenizer/x{i}.json")).collect();
        let count = |listed: &[String]| required_files("a/b", index.as_bytes(), listed, None);
        assert_eq!(count(&listed[..1000]).unwrap().len(), 1000);
        assert!(count(&listed).unwrap_err().to_string().contains("200000 files"));
        let unsafe_names = ["tokenizer/../../x.json", "/tokenizer/x.json", "tokenizer/..\\x.json"];
        assert!(count(&unsafe_names.map(str::to_owned)).unwrap().is_empty());
        let error = required_files("a/b", MODEL_INDEX.as_bytes(), &[], None).unwrap_err();
        assert!(error.to_string().contains("scheduler/scheduler_config.json"), "{error}");
    }

    #[test]
    fn errors_name_the_missing_weights() {
        let error = |listed: &[&str], variant| select(listed, variant).unwrap_err().to_string();
        let fp8 = error(LISTED, Some("fp8"));
        assert!(fp8.contains("fp8") && fp8.contains("fp16"), "{fp8}");
        let pickle = error(&LISTED[..1], None);
        assert!(pickle.contains("unet") && pickle.contains("save_pretrained"), "{pickle}");
        let several = error(&[LISTED[1], LISTED[3]], None);
        assert!(several.contains("--variant") && several.contains("non_ema"), "{several}");
        assert!(error(&[], None).contains("no weights"));
        assert!(required_files("a/b", b"[1]", &[], None).unwrap_err().to_string().contains("a/b"));
    }
}
