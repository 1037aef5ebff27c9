// A mask that is painted over its picture: white where the loss counts, and dark elsewhere.

import { put } from "./api.js";
import { el, say } from "./dom.js";

/**
 * Opens the painter in `view`. It starts from the mask of `source`, "files" or "alpha", if there is one.
 * `onSaved` is called after the mask is written.
 */
export async function paintMask(view, folder, picture, source, onSaved) {
  const address = (kind, more = "") => `/api/data/${folder}/${kind}/${picture.id}?size=large&at=${Date.now()}${more}`;
  const image = el("img", { alt: picture.caption || picture.name });
  const canvas = el("canvas", { tabindex: 0, role: "application", "aria-label": `Mask of ${picture.name}. Arrow keys move the brush, Space paints` });
  const pen = canvas.getContext("2d", { alpha: false, willReadFrequently: true });
  const ring = el("div", { class: "ring" });
  const size = el("input", { type: "range", min: 1, value: 1, "aria-label": "Size of the brush", oninput: showRing });
  const sizeText = el("span", { class: "number" });
  const erase = el("input", { type: "checkbox" });
  const counts = el("span", { class: "number", role: "status" });
  const told = el("p", { class: "message small", role: "status" });
  const save = el("button", { type: "button", class: "primary", onclick: write }, "Save the mask");
  const button = (text, onclick) => el("button", { type: "button", onclick }, text);
  const stage = el("div", { class: "painted" }, image, canvas, ring);
  const dialog = el("dialog", { class: "painter", "aria-label": `Mask of ${picture.name}` },
    el("div", { class: "title" }, el("h1", {}, picture.name), el("div", { class: "actions" }, button("Cancel", () => dialog.close()), save)),
    el("div", { class: "inline" }, el("label", {}, "Brush", size, sizeText), el("label", {}, erase, "Erase"),
      button("Clear", () => fill("black")), button("Fill", () => fill("white")), counts),
    stage, told,
    el("p", { class: "soft small" }, "Paint what the picture is about: dark parts count less. By keys: arrows move the brush, with Shift by a pixel. "
      + "Space paints, [ and ] change the size, and E erases."));
  const at = { x: 0, y: 0 };
  let pressed = false;
  let changed = false;
  let warned = false;

  try {
    await load(image, address("images"));
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    fillWith("black");
    if (source === "alpha" || picture.has_mask) {
      const mask = await load(new Image(), address("masks", `&source=${source}`));
      pen.drawImage(mask, 0, 0, canvas.width, canvas.height);
    }
  } catch {
    say(`${picture.name} or its mask cannot be read.`);
    return;
  }
  const long = Math.max(canvas.width, canvas.height);
  size.max = Math.max(2, Math.round(long / 2));
  size.value = Math.max(1, Math.round(long / 10));
  stage.style.width = `min(100%, ${(60 * canvas.width) / canvas.height}vh)`;
  move({ x: canvas.width / 2, y: canvas.height / 2 });
  count();
  view.append(dialog);
  dialog.addEventListener("close", () => dialog.remove());
  dialog.addEventListener("cancel", (event) => {
    if (!changed || warned) return;
    event.preventDefault();
    warned = true;
    told.textContent = "The mask is not saved. Press Esc again to discard it.";
  });
  dialog.showModal();
  canvas.focus();

  function fillWith(color) {
    pen.fillStyle = color;
    pen.fillRect(0, 0, canvas.width, canvas.height);
  }

  function fill(color) {
    fillWith(color);
    change();
    count();
  }

  function change() {
    changed = true;
    warned = false;
    told.textContent = "";
  }

  /** Moves the brush, and paints on the way if it is pressed. */
  function move(to) {
    const from = { ...at };
    at.x = Math.min(Math.max(to.x, 0), canvas.width);
    at.y = Math.min(Math.max(to.y, 0), canvas.height);
    if (pressed) stroke(from);
    showRing();
  }

  function stroke(from) {
    pen.fillStyle = pen.strokeStyle = erase.checked ? "black" : "white";
    pen.lineWidth = Number(size.value);
    pen.lineCap = "round";
    pen.beginPath(); pen.moveTo(from.x, from.y); pen.lineTo(at.x, at.y); pen.stroke();
    // A line without a length has no ends.
    pen.beginPath(); pen.arc(at.x, at.y, size.value / 2, 0, 7); pen.fill();
    change();
  }

  function press() {
    pressed = true;
    stroke(at);
  }

  function release() {
    if (pressed) count();
    pressed = false;
  }

  function showRing() {
    sizeText.textContent = `${size.value} pixels`;
    ring.style.width = `${(100 * size.value) / canvas.width}%`;
    ring.style.left = `${(100 * at.x) / canvas.width}%`;
    ring.style.top = `${(100 * at.y) / canvas.height}%`;
  }

  /** Says how much of the picture counts. */
  function count() {
    const { data } = pen.getImageData(0, 0, canvas.width, canvas.height);
    let sum = 0;
    for (let index = 0; index < data.length; index += 4) sum += data[index];
    const share = sum / 255 / (data.length / 4);
    counts.textContent = sum === 0 ? "nothing counts yet" : `${(100 * share).toFixed(1)} % counts`;
    save.disabled = sum === 0;
  }

  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return { x: ((event.clientX - box.left) / box.width) * canvas.width, y: ((event.clientY - box.top) / box.height) * canvas.height };
  };
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    canvas.setPointerCapture(event.pointerId);
    move(place(event));
    press();
  });
  canvas.addEventListener("pointermove", (event) => move(place(event)));
  for (const name of ["pointerup", "pointercancel", "blur"]) canvas.addEventListener(name, release);
  canvas.addEventListener("keyup", (event) => { if (event.key === " ") release(); });
  canvas.addEventListener("keydown", (event) => {
    const step = event.shiftKey ? 1 : Math.max(1, size.value / 2);
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    const factor = { "[": 0.8, "]": 1.25 }[event.key];
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (way) move({ x: at.x + way[0] * step, y: at.y + way[1] * step });
    else if (factor) { size.value = factor < 1 ? Math.floor(size.value * factor) : Math.ceil(size.value * factor); showRing(); }
    else if (event.key === " ") { if (!event.repeat) press(); }
    else if (event.key.toLowerCase() === "e") erase.checked = !erase.checked;
    else return;
    event.preventDefault();
  });

  async function write() {
    save.disabled = true;
    const url = canvas.toDataURL("image/png");
    try {
      await put(`/api/data/${folder}/masks/${picture.id}`, { mask: url.slice(url.indexOf(",") + 1) });
    } catch (error) {
      told.textContent = error.message;
      told.classList.add("bad");
      save.disabled = false;
      return;
    }
    picture.has_mask = true;
    picture.painted = (picture.painted ?? 0) + 1;
    dialog.close();
    say(`The mask of ${picture.name} is written.`);
    onSaved();
  }
}

/** Loads an image. */
function load(image, address) {
  return new Promise((resolve, reject) => {
    image.addEventListener("load", () => resolve(image));
    image.addEventListener("error", reject);
    image.src = address;
  });
}
