// Pictures of a data folder, with captions that are edited in place and the findings of the check.

import { get, post, put } from "./api.js";
import { el, say } from "./dom.js";
import { paintMask } from "./paint.js";

/** The most bytes of a picture that the server takes. */
const MOST_BYTES = 24 << 20;
/** The parts that need more than the folder, by their names in the answer. */
const UNCHECKED = {
  resolution: "sizes, without a resolution",
  trigger: "the trigger, without one in subject.json or a run",
  caption_length: "the length of captions, without a run on this folder",
  near_duplicates: "near-duplicates, above 50,000 pictures",
};

export async function showData(view, id) {
  document.title = "Data – SODA";
  const folders = await get("/api/data");
  const current = folders.find((folder) => folder.id === id) ?? folders[0];
  view.append(el("div", { class: "title" }, el("h1", {}, "Data")));
  if (!current) {
    view.append(el("p", { class: "soft" }, "No data folder is known. Those of the runs are shown, and those that ",
      el("code", {}, "soda ui --data DIR"), " names."));
    return;
  }
  view.append(el("ul", { class: "folders" }, ...folders.map((folder) => el("li", {},
    el("a", { href: `#/data/${folder.id}`, title: folder.path, "aria-current": folder === current ? "true" : null }, folder.name)))));
  const files = el("input", { type: "file", accept: "image/png,image/jpeg", multiple: true, class: "unseen", id: "files", onchange: () => send([...files.files]) });
  const told = el("p", { class: "message small", role: "status" });
  view.append(el("div", { class: "inline" }, files, el("label", { for: "files", class: "button" }, "Add pictures"),
    el("span", {}, "PNG or JPEG, also by dropping them here"), told));
  view.addEventListener("dragover", (event) => event.preventDefault());
  view.addEventListener("drop", (event) => { event.preventDefault(); send([...event.dataTransfer.files]); });

  /** Sends pictures one after the other, and shows the folder again. */
  async function send(pictures) {
    const refused = [];
    let count = 0;
    for (const [index, picture] of pictures.entries()) {
      told.textContent = `${index + 1} of ${pictures.length} …`;
      try {
        if (picture.size > MOST_BYTES) throw new Error(`a picture has at most ${MOST_BYTES >> 20} MiB`);
        const { is_new } = await post(`/api/data/${current.id}/pictures`, { picture: await base64(picture) });
        if (is_new) count++; else refused.push(`${picture.name}: is there already`);
      } catch (error) {
        refused.push(`${picture.name}: ${error.message}`);
      }
    }
    if (count) {
      say(`${count === 1 ? "1 picture is" : `${count} pictures are`} in the folder. ${refused.join(". ")}`);
      dispatchEvent(new HashChangeEvent("hashchange"));
    } else {
      told.textContent = refused.join(". ");
      told.classList.add("bad");
    }
  }

  let listing;
  try {
    listing = await get(`/api/data/${current.id}`);
  } catch (error) {
    // A folder without pictures still takes some.
    view.append(el("p", { class: "soft" }, error.message));
    return;
  }
  const { path, count, pictures, mask_source } = listing;
  let { masked } = listing;
  const resolution = el("input", { inputmode: "numeric", placeholder: "pixels", onchange: () => findIssues() });
  const summary = el("p", { class: "soft small" }, `${path}: ${count} pictures. Checking …`);
  const others = el("ul", { class: "findings" });
  const notes = new Map();
  const ofFiles = el("option", { value: "files" });
  const masks = el("select", { "aria-label": "Masks", onchange: showMasks }, ofFiles, el("option", { value: "alpha" }, "of the alpha channel"),
    el("option", { value: "none" }, "not shown"));
  masks.value = mask_source;
  const grid = el("ul", { class: "pictures" });
  const more = el("button", { type: "button", onclick: showMore });
  const found = new Map();
  const frames = new Map();
  let shown = 0;

  async function showMore() {
    more.disabled = true;
    try {
      show((await get(`/api/data/${current.id}?from=${shown}`)).pictures);
    } catch (error) {
      say(error.message);
    }
    more.disabled = false;
  }

  /** Adds pictures, of which the server gives some hundreds at a time. */
  function show(next) {
    shown += next.length;
    grid.append(...next.map(card));
    more.hidden = shown >= count || next.length === 0;
    more.textContent = `Show more: ${count - shown} are left`;
  }

  function card(picture) {
    const findings = el("ul", { class: "findings" }, ...(found.get(picture.id) ?? []).map(line));
    notes.set(picture.id, findings);
    const frame = el("div", { class: "masked" },
      el("img", { src: `/api/data/${current.id}/images/${picture.id}`, alt: picture.caption || picture.name, loading: "lazy", decoding: "async" }), mask(picture));
    frames.set(picture, frame);
    const paint = el("button", { type: "button", class: "link", "aria-label": `Paint a mask of ${picture.name}`, onclick: () => {
      const had = picture.has_mask;
      paintMask(view, current.id, picture, masks.value === "alpha" ? "alpha" : "files", () => {
        if (!had) masked++;
        masks.value = "files";
        showMasks();
        findIssues();
      });
    } }, "Paint a mask");
    return el("li", {}, frame,
      el("div", { class: "file" }, el("span", {}, picture.name), picture.repeats > 1 ? el("span", {}, `${picture.repeats}×`) : null, paint),
      caption(current.id, picture, findIssues), findings);
  }

  /** The mask over a picture. Any picture may have an alpha channel, and one without it counts everywhere. */
  function mask(picture) {
    const source = masks.value;
    if (source === "none" || (source === "files" && !picture.has_mask)) return null;
    const address = `/api/data/${current.id}/masks/${picture.id}?source=${source}&painted=${picture.painted ?? 0}`;
    return el("img", { class: "mask", src: address, alt: `Mask of ${picture.name}`, loading: "lazy", decoding: "async" });
  }

  function showMasks() {
    ofFiles.textContent = `of files, ${masked}`;
    for (const [picture, frame] of frames) {
      const [image] = frame.children;
      frame.replaceChildren(...[image, mask(picture)].filter(Boolean));
    }
  }

  const line = (finding) => el("li", { class: finding.prevents_training ? "bad" : null }, finding.text);
  view.append(summary, el("div", { class: "inline" }, el("label", {}, "Resolution of the training ", resolution),
    el("label", {}, "Masks, dark where a part counts less ", masks)), others, grid, more);
  show(pictures);
  showMasks();

  let left = false;
  async function findIssues() {
    try {
      const { findings, unchecked } = await get(`/api/data/${current.id}/check${/^\d{1,5}$/.test(resolution.value) ? `?resolution=${resolution.value}` : ""}`);
      if (left) return;
      for (const list of [others, ...notes.values()]) list.replaceChildren();
      found.clear();
      for (const finding of findings) {
        if (finding.picture) found.set(finding.picture, [...(found.get(finding.picture) ?? []), finding]);
        (finding.picture ? notes.get(finding.picture) : others)?.append(line(finding));
      }
      const all = findings.length === 1 ? "1 finding" : `${findings.length} findings`;
      const without = unchecked.map((name) => UNCHECKED[name] ?? name);
      summary.textContent = `${path}: ${count} pictures, ${all}.`
        + (without.length ? ` Not checked: ${without.join(", ")}.` : "");
    } catch (error) {
      summary.textContent = error.message;
    }
  }
  // The check reads every file of the folder. What is looked at first comes before it.
  loaded(grid).then(() => { if (!left) findIssues(); });
  return () => { left = true; };
}

