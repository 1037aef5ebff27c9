//! One HTML file that needs no network: style and pictures are in it.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use image::codecs::jpeg::JpegEncoder;
use image::{ImageError, RgbImage};
use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::output::run_folder::png;

const STYLE: &str = "body{font:15px/1.5 sans-serif;max-width:1100px;margin:2em auto;padding:0 1em}\
    table{border-collapse:collapse}td,th{padding:.25em .7em;border-bottom:1px solid #ddd;text-align:right}\
    td:first-child,th:first-child{text-align:left}small{color:#666}img{max-width:100%;image-rendering:pixelated}";

/// A whole page.
pub fn page(title: &str, body: &Markup) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head { meta charset="utf-8"; title { (title) } style { (PreEscaped(STYLE)) } }
            body { h1 { (title) } (body) }
        }
    };
    page.into_string()
}

/// A picture as the source of an `img`.
///
/// # Errors
/// What the encoder says.
pub fn png_data_uri(image: &RgbImage) -> Result<String, ImageError> {
    Ok(png_file_data_uri(&png(image)?))
}

/// The same with what the eye does not miss left out, for many photographs on one page.
///
/// # Errors
/// What the encoder says.
pub fn jpeg_data_uri(image: &RgbImage) -> Result<String, ImageError> {
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, 90).encode_image(image)?;
    Ok(format!("data:image/jpeg;base64,{}", BASE64_STANDARD.encode(bytes)))
}

/// The same of a PNG file's bytes.
pub fn png_file_data_uri(bytes: &[u8]) -> String {
    format!("data:image/png;base64,{}", BASE64_STANDARD.encode(bytes))
}
