//! Adapters on disk: one safetensors file, its tensors named by module path, its metadata saying what
//! they mean.
//!
//! | metadata key | value |
//! |---|---|
//! | `format` | `soda-adapter` |
//! | `version` | `3` |
//! | `parts` | a [`Recipe`] for each adapted network, by its [`Component`], JSON |
//! | `base` | name of the base model, for people |
//! | `trigger` | the words that call the subject up, JSON |
//! | `training` | a summary of the training, JSON |
//! | `schedule` | what the training changed of the base's noise schedule, fields of a diffusers scheduler's config, JSON |
//! | `signs` | the sign rules of the decompositions that the numbers stand against |
//! | `factors` | sizes of the rotations' Kronecker factors by the width that they turn, JSON; of SODA |
//!
//! Tensors are f32, named `<component>.<path of the weight>.<method>.<parameter>`, as in
//! `unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight.soda.rotation.factors.0` and
//! `text_encoder.text_model.encoder.layers.0.self_attn.q_proj.weight.lora.a`.
//! The singular basis is not stored: it follows from the base, which is why the base's hash is. A word that was learnt
//! beside the adapters has its vectors in every text encoder as `<component>.tokens.<word>`, `[k, width]`.
//!
//! Version 2 had no words; version 1 had the UNet alone, its recipe in `config`, `targets` and `base_hash`. Both are read.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use burn::module::Module;
use burn::tensor::TensorData;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use soda_linalg::{SIGN_RULES, SvdCache};

use crate::adaptation::{Adaptation, Recipe};
use crate::attach::Plan;
use crate::component::Component;
use crate::error::AdapterError;
use crate::leaf::leaves;
use crate::method::Method;
use crate::table::MethodConfig;
use crate::tensors::Tensors;

const FORMAT: &str = "soda-adapter";
const VERSION: &str = "3";
/// Of before words were learnt.
const WITHOUT_WORDS: &str = "2";
/// Of before text encoders were adapted.
const UNET_ONLY: &str = "1";

/// What stands between a text encoder and the word in a tensor's name.
const TOKENS: &str = "tokens.";

/// What a new word stands for: vectors `[k, width]` for each text encoder.
pub type WordVectors = BTreeMap<Component, TensorData>;

/// What an adapter file says about itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Header {
    /// Name of the base model.
    pub base: String,
    /// Words that call the subject up, such as `sks mug`.
    pub trigger: Vec<String>,
    /// A summary of the training: steps, rates, loss.
    pub training: Value,
    /// What it changed of the base's noise schedule: fields of a diffusers scheduler's config.
    pub schedule: Value,
}

/// The adapters of a pipeline's networks, off them, and the words that go with them.
#[derive(Clone, Debug)]
pub struct AdapterFile<M = MethodConfig> {
    /// Where they come from.
    pub header: Header,
    /// By the network that they adapt.
    pub parts: BTreeMap<Component, Adaptation<M>>,
    /// New words, as prompts say them.
    pub words: BTreeMap<String, WordVectors>,
}

impl<M: Method> AdapterFile<M> {
    /// An adapter of nothing yet.
    pub fn new(header: Header) -> Self {
        Self { header, parts: BTreeMap::new(), words: BTreeMap::new() }
    }

    /// With the adapter of a network.
    #[must_use]
    pub fn with(mut self, component: Component, adaptation: Adaptation<M>) -> Self {
        self.parts.insert(component, adaptation);
        self
    }

    /// All adapters, checked against the base that they were trained on; `networks` is a module with a field for each
    /// network, by the names of [`Component`].
    ///
    /// # Errors
    /// A network that the base does not have, another base; tensors missing, left over, misshapen or not orthogonal.
    pub fn plan<N: Module>(&self, networks: &N) -> Result<Plan<M::Adapter>, AdapterError> {
        self.plan_with(networks, None, &mut |_, _| ())
    }

