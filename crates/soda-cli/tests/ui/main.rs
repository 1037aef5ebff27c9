//! `soda ui` in a browser: a run on the bundled model from its form to its end, by the keyboard alone.
//!
//! `SODA_UI_PICTURES=DIR` writes pictures of the pages.

#![cfg(feature = "ui")]
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod browser;
#[path = "../common/mod.rs"]
mod common;
mod masks;
mod several;

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use browser::Browser;
use common::{copy_castle_mug, program, toybox};
use serde_json::json;

/// The steps of the run: enough to stop it before its end.
const STEPS: usize = 60;

/// A server on a temporary folder with a data set `mug`.
struct Desk {
    folder: tempfile::TempDir,
    server: Child,
    url: String,
}

impl Desk {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        copy_castle_mug(&folder.path().join("mug"));
        let mut server = Command::new(program())
            .args(["ui", "--runs", "runs", "--data", "mug", "--no-open", "--device", "cpu"])
            .current_dir(folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut url = String::new();
        BufReader::new(server.stdout.take().unwrap()).read_line(&mut url).unwrap();
        Self { folder, server, url: url.trim().to_owned() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
        // A run goes on without the server. Its folder is about to be removed.
        if self.path("runs/first/config.toml").is_file() {
            let _ = soda_train::RunFolder::request_stop(&self.path("runs/first"));
        }
    }
}

/// The number of lines of the log that have a step.
fn logged_steps(run: &Path) -> usize {
    let text = std::fs::read_to_string(run.join("events.jsonl")).unwrap();
    text.lines().filter(|line| line.contains("\"event\":\"step\"")).count()
}

#[test]
fn a_run_is_started_stopped_resumed_and_looked_at() {
    let Some(mut page) = Browser::start() else {
        let sentence = "skipped: no browser is installed (Debian's package is chromium)";
        let _ = writeln!(std::io::stderr(), "{sentence}");
        return;
    };
    let desk = Desk::new();
    page.look(1400, 900, "light");
    page.open(&desk.url);
    page.wait("document.querySelector('h1')?.textContent === 'Runs'", 30);
    assert_eq!(page.eval("location.search"), "", "the token is in the address");
    assert_eq!(page.eval("document.cookie"), "", "a script can read the token");
    page.wait("document.body.innerText.includes('There is no run yet')", 10);

    fill_the_form(&mut page);
    let run = desk.path("runs/first");
    page.tab_to("focus.textContent === 'Start'");
    page.press("Enter");
    page.wait("document.querySelector('td.name')?.innerText.includes('first')", 20);
    page.wait("document.querySelector('td.name a')", 120);
    page.tab_to("focus.closest('td.name') && focus.textContent === 'first'");
    page.press("Enter");

    // Stopped from the page after some steps, and resumed.
    page.wait("document.querySelectorAll('.log li').length > 2", 120);
    page.wait("[...document.querySelectorAll('dd')][0]?.textContent.match(/^[3-9] \\//)", 240);
    for (button, sign) in [("Sample now", "samples of step"), ("Save now", "wrote the adapter of")]
    {
        page.tab_to(&format!("focus.textContent === '{button}'"));
        page.press("Enter");
        page.wait(&format!("document.querySelector('.log').innerText.includes('{sign}')"), 60);
    }
    assert!(run.join("adapter.safetensors").is_file());
    page.tab_to("focus.textContent === 'Stop'");
    page.press("Enter");
    page.wait("document.querySelector('.state.stopped')", 60);
    let stopped = logged_steps(&run);
    assert!((3..STEPS).contains(&stopped), "stopped after {stopped} steps");
    assert!(run.join("checkpoints").is_dir() && !run.join("report.html").exists());
    page.tab_to("focus.textContent === 'Resume'");
    page.press("Enter");
    page.wait("document.querySelector('.state.running')", 120);
    page.wait("document.querySelector('.state.finished')", 400);
    assert!(run.join("report.html").is_file() && !run.join("stop").exists());
    assert_eq!(logged_steps(&run), STEPS);
    page.wait(&format!("document.body.innerText.includes('{STEPS} / {STEPS}')"), 20);
    page.wait("document.querySelector('.log').innerText.includes('goes on after step')", 20);

    // The samples, with the slider moved by an arrow key.
    let loaded =
        "[...document.querySelectorAll('.compare img')].every((image) => image.naturalWidth > 0)";
    page.wait(loaded, 20);
    page.tab_to("focus.getAttribute('aria-label')?.startsWith('Share of the samples')");
    let cut = "document.querySelectorAll('.compare img')[1].style.maskImage";
    let before = page.eval(cut);
    page.press("ArrowRight");
    assert_ne!(page.eval(cut), before);
    let drawn = "(() => { const canvas = document.querySelector('canvas'); const data = \
                 canvas.getContext('2d').getImageData(60, 10, canvas.width - 80, canvas.height - 40).data; \
                 return new Set(new Uint32Array(data.buffer)).size })()";
    assert!(page.eval(drawn).as_u64().unwrap() > 3, "the chart is empty");

    edit_a_caption(&mut page, &desk);
    masks::alpha(&mut page, &desk);
    masks::paint(&mut page, &desk);
    several::upload(&mut page, &desk);
    several::queue(&mut page, &desk);
    several::compare(&mut page);
    several::export(&mut page, &desk);
    play(&mut page);
    several::play_two(&mut page);
    look_at_all_pages(&mut page);
    assert_eq!(page.errors, Vec::<String>::new());
}

/// Reaches the form by Tab and Enter and fills it.
fn fill_the_form(page: &mut Browser) {
    page.tab_to("focus.textContent === 'New run' && focus.closest('nav')");
    page.press("Enter");
    page.wait("document.querySelector('form.new')", 20);
    let judges = toybox("eval").display().to_string();
    let toml = format!(
        "judges = '{judges}'\n[samples]\nsteps = 2\nprompts = ['a photo of a sks mug']\n[checkpoints]\nevery = 5"
    );
    for (name, text) in [
        ("base", &*toybox("base").display().to_string()),
        ("steps", &STEPS.to_string()),
        ("batch_size", "1"),
        ("samples_every", "20"),
        ("validation_every", "10"),
        ("name", "first"),
        ("toml", "stepz = 3"),
    ] {
        page.tab_to(&format!("focus.name === '{name}'"));
        page.insert(text);
    }
    // A mistake is named by the parser of the command line, before the start.
    page.wait(
        "document.querySelector('.message.bad')?.textContent.includes('did you mean `steps`')",
        20,
    );
    page.eval("document.activeElement.select()");
    page.insert(&toml);
    page.wait("document.querySelector('.message.good')", 20);
    page.wait("document.querySelector('pre:last-child').textContent.includes('steps = 60')", 5);
    page.tab_to("focus.textContent === 'Predict memory'");
    page.press("Enter");
    page.wait(
        "/peak of the run +[1-9][0-9]* MiB/.test(document.querySelector('pre').textContent)",
        120,
    );
}

/// Types over the text of the focused field.
fn replace(page: &mut Browser, text: &str) {
    page.eval("document.activeElement.select()");
    page.insert(text);
}

/// Edits a caption in place, and finds it on the disk. One of the pictures has a mask.
fn edit_a_caption(page: &mut Browser, desk: &Desk) {
    let size = image::image_dimensions(desk.path("mug/00.png")).unwrap();
    let half = |x: u32, _: u32| image::Luma([if 2 * x < size.0 { 0 } else { 255 }]);
    image::GrayImage::from_fn(size.0, size.1, half).save(desk.path("mug/00.mask.png")).unwrap();
    page.tab_to("focus.textContent === 'Data' && focus.closest('nav')");
    page.press("Enter");
    page.wait("document.querySelectorAll('.pictures li').length === 5", 20);
    page.wait("document.querySelector('.pictures img').naturalWidth > 0", 20);
    page.wait("document.querySelector('.pictures .mask')?.naturalWidth > 0", 20);
    page.tab_to("focus.getAttribute('aria-label') === 'Caption of 01.png'");
    replace(page, "a photo of a sks mug, edited");
    page.press("Tab");
    page.wait("document.getElementById('status').textContent.includes('01.png is written')", 20);
    let list = std::fs::read_to_string(desk.path("mug/metadata.jsonl")).unwrap();
    assert!(list.contains("\"text\":\"a photo of a sks mug, edited\""), "{list}");
    page.wait("document.body.innerText.includes('finding')", 30);
}

/// Draws with the adapter, and moves the slider of its strength.
fn play(page: &mut Browser) {
    page.tab_to("focus.textContent === 'Play' && focus.closest('nav')");
    page.press("Enter");
    page.wait("document.querySelector('[name=prompt]')?.value === 'a photo of a sks mug'", 20);
    page.tab_to("focus.name === 'steps'");
    replace(page, "4");
    page.tab_to("focus.textContent === 'Draw'");
    page.press("Enter");
    page.wait("document.querySelectorAll('.strip img').length === 5", 180);
    page.wait("document.querySelector('.message').textContent === ''", 20);
    let loaded = "document.querySelector('.picture').complete && document.querySelector('.picture').naturalWidth";
    page.wait(loaded, 20);
    // The bytes of each picture: the strength changes what is drawn.
    let different = "Promise.all([...document.querySelectorAll('.strip img')].map((image) => \
                     fetch(image.src).then((r) => r.arrayBuffer()).then((b) => [...new Uint8Array(b)].join()))) \
                     .then((all) => new Set(all).size)";
    assert_eq!(page.eval(different), 5);
    page.tab_to("focus.getAttribute('aria-label') === 'Strength of the adapter'");
    let shown = "document.querySelector('.picture').src";
    let full = page.eval(shown);
    page.press("ArrowLeft");
    assert_eq!(page.eval("document.activeElement.getAttribute('aria-valuetext')"), "0.75");
    assert_ne!(page.eval(shown), full);
}

/// Each page fits into a wide and a narrow window, in light and dark colours.
fn look_at_all_pages(page: &mut Browser) {
    let ids = page
        .eval("fetch('/api/runs').then((r) => r.json()).then((r) => r.runs.map((run) => run.id))");
    let [second, first] = [0, 1].map(|place| ids[place].as_str().unwrap());
    for (name, hash) in [
        ("runs", "#/"),
        ("run", &*format!("#/run/{second}")),
        ("compare", &format!("#/compare/{first},{second}")),
        ("new", "#/new"),
        ("data", "#/data"),
        ("play", "#/play"),
    ] {
        page.eval(&format!("location.hash = '{hash}'"));
        page.wait(
            "document.querySelector('h1') && !document.body.innerText.includes('Checking')",
            30,
        );
        let mut papers = Vec::new();
        for (width, height) in [(1400, 1000), (390, 844)] {
            for scheme in ["light", "dark"] {
                page.look(width, height, scheme);
                std::thread::sleep(std::time::Duration::from_millis(400));
                let wide = page.eval("document.documentElement.scrollWidth - innerWidth");
                assert!(wide.as_i64().unwrap() <= 0, "{name} at {width}: {wide} pixels too wide");
                papers
                    .push(page.eval("getComputedStyle(document.documentElement).backgroundColor"));
                picture(page, &format!("{name}-{width}-{scheme}"));
            }
        }
        assert_eq!((&papers[0], &papers[1]), (&papers[2], &papers[3]));
        assert_ne!(papers[0], papers[1], "{name} is not dark");
    }
    page.look(1400, 900, "light");
}

/// Writes a picture of the page, if the environment names a folder.
fn picture(page: &mut Browser, name: &str) {
    let Some(folder) = std::env::var_os("SODA_UI_PICTURES") else { return };
    let answer = page.call("Page.captureScreenshot", json!({ "format": "png" }));
    let bytes = decode(answer["data"].as_str().unwrap());
    std::fs::write(Path::new(&folder).join(format!("{name}.png")), bytes).unwrap();
}

/// The bytes of base64 text.
fn decode(text: &str) -> Vec<u8> {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let (mut bytes, mut bits, mut count) = (Vec::new(), 0_u32, 0);
    for byte in text.bytes().filter(|byte| *byte != b'=') {
        bits = bits << 6 | u32::from(digit(byte));
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    bytes
}
