//! One file of the decomposition cache. No other file of this crate writes to disk.
//!
//! The file is a header (tag, rows, columns, bytes of an entry), the entries of `u`, `s` and `vt`, and the
//! SHA-256 of all of these. Numbers are in the byte order of the machine.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use burn::tensor::{DType, Device, Element, Tensor, TensorData, TensorReadError};
use bytemuck::Pod;
use sha2::{Digest, Sha256};
use soda_files::StagedFile;

use super::factors::Svd;
use crate::error::LinalgError;

/// The name and version of a decomposition algorithm, the first bytes of a file.
pub(super) type Tag = [u8; 8];

/// The length of a digest in bytes.
const DIGEST_LEN: usize = 32;

/// The factors of a decomposition in host memory.
pub(super) struct StoredFactors {
    u: TensorData,
    s: TensorData,
    vt: TensorData,
}

impl StoredFactors {
    /// Reads the factors from their device.
    pub(super) fn download(svd: &Svd) -> Result<Self, LinalgError> {
        Ok(Self { u: download(&svd.u)?, s: download(&svd.s)?, vt: download(&svd.vt)? })
    }

    pub(super) fn upload(self, device: &Device) -> Svd {
        let options = (device, self.u.dtype());
        Svd {
            u: Tensor::from_data(self.u, options),
            s: Tensor::from_data(self.s, options),
            vt: Tensor::from_data(self.vt, options),
        }
    }

    /// Reads the factors of a matrix `[rows, cols]`. `None` if the file is absent, or its length, header or
    /// digest is wrong.
    pub(super) fn read<T: Element + Pod>(
        path: &Path,
        tag: &Tag,
        [rows, cols]: [usize; 2],
    ) -> io::Result<Option<Self>> {
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let k = rows.min(cols);
        let expected = header(tag, [rows, cols], T::dtype());
        let entries = (rows * k + k + k * cols) * size_of::<T>();
        let length = expected.len() + entries + DIGEST_LEN;
        if file.metadata()?.len() != length as u64 {
            return Ok(None);
        }
        let mut found = vec![0; expected.len()];
        file.read_exact(&mut found)?;
        if found != expected {
            return Ok(None);
        }
        let u = read_entries::<T, 2>(&mut file, [rows, k])?;
        let s = read_entries::<T, 1>(&mut file, [k])?;
        let stored = Self { u, s, vt: read_entries::<T, 2>(&mut file, [k, cols])? };
        let mut digest = [0; DIGEST_LEN];
        file.read_exact(&mut digest)?;
        Ok((stored.digest(&expected) == digest).then_some(stored))
    }

    /// Writes the factors to `path` whole or not at all.
    pub(super) fn write(&self, path: &Path, tag: &Tag) -> io::Result<()> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let (dims, dtype) = ([self.u.shape()[0], self.vt.shape()[1]], self.u.dtype());
        let header = header(tag, dims, dtype);
        let mut staged = StagedFile::new(path)?;
        staged.file().write_all(&header)?;
        for factor in [&self.u, &self.s, &self.vt] {
            staged.file().write_all(factor.as_bytes())?;
        }
        staged.file().write_all(&self.digest(&header))?;
        staged.commit()
    }

    /// The SHA-256 of the header and of all entries.
    fn digest(&self, header: &[u8]) -> [u8; DIGEST_LEN] {
        let mut hash = Sha256::new();
        hash.update(header);
        for factor in [&self.u, &self.s, &self.vt] {
            hash.update(factor.as_bytes());
        }
        hash.finalize().into()
    }
}

fn header(tag: &Tag, [rows, cols]: [usize; 2], dtype: DType) -> Vec<u8> {
    let mut header = tag.to_vec();
    for number in [rows as u64, cols as u64, dtype.size() as u64] {
        header.extend(number.to_ne_bytes());
    }
    header
}

fn download<const D: usize>(tensor: &Tensor<D>) -> Result<TensorData, LinalgError> {
    Ok(tensor.clone().without_autodiff().try_into_data().map_err(TensorReadError::from)?)
}

/// Reads the next entries of a file into a vector of their type, which saves a copy of the bytes.
fn read_entries<T: Element + Pod, const D: usize>(
    file: &mut File,
    shape: [usize; D],
) -> io::Result<TensorData> {
    let mut entries = vec![T::zeroed(); shape.iter().product()];
    file.read_exact(bytemuck::cast_slice_mut(&mut entries))?;
    Ok(TensorData::new(entries, shape))
}
