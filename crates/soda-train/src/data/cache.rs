//! What the autoencoder and the text encoders say, kept on disk, so that the next run need not ask them again.
//!
//! A file's name is the SHA-256 of all that decides its content: the encoder's weights and settings, and of latents
//! the picture's pixels, the part of them that is seen and the size; of text the tokens. A changed picture,
//! caption or encoder is another file. What is kept is what was computed, to the bit, and an entry does not depend on
//! what else there was to encode: a run with a full cache is the run without one. Files appear whole or not
//! at all; one that is not what its digest says is computed again. Which device it was computed on is not
//! part of the name: devices differ by rounding.
//!
//! The folder may be that of [`soda_linalg::SvdCache`].

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use burn::module::Module;
use burn::tensor::{DType, Device, Tensor, TensorData};
use image::RgbImage;
use rayon::prelude::*;
use sha2::{Digest as _, Sha256};
use soda_adapters::leaves;
use soda_models::pipeline::Pipeline;

use crate::data::augment::View;
use crate::data::encoded_caption::EncodedCaption;
use crate::data::latents::Posterior;
use crate::error::TrainError;
use crate::output::run_folder::write_file;
use crate::output::tensor_file::{Tensors, from_bytes, hex, to_bytes};

/// Changes when the same pictures or tokens would be encoded otherwise.
const RULE: &str = "soda-encode-1";

/// Latents and text states of one base, in a folder.
#[derive(Debug)]
pub struct EncodeCache {
    folder: PathBuf,
    /// What tells the autoencoder from others.
    vae: String,
    /// What tells the text encoders from others.
    text: String,
    found: AtomicUsize,
    made: AtomicUsize,
}

impl EncodeCache {
    /// The cache of this base in `folder`, which is made with the first file. Reads all weights of the
    /// encoders.
    pub fn new(folder: PathBuf, pipeline: &Pipeline) -> Self {
        let vae = &pipeline.vae;
        let second = pipeline.second.as_ref().map(|second| fingerprint(&second.text_encoder));
        Self {
            folder,
            vae: format!(
                "{} {} {}",
                fingerprint(&vae.encoder),
                fingerprint(&vae.quant_conv),
                vae.scaling_factor
            ),
            text: format!("{} {}", fingerprint(&pipeline.text_encoder), second.unwrap_or_default()),
            found: AtomicUsize::new(0),
            made: AtomicUsize::new(0),
        }
    }

    /// How many were found, and how many had to be computed.
    pub fn counts(&self) -> (usize, usize) {
        (self.found.load(Ordering::Relaxed), self.made.load(Ordering::Relaxed))
    }

    /// The distribution of a view of the picture with this hash.
    pub(crate) fn posterior(
        &self,
        picture: &str,
        view: &View,
        device: &Device,
        make: impl FnOnce() -> Posterior,
    ) -> Result<Posterior, TrainError> {
        let key = self.key(&[&self.vae, picture, &format!("{view:?}")]);
        let unpack = |tensors: &Tensors| {
            let [mean, std] = ["mean", "std"].map(|name| tensor(tensors, name, device));
            Some(Posterior { mean: mean?, std: std? })
        };
        let pack = |Posterior { mean, std }: &Posterior| {
            Tensors::from([entry("mean", mean), entry("std", std)])
        };
        self.get(&format!("{key}.latents"), unpack, pack, make)
    }

    /// What the text encoders say of these tokens.
    pub(crate) fn text(
        &self,
        tokens: &str,
        device: &Device,
        make: impl FnOnce() -> EncodedCaption,
    ) -> Result<EncodedCaption, TrainError> {
        let key = self.key(&[&self.text, tokens]);
        let unpack = |tensors: &Tensors| {
            let pooled = match tensors.contains_key("pooled") {
                true => Some(tensor(tensors, "pooled", device)?),
                false => None,
            };
            Some(EncodedCaption { states: tensor(tensors, "states", device)?, pooled })
        };
        let pack = |EncodedCaption { states, pooled }: &EncodedCaption| {
            let pooled = pooled.as_ref().map(|pooled| entry("pooled", pooled));
            [entry("states", states)].into_iter().chain(pooled).collect()
        };
        self.get(&format!("{key}.text"), unpack, pack, make)
    }

    fn key(&self, parts: &[&str]) -> String {
        let mut hash = Sha256::new();
        hash.update(RULE);
        for part in parts {
            hash.update(format!(" {} ", part.len()));
            hash.update(part);
        }
        hex(hash)
    }

