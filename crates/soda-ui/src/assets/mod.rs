//! The page: HTML, a style sheet and modules of JavaScript, which are part of the program.

/// A file of the page.
pub(crate) struct Asset {
    pub(crate) content_type: &'static str,
    pub(crate) bytes: &'static [u8],
}

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// All files by their addresses.
const ASSETS: &[(&str, &str, &[u8])] = &[
    ("/", HTML, include_bytes!("index.html")),
    ("/assets/app.css", CSS, include_bytes!("app.css")),
    ("/assets/app.js", SCRIPT, include_bytes!("app.js")),
    ("/assets/api.js", SCRIPT, include_bytes!("api.js")),
    ("/assets/dom.js", SCRIPT, include_bytes!("dom.js")),
    ("/assets/chart.js", SCRIPT, include_bytes!("chart.js")),
    ("/assets/compare.js", SCRIPT, include_bytes!("compare.js")),
    ("/assets/comparison.js", SCRIPT, include_bytes!("comparison.js")),
    ("/assets/exports.js", SCRIPT, include_bytes!("exports.js")),
    ("/assets/runs.js", SCRIPT, include_bytes!("runs.js")),
    ("/assets/run.js", SCRIPT, include_bytes!("run.js")),
    ("/assets/new.js", SCRIPT, include_bytes!("new.js")),
    ("/assets/data.js", SCRIPT, include_bytes!("data.js")),
    ("/assets/paint.js", SCRIPT, include_bytes!("paint.js")),
    ("/assets/play.js", SCRIPT, include_bytes!("play.js")),
    ("/assets/icon.svg", SVG, include_bytes!("icon.svg")),
];

/// The file at an address.
pub(crate) fn asset(path: &str) -> Option<Asset> {
    let (_, content_type, bytes) = ASSETS.iter().find(|(address, ..)| *address == path)?;
    Some(Asset { content_type, bytes })
}
