//! What the page does with several runs: the queue, comparisons, two adapters; and exports and uploads.

use serde_json::json;

use super::browser::Browser;
use super::{Desk, picture, replace};

/// A run is queued by the form. Another one waits for it and is taken away.
pub(crate) fn queue(page: &mut Browser, desk: &Desk) {
    for name in ["second", "third"] {
        page.tab_to("focus.textContent === 'New run' && focus.closest('nav')");
        page.press("Enter");
        page.wait("document.querySelector('form.new [name=base]')?.value", 20);
        for (field, text) in [
            ("steps", "12"),
            ("batch_size", "1"),
            ("validation_every", "4"),
            ("name", name),
            ("toml", "[samples]\nsteps = 2\nprompts = ['a photo of a sks mug']"),
        ] {
            page.tab_to(&format!("focus.name === '{field}'"));
            replace(page, text);
        }
        page.wait("document.querySelector('.message.good')", 20);
        page.tab_to("focus.textContent === 'Add to the queue'");
        page.press("Enter");
        page.wait(&format!("document.querySelector('tbody')?.innerText.includes('{name}')"), 20);
    }
    page.wait("document.querySelector('.state.waiting')", 20);
    picture(page, "queue");
    assert!(!desk.path("runs/.ui/third.toml").exists(), "two runs go on at once");
    page.tab_to("focus.getAttribute('aria-label') === 'Do not start: third'");
    page.press("Enter");
    page.wait("!document.body.innerText.includes('third')", 20);
    page.wait("document.querySelectorAll('.state.finished').length === 2", 400);
}

/// Two runs over each other.
pub(crate) fn compare(page: &mut Browser) {
    for name in ["second", "first"] {
        page.tab_to(&format!("focus.getAttribute('aria-label') === 'Compare {name}'"));
        page.press(" ");
    }
    page.tab_to("focus.textContent === 'Compare 2'");
    page.press("Enter");
    let loaded = "document.querySelectorAll('.cell img').length === 2 && \
                  [...document.querySelectorAll('.cell img')].every((image) => image.naturalWidth > 0)";
    page.wait(loaded, 20);
    let text = page.eval("document.body.innerText").as_str().unwrap().to_owned();
    assert!(text.contains("and so the same noise"), "{text}");
    assert!(!text.contains("loss –"), "{text}");
    // A cell shows its picture and neither the margin of the grid nor another picture.
    let fits = "[...document.querySelectorAll('.cell')].every((cell) => { const [outer, inner] = \
                [cell, cell.firstChild].map((node) => node.getBoundingClientRect()); \
                return inner.left <= outer.left && inner.right >= outer.right - 1 && inner.bottom >= outer.bottom - 1 })";
    assert_eq!(page.eval(fits), true);
    page.wait(
        "[...document.querySelectorAll('tbody th')].some((cell) => cell.textContent === 'steps')",
        5,
    );
    let colors = "(() => { const canvas = document.querySelector('canvas'); const data = \
                  canvas.getContext('2d').getImageData(60, 10, canvas.width - 80, canvas.height - 40).data; \
                  return new Set(new Uint32Array(data.buffer)).size })()";
    assert!(page.eval(colors).as_u64().unwrap() > 4, "the chart is empty");
    // One of the two has judges, and so its likeness over the prompt.
    page.wait(
        "document.querySelector('section:not([hidden]) h2')?.textContent.includes('over CLIP-T')",
        5,
    );
    let scored = colors.replace("'canvas'", "'section canvas'");
    assert!(page.eval(&scored).as_u64().unwrap() > 4, "the chart of likeness is empty");
    page.tab_to("focus.getAttribute('aria-label') === 'Samples up to step'");
    let shown = "[...document.querySelectorAll('.cell img')].map((image) => image.src).join()";
    let newest = page.eval(shown);
    page.press("ArrowLeft");
    page.wait(&format!("({shown}) !== {newest}"), 5);
}

/// The adapter is written for other tools, and its loss is told.
pub(crate) fn export(page: &mut Browser, desk: &Desk) {
    page.tab_to("focus.textContent === 'second' && focus.closest('.legend')");
    page.press("Enter");
    page.wait(
        "[...document.querySelectorAll('button')].some((one) => one.textContent === 'Export')",
        20,
    );
    page.tab_to("focus.textContent === 'Export'");
    page.press("Enter");
    page.wait("document.querySelector('.exports .state.done')", 120);
    page.wait("document.querySelector('.exports').innerText.includes('relative error')", 10);
    assert!(desk.path("runs/second/exports/kohya.safetensors").is_file());
    page.tab_to("focus.tagName === 'SUMMARY' && focus.closest('.exports')");
    page.press("Enter");
    page.wait("document.querySelector('.exports pre').innerText.includes('|delta|/|weight|')", 10);
    picture(page, "export");
    // The same again would replace the file.
    page.eval("[...document.querySelectorAll('button')].find((one) => one.textContent === 'Export').click()");
    page.wait(
        "document.querySelector('section .message.bad')?.textContent.includes('exists already')",
        10,
    );
    forget_refusal(page);
}

/// A picture is added to the folder, and one that is none is refused.
pub(crate) fn upload(page: &mut Browser, desk: &Desk) {
    let made = image::RgbImage::from_fn(64, 48, |x, y| image::Rgb([x as u8, 3, y as u8]));
    made.save(desk.path("new.png")).unwrap();
    std::fs::write(desk.path("new.svg"), "<svg xmlns='http://www.w3.org/2000/svg'/>").unwrap();
    for (file, sign) in [
        (
            "new.svg",
            "document.querySelector('.message.bad')?.textContent.includes('only PNG and JPEG')",
        ),
        ("new.png", "document.querySelectorAll('.pictures > li').length === 6"),
    ] {
        let input = page
            .call("Runtime.evaluate", json!({ "expression": "document.getElementById('files')" }));
        let object = &input["result"]["objectId"];
        let files = json!({ "files": [desk.path(file)], "objectId": object });
        page.call("DOM.setFileInputFiles", files);
        page.wait(sign, 20);
    }
    forget_refusal(page);
    page.tab_to("focus.getAttribute('aria-label')?.startsWith('Caption of') && !focus.value");
    page.insert("a photo of a sks mug, added");
    page.press("Tab");
    page.wait("document.getElementById('status').textContent.includes('is written')", 20);
}

/// Takes the one refusal of the server away that a browser writes to its console by itself.
#[track_caller]
fn forget_refusal(page: &mut Browser) {
    let count = page.errors.len();
    page.errors.retain(|error| !error.contains("status of 422"));
    assert_eq!(count - page.errors.len(), 1, "{:?}", page.errors);
}

/// Draws with two adapters.
pub(crate) fn play_two(page: &mut Browser) {
    page.tab_to("focus.name === 'second'");
    // A list opens in a window of its own, which a browser without windows has not.
    page.eval("document.activeElement.selectedIndex = 2; document.activeElement.dispatchEvent(new Event('change'))");
    page.tab_to("focus.name === 'weight_second'");
    replace(page, "0.5");
    page.tab_to("focus.textContent === 'Draw'");
    page.press("Enter");
    page.wait("document.body.innerText.includes('share of the second')", 20);
    page.wait("document.querySelectorAll('.strip img').length === 5", 180);
    page.wait("document.querySelector('.message').textContent === ''", 20);
}
