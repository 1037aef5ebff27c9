// The list of runs.

import { get, post } from "./api.js";
import { ago, el, number, repeat, say } from "./dom.js";

export function showRuns(view) {
  document.title = "Runs – SODA";
  const body = el("tbody");
  const table = el("table", {}, el("thead", {}, el("tr", {},
    ...["Run", "State", "Steps", "Loss", "Method", "Base", "Data", "Begun"].map((name) => el("th", { scope: "col" }, name)))), body);
  const empty = el("p", { class: "soft" }, "There is no run yet. ", el("a", { href: "#/new" }, "Start one"),
    ", or begin one on the command line by ", el("code", {}, "soda train"), ": it appears here.");
  view.append(el("div", { class: "title" }, el("h1", {}, "Runs"),
    el("div", { class: "actions" }, el("a", { class: "button primary", href: "#/new" }, "New run"))), empty, table);
  const rows = new Map();
  return repeat(async () => {
    try {
      const { runs, starts } = await get("/api/runs");
      empty.hidden = runs.length + starts.length > 0;
      table.hidden = !empty.hidden;
      const found = [...starts.map(startRow), ...runs.map(runRow)];
      // Rows that did not change stay, so that the focus does.
      const nodes = found.map(([key, text, make]) => {
        const old = rows.get(key);
        if (old?.text === text) return old.node;
        const node = make();
        rows.set(key, { text, node });
        return node;
      });
      const same = nodes.length === body.children.length && nodes.every((node, i) => node === body.children[i]);
      if (!same) {
        const focused = document.activeElement?.getAttribute("href");
        body.replaceChildren(...nodes);
        if (focused) body.querySelector(`a[href="${focused}"]`)?.focus();
      }
    } catch (error) {
      say(error.message);
    }
  }, 2000);
}

function runRow(run) {
  return [run.id, JSON.stringify(run) + ago(run.created), () => el("tr", {},
    el("td", { class: "name" }, el("a", { href: `#/run/${run.id}` }, run.name), run.error ? el("span", { class: "error" }, run.error) : null),
    el("td", {}, el("span", { class: `state ${run.state}` }, run.state === "running" && run.stage ? run.stage : run.state)),
    el("td", { class: "progress number" }, el("progress", { max: run.steps || 1, value: run.step, "aria-label": "Steps done" }), `${run.step} / ${run.steps}`),
    el("td", { class: "number" }, number(run.loss)),
    el("td", {}, run.method), el("td", {}, run.base), el("td", {}, run.data),
    el("td", { class: "soft" }, ago(run.created)))];
}

function startRow(start) {
  const last = start.output.trim().split("\n").pop();
  const discard = async () => {
    try {
      await post(`/api/starts/${start.id}/discard`);
    } catch (error) {
      say(error.message);
    }
  };
  const failed = start.state === "failed";
  return [start.id, JSON.stringify(start), () => el("tr", {},
    el("td", { class: "name" }, start.name, failed && last ? el("span", { class: "error" }, last) : null),
    el("td", {}, el("span", { class: `state ${start.state}` }, failed ? "did not start" : "reading the base")),
    el("td", { colspan: 6 }, el("button", { type: "button", onclick: discard }, failed ? "Forget" : "Cancel")))];
}
