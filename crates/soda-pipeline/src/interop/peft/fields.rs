//! Reading PEFT's configurations: every field is used, has no part in the numbers, or is refused by name.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use soda_models::input_file::{SizeLimit, read_text};

use super::{CONFIG, Modules, PeftConfig, PeftHra, PeftInit, PeftLora, PeftLycoris, PeftOft};
use crate::component::Component;
use crate::error::{FormatError, InteropError, PipelineError};
use crate::interop::ordered_json::Json;
use crate::interop::pattern_table::PatternTable;

/// Metadata key of diffusers 0.35 and later with the configuration of each network, as JSON with names such
/// as `unet.lora_alpha`.
const DIFFUSERS_METADATA: &str = "lora_adapter_metadata";

/// Fields without a part in the numbers of a trained adapter, in any value.
const WITHOUT_EFFECT: &[&str] = &[
    "auto_mapping",
    "base_model_name_or_path",
    "boft_block_num",
    "boft_block_size",
    "boft_dropout",
    "boft_n_butterfly_factor",
    "corda_config",
    "decompose_both",
    "decompose_factor",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "init_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "module_dropout",
    "qalora_group_size",
    "rank_dropout",
    "rank_dropout_scale",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "use_effective_conv2d",
];

/// What to do about a field that is refused.
const MERGE: &str = "merge the adapter into its model with PEFT, or train it without this setting";
const CONVERT: &str = "PEFT changes the base when it loads such an adapter; save it again with \
                       `save_pretrained(..., path_initial_model_for_weight_conversion=...)`";

impl PeftConfig {
    /// Reads `adapter_config.json` of a directory.
    ///
    /// # Errors
    /// [`FormatError::Io`], and [`InteropError`] for a configuration that is not supported.
    pub(crate) fn read(folder: &Path) -> Result<Self, PipelineError> {
        let path = folder.join(CONFIG);
        let io = |source| FormatError::Io { action: "read", path: path.clone(), source };
        let text = read_text(&path, SizeLimit::SETTINGS).map_err(io)?;
        let reason = match serde_json::from_str(&text) {
            Ok(Json::Object(fields)) => return Ok(Fields { path, fields }.into_config()?),
            Ok(_) => "it is no JSON object".to_owned(),
            Err(error) => error.to_string(),
        };
        Err(InteropError::PeftConfig { path, reason }.into())
    }

    /// Reads the configurations that diffusers keeps in the metadata of the file at `path`. Older files have
    /// none.
    ///
    /// # Errors
    /// As [`PeftConfig::read`].
    pub(crate) fn from_diffusers_metadata(
        path: &Path,
        metadata: &HashMap<String, String>,
    ) -> Result<BTreeMap<Component, Self>, InteropError> {
        let Some(text) = metadata.get(DIFFUSERS_METADATA) else { return Ok(BTreeMap::new()) };
        let unreadable = |reason| InteropError::PeftConfig { path: path.to_owned(), reason };
        let named = match serde_json::from_str(text) {
            Ok(Json::Object(fields)) => fields,
            Ok(_) => return Err(unreadable(format!("{DIFFUSERS_METADATA} is no JSON object"))),
            Err(error) => return Err(unreadable(error.to_string())),
        };
        let mut networks: BTreeMap<Component, Vec<(String, Json)>> = BTreeMap::new();
        for (name, value) in named {
            // Other networks, such as a prior, have fields of their own.
            let Some((component, field)) = Component::split_path(&name) else { continue };
            networks.entry(component).or_default().push((field.to_owned(), value));
        }
        let config = |(component, mut fields): (Component, Vec<(String, Json)>)| {
            if !fields.iter().any(|(name, _)| name == "peft_type") {
                fields.push(("peft_type".to_owned(), Json::Text("LORA".to_owned())));
            }
            Ok((component, Fields { path: path.to_owned(), fields }.into_config()?))
        };
        networks.into_iter().map(config).collect()
    }
}

/// The fields of a configuration that are not read yet.
struct Fields {
    path: PathBuf,
    fields: Vec<(String, Json)>,
}

