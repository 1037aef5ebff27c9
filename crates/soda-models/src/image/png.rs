//! PNG files with generation parameters.

use image::RgbImage;

/// Encodes `image` as a PNG file with `text` in the text chunk `parameters`, where other programs look for
/// it.
///
/// # Errors
///
/// The encoder's error, for example for an image without pixels.
pub fn png_with_parameters(image: &RgbImage, text: &str) -> Result<Vec<u8>, png::EncodingError> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, image.width(), image.height());
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    // Latin-1 is used where it is enough, since some programs read nothing else.
    if text.is_ascii() {
        encoder.add_text_chunk("parameters".to_string(), text.to_string())?;
    } else {
        encoder.add_itxt_chunk("parameters".to_string(), text.to_string())?;
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(image.as_raw())?;
    writer.finish()?;
    Ok(bytes)
}
