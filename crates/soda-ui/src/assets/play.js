// Pictures of an adapter at five strengths, with a slider between them.

import { get, post } from "./api.js";
import { el, plain, repeat, say } from "./dom.js";

export async function showPlay(view) {
  document.title = "Play – SODA";
  const { adapters, strengths } = await get("/api/adapters");
  view.append(el("div", { class: "title" }, el("h1", {}, "Play")));
  if (adapters.length === 0) {
    view.append(el("p", { class: "soft" }, "No run has an adapter yet. A run has one when its steps are done."));
    return;
  }
  const field = (text, input, full) => el("label", { class: full ? "field full" : "field" }, el("span", {}, text), input);
  const run = el("select", { name: "run", onchange: suggest }, ...adapters.map((one) => el("option", { value: one.id }, `${one.name} on ${one.base}`)));
  const second = el("select", { name: "second", onchange: choose }, el("option", { value: "" }, "none"),
    ...adapters.map((one) => el("option", { value: one.id }, `${one.name} on ${one.base}`)));
  const weights = ["first", "second"].map((which) => el("input", { name: `weight_${which}`, inputmode: "decimal", value: "1", required: true, autocomplete: "off" }));
  const mode = el("select", { name: "mode" }, ...[["residual", "sum of the changes"], ["geodesic", "mean of the rotations"],
    ["compose", "one rotation after the other"]].map(([value, text]) => el("option", { value }, text)));
  const merged = [field("Weight of the first", weights[0]), field("Weight of the second", weights[1]), field("How they are merged", mode, true)];
  const prompt = el("textarea", { name: "prompt", rows: 3, required: true });
  const seed = el("input", { name: "seed", inputmode: "numeric", pattern: "[0-9]+", value: "0", required: true, autocomplete: "off" });
  const steps = el("input", { name: "steps", inputmode: "numeric", pattern: "[0-9]+", value: "30", required: true, autocomplete: "off" });
  const message = el("p", { class: "message", role: "status" });
  const form = el("form", { onsubmit: submit }, el("div", { class: "fields" },
    field("Adapter", run, true), field("Second adapter", second, true), ...merged, field("Prompt", prompt, true), field("Seed", seed), field("Sampler steps", steps)),
  el("div", { class: "title drawn" }, el("button", { class: "primary" }, "Draw"), message));

  const picture = plain(el("img", { class: "picture", alt: "" }));
  const slider = el("input", { type: "range", min: 0, max: strengths.length - 1, step: 1, value: strengths.length - 1, "aria-label": "Strength of the adapter" });
  const scale = el("span", {}, "strength");
  const strength = el("span", { class: "number" });
  slider.addEventListener("input", show);
  const strip = el("ul", { class: "strip" });
  const result = el("div", { hidden: true }, picture, el("div", { class: "sliders" },
    el("label", {}, scale, slider, strength)), strip);
  view.append(el("div", { class: "new" }, form, result));

  let drawing = null;

  function choose() {
    for (const one of merged) one.hidden = !second.value;
  }

  function suggest() {
    const chosen = adapters.find((one) => one.id === run.value);
    if (!prompt.value || adapters.some((one) => one.prompt === prompt.value)) prompt.value = chosen.prompt ?? "";
  }

  function address(index) {
    return `/api/drawings/${drawing.number}/${index}`;
  }

  /** The picture of the slider, or the nearest one that is drawn. */
  function show() {
    if (!drawing) return;
    const wanted = Number(slider.value);
    strength.textContent = strengths[wanted];
    slider.setAttribute("aria-valuetext", String(strengths[wanted]));
    const drawn = strengths.map((_, index) => index).filter((index) => drawing.drawn[index]);
    result.hidden = drawn.length === 0;
    if (result.hidden) return;
    const near = drawn.reduce((best, index) => (Math.abs(index - wanted) < Math.abs(best - wanted) ? index : best));
    if (picture.getAttribute("src") !== address(near)) picture.src = address(near);
    picture.alt = `${prompt.value}, strength ${strengths[near]}`;
    picture.classList.toggle("waiting", near !== wanted);
    for (const [index, item] of [...strip.children].entries()) item.classList.toggle("current", index === wanted);
  }

  async function look() {
    if (drawing && !drawing.is_running) return;
    try {
      const state = await get("/api/drawing");
      if (state.number === 0) { drawing = null; return; }
      if (!drawing && state.form && !form.dataset.sent) {
        // The page was opened again: the fields are those of the pictures.
        run.value = state.form.run;
        prompt.value = state.form.prompt;
        seed.value = state.form.seed;
        steps.value = state.form.steps;
        second.value = state.form.second ?? "";
        for (const [index, input] of weights.entries()) input.value = state.form.weights[index];
        mode.value = state.form.mode;
        choose();
      }
      const old = JSON.stringify(drawing?.drawn) + drawing?.number;
      drawing = state;
      scale.textContent = state.form?.second ? "share of the second" : "strength";
      const count = state.drawn.filter(Boolean).length;
      message.textContent = state.error ?? (state.is_running ? `${count} of ${strengths.length} are drawn …` : "");
      message.className = state.error ? "message bad" : "message";
      if (old !== JSON.stringify(state.drawn) + state.number) {
        strip.replaceChildren(...strengths.map((text, index) => el("li", {},
          state.drawn[index] ? plain(el("img", { src: address(index), alt: `Strength ${text}` })) : el("div", { class: "empty" }), text)));
      }
      show();
    } catch (error) {
      say(error.message);
    }
  }

  async function submit(event) {
    event.preventDefault();
    try {
      const two = second.value ? { second: second.value, weights: weights.map((input) => Number(input.value)), mode: mode.value } : {};
      await post("/api/drawings", { run: run.value, prompt: prompt.value, seed: Number(seed.value), steps: Number(steps.value), ...two });
      drawing = null;
      form.dataset.sent = "true";
      await look();
    } catch (error) {
      message.textContent = error.message;
      message.className = "message bad";
    }
  }

  suggest();
  choose();
  return repeat(look, 700);
}