impl Fields {
    fn into_config(mut self) -> Result<PeftConfig, InteropError> {
        let method = self.text("peft_type")?.unwrap_or_default();
        let config = match method.as_str() {
            "LORA" => PeftConfig::Lora(self.lora()?),
            "OFT" => PeftConfig::Oft(self.oft()?),
            "LOHA" => PeftConfig::Loha(self.lycoris()?),
            "LOKR" => PeftConfig::Lokr(self.lycoris()?),
            "BOFT" => {
                self.check_bias()?;
                PeftConfig::Boft
            }
            "HRA" => PeftConfig::Hra(self.hra()?),
            "PSOFT" => {
                let reason = "its rotations are in the basis of an SVD that is not in the file, and whose signs \
                              differ from machine to machine; merge the adapter into its model with PEFT";
                return Err(self.refused("peft_type", &Json::Text(method), reason));
            }
            _ => {
                let known = "LORA, OFT, LOHA, LOKR, BOFT and HRA are read; merge the adapter into its model with PEFT";
                return Err(self.refused("peft_type", &Json::Text(method), known));
            }
        };
        self.check_rest()?;
        Ok(config)
    }

    fn lora(&mut self) -> Result<PeftLora, InteropError> {
        let default = PeftLora::default();
        self.check_bias()?;
        if self.flag("lora_bias")? == Some(true) {
            let remedy = "no method here has biases; merge the adapter into its model with PEFT, or train without them";
            return Err(self.refused("lora_bias", &Json::Bool(true), remedy));
        }
        self.take("peft_version");
        let r = self.size("r")?;
        Ok(PeftLora {
            r: r.unwrap_or(default.r),
            has_rank: r.is_some(),
            lora_alpha: self.number("lora_alpha")?.unwrap_or(default.lora_alpha),
            rank_pattern: self.table("rank_pattern", size)?,
            alpha_pattern: self.table("alpha_pattern", number)?,
            use_rslora: self.flag("use_rslora")?.unwrap_or(default.use_rslora),
            use_dora: self.flag("use_dora")?,
            init: self.init()?,
            ..default
        })
    }

    /// Reads `init_lora_weights`. Some initial values are taken off the base when PEFT loads the adapter.
    fn init(&mut self) -> Result<PeftInit, InteropError> {
        const FIELD: &str = "init_lora_weights";
        match self.take(FIELD) {
            None | Some(Json::Null | Json::Bool(_)) => Ok(PeftInit::OnBase),
            Some(Json::Text(name)) => match name.to_lowercase().as_str() {
                "gaussian" | "eva" | "orthogonal" | "mica" => Ok(PeftInit::OnBase),
                "pissa" => Ok(PeftInit::Pissa),
                _ => Err(self.refused(FIELD, &Json::Text(name), CONVERT)),
            },
            Some(other) => Err(self.refused(FIELD, &other, CONVERT)),
        }
    }

    fn oft(&mut self) -> Result<PeftOft, InteropError> {
        let default = PeftOft::default();
        self.check_bias()?;
        let r = self.size("r")?.unwrap_or(default.r);
        // Before PEFT 0.14 there is no such field, and the tensors have another meaning.
        let Some(oft_block_size) = self.size("oft_block_size")? else {
            let remedy = "it is missing, as before PEFT 0.14, whose OFT differs; train it with a newer version";
            return Err(self.refused("oft_block_size", &Json::Null, remedy));
        };
        let use_cayley_neumann =
            self.flag("use_cayley_neumann")?.unwrap_or(default.use_cayley_neumann);
        let version = self.text("peft_version")?;
        if use_cayley_neumann && !version.as_deref().is_some_and(is_0_18_or_later) {
            let found = version.map_or(Json::Null, Json::Text);
            let remedy = "before PEFT 0.18 the Cayley transform of OFT is another series; merge the adapter \
                          into its model with that version";
            return Err(self.refused("peft_version", &found, remedy));
        }
        Ok(PeftOft {
            r,
            oft_block_size,
            coft: self.flag("coft")?.unwrap_or(default.coft),
            eps: self.number("eps")?.unwrap_or(default.eps),
            block_share: self.flag("block_share")?.unwrap_or(default.block_share),
            use_cayley_neumann,
            num_cayley_neumann_terms: self
                .size("num_cayley_neumann_terms")?
                .unwrap_or(default.num_cayley_neumann_terms),
            ..default
        })
    }

    fn hra(&mut self) -> Result<PeftHra, InteropError> {
        self.check_bias()?;
        if self.flag("apply_GS")? == Some(true) {
            return Err(self.refused("apply_GS", &Json::Bool(true), MERGE));
        }
        Ok(PeftHra::new(self.size("r")?.unwrap_or(8), Modules::List(Vec::new())))
    }

