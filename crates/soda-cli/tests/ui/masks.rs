//! What the page does with masks: those of the alpha channel, and those that are painted.

use image::{Rgba, RgbaImage};
use serde_json::json;

use super::browser::Browser;
use super::{Desk, picture};

/// The number of masks that are loaded.
const LOADED: &str = "[...document.querySelectorAll('.pictures .mask')].filter((one) => one.naturalWidth > 0).length";
/// How much the dialog says that counts.
const COUNTS: &str = "document.querySelector('.painter [role=status]').textContent";

/// The masks of the alpha channel lie over all pictures.
pub(crate) fn alpha(page: &mut Browser, desk: &Desk) {
    let path = desk.path("mug/03.png");
    let opaque = image::open(&path).unwrap().into_rgb8();
    let cut = RgbaImage::from_fn(opaque.width(), opaque.height(), |x, y| {
        let [r, g, b] = opaque.get_pixel(x, y).0;
        Rgba([r, g, b, if 2 * x < opaque.width() { 0 } else { 255 }])
    });
    cut.save(&path).unwrap();
    page.tab_to("focus.getAttribute('aria-label') === 'Masks'");
    // A list opens in a window of its own, which a browser without windows has not.
    let choose = |source: &str| {
        format!(
            "document.activeElement.value = '{source}'; \
             document.activeElement.dispatchEvent(new Event('change'))"
        )
    };
    assert_eq!(page.eval("document.activeElement.value"), "files");
    page.wait(&format!("{LOADED} === 1"), 20);
    page.eval(&choose("alpha"));
    page.wait(&format!("{LOADED} === document.querySelectorAll('.pictures > li').length"), 20);
    let brightness = "(() => { const image = [...document.querySelectorAll('.mask')].find((one) => one.alt === 'Mask of 03.png'); \
                      const pen = Object.assign(document.createElement('canvas'), { width: 2, height: 1 }).getContext('2d'); \
                      pen.drawImage(image, 0, 0, 2, 1); return [...pen.getImageData(0, 0, 2, 1).data] })()";
    assert_eq!(page.eval(brightness), json!([0, 0, 0, 255, 255, 255, 255, 255]));
    page.eval(&choose("none"));
    page.wait("!document.querySelector('.pictures .mask')", 5);
    page.eval(&choose("files"));
}

/// A mask is painted by the keyboard and by the pointer, and is on the disk as the training reads it.
pub(crate) fn paint(page: &mut Browser, desk: &Desk) {
    open_painter(page);
    assert_eq!(page.eval(COUNTS), "nothing counts yet");
    assert_eq!(page.eval("document.querySelector('.painter .primary').disabled"), true);
    // The focus is on the picture, and the brush in its middle.
    assert_eq!(page.eval("document.activeElement.tagName"), "CANVAS");
    page.press(" ");
    page.wait(&format!("{COUNTS}.endsWith('% counts')"), 5);
    let dot = share(page);
    page.press("ArrowRight");
    page.press(" ");
    let two = share(page);
    assert!(0.0 < dot && dot < two && two < 2.0 * dot, "{dot} {two}");
    // What is erased counts no longer.
    page.press("e");
    page.press(" ");
    let erased = share(page);
    assert!(0.0 < erased && erased < dot, "{erased}");
    page.press("e");
    // A larger brush, by its slider.
    page.tab_to("focus.getAttribute('aria-label') === 'Size of the brush'");
    let size = "Number(document.activeElement.value)";
    let before = page.eval(size);
    page.press("ArrowRight");
    assert!(page.eval(size).as_f64() > before.as_f64());
    // The pointer is drawn over the upper left corner.
    let place = "(() => { const box = document.querySelector('.painter canvas').getBoundingClientRect(); \
                 return [box.left, box.top, box.width, box.height] })()";
    let place: Vec<f64> = serde_json::from_value(page.eval(place)).unwrap();
    for (kind, x, y) in [
        ("mousePressed", 0.02, 0.02),
        ("mouseMoved", 0.2, 0.02),
        ("mouseMoved", 0.2, 0.2),
        ("mouseReleased", 0.2, 0.2),
    ] {
        page.call(
            "Input.dispatchMouseEvent",
            json!({
                "type": kind, "button": "left", "buttons": 1, "clickCount": 1,
                "x": place[0] + x * place[2], "y": place[1] + y * place[3],
            }),
        );
    }
    let painted = share(page);
    assert!(painted > erased, "{painted}");
    picture(page, "paint");
    page.tab_to("focus.textContent === 'Save the mask'");
    page.press("Enter");
    page.wait("document.getElementById('status').textContent.includes('The mask of 01.png')", 20);
    page.wait("!document.querySelector('dialog')", 5);
    page.wait(&format!("{LOADED} === 2"), 20);

    let mask = soda_models::image::read_mask(&desk.path("mug/01.mask.png")).unwrap();
    let (width, height) = image::image_dimensions(desk.path("mug/01.png")).unwrap();
    assert_eq!(mask.dimensions(), (width, height));
    let at = |x: f64, y: f64| {
        mask.get_pixel((x * f64::from(width)) as u32, (y * f64::from(height)) as u32)[0]
    };
    assert_eq!((at(0.02, 0.02), at(0.2, 0.1), at(0.9, 0.9)), (255, 255, 0));
    let sum: u64 = mask.pixels().map(|pixel| u64::from(pixel[0])).sum();
    let stored = 100.0 * sum as f64 / 255.0 / f64::from(width * height);
    assert!((stored - painted).abs() < 0.1, "{stored} {painted}");

    // Opened again, it is what was painted. Without a change, Esc closes it at once.
    open_painter(page);
    assert!((share(page) - painted).abs() < 0.1);
    page.press("Escape");
    page.wait("!document.querySelector('dialog')", 5);
    // With one, it asks first.
    open_painter(page);
    page.tab_to("focus.textContent === 'Fill'");
    page.press("Enter");
    assert_eq!(page.eval(COUNTS), "100.0 % counts");
    page.tab_to("focus.textContent === 'Clear'");
    page.press("Enter");
    assert_eq!(page.eval(COUNTS), "nothing counts yet");
    page.press("Escape");
    page.wait("document.querySelector('.painter').innerText.includes('is not saved')", 5);
    page.press("Escape");
    page.wait("!document.querySelector('dialog')", 5);
    assert_eq!(soda_models::image::read_mask(&desk.path("mug/01.mask.png")).unwrap(), mask);
}

fn open_painter(page: &mut Browser) {
    page.tab_to("focus.getAttribute('aria-label') === 'Paint a mask of 01.png'");
    page.press("Enter");
    page.wait("document.querySelector('dialog[open] canvas')", 20);
}

/// The share of the picture that counts, percent.
#[track_caller]
fn share(page: &mut Browser) -> f64 {
    let text = page.eval(COUNTS).as_str().unwrap().to_owned();
    text.strip_suffix(" % counts").unwrap().parse().unwrap()
}
