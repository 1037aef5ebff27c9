//! One file of the decomposition cache. No other file of this crate writes to disk.
//!
//! The file is a header (tag, rows, columns, bytes of an entry), then the entries of `u`, `s` and `vt`.
//! Numbers are in the byte order of the machine.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

use burn::tensor::{DType, Device, Element, Tensor, TensorData, TensorReadError};
use bytemuck::Pod;

use super::factors::Svd;
use crate::error::LinalgError;

/// The name and version of a decomposition algorithm, the first bytes of a file.
pub(super) type Tag = [u8; 8];

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

    /// Reads the factors of a matrix `[rows, cols]`. `None` if the file is absent, or its length or header is
    /// wrong.
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
        let length = expected.len() + (rows * k + k + k * cols) * size_of::<T>();
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
        Ok(Some(Self { u, s, vt: read_entries::<T, 2>(&mut file, [k, cols])? }))
    }

    /// Writes the factors to a temporary file beside `path` and renames it.
    pub(super) fn write(&self, path: &Path, tag: &Tag) -> io::Result<()> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        // The temporary name is unique among processes and threads.
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let temporary = path.with_extension(format!("{}-{count}.tmp", process::id()));
        let written = self.write_to(&temporary, tag).and_then(|()| fs::rename(&temporary, path));
        if written.is_err() {
            // The first error is the one to report.
            let _ = fs::remove_file(&temporary);
        }
        written
    }

    fn write_to(&self, path: &Path, tag: &Tag) -> io::Result<()> {
        let (dims, dtype) = ([self.u.shape()[0], self.vt.shape()[1]], self.u.dtype());
        let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
        file.write_all(&header(tag, dims, dtype))?;
        for factor in [&self.u, &self.s, &self.vt] {
            file.write_all(factor.as_bytes())?;
        }
        // Before the rename: otherwise a crash could leave an empty file under the final name.
        file.sync_all()
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