    fn lycoris(&mut self) -> Result<PeftLycoris, InteropError> {
        let r = self.size("r")?.unwrap_or(8);
        let rank_pattern = self.table("rank_pattern", size)?;
        let alpha_pattern = self.table("alpha_pattern", number)?;
        let alpha = self.number("alpha")?.unwrap_or(8.0);
        if r == 0 {
            return Err(self.refused("r", &Json::Number(0.0), "the rank is at least 1"));
        }
        Ok(PeftLycoris { r, alpha, rank_pattern, alpha_pattern })
    }

    /// Refuses an adapter with the biases of the network.
    fn check_bias(&mut self) -> Result<(), InteropError> {
        match self.take("bias") {
            Some(Json::Text(name)) if name != "none" => {
                let remedy = "no method here has biases; merge the adapter into its model with PEFT, or train without them";
                Err(self.refused("bias", &Json::Text(name), remedy))
            }
            _ => Ok(()),
        }
    }

    /// Refuses the fields that were not read, unless they are without effect or off.
    fn check_rest(mut self) -> Result<(), InteropError> {
        self.take("peft_version");
        let rest = std::mem::take(&mut self.fields);
        let unread = |(name, value): &&(String, Json)| {
            !WITHOUT_EFFECT.contains(&name.as_str()) && !value.is_off()
        };
        match rest.iter().find(unread) {
            Some((name, value)) => Err(self.refused(name, value, MERGE)),
            None => Ok(()),
        }
    }

    /// Removes a field; `None` if the configuration does not have it.
    fn take(&mut self, name: &str) -> Option<Json> {
        let index = self.fields.iter().position(|(found, _)| found == name)?;
        Some(self.fields.remove(index).1)
    }

    fn text(&mut self, name: &str) -> Result<Option<String>, InteropError> {
        match self.take(name) {
            None | Some(Json::Null) => Ok(None),
            Some(Json::Text(text)) => Ok(Some(text)),
            Some(other) => Err(self.refused(name, &other, "it must be a text")),
        }
    }

    fn flag(&mut self, name: &str) -> Result<Option<bool>, InteropError> {
        match self.take(name) {
            None | Some(Json::Null) => Ok(None),
            Some(Json::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(self.refused(name, &other, "it must be true or false")),
        }
    }

    fn number(&mut self, name: &str) -> Result<Option<f64>, InteropError> {
        self.value(name, number, "it must be a number")
    }

    fn size(&mut self, name: &str) -> Result<Option<usize>, InteropError> {
        self.value(name, size, "it must be a whole number from 0 to 1000000")
    }

    fn value<T>(
        &mut self,
        name: &str,
        read: impl Fn(&Json) -> Option<T>,
        expected: &'static str,
    ) -> Result<Option<T>, InteropError> {
        match self.take(name) {
            None | Some(Json::Null) => Ok(None),
            Some(value) => match read(&value) {
                Some(read) => Ok(Some(read)),
                None => Err(self.refused(name, &value, expected)),
            },
        }
    }

    fn table<T: Copy>(
        &mut self,
        name: &str,
        read: impl Fn(&Json) -> Option<T>,
    ) -> Result<PatternTable<T>, InteropError> {
        let entries = match self.take(name) {
            None | Some(Json::Null) => return Ok(PatternTable::default()),
            Some(Json::Object(entries)) => entries,
            Some(other) => return Err(self.refused(name, &other, "it must be an object")),
        };
        let mut values = Vec::new();
        for (key, value) in entries {
            let Some(value) = read(&value) else {
                return Err(self.refused(name, &value, "its values must be numbers"));
            };
            values.push((key, value));
        }
        PatternTable::new(values).map_err(|key| {
            let remedy =
                "it is no regular expression that this build reads; write it without look-around";
            self.refused(name, &Json::Text(key), remedy)
        })
    }

    fn refused(&self, field: &str, value: &Json, remedy: &'static str) -> InteropError {
        InteropError::PeftField {
            path: self.path.clone(),
            field: field.to_owned(),
            value: value.to_string(),
            remedy,
        }
    }
}

fn number(value: &Json) -> Option<f64> {
    match value {
        Json::Number(number) if number.is_finite() => Some(*number),
        _ => None,
    }
}

fn size(value: &Json) -> Option<usize> {
    let whole = |number: &f64| number.fract() == 0.0 && (0.0..=1e6).contains(number);
    number(value).filter(whole).map(|number| number as usize)
}

/// Whether a version such as `0.21.0.dev0@1a2b` is 0.18 or later.
fn is_0_18_or_later(version: &str) -> bool {
    let mut numbers = version.split('.').map(|number| number.parse::<u64>().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(0), Some(minor)) => minor >= 18,
        (Some(major), _) => major > 0,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<BTreeMap<Component, PeftConfig>, InteropError> {
        let metadata = HashMap::from([(DIFFUSERS_METADATA.to_owned(), text.to_owned())]);
        PeftConfig::from_diffusers_metadata(Path::new("a.safetensors"), &metadata)
    }

    #[test]
    fn each_network_in_the_metadata_has_its_own_settings() {
        let networks = read(
            r#"{"unet.r": 4, "unet.lora_alpha": 2, "text_encoder.r": 2, "text_encoder.lora_alpha": 4,
                "text_encoder.alpha_pattern": {"mlp.fc1": 1.0}, "text_encoder.peft_type": "LORA"}"#,
        );
        let networks = networks.expect("two configurations");
        let scale = |component, module| match &networks[&component] {
            PeftConfig::Lora(config) => config.scale(module, config.r),
            other => panic!("{other:?}"),
        };
        assert_eq!(scale(Component::Unet, "x.to_q"), 0.5);
        assert_eq!(scale(Component::TextEncoder, "x.mlp.fc1"), 0.5);
        assert_eq!(scale(Component::TextEncoder, "x.mlp.fc2"), 2.0);
    }

