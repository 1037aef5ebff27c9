// The adapter of a run in the formats of other tools, with what each loses.

import { get, post } from "./api.js";
import { el } from "./dom.js";

/** What can be written: name, text, whether it has a strength, whether it has an error. */
const KINDS = [
  ["kohya", "LoRA for ComfyUI, A1111 and diffusers (kohya)", true, true],
  ["diffusers", "LoRA for diffusers", true, true],
  ["peft", "folder for PEFT", false, true],
  ["diff", "full changes of the weights, exact", true, false],
  ["embeddings", "new words of textual inversion", false, false],
  ["model", "model folder with the adapter merged in", true, false],
  ["single", "single file of that model folder", true, false],
];

/** Makes the section of a run. `show(run)` is called when the run was read again. */
export function exportsOf(id) {
  const kind = el("select", { name: "kind", onchange: choose }, ...KINDS.map(([value, text]) => el("option", { value }, text)));
  const strength = el("input", { name: "strength", inputmode: "decimal", value: "1", autocomplete: "off" });
  const error = el("input", { name: "error", inputmode: "decimal", value: "0.05", autocomplete: "off" });
  const field = (text, input) => el("label", {}, text, input);
  const fields = [field("strength", strength), field("largest error of a layer", error)];
  const button = el("button", {}, "Export");
  const message = el("p", { class: "message bad", role: "status", hidden: true });
  const list = el("ul", { class: "exports" });
  const form = el("form", { class: "inline", onsubmit: submit }, kind, ...fields, button);
  const view = el("section", { hidden: true }, el("h2", {}, "Export, merge, convert"), form, message, list);
  let shown = "";

  function choose() {
    const [, , hasStrength, hasError] = KINDS.find(([value]) => value === kind.value);
    fields[0].hidden = !hasStrength;
    fields[1].hidden = !hasError;
  }

  function tell(text) {
    message.textContent = text;
    message.hidden = text === "";
  }

  async function submit(event) {
    event.preventDefault();
    const form = { kind: kind.value };
    for (const [index, input] of [strength, error].entries()) {
      // What is no number goes to the server as it is, which refuses it by name.
      if (!fields[index].hidden && input.value !== "") form[input.name] = Number.isNaN(Number(input.value)) ? input.value : Number(input.value);
    }
    button.disabled = true;
    try {
      tell("");
      await post(`/api/runs/${id}/exports`, form);
      await refresh();
    } catch (failure) {
      tell(failure.message);
    }
    button.disabled = false;
  }

  async function refresh() {
    const { exports } = await get(`/api/runs/${id}/exports`);
    const text = JSON.stringify(exports);
    if (text === shown) return;
    shown = text;
    const open = new Set([...list.querySelectorAll("details[open]")].map((details) => details.dataset.name));
    list.replaceChildren(...exports.map((one) => el("li", {},
      el("div", {}, el("strong", {}, one.name), " ", el("span", { class: `state ${one.state}` }, one.state)),
      el("div", { class: "soft small" }, one.path),
      el("div", { class: one.state === "failed" ? "message bad" : "small" }, one.state === "running" ? "" : last(one)),
      el("details", { "data-name": one.name, open: open.has(one.name) }, el("summary", {}, "What is kept of each layer"),
        el("pre", { tabindex: 0 }, one.output)))));
  }

  choose();
  return {
    view,
    async show(run) {
      view.hidden = !run.has_adapter;
      if (run.has_adapter) await refresh();
    },
  };
}

/** The last line of the output: layers, ranks and the error over all, or what went wrong. */
function last(one) {
  const line = one.output.trim().split("\n").pop();
  return line.startsWith(`${one.path}: `) ? line.slice(one.path.length + 2) : line.replace(/^error: /, "").replace(one.path, "Written.");
}
