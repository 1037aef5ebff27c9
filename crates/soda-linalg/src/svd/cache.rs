//! A folder of singular value decompositions, keyed by the decomposed matrix.

use std::io;
use std::path::{Path, PathBuf};

use burn::tensor::Tensor;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::cache_file::{StoredFactors, Tag};
use super::factors::Svd;
use crate::backend::with_bytes;
use crate::error::LinalgError;
use crate::host;

/// The tag of [`Svd::thin`] and [`Svd::thin_batch`]; it changes whenever their factors of a matrix do.
const TAG_THIN: &Tag = b"sodasvd2";
/// The tag of [`Svd::thin_batch_via_f64`]; it changes whenever its factors of a matrix do.
const TAG_VIA_F64: &Tag = b"sodasvr1";

/// A cache of singular value decompositions in a folder on disk.
///
/// A file's name is the SHA-256 hash of the matrix (dtype, shape and bytes) and of the algorithm. A changed
/// weight gets another file. Decompositions by [`Svd::thin`] and by [`Svd::thin_batch_via_f64`] have separate
/// files.
///
/// A file is written under a temporary name, synced and renamed. Several processes can share a folder, and
/// none reads a part of a file. A file holds a digest of its numbers. A damaged file, or one of a machine
/// with another byte order, is computed again and replaced.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use soda_linalg::SvdCache;
///
/// let folder = tempfile::tempdir()?;
/// let cache = SvdCache::new(folder.path());
/// let a = Tensor::<2>::from_data([[0.0, 3.0], [-4.0, 0.0]], &Device::default());
/// let computed = cache.thin(&a)?;
/// let from_disk = cache.thin(&a)?;
/// assert_eq!(computed.u.to_data(), from_disk.u.to_data());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct SvdCache {
    folder: PathBuf,
}

impl SvdCache {
    /// Returns the cache in `folder`, which is created with the first file.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// Returns [`Svd::thin`] of `a`, from disk if the cache holds it.
    ///
    /// # Errors
    ///
    /// The errors of [`Svd::thin`], and [`LinalgError::Cache`] if a file can be neither read nor written.
    pub fn thin(&self, a: &Tensor<2>) -> Result<Svd, LinalgError> {
        // A lone matrix is decomposed on all cores, a batch on one core each: their sums differ in order.
        let compute = |absent: &[Tensor<2>]| absent.iter().map(Svd::thin).collect();
        let results = self.load_or_compute(std::slice::from_ref(a), TAG_THIN, compute);
        results.into_iter().next().unwrap_or_else(|| Svd::thin(a))
    }

    /// Returns [`Svd::thin_batch`] of the matrices, from disk as far as the cache holds them.
    ///
    /// # Errors
    ///
    /// Each result has the errors of [`SvdCache::thin`].
    pub fn thin_batch(&self, matrices: &[Tensor<2>]) -> Vec<Result<Svd, LinalgError>> {
        self.in_windows(matrices, TAG_THIN, Svd::thin_batch)
    }

    /// Returns [`Svd::thin_batch_via_f64`] of the matrices, from disk as far as the cache holds them.
    ///
    /// # Errors
    ///
    /// Each result has the errors of [`SvdCache::thin`].
    pub fn thin_batch_via_f64(&self, matrices: &[Tensor<2>]) -> Vec<Result<Svd, LinalgError>> {
        self.in_windows(matrices, TAG_VIA_F64, Svd::thin_batch_via_f64)
    }

    /// Windows bound the memory: the factors of all weights of a model are several times its size.
    fn in_windows(
        &self,
        matrices: &[Tensor<2>],
        tag: &Tag,
        compute: fn(&[Tensor<2>]) -> Vec<Result<Svd, LinalgError>>,
    ) -> Vec<Result<Svd, LinalgError>> {
        let window = 4 * rayon::current_num_threads();
        matrices
            .chunks(window)
            .flat_map(|window| self.load_or_compute(window, tag, compute))
            .collect()
    }

    /// Reads the decompositions that the cache holds, and computes and writes the others.
    fn load_or_compute(
        &self,
        matrices: &[Tensor<2>],
        tag: &Tag,
        compute: impl Fn(&[Tensor<2>]) -> Vec<Result<Svd, LinalgError>>,
    ) -> Vec<Result<Svd, LinalgError>> {
        let loaded: Vec<Result<(PathBuf, Option<StoredFactors>), LinalgError>> =
            matrices.par_iter().map(|a| self.load(a, tag)).collect();
        let is_absent = |loaded: &Result<_, LinalgError>| matches!(loaded, Ok((_, None)));
        let pairs = matrices.iter().zip(&loaded);
        let absent: Vec<Tensor<2>> =
            pairs.filter(|(_, loaded)| is_absent(loaded)).map(|(a, _)| a.clone()).collect();
        let mut computed = compute(&absent).into_iter();
        let mut new_files = Vec::new();
        let mut results: Vec<Result<Svd, LinalgError>> = Vec::with_capacity(matrices.len());
        for (a, loaded) in matrices.iter().zip(loaded) {
            let result = loaded.and_then(|(path, stored)| {
                if let Some(stored) = stored {
                    return Ok(stored.upload(&host::inner_device(a)));
                }
                // `compute` returns one result for each absent matrix, so that the alternative is never
                // taken.
                let svd = computed.next().unwrap_or_else(|| Svd::thin(a))?;
                new_files.push((results.len(), path, StoredFactors::download(&svd)?));
                Ok(svd)
            });
            results.push(result);
        }
        let write = |(at, path, stored): (usize, PathBuf, StoredFactors)| {
            (at, stored.write(&path, tag).map_err(|error| cache_error(&path, error)))
        };
        let written: Vec<_> = new_files.into_par_iter().map(write).collect();
        for (at, written) in written {
            if let Err(error) = written {
                results[at] = Err(error);
            }
        }
        results
    }

    /// The path of the decomposition of `a`, and its factors if the file exists.
    fn load(
        &self,
        a: &Tensor<2>,
        tag: &Tag,
    ) -> Result<(PathBuf, Option<StoredFactors>), LinalgError> {
        let path = self.folder.join(file_name(a, tag)?);
        // The dtype of the factors that the decomposition of `a` has.
        let stored = match host::is_f64(a) {
            true => StoredFactors::read::<f64>(&path, tag, a.dims()),
            false => StoredFactors::read::<f32>(&path, tag, a.dims()),
        };
        match stored {
            Ok(stored) => Ok((path, stored)),
            Err(source) => Err(cache_error(&path, source)),
        }
    }
}

/// The hash of the tag, dtype, shape and bytes of `a`, with the extension `svd`.
fn file_name(a: &Tensor<2>, tag: &Tag) -> Result<String, LinalgError> {
    let [rows, cols] = a.dims();
    let digest = with_bytes(a, |dtype, bytes| {
        let mut hash = Sha256::new();
        hash.update(tag);
        hash.update(format!("{dtype:?} {rows} {cols} "));
        hash.update(bytes);
        hash.finalize()
    })?;
    Ok(format!("{digest:x}.svd"))
}

fn cache_error(path: &Path, source: io::Error) -> LinalgError {
    LinalgError::Cache { path: path.to_owned(), source }
}