    #[test]
    fn every_field_is_used_or_refused_by_name() {
        for (field, value) in [
            ("init_lora_weights", "true"),
            ("init_lora_weights", r#""gaussian""#),
            ("init_lora_weights", r#""pissa""#),
            ("eva_config", r#"{"rho": 2.0}"#),
            ("bias", r#""none""#),
            ("lora_bias", "false"),
            ("modules_to_save", "null"),
            ("loftq_config", "{}"),
            ("use_bdlora", "null"),
            ("qalora_group_size", "16"),
            ("megatron_core", r#""megatron.core""#),
            ("a_field_of_a_later_version", "false"),
        ] {
            let text = format!(r#"{{"unet.{field}": {value}}}"#);
            assert!(read(&text).is_ok(), "{text}: {:?}", read(&text).err());
        }
        for (field, value) in [
            ("init_lora_weights", r#""olora""#),
            ("init_lora_weights", r#""pissa_niter_16""#),
            ("init_lora_weights", r#""corda""#),
            ("init_lora_weights", r#""loftq""#),
            ("init_lora_weights", r#""lora_ga""#),
            ("lora_bias", "true"),
            ("bias", r#""all""#),
            ("modules_to_save", r#"["conv_in"]"#),
            ("kasa_config", r#"{"beta": 1}"#),
            ("use_qalora", "true"),
            ("layer_replication", "[[0, 1]]"),
            ("trainable_token_indices", "[1]"),
            ("target_parameters", r#"["x"]"#),
            ("alpha_pattern", r#"{"(?!a)b": 1}"#),
            ("lora_alpha", r#""8""#),
            ("r", "-1"),
            ("peft_type", r#""VERA""#),
            ("peft_type", r#""PSOFT""#),
            ("a_field_of_a_later_version", "1"),
        ] {
            let error = read(&format!(r#"{{"unet.{field}": {value}}}"#)).expect_err(field);
            let message = error.to_string();
            assert!(message.contains(&format!("`{field}`")), "{message}");
            assert!(message.contains("a.safetensors"), "{message}");
        }
        let error = read("[]").expect_err("no object").to_string();
        assert!(error.contains("no JSON object") && error.contains("a.safetensors"), "{error}");
    }

    #[test]
    fn oft_of_another_series_is_refused() {
        let oft = |more: &str| {
            read(&format!(r#"{{"unet.peft_type": "OFT", "unet.oft_block_size": 4{more}}}"#))
        };
        assert!(oft(r#", "unet.peft_version": "0.21.0.dev0@abc""#).is_ok());
        assert!(oft(r#", "unet.use_cayley_neumann": false"#).is_ok());
        for version in ["", r#", "unet.peft_version": "0.17.1""#] {
            let message = oft(version).expect_err("an old version").to_string();
            assert!(message.contains("`peft_version`"), "{message}");
        }
    }
}