    /// The content of a file, or what `make` makes, which is then written.
    fn get<T>(
        &self,
        name: &str,
        unpack: impl Fn(&Tensors) -> Option<T>,
        pack: impl Fn(&T) -> Tensors,
        make: impl FnOnce() -> T,
    ) -> Result<T, TrainError> {
        let path = self.folder.join(name);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => Some(bytes),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(TrainError::io("read", &path)(error)),
        };
        // The header is the name: a file that was given another is no entry.
        let stored = bytes.and_then(|bytes| from_bytes(&bytes));
        let stored = stored.filter(|(header, _)| header == name);
        if let Some(value) = stored.and_then(|(_, tensors)| unpack(&tensors)) {
            self.found.fetch_add(1, Ordering::Relaxed);
            return Ok(value);
        }
        let value = make();
        let refuse = |error: safetensors::SafeTensorError| {
            TrainError::io("write", &path)(std::io::Error::other(error.to_string()))
        };
        let bytes = to_bytes(name.to_owned(), &pack(&value)).map_err(refuse)?;
        std::fs::create_dir_all(&self.folder).map_err(TrainError::io("create", &self.folder))?;
        write_file(&path, &bytes)?;
        self.made.fetch_add(1, Ordering::Relaxed);
        Ok(value)
    }
}

impl fmt::Display for EncodeCache {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (found, made) = self.counts();
        write!(formatter, "{found} encodings found, {made} made, in {}", self.folder.display())
    }
}

/// The hash of a picture's pixels.
pub(crate) fn picture(picture: &RgbImage) -> String {
    let mut hash = Sha256::new();
    hash.update(format!("{:?} ", picture.dimensions()));
    hash.update(picture.as_raw());
    hex(hash)
}

/// What tells a network from others: its settings, and every weight.
fn fingerprint<M: Module + fmt::Display>(module: &M) -> String {
    let weights: Vec<_> = leaves(module)
        .into_par_iter()
        .map(|leaf| {
            let data = leaf.value().into_data();
            let mut hash = Sha256::new();
            hash.update(format!("{} {:?} {:?} ", leaf.path, leaf.shape, data.dtype()));
            hash.update(data.as_bytes());
            hash.finalize()
        })
        .collect();
    let mut hash = Sha256::new();
    // The settings that are no weights, such as an activation.
    hash.update(module.to_string());
    weights.iter().for_each(|weight| hash.update(weight));
    hex(hash)
}

fn entry<const D: usize>(name: &str, tensor: &Tensor<D>) -> (String, TensorData) {
    (name.to_owned(), tensor.to_data())
}

/// A tensor of the file, if it is there with this rank.
fn tensor<const D: usize>(tensors: &Tensors, name: &str, device: &Device) -> Option<Tensor<D>> {
    let data = tensors.get(name)?;
    let fits = data.shape().len() == D && data.dtype() == DType::F32;
    fits.then(|| Tensor::from_data(data.clone(), device))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use std::path::{Path, PathBuf};

    use super::*;

    fn toybox(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/toybox").join(name)
    }

    #[test]
    fn summaries_are_kept_where_there_are_some() {
        let folder = tempfile::tempdir().unwrap();
        let device = Device::default();
        let pipeline = Pipeline::load(&toybox("base"), &device).unwrap();
        let cache = EncodeCache::new(folder.path().to_owned(), &pipeline);
        let make = |pooled: bool| EncodedCaption {
            states: soda_models::noise::gaussian(0, 0, [1, 3, 4], &device),
            pooled: pooled.then(|| soda_models::noise::gaussian(0, 1, [1, 5], &device)),
        };
        for (tokens, pooled) in [("[1]", true), ("[2]", false)] {
            let data = |text: EncodedCaption| {
                (text.states.into_data(), text.pooled.map(Tensor::into_data))
            };
            let made = data(cache.text(tokens, &device, || make(pooled)).unwrap());
            let found = cache.text(tokens, &device, || panic!("asked again")).unwrap();
            assert_eq!(data(found), made);
            assert_eq!(made.1.is_some(), pooled);
        }
        assert_eq!(cache.counts(), (2, 2));
        // A folder that cannot be made is told by name.
        let cache = EncodeCache::new(toybox("base/model_index.json").join("cache"), &pipeline);
        let message = cache.text("[1]", &device, || make(true)).unwrap_err().to_string();
        assert!(message.contains("model_index.json"), "{message}");
    }

    #[test]
    fn another_network_is_another_entry() {
        let device = Device::default();
        let mut pipeline = Pipeline::load(&toybox("base"), &device).unwrap();
        let cache = |pipeline: &Pipeline| EncodeCache::new(PathBuf::new(), pipeline);
        let before = cache(&pipeline);
        pipeline.text_encoder.text_model.eos_token += 1;
        let moved = |weight: Tensor<4>| weight.add_scalar(1e-3);
        pipeline.vae.quant_conv.weight = pipeline.vae.quant_conv.weight.clone().map(moved);
        let after = cache(&pipeline);
        assert_ne!(before.vae, after.vae);
        assert_ne!(before.text, after.text, "{}", pipeline.text_encoder);
    }
}
