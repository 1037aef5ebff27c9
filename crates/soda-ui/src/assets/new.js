// The form of a new run. The server checks it by the parser of `soda train`.

import { get, post } from "./api.js";
import { el } from "./dom.js";

export async function showNew(view) {
  document.title = "New run – SODA";
  const choices = await get("/api/choices");
  const list = (id, values) => el("datalist", { id }, ...values.map((value) => el("option", { value })));
  const select = (name, values) => el("select", { name }, ...values.map(([value, text]) => el("option", { value }, text)));
  const field = (text, input, full) => el("label", { class: full ? "field full" : "field" }, el("span", {}, text), input);
  const whole = (name) => el("input", { name, inputmode: "numeric", pattern: "[0-9]*", autocomplete: "off", placeholder: "of the preset" });
  const text = (name, more = {}) => el("input", { name, autocomplete: "off", spellcheck: "false", ...more });
  const presets = choices.presets.map((preset) => [preset.name, `${preset.name}: ${preset.about}`]);
  const fields = el("div", { class: "fields" },
    field("Preset", select("preset", presets), true),
    field("Base model: a folder, or a name on a hub", text("base", { list: "bases", required: true, value: choices.bases[0] ?? "" }), true),
    field("Data: a folder of pictures", text("data", { list: "folders", required: true, value: choices.data[0] ?? "" }), true),
    field("Method", select("method", [["", "of the preset"], ...choices.methods.map((name) => [name, name])])),
    field("Steps", whole("steps")),
    field("Pictures in a step", whole("batch_size")),
    field("Seed", whole("seed")),
    field("Samples every … steps", whole("samples_every")),
    field("Validation every … steps", whole("validation_every")),
    field("Caption of pictures without one", text("prompt")),
    field("Trigger", text("trigger")),
    field("Name of the run", text("name", { placeholder: "data folder and a number" }), true),
    field("All other settings, TOML", el("textarea", { name: "toml", class: "code", rows: 7, spellcheck: "false", placeholder: "[optimizer]\nrotation_lr = 1e-3" }), true),
    list("bases", choices.bases), list("folders", choices.data));
  const start = el("button", { class: "primary" }, "Start");
  const queue = el("button", { value: "queue", title: "The run begins when no other one goes on" }, "Add to the queue");
  const predict = el("button", { type: "button", onclick: plan, title: "Reads the base and the pictures and measures small steps" }, "Predict memory");
  const message = el("p", { class: "message", role: "status" });
  const prediction = el("pre", { tabindex: 0, hidden: true, role: "status", "aria-label": "Predicted memory" });
  const resolved = el("pre", { tabindex: 0, "aria-label": "All settings of the run" });
  const form = el("form", { class: "new", onsubmit: submit, oninput: later }, fields,
    el("div", {}, el("div", { class: "title" }, start, queue, predict, message), prediction, resolved));
  view.append(el("div", { class: "title" }, el("h1", {}, "New run")), form);

  function content() {
    const values = Object.fromEntries(new FormData(form));
    for (const name of ["steps", "batch_size", "seed", "samples_every", "validation_every"]) {
      // What is no number goes to the server as it is, which refuses it by name.
      if (values[name] === "") delete values[name];
      else values[name] = /^\d{1,15}$/.test(values[name]) ? Number(values[name]) : values[name];
    }
    return values;
  }

  function tell(text, kind) {
    message.textContent = text;
    message.className = `message ${kind}`;
  }

  // What is predicted belongs to the settings of its time.
  let planTimer;
  function forgetPlan() {
    clearTimeout(planTimer);
    prediction.hidden = true;
  }

  async function plan() {
    forgetPlan();
    try {
      await post("/api/memory-plan", content());
      showPlan("Reading the base and the pictures …");
      planTimer = setTimeout(lookAtPlan, 500);
    } catch (error) {
      tell(error.message, "bad");
    }
  }

  function showPlan(text) {
    prediction.textContent = text;
    prediction.hidden = false;
  }

  async function lookAtPlan() {
    const own = planTimer;
    const { state, output } = await get("/api/memory-plan").catch((error) => ({ state: "failed", output: error.message }));
    if (own !== planTimer) return;
    if (state === "running") planTimer = setTimeout(lookAtPlan, 1000);
    else showPlan(state === "none" ? "The prediction was ended, as a run began." : output.trim());
  }

  let timer;
  let newest = 0;
  function later() {
    forgetPlan();
    clearTimeout(timer);
    timer = setTimeout(check, 300);
  }

  async function check() {
    const own = ++newest;
    try {
      const { toml, error } = await post("/api/settings", content());
      if (own !== newest) return;
      if (error) return tell(error, "bad");
      resolved.textContent = toml;
      tell("These settings are right.", "good");
    } catch (error) {
      if (own === newest) tell(error.message, "bad");
    }
  }

  async function submit(event) {
    event.preventDefault();
    start.disabled = queue.disabled = true;
    try {
      await post("/api/runs", { ...content(), queue: event.submitter === queue });
      location.hash = "#/";
    } catch (error) {
      tell(error.message, "bad");
    }
    start.disabled = queue.disabled = false;
  }

  if (choices.bases.length && choices.data.length) check();
  return () => {
    clearTimeout(timer);
    clearTimeout(planTimer);
  };
}
