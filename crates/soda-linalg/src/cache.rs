//! A folder of singular value decompositions, keyed by what was decomposed: the one file of this crate
//! that does IO.
//!
//! The key is the SHA-256 of the matrix (dtype, shape, bytes) and of the decomposition's rule, so that a
//! changed weight or a changed sign rule is another file. A file is written under a name of its own,
//! synced, and renamed into place: two processes that compute the same one both succeed, and neither
//! ever reads a part. A file that is not what its header says is computed again. Numbers are in the
//! machine's byte order; a file from another kind of machine has another header and is computed again.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

use burn::tensor::{DType, Device, Element, Tensor, TensorData, TensorReadError};
use bytemuck::Pod;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::backend::with_bytes;
use crate::error::LinalgError;
use crate::host;
use crate::svd::Svd;

/// Changes when [`Svd::thin`] would give other factors for the same matrix.
const RULE: &Rule = b"sodasvd2";
/// Changes when [`Svd::thin_batch_rounded`] would.
const ROUNDED: &Rule = b"sodasvr1";

/// The name of a way to decompose, which is part of a file's key.
type Rule = [u8; 8];

/// Decompositions kept on disk.
#[derive(Clone, Debug)]
pub struct SvdCache {
    folder: PathBuf,
}

impl SvdCache {
    /// The cache in `folder`, which is made with the first file.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// [`Svd::thin`], from disk where it is there.
    ///
    /// # Errors
    ///
    /// As [`Svd::thin`], or if a file can be neither read nor written.
    pub fn thin(&self, a: &Tensor<2>) -> Result<Svd, LinalgError> {
        // One matrix gives one result.
        let compute = |absent: &[Tensor<2>]| absent.iter().map(Svd::thin).collect();
        self.window(std::slice::from_ref(a), RULE, compute).pop().unwrap_or_else(|| Svd::thin(a))
    }

    /// [`Svd::thin_batch`], from disk where they are there.
    pub fn thin_batch(&self, matrices: &[Tensor<2>]) -> Vec<Result<Svd, LinalgError>> {
        self.windows(matrices, RULE, Svd::thin_batch)
    }

    /// [`Svd::thin_batch_rounded`], from disk where they are there: other files than those of the other two.
    pub fn thin_batch_rounded(&self, matrices: &[Tensor<2>]) -> Vec<Result<Svd, LinalgError>> {
        self.windows(matrices, ROUNDED, Svd::thin_batch_rounded)
    }

    fn windows(
        &self,
        matrices: &[Tensor<2>],
        rule: &Rule,
        compute: fn(&[Tensor<2>]) -> Vec<Result<Svd, LinalgError>>,
    ) -> Vec<Result<Svd, LinalgError>> {
        let window = 4 * rayon::current_num_threads();
        matrices.chunks(window).flat_map(|window| self.window(window, rule, compute)).collect()
    }

    /// `compute` is for what is missing: a batch sums in another order than a lone matrix, whose work is
    /// itself spread over the cores.
    fn window(
        &self,
        matrices: &[Tensor<2>],
        rule: &Rule,
        compute: impl Fn(&[Tensor<2>]) -> Vec<Result<Svd, LinalgError>>,
    ) -> Vec<Result<Svd, LinalgError>> {
        let found: Vec<Result<(PathBuf, Option<Stored>), LinalgError>> = matrices
            .par_iter()
            .map(|a| {
                let path = self.folder.join(key(a, rule)?);
                // Factors are kept in the dtype that `Svd::thin` gives.
                let stored = match host::is_double(a) {
                    true => Stored::read::<f64>(&path, rule, a.dims()),
                    false => Stored::read::<f32>(&path, rule, a.dims()),
                };
                match stored {
                    Ok(stored) => Ok((path, stored)),
                    Err(source) => Err(failed(&path, source)),
                }
            })
            .collect();

        let missing = |found: &Result<_, LinalgError>| matches!(found, Ok((_, None)));
        let pairs = matrices.iter().zip(&found);
        let absent: Vec<Tensor<2>> =
            pairs.filter(|(_, found)| missing(found)).map(|(a, _)| a.clone()).collect();
        let mut computed = compute(&absent).into_iter();
        let mut fresh = Vec::new();
        let mut results: Vec<Result<Svd, LinalgError>> = Vec::with_capacity(matrices.len());
        for (a, found) in matrices.iter().zip(found) {
            let result = found.and_then(|(path, stored)| {
                if let Some(stored) = stored {
                    return Ok(stored.upload(&host::plain_device(a)));
                }
                // As many were computed as were missing.
                let svd = computed.next().unwrap_or_else(|| Svd::thin(a))?;
                fresh.push((results.len(), path, Stored::download(&svd)?));
                Ok(svd)
            });
            results.push(result);
        }
        let written: Vec<_> = fresh
            .into_par_iter()
            .map(|(at, path, stored)| {
                (at, stored.write(&path, rule).map_err(|error| failed(&path, error)))
            })
            .collect();
        for (at, written) in written {
            if let Err(error) = written {
                results[at] = Err(error);
            }
        }
        results
    }
}

