//! Safetensors files with a header and a digest, by which a damaged file is recognised.

use std::collections::{BTreeMap, HashMap};

use burn::tensor::{DType, Device, Tensor, TensorData};
use image::RgbImage;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use sha2::{Digest as _, Sha256};

/// Tensors by name, in f32, f64 or u8.
pub(crate) type Tensors = BTreeMap<String, TensorData>;

/// Encodes a header and tensors as the content of a file. The same contents give the same bytes.
///
/// # Errors
/// Returns the error of the safetensors format, also for a tensor of another type.
pub(crate) fn to_bytes(
    header: String,
    tensors: &Tensors,
) -> Result<Vec<u8>, safetensors::SafeTensorError> {
    let mut views = BTreeMap::new();
    for (name, data) in tensors {
        let dtype = match data.dtype() {
            DType::F64 => safetensors::Dtype::F64,
            DType::U8 => safetensors::Dtype::U8,
            DType::F32 => safetensors::Dtype::F32,
            other => {
                let io =
                    std::io::Error::other(format!("`{name}` is {other:?}, not f32, f64 or u8"));
                return Err(safetensors::SafeTensorError::IoError(io));
            }
        };
        let shape = data.shape().as_slice().to_vec();
        views.insert(name.as_str(), TensorView::new(dtype, shape, data.as_bytes())?);
    }
    let digest = digest(&header, views.iter().map(|(name, view)| (*name, view.data())));
    let metadata = BTreeMap::from([("header".to_owned(), header), ("digest".to_owned(), digest)]);
    let sorted = serde_json::to_string(&metadata)?;
    let metadata: HashMap<String, String> = metadata.into_iter().collect();
    let mut bytes = safetensors::serialize(views, Some(metadata))?;
    // The safetensors crate writes the metadata first and in random order, which does not change its length.
    let begin = size_of::<u64>() + "{\"__metadata__\":".len();
    if let Some(place) = bytes.get_mut(begin..begin + sorted.len()) {
        place.copy_from_slice(sorted.as_bytes());
    }
    Ok(bytes)
}

/// Decodes the header and the tensors of a file. `None` if the bytes differ from those that were written.
pub(crate) fn from_bytes(bytes: &[u8]) -> Option<(String, Tensors)> {
    let (_, metadata) = SafeTensors::read_metadata(bytes).ok()?;
    let metadata = metadata.metadata().clone()?;
    let header = metadata.get("header")?;
    let file = SafeTensors::deserialize(bytes).ok()?;
    let views: BTreeMap<String, TensorView<'_>> = file.tensors().into_iter().collect();
    let found = digest(header, views.iter().map(|(name, view)| (name.as_str(), view.data())));
    if metadata.get("digest") != Some(&found) {
        return None;
    }
    let tensor = |(name, view): (String, TensorView<'_>)| {
        let dtype = match view.dtype() {
            safetensors::Dtype::F64 => DType::F64,
            safetensors::Dtype::F32 => DType::F32,
            safetensors::Dtype::U8 => DType::U8,
            // No file of this crate has another type.
            _ => return None,
        };
        let data = TensorData::from_bytes_vec(view.data().to_vec(), view.shape().to_vec(), dtype);
        Some((name, data))
    };
    Some((header.clone(), views.into_iter().map(tensor).collect::<Option<_>>()?))
}

/// The SHA-256 of the header, the names and the values, in hexadecimal digits.
fn digest<'a>(header: &str, tensors: impl Iterator<Item = (&'a str, &'a [u8])>) -> String {
    let mut hash = Sha256::new();
    hash.update(header);
    for (name, bytes) in tensors {
        hash.update(name);
        hash.update(bytes);
    }
    hex(hash)
}

/// The tensor of this name, if it has this rank and is in f32.
pub(crate) fn tensor<const D: usize>(
    tensors: &Tensors,
    name: &str,
    device: &Device,
) -> Option<Tensor<D>> {
    let data = tensors.get(name)?;
    let fits = data.shape().len() == D && data.dtype() == DType::F32;
    fits.then(|| Tensor::from_data(data.clone(), device))
}

/// Images of one size as one tensor, `[n, h, w, 3]`.
pub(crate) fn from_images(images: &[RgbImage]) -> TensorData {
    let (width, height) = images.first().map_or((0, 0), RgbImage::dimensions);
    let pixels: Vec<u8> = images.iter().flat_map(|image| image.as_raw()).copied().collect();
    TensorData::new(pixels, [images.len(), height as usize, width as usize, 3])
}

/// The images of [`from_images`]. `None` if these are none, or no images.
pub(crate) fn to_images(data: &TensorData) -> Option<Vec<RgbImage>> {
    let &[count, height, width, 3] = data.shape().as_slice() else { return None };
    let (height, width) = (u32::try_from(height).ok()?, u32::try_from(width).ok()?);
    let bytes = data.as_bytes();
    if data.dtype() != DType::U8 || bytes.is_empty() {
        return None;
    }
    let image = |bytes: &[u8]| RgbImage::from_raw(width, height, bytes.to_vec());
    bytes.chunks(bytes.len() / count.max(1)).map(image).collect()
}

/// The hexadecimal digits of a hash.
pub(crate) fn hex(hash: Sha256) -> String {
    format!("{:x}", hash.finalize())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use super::*;

    #[test]
    fn images_are_the_same_after_the_journey() {
        let image = |red| RgbImage::from_fn(3, 2, |x, y| image::Rgb([red, x as u8, y as u8]));
        let images = vec![image(7), image(200)];
        let tensors = Tensors::from([("images".to_owned(), from_images(&images))]);
        let bytes = to_bytes("h".to_owned(), &tensors).unwrap();
        let (_, found) = from_bytes(&bytes).unwrap();
        assert_eq!(to_images(&found["images"]), Some(images));
        for other in [TensorData::from([1f32]), from_images(&[])] {
            assert_eq!(to_images(&other), None);
        }
    }

    #[test]
    fn the_same_contents_give_the_same_bytes() {
        let tensors = || Tensors::from([("a".to_owned(), TensorData::from([1f32, -0.0]))]);
        let header = "{\"quoted\": \"\\\"é\"}".to_owned();
        let bytes = to_bytes(header.clone(), &tensors()).unwrap();
        assert_eq!(from_bytes(&bytes), Some((header.clone(), tensors())));
        for _ in 0..20 {
            assert_eq!(to_bytes(header.clone(), &tensors()).unwrap(), bytes);
        }
    }
}
