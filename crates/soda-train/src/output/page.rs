//! HTML pages that need no network: the style sheet and all images are part of the file.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use image::codecs::jpeg::JpegEncoder;
use image::{ImageError, RgbImage};
use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::output::files::png_bytes;

/// Follows the light or dark scheme of the browser. Charts keep a white ground, since their colours are
/// chosen for it.
const STYLE: &str = "\
    :root{color-scheme:light dark}\
    body{font:16px/1.5 system-ui,sans-serif;max-width:1100px;margin:1.5em auto;padding:0 1em}\
    h1,h2,h3{line-height:1.25}h2{margin-top:1.6em}\
    h3{font-size:1em;margin:.2em 0}\
    small,figcaption{font-size:.85em;opacity:.8}\
    figure{margin:0}\
    img,svg{max-width:100%;height:auto}\
    svg{background:#fff}\
    pre{overflow-x:auto}\
    table{border-collapse:collapse}\
    td,th{padding:.25em .7em;border-bottom:1px solid #8886;text-align:right}\
    td:first-child,th:first-child{text-align:left}\
    th[scope=row]{font-weight:600}th small{font-weight:400}\
    .pixels{image-rendering:pixelated}\
    .samples{display:flex;flex-wrap:wrap;gap:1.2em 2em}\
    .sample{flex:0 1 calc(var(--columns)*264px)}\
    .row{display:grid;grid-auto-flow:column;grid-auto-columns:minmax(0,256px);gap:.5em}\
    .row img{width:100%;display:block}\
    .thumbnails{display:grid;grid-template-columns:repeat(auto-fill,minmax(100px,1fr));gap:.5em}\
    .thumbnails img{width:128px}\
    .strip{overflow-x:auto}.strip img{max-width:none;height:8.5em}\
    .charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,420px),1fr));gap:1.5em 1em}\
    .charts svg{width:100%}\
    .scores b{white-space:nowrap}\
    .bar{position:relative;height:.5em;min-width:7em;margin:.3em 0;background:#8883}\
    .bar div{position:absolute;top:0;bottom:0}\
    .base{left:0;background:#8888}.better{background:#1f77b4}.worse{background:#ff7f0e}\
    .bar .mark{width:3px;margin-left:-3px;top:-.2em;bottom:-.2em;background:currentColor}\
    @media(max-width:640px){table{display:block;overflow-x:auto}td,th{padding:.25em .4em}}";

/// A whole HTML page with `title` as its title and heading, and `body` below the heading.
pub fn page(title: &str, body: &Markup) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body { h1 { (title) } (body) }
        }
    };
    page.into_string()
}

/// Encodes `image` as PNG in a `data:` address, for the `src` of an `img`.
///
/// # Errors
/// Returns the error of the encoder.
pub fn png_data_uri(image: &RgbImage) -> Result<String, ImageError> {
    Ok(png_file_data_uri(&png_bytes(image)?))
}

/// Encodes `image` as JPEG of quality 90 in a `data:` address, for pages with many photographs.
///
/// # Errors
/// Returns the error of the encoder.
pub fn jpeg_data_uri(image: &RgbImage) -> Result<String, ImageError> {
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, 90).encode_image(image)?;
    Ok(format!("data:image/jpeg;base64,{}", BASE64_STANDARD.encode(bytes)))
}

/// The `data:` address of the bytes of a PNG file.
pub(crate) fn png_file_data_uri(bytes: &[u8]) -> String {
    format!("data:image/png;base64,{}", BASE64_STANDARD.encode(bytes))
}
