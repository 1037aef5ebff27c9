// Several runs over each other: curves, samples of the same prompt and noise, scores, and the settings that differ.

import { get } from "./api.js";
import { chart } from "./chart.js";
import { el, number, plain, repeat, say } from "./dom.js";

/** The most runs that are compared: one for each color. */
export const MOST = 4;
const COLORS = ["c-accent", "c-warm", "c-blue", "c-plum"];
/** The settings by which the noise and the sampling of a sample are the same. */
const SAMPLING = ["seed", "resolution", "base", "samples.steps", "samples.guidance"];
const SCORES = [["clip_t", "CLIP-T"], ["clip_i", "CLIP-I"], ["dino", "DINO"], ["drift", "drift"], ["drift_dino", "drift by DINO"]];
/** Differences that say nothing about the training. */
const OWN = new Set(["name"]);

export function showComparison(view, list) {
  document.title = "Compare – SODA";
  const ids = [...new Set(list.split(",").filter(Boolean))].slice(0, MOST);
  view.append(el("div", { class: "title" }, el("h1", {}, "Compare runs"),
    el("div", { class: "actions" }, el("a", { class: "button", href: "#/" }, "Choose runs"))));
  if (ids.length < 2) {
    view.append(el("p", { class: "soft" }, "Choose two to four runs in the ", el("a", { href: "#/" }, "list of runs"), "."));
    return;
  }
  let runs = [];
  const legend = el("ul", { class: "legend" });
  const series = (curve) => ids.map((_, index) => ({
    name: "", color: COLORS[index], points: () => runs[index]?.curves[curve] ?? [],
  }));
  const loss = chart({ label: "Mean loss of 20 steps by step, a line for each run", series: series("loss") });
  const validation = chart({ label: "Loss of the held-out pictures by step, a line for each run", series: series("validation") });
  const front = chart({
    label: "Likeness over agreement with the prompt, a line for each run from before to after",
    series: ids.map((_, index) => ({ name: "", color: COLORS[index], points: () => likeness(runs, runs[index]).sort((a, b) => a[0] - b[0]), end: () => likeness(runs, runs[index])[1] })),
    at: (x) => `CLIP-T ${number(x, 3)}`,
    room: 0.06,
  });
  const frontTitle = el("h2", {});
  const fronts = el("section", { hidden: true }, frontTitle, el("div", { class: "charts even" }, front.figure));
  const at = el("input", { type: "range", min: 0, max: 0, value: 0, "aria-label": "Samples up to step" });
  const atText = el("span", { class: "number" });
  let moved = false;
  at.addEventListener("input", () => { moved = true; showSamples(); });
  const slider = el("div", { class: "sliders" }, el("label", {}, "samples up to", at, atText));
  const note = el("p", { class: "soft small" });
  const rows = el("div", { class: "beside" });
  const tables = el("div", {});
  view.append(legend, el("div", { class: "charts even" },
    el("div", {}, el("h2", {}, "Loss, mean of 20 steps"), loss.figure),
    el("div", {}, el("h2", {}, "Validation loss"), validation.figure)),
  fronts,
  el("h2", {}, "The same prompt and noise"), note, slider, rows, tables);

  /** The names and steps of the grids of a run, by rising step. */
  const grids = (run) => [...(run.has_before ? [["before", 0]] : []), ...run.samples.map((step) => [step, step]),
    ...(run.has_after ? [["after", run.steps]] : [])];

  function showSamples() {
    const steps = [...new Set(runs.flatMap((run) => grids(run).map(([, step]) => step)))].sort((a, b) => a - b);
    slider.hidden = steps.length < 2;
    at.max = Math.max(steps.length - 1, 0);
    if (!moved) at.value = at.max;
    const limit = steps[Number(at.value)] ?? 0;
    atText.textContent = `step ${limit}`;
    at.setAttribute("aria-valuetext", atText.textContent);
    const shown = runs.map((run) => grids(run).filter(([, step]) => step <= limit).at(-1));
    // The noise of a sample is a function of the seed and of the place of its prompt.
    const prompts = (runs[0]?.prompts ?? []).map((prompt, place) => [prompt, place])
      .filter(([prompt, place]) => runs.every((run) => run.prompts[place] === prompt));
    const differ = SAMPLING.filter((name) => new Set(runs.map((run) => run.values[name])).size > 1);
    note.textContent = shown.every((grid) => !grid) ? "No run has samples yet."
      : prompts.length === 0 ? "No prompt has the same place in the samples of all runs, so that the noise is not the same."
        : differ.length ? `The noise or the sampling is not the same: ${differ.join(", ")} differ.`
          : "Each column is a run. All have the same seed, and so the same noise.";
    const signature = JSON.stringify([shown, prompts, ids]);
    if (rows.dataset.signature === signature) return;
    rows.dataset.signature = signature;
    rows.replaceChildren(...(shown.some(Boolean) ? prompts : []).map(([prompt, place]) => el("figure", {},
      el("div", { class: "row" }, ...runs.map((run, index) => (shown[index]
        ? cell(run, shown[index], place, `${prompt}, ${run.name}, step ${shown[index][1]}`, COLORS[index])
        : el("div", { class: "cell empty" })))),
      el("figcaption", {}, prompt))));
  }

  function showTables() {
    const head = (title) => el("thead", {}, el("tr", {}, el("th", { scope: "col" }, title),
      ...runs.map((run, index) => el("th", { scope: "col" }, el("span", { class: `key ${COLORS[index]}` }), run.name))));
    const row = (name, cells) => el("tr", {}, el("th", { scope: "row" }, name), ...cells.map((text) => el("td", { class: "number" }, text)));
    const scored = SCORES.filter(([field]) => runs.some((run) => typeof run.scores?.after[field] === "number"));
    const score = (run, field) => (run.scores ? `${number(run.scores.before[field], 3)} → ${number(run.scores.after[field], 3)}` : "–");
    const names = [...new Set(runs.flatMap((run) => Object.keys(run.values)))].filter((name) => !OWN.has(name)).sort();
    const differ = names.filter((name) => new Set(runs.map((run) => run.values[name])).size > 1);
    const scroll = (label, ...parts) => el("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": label },
      el("table", { class: "wide-table" }, ...parts));
    const signature = JSON.stringify([runs.map((run) => [run.name, run.values, run.scores])]);
    if (tables.dataset.signature === signature) return;
    tables.dataset.signature = signature;
    tables.replaceChildren(
      ...(scored.length ? [el("h2", {}, "Scores, before → after"), scroll("Scores", head("Score"),
        el("tbody", {}, ...scored.map(([field, name]) => row(name, runs.map((run) => score(run, field))))))] : []),
      el("h2", {}, "Settings that differ"),
      differ.length ? scroll("Settings that differ", head("Setting"),
        el("tbody", {}, ...differ.map((name) => row(name, runs.map((run) => run.values[name] ?? "–")))))
        : el("p", { class: "soft" }, "All settings are the same."));
  }

  async function refresh() {
    try {
      runs = await Promise.all(ids.map((id) => get(`/api/runs/${id}/comparison`)));
    } catch (error) {
      say(error.message);
      return;
    }
    for (const one of [loss, validation, front]) one.name(runs.map((run) => run.name));
    legend.replaceChildren(...runs.map((run, index) => el("li", {}, el("span", { class: `key ${COLORS[index]}` }),
      el("a", { href: `#/run/${run.id}` }, run.name), el("span", { class: "soft number" },
        ` ${run.state}, step ${run.step} of ${run.steps}, loss ${number(run.loss)}`))));
    loss.draw();
    validation.draw();
    fronts.hidden = !runs.some((run) => run.scores);
    frontTitle.textContent = `${likenessName(runs)} over CLIP-T, from before to the large dot after`;
    front.draw();
    showSamples();
    showTables();
    if (!runs.some((run) => ["running", "starting"].includes(run.state))) end();
  }

  let end = () => {};
  end = repeat(refresh, 5000);
  return () => { end(); loss.leave(); validation.leave(); front.leave(); };
}

