//! A cache on disk of latents, encoded captions and calibrations, so that later runs need not compute them
//! again.
//!
//! The name of a file is the SHA-256 of everything that determines its content:
//!
//! - checksums of the weights, and the settings of the encoder,
//! - for latents the pixels of the image, the crop and the size,
//! - for captions the tokens,
//! - for calibrations the base model, the training data and all settings but the optimizer's.
//!
//! An entry has the computed values to the bit and does not depend on other entries, so that a run with a
//! full cache gives the same result as a run without one. An entry that does not match its digest is computed
//! again. The device is not part of the name, although devices differ by rounding.
//!
//! The folder may be that of [`soda_linalg::SvdCache`].

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use burn::tensor::Device;
use image::RgbImage;
use sha2::{Digest as _, Sha256};
use soda_models::input_file::{self, SizeLimit};
use soda_models::pipeline::{Pipeline, TextEncoders};

use crate::data::augment::ImageVariant;
use crate::data::encoded_caption::EncodedCaption;
use crate::data::latents::{Posterior, takes_mode};
use crate::divided::Sent as _;
use crate::error::TrainError;
use crate::network_hash::network_hash;
use crate::output::files::{create_folder, write_file};
use crate::output::tensor_file::{Tensors, from_bytes, hex, to_bytes};

/// The version of the encoding, part of every key. It changes when the same images or tokens would be encoded
/// differently.
const VERSION: &str = "soda-encode-1";

/// A cache of the latents and encoded captions of one base model, in a folder.
#[derive(Debug)]
pub struct EncodeCache {
    folder: PathBuf,
    /// Identifies the autoencoder.
    vae: String,
    /// Identifies the text encoders.
    text: String,
    /// Whether new entries are written.
    writes: bool,
    hits: AtomicUsize,
    misses: AtomicUsize,
}

impl EncodeCache {
    /// Opens the cache of the base model `pipeline` in `folder`, which is created with the first entry.
    /// Hashes all weights of the encoders.
    pub fn new(folder: PathBuf, pipeline: &Pipeline) -> Self {
        let vae = &pipeline.vae;
        let text = match &pipeline.text {
            TextEncoders::Clip(clip) => {
                let second = clip.second.as_ref().map(|second| network_hash(&second.text_encoder));
                format!("{} {}", network_hash(&clip.text_encoder), second.unwrap_or_default())
            }
            TextEncoders::Qwen3(qwen3) => {
                format!("{} {}", qwen3.weights_hash(), pipeline.text.prompt_encoding())
            }
        };
        Self {
            folder,
            vae: format!(
                "{} {} {}{}",
                network_hash(&vae.encoder),
                vae.quant_conv.as_ref().map(network_hash).unwrap_or_default(),
                vae.scaling_factor,
                match &vae.bn {
                    Some(statistics) => network_hash(statistics),
                    None if takes_mode(pipeline) => format!(" {} mode", vae.shift_factor),
                    None => String::new(),
                }
            ),
            text,
            writes: true,
            hits: AtomicUsize::new(0),
            misses: AtomicUsize::new(0),
        }
    }

    /// The cache for a rank that reads entries and leaves writing to rank 0.
    #[must_use]
    pub(crate) fn read_only(self) -> Self {
        Self { writes: false, ..self }
    }

    /// The number of hits and of misses.
    pub fn counts(&self) -> (usize, usize) {
        (self.hits.load(Ordering::Relaxed), self.misses.load(Ordering::Relaxed))
    }

    /// The latents of a variant of the image with this hash, computed by `make` if they are missing.
    pub(crate) fn posterior(
        &self,
        image_hash: &str,
        variant: &ImageVariant,
        device: &Device,
        make: impl FnOnce() -> Posterior,
    ) -> Result<Posterior, TrainError> {
        let key = self.key(&[&self.vae, image_hash, &variant.cache_key()]);
        let unpack = |tensors: &Tensors| Posterior::from_tensors(tensors, device);
        self.get(&format!("{key}.latents"), unpack, Posterior::to_tensors, make)
    }

    /// The encoded caption with these tokens, computed by `make` if it is missing.
    pub(crate) fn caption(
        &self,
        tokens: &str,
        device: &Device,
        make: impl FnOnce() -> EncodedCaption,
    ) -> Result<EncodedCaption, TrainError> {
        let key = self.key(&[&self.text, tokens]);
        let unpack = |tensors: &Tensors| EncodedCaption::from_tensors(tensors, device);
        self.get(&format!("{key}.text"), unpack, EncodedCaption::to_tensors, make)
    }