fn download<const D: usize>(tensor: &Tensor<D>) -> Result<TensorData, LinalgError> {
    Ok(tensor.clone().without_autodiff().try_into_data().map_err(TensorReadError::from)?)
}

fn key(a: &Tensor<2>, rule: &Rule) -> Result<String, LinalgError> {
    let [rows, cols] = a.dims();
    let digest = with_bytes(a, |dtype, bytes| {
        let mut hash = Sha256::new();
        hash.update(rule);
        hash.update(format!("{dtype:?} {rows} {cols} "));
        hash.update(bytes);
        hash.finalize()
    })?;
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + ".svd")
}

fn failed(path: &Path, source: io::Error) -> LinalgError {
    LinalgError::Cache { path: path.to_owned(), source }
}

/// A decomposition off its device. In a file: a header, then the entries of `u`, `s` and `vt`.
struct Stored {
    u: TensorData,
    s: TensorData,
    vt: TensorData,
}

impl Stored {
    fn download(svd: &Svd) -> Result<Self, LinalgError> {
        Ok(Self { u: download(&svd.u)?, s: download(&svd.s)?, vt: download(&svd.vt)? })
    }

    fn upload(self, device: &Device) -> Svd {
        let options = (device, self.u.dtype());
        Svd {
            u: Tensor::from_data(self.u, options),
            s: Tensor::from_data(self.s, options),
            vt: Tensor::from_data(self.vt, options),
        }
    }

    fn header(rule: &Rule, [rows, cols]: [usize; 2], dtype: DType) -> Vec<u8> {
        let mut header = rule.to_vec();
        for number in [rows as u64, cols as u64, dtype.size() as u64] {
            header.extend(number.to_ne_bytes());
        }
        header
    }

    /// `None` where there is no such file, or one that is not what it should be.
    fn read<T: Element + Pod>(
        path: &Path,
        rule: &Rule,
        [rows, cols]: [usize; 2],
    ) -> io::Result<Option<Self>> {
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let k = rows.min(cols);
        let expected = Self::header(rule, [rows, cols], T::dtype());
        let length = expected.len() + (rows * k + k + k * cols) * size_of::<T>();
        if file.metadata()?.len() != length as u64 {
            return Ok(None);
        }
        let mut header = vec![0; expected.len()];
        file.read_exact(&mut header)?;
        if header != expected {
            return Ok(None);
        }
        let u = entries::<T, 2>(&mut file, [rows, k])?;
        let s = entries::<T, 1>(&mut file, [k])?;
        Ok(Some(Self { u, s, vt: entries::<T, 2>(&mut file, [k, cols])? }))
    }

    fn write(&self, path: &Path, rule: &Rule) -> io::Result<()> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        // Unique among processes and threads; the final name is taken by the rename alone.
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let temporary = path.with_extension(format!("{}-{count}.tmp", process::id()));
        let written = self.write_to(&temporary, rule).and_then(|()| fs::rename(&temporary, path));
        if written.is_err() {
            // The first error is the one to report.
            let _ = fs::remove_file(&temporary);
        }
        written
    }

    fn write_to(&self, path: &Path, rule: &Rule) -> io::Result<()> {
        let (dims, dtype) = ([self.u.shape()[0], self.vt.shape()[1]], self.u.dtype());
        let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
        file.write_all(&Self::header(rule, dims, dtype))?;
        for part in [&self.u, &self.s, &self.vt] {
            file.write_all(part.as_bytes())?;
        }
        // Before the rename, or a crash could leave the final name on an empty file.
        file.sync_all()
    }
}

/// The next entries of a file, straight into a vector of their type: bytes would be copied once more.
fn entries<T: Element + Pod, const D: usize>(
    file: &mut File,
    shape: [usize; D],
) -> io::Result<TensorData> {
    let mut entries = vec![T::zeroed(); shape.iter().product()];
    file.read_exact(bytemuck::cast_slice_mut(&mut entries))?;
    Ok(TensorData::new(entries, shape))
}