/** Whether all scored runs have true pictures, to which the likeness is one then. */
const haveTruth = (runs) => runs.every((run) => !run?.scores || typeof run.scores.after.truth_dino === "number");
const likenessName = (runs) => (haveTruth(runs) ? "DINO to the truth" : "DINO");

/** A run's likeness over its agreement with the prompt, before and after. */
function likeness(runs, run) {
  if (!run?.scores) return [];
  const field = haveTruth(runs) ? "truth_dino" : "dino";
  const { before, after } = run.scores;
  return [before, after].map((scores) => [scores.clip_t, scores[field]]);
}

/** One picture of a grid of one row. The grid has a margin of 4 pixels around each picture. */
function cell(run, [name], place, alt, color) {
  const image = plain(el("img", { src: `/api/runs/${run.id}/images/${name}`, alt }));
  const box = el("div", { class: `cell ${color}` }, image);
  image.addEventListener("load", () => {
    const { naturalWidth: width, naturalHeight: height } = image;
    const side = [(width - 4) / run.prompts.length - 4, height - 8];
    box.style.aspectRatio = `${side[0]} / ${side[1]}`;
    image.style.width = `${(width / side[0]) * 100}%`;
    image.style.transform = `translate(${(-(4 + place * (side[0] + 4)) / width) * 100}%, ${(-4 / height) * 100}%)`;
  });
  return box;
}