    /// [`AdapterFile::plan`] with the base's decompositions from `cache`, and progress, see [`Method::plan_with`].
    ///
    /// # Errors
    /// Those of [`AdapterFile::plan`], and a cache that can be neither read nor written.
    pub fn plan_with<N: Module>(
        &self,
        networks: &N,
        cache: Option<&SvdCache>,
        on_progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Plan<M::Adapter>, AdapterError> {
        let paths: Vec<_> = leaves(networks).into_iter().map(|leaf| leaf.path).collect();
        let mut all = Plan::default();
        for (component, adaptation) in &self.parts {
            let prefix = component.path("");
            if !paths.iter().any(|path| path.starts_with(&prefix)) {
                return Err(AdapterError::NoNetwork { component: *component });
            }
            let plan = adaptation.plan_under(&prefix, networks, cache, on_progress)?;
            all = all.and(plan.within(*component));
        }
        Ok(all)
    }

    /// Number of trained values.
    pub fn num_params(&self) -> usize {
        self.tensors().map(|(_, data)| data.num_elements()).sum()
    }

    /// Number of tensors.
    pub fn num_tensors(&self) -> usize {
        self.tensors().count()
    }

    /// The tensors by their names in the file.
    pub fn tensors<'a>(&'a self) -> impl Iterator<Item = (String, &'a TensorData)> {
        let of = |(component, part): (&Component, &'a _)| named(*component, part);
        let vectors = |(word, vectors): (&'a String, &'a WordVectors)| spelled(word, vectors);
        self.parts.iter().flat_map(of).chain(self.words.iter().flat_map(vectors))
    }

    /// Sizes of the rotations' Kronecker factors by their product, the width that they turn.
    pub fn factor_sizes(&self) -> BTreeMap<usize, Vec<usize>> {
        self.parts.values().flat_map(Adaptation::factor_sizes).collect()
    }

    /// Reads an adapter file.
    ///
    /// # Errors
    /// A file that cannot be read, is no safetensors file, or was not written by [`AdapterFile::write`]
    /// with a version that this build reads and a method that `M` knows.
    pub fn read(path: &Path) -> Result<Self, AdapterError> {
        let Tensors { tensors, metadata } = Tensors::read(path)?;
        let (header, recipes) = parse_metadata(path, metadata)?;
        let part =
            |(component, recipe)| (component, Adaptation { recipe, tensors: BTreeMap::new() });
        let mut parts: BTreeMap<_, _> = recipes.into_iter().map(part).collect();
        let mut words: BTreeMap<String, WordVectors> = BTreeMap::new();
        for (key, data) in tensors {
            let split = Component::split(&key);
            let word = |(component, inside): (_, &str)| {
                Some((component, inside.strip_prefix(TOKENS)?.to_owned()))
            };
            if let (Some((component, word)), 2) = (split.and_then(word), data.rank()) {
                words.entry(word).or_default().insert(component, data);
                continue;
            }
            let found =
                split.and_then(|(component, inside)| Some((parts.get_mut(&component)?, inside)));
            let Some((part, inside)) = found else {
                return Err(AdapterError::Keys {
                    missing: 0,
                    missing_example: String::new(),
                    unknown: 1,
                    unknown_example: format!(" (such as {key})"),
                });
            };
            part.tensors.insert(inside.to_owned(), data);
        }
        Ok(Self { header, parts, words })
    }

    /// Writes the adapter; `path` never holds half of one.
    ///
    /// # Errors
    /// What the operating system says (no such folder, no room, no permission).
    pub fn write(&self, path: &Path) -> Result<(), AdapterError> {
        let tensors = self.tensors().map(|(key, data)| (key, data.clone())).collect();
        Tensors { tensors, metadata: self.metadata() }.write(path)
    }

    fn metadata(&self) -> HashMap<String, String> {
        let recipes: BTreeMap<_, _> =
            self.parts.iter().map(|(component, part)| (component, &part.recipe)).collect();
        let mut metadata = HashMap::from([
            ("format", FORMAT.to_owned()),
            ("version", VERSION.to_owned()),
            ("parts", json!(recipes).to_string()),
            ("base", self.header.base.clone()),
            ("trigger", json!(self.header.trigger).to_string()),
            ("training", self.header.training.to_string()),
            ("schedule", self.header.schedule.to_string()),
            ("signs", SIGN_RULES.to_owned()),
        ]);
        let factors = self.factor_sizes();
        if !factors.is_empty() {
            metadata.insert("factors", json!(factors).to_string());
        }
        metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }
}

fn named<M>(
    component: Component,
    part: &Adaptation<M>,
) -> impl Iterator<Item = (String, &TensorData)> {
    part.tensors.iter().map(move |(key, data)| (component.path(key), data))
}

fn spelled<'a>(
    word: &'a str,
    vectors: &'a WordVectors,
) -> impl Iterator<Item = (String, &'a TensorData)> {
    let named = move |(component, data): (&Component, _)| {
        (component.path(&format!("{TOKENS}{word}")), data)
    };
    vectors.iter().map(named)
}

type Recipes<M> = BTreeMap<Component, Recipe<M>>;

fn parse_metadata<M: Method>(
    path: &Path,
    mut metadata: HashMap<String, String>,
) -> Result<(Header, Recipes<M>), AdapterError> {
    let no = |field| AdapterError::NotAnAdapter { path: path.to_owned(), field };
    let mut field = |name| metadata.remove(name).ok_or_else(|| no(name));
    if field("format")? != FORMAT {
        return Err(no("format"));
    }
    let version = field("version")?;
    // Files of before this field have these rules too.
    if let Ok(found) = field("signs")
        && found != SIGN_RULES
    {
        let path = path.to_owned();
        return Err(AdapterError::Signs { path, found, supported: SIGN_RULES });
    }
    let settings = |method: String, error: serde_json::Error| AdapterError::Settings {
        path: path.to_owned(),
        method,
        reason: error.to_string(),
    };
    let recipes = match version.as_str() {
        VERSION | WITHOUT_WORDS => {
            let parts = field("parts")?;
            serde_json::from_str(&parts).map_err(|error| settings(names(&parts), error))?
        }
        UNET_ONLY => {
            let name = field("method")?;
            let recipe = Recipe {
                method: serde_json::from_str(&field("config")?)
                    .map_err(|error| settings(name, error))?,
                targets: parse(&field("targets")?).ok_or_else(|| no("targets"))?,
                base_hash: field("base_hash")?,
            };
            BTreeMap::from([(Component::Unet, recipe)])
        }
        _ => {
            return Err(AdapterError::Version {
                path: path.to_owned(),
                found: version,
                supported: "1 to 3",
            });
        }
    };
    let header = Header {
        base: field("base")?,
        trigger: parse(&field("trigger")?).ok_or_else(|| no("trigger"))?,
        training: parse(&field("training")?).ok_or_else(|| no("training"))?,
        // Not in files of before it could be changed.
        schedule: field("schedule").ok().and_then(|text| parse(&text)).unwrap_or_default(),
    };
    Ok((header, recipes))
}

/// The methods that recipes name, for a message about recipes that cannot be read.
fn names(recipes: &str) -> String {
    let recipes: BTreeMap<String, Value> = parse(recipes).unwrap_or_default();
    let name = |recipe: &Value| recipe["method"]["name"].as_str().map(str::to_owned);
    recipes.values().filter_map(name).collect::<Vec<_>>().join(", ")
}

fn parse<T: DeserializeOwned>(text: &str) -> Option<T> {
    serde_json::from_str(text).ok()
}
