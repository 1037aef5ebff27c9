// The list of runs.

import { get, post } from "./api.js";
import { MOST } from "./comparison.js";
import { ago, el, number, repeat, say } from "./dom.js";

/** The ids of the runs that are chosen for a comparison, also after another page was shown. */
const chosen = new Set();

export function showRuns(view) {
  document.title = "Runs – SODA";
  const body = el("tbody");
  const table = el("table", {}, el("thead", {}, el("tr", {},
    el("th", { scope: "col" }, el("span", { class: "unseen" }, "Compare")),
    ...["Run", "State", "Steps", "Loss", "Method", "Base", "Data", "Begun"].map((name) => el("th", { scope: "col" }, name)))), body);
  const empty = el("p", { class: "soft" }, "There is no run yet. ", el("a", { href: "#/new" }, "Start one"),
    ", or begin one on the command line by ", el("code", {}, "soda train"), ": it appears here.");
  const compare = el("button", { type: "button", onclick: () => { location.hash = `#/compare/${[...chosen].join(",")}`; } }, "Compare");
  function choose() {
    compare.disabled = chosen.size < 2 || chosen.size > MOST;
    compare.title = compare.disabled ? `Choose 2 to ${MOST} runs` : "";
    compare.textContent = chosen.size ? `Compare ${chosen.size}` : "Compare";
  }
  choose();
  view.append(el("div", { class: "title" }, el("h1", {}, "Runs"),
    el("div", { class: "actions" }, compare, el("a", { class: "button primary", href: "#/new" }, "New run"))), empty, table);
  const rows = new Map();
  return repeat(async () => {
    try {
      const { runs, starts, queue } = await get("/api/runs");
      empty.hidden = runs.length + starts.length + queue.length > 0;
      table.hidden = !empty.hidden;
      const found = [...queue.map(waitingRow).reverse(), ...starts.map(startRow), ...runs.map((run) => runRow(run, choose))];
      for (const id of chosen) if (!runs.some((run) => run.id === id)) chosen.delete(id);
      choose();
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
        const focused = document.activeElement?.dataset.focus;
        body.replaceChildren(...nodes);
        if (focused) body.querySelector(`[data-focus="${focused}"]`)?.focus();
      }
    } catch (error) {
      say(error.message);
    }
  }, 2000);
}

function runRow(run, choose) {
  const box = () => el("input", {
    type: "checkbox", "data-focus": `box-${run.id}`, "aria-label": `Compare ${run.name}`, checked: chosen.has(run.id),
    onchange: (event) => { chosen[event.target.checked ? "add" : "delete"](run.id); choose(); },
  });
  return [run.id, JSON.stringify(run) + ago(run.created), () => el("tr", {}, el("td", { class: "box" }, box()),
    el("td", { class: "name" }, el("a", { href: `#/run/${run.id}`, "data-focus": `link-${run.id}` }, run.name), run.error ? el("span", { class: "error" }, run.error) : null),
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
  return [start.id, JSON.stringify(start), () => el("tr", {}, el("td", { class: "box" }),
    el("td", { class: "name" }, start.name, failed && last ? el("span", { class: "error" }, last) : null),
    el("td", {}, el("span", { class: `state ${start.state}` }, failed ? "did not start" : "reading the base")),
    el("td", { colspan: 6 }, el("button", { type: "button", onclick: discard }, failed ? "Forget" : "Cancel")))];
}

/** A run that waits. The next one stands last, beside those that go on. */
function waitingRow(run, place) {
  const change = (name) => async () => {
    try {
      await post(`/api/queue/${run.id}/${name}`);
    } catch (error) {
      say(error.message);
    }
  };
  const button = (name, text, what) => el("button", {
    type: "button", onclick: change(name), "data-focus": `${name}-${run.name}`, "aria-label": `${what} ${run.name}`,
  }, text);
  return [`waiting-${run.id}`, JSON.stringify([run, place]), () => el("tr", {}, el("td", { class: "box" }),
    el("td", { class: "name" }, run.name),
    el("td", {}, el("span", { class: "state waiting" }, place === 0 ? "next" : `waiting, place ${place + 1}`)),
    el("td", { colspan: 6 }, el("div", { class: "actions" },
      place === 0 ? null : button("up", "Earlier", "Start earlier:"), button("remove", "Remove", "Do not start:"))))];
}