    /// The directions of a calibration that depends on `parts`. `None` if they are missing or damaged.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub(crate) fn find_calibration<T>(
        &self,
        parts: &[&str],
        unpack: impl Fn(&Tensors) -> Option<T>,
    ) -> Result<Option<T>, TrainError> {
        self.find(&format!("{}.calibration", self.key(parts)), unpack)
    }

    /// Stores the directions of a calibration that depends on `parts`.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub(crate) fn store_calibration(
        &self,
        parts: &[&str],
        tensors: &Tensors,
    ) -> Result<(), TrainError> {
        self.store(&format!("{}.calibration", self.key(parts)), tensors)
    }

    /// The SHA-256 of the version and the lengths and texts of `parts`, in hexadecimal digits.
    fn key(&self, parts: &[&str]) -> String {
        let mut hash = Sha256::new();
        hash.update(VERSION);
        for part in parts {
            hash.update(format!(" {} ", part.len()));
            hash.update(part);
        }
        hex(hash)
    }

    /// The content of the file `name`. If it is missing or damaged, the result of `make` is stored and
    /// returned.
    fn get<T>(
        &self,
        name: &str,
        unpack: impl Fn(&Tensors) -> Option<T>,
        pack: impl Fn(&T) -> Tensors,
        make: impl FnOnce() -> T,
    ) -> Result<T, TrainError> {
        if let Some(found) = self.find(name, unpack)? {
            return Ok(found);
        }
        let made = make();
        self.store(name, &pack(&made))?;
        Ok(made)
    }

    /// The content of the file `name`. `None` if it is missing or damaged.
    fn find<T>(
        &self,
        name: &str,
        unpack: impl Fn(&Tensors) -> Option<T>,
    ) -> Result<Option<T>, TrainError> {
        let path = self.folder.join(name);
        let bytes = match input_file::read(&path, SizeLimit::TENSORS) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(TrainError::io("read", &path)(error)),
        };
        // The header repeats the name, so that a renamed file is not taken for the entry.
        let stored = from_bytes(&bytes).filter(|(header, _)| header == name);
        let found = stored.and_then(|(_, tensors)| unpack(&tensors));
        self.hits.fetch_add(usize::from(found.is_some()), Ordering::Relaxed);
        Ok(found)
    }

    /// Writes the file `name`, on the rank that writes.
    fn store(&self, name: &str, tensors: &Tensors) -> Result<(), TrainError> {
        if self.writes {
            let path = self.folder.join(name);
            let refuse = |error: safetensors::SafeTensorError| {
                TrainError::io("write", &path)(std::io::Error::other(error.to_string()))
            };
            let bytes = to_bytes(name.to_owned(), tensors).map_err(refuse)?;
            create_folder(&self.folder)?;
            write_file(&path, &bytes)?;
        }
        self.misses.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

impl fmt::Display for EncodeCache {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (hits, misses) = self.counts();
        write!(formatter, "{hits} encodings found, {misses} made, in {}", self.folder.display())
    }
}

/// The SHA-256 of the size and the pixels of an image, in hexadecimal digits.
pub(crate) fn image_hash(image: &RgbImage) -> String {
    let mut hash = Sha256::new();
    hash.update(format!("{:?} ", image.dimensions()));
    hash.update(image.as_raw());
    hex(hash)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use std::path::PathBuf;

    use burn::tensor::Tensor;

    use super::*;

    fn toybox(name: &str) -> PathBuf {
        soda_testing::workspace_path("examples/toybox").join(name)
    }

    #[test]
    fn pooled_embeddings_are_cached_if_there_are_any() {
        let folder = tempfile::tempdir().unwrap();
        let device = Device::default();
        let pipeline = Pipeline::load(&toybox("base"), &device).unwrap();
        let cache = EncodeCache::new(folder.path().to_owned(), &pipeline);
        let make = |pooled: bool| EncodedCaption {
            hidden: soda_models::noise::randn(0, 0, [1, 3, 4], &device),
            pooled: pooled.then(|| soda_models::noise::randn(0, 1, [1, 5], &device)),
        };
        for (tokens, pooled) in [("[1]", true), ("[2]", false)] {
            let data = |text: EncodedCaption| {
                (text.hidden.into_data(), text.pooled.map(Tensor::into_data))
            };
            let made = data(cache.caption(tokens, &device, || make(pooled)).unwrap());
            let found = cache.caption(tokens, &device, || panic!("encoded again")).unwrap();
            assert_eq!(data(found), made);
            assert_eq!(made.1.is_some(), pooled);
        }
        assert_eq!(cache.counts(), (2, 2));
        // The error of a folder that cannot be created has its name.
        let cache = EncodeCache::new(toybox("base/model_index.json").join("cache"), &pipeline);
        let message = cache.caption("[1]", &device, || make(true)).unwrap_err().to_string();
        assert!(message.contains("model_index.json"), "{message}");
    }

    #[test]
    fn networks_with_other_weights_or_settings_have_other_keys() {
        let device = Device::default();
        let mut pipeline = Pipeline::load(&toybox("base"), &device).unwrap();
        let cache = |pipeline: &Pipeline| EncodeCache::new(PathBuf::new(), pipeline);
        let before = cache(&pipeline);
        pipeline.text.clip_mut().unwrap().text_encoder.text_model.eos_token += 1;
        let moved = |weight: Tensor<4>| weight.add_scalar(1e-3);
        let quant_conv = pipeline.vae.quant_conv.as_mut().unwrap();
        quant_conv.weight = quant_conv.weight.clone().map(moved);
        let after = cache(&pipeline);
        assert_ne!(before.vae, after.vae);
        assert_ne!(before.text, after.text);
    }
}