/** Waits until the pictures in the window are there, or cannot be. */
function loaded(grid) {
  const images = [...grid.querySelectorAll("img")].filter((image) => image.getBoundingClientRect().top < innerHeight);
  return Promise.all(images.filter((image) => !image.complete).map((image) => new Promise((done) => {
    for (const name of ["load", "error"]) image.addEventListener(name, done);
  })));
}

/** The bytes of a file as base64. */
function base64(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(reader.result.slice(reader.result.indexOf(",") + 1)));
    reader.addEventListener("error", () => reject(new Error("cannot be read")));
    reader.readAsDataURL(file);
  });
}

/** The caption of a picture. It is written when the field is left, or by Ctrl+Enter. */
function caption(folder, picture, onWritten) {
  const field = el("textarea", { rows: 2, "aria-label": `Caption of ${picture.name}`, value: picture.caption });
  async function write() {
    const text = field.value.split(/\s+/).filter(Boolean).join(" ");
    if (text === picture.caption) return;
    try {
      await put(`/api/data/${folder}/captions/${picture.id}`, { caption: text });
      picture.caption = text;
      field.value = text;
      say(`The caption of ${picture.name} is written.`);
      onWritten();
    } catch (error) {
      say(error.message);
    }
  }
  field.addEventListener("blur", write);
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) write();
  });
  return field;
}
