// One run: its curves, samples, log and settings.

import { get, post } from "./api.js";
import { chart } from "./chart.js";
import { compare } from "./compare.js";
import { exportsOf } from "./exports.js";
import { duration, el, number, repeat, say } from "./dom.js";

/** The number of steps of a running mean, as in the report. */
const WINDOW = 20;

export function showRun(view, id) {
  const log = { steps: [], validation: [], lines: [], at: 0 };
  let run = null;
  let source = null;
  let shownStep = null;

  const title = el("h1", {});
  const state = el("span", { class: "state" });
  const stop = el("button", { type: "button", onclick: () => act("stop", "The run stops after this step.") }, "Stop");
  const sample = el("button", { type: "button", onclick: () => act("sample", "The samples are drawn after this step.") }, "Sample now");
  const save = el("button", { type: "button", onclick: () => act("save", "The adapter is written after this step.") }, "Save now");
  const resume = el("button", { type: "button", onclick: () => act("resume", "The run goes on.") }, "Resume");
  const facts = el("dl", { class: "facts" });
  const done = el("progress", { class: "wide", max: 1, value: 0, "aria-label": "Steps done" });
  const failure = el("p", { class: "message bad", role: "alert" });

  const values = (name) => log.steps.map((line) => [line.step, line.values[name]]);
  const loss = chart({
    label: "Loss by step",
    series: [
      { name: "loss of a step", color: "c-faint", dots: true, points: () => values("loss") },
      { name: `mean of ${WINDOW} steps`, color: "c-accent", points: () => mean(values("loss")) },
      { name: "validation", color: "c-warm", points: () => log.validation.map((line) => [line.step, line.values.validation_loss]) },
    ],
  });
  const rates = chart({
    label: "Learning rates by step, on a logarithmic scale",
    log: true,
    series: [
      { name: "rotations", color: "c-blue", points: () => values("rotation_lr") },
      { name: "other parameters", color: "c-warm", points: () => values("flat_lr") },
      { name: "gradient norm", color: "c-faint", points: () => mean(values("grad_norm")) },
    ],
  });

  const slides = compare();
  const at = el("input", { type: "range", min: 0, max: 0, value: 0, "aria-label": "Samples of step" });
  const atText = el("span", { class: "number" });
  at.addEventListener("input", () => { shownStep = Number(at.value); showSamples(); });
  const columns = el("ol", { class: "columns" });
  const samples = el("section", { hidden: true }, el("h2", {}, "Samples"), slides.view,
    el("div", { class: "sliders" }, slides.label, el("label", {}, "samples of", at, atText)), columns);
  const exported = exportsOf(id);
  const lines = el("ol", { class: "log", tabindex: 0, "aria-label": "Log" });
  const settings = el("pre", { tabindex: 0 });
  const output = el("pre", { tabindex: 0 });
  const outputs = el("details", {}, el("summary", {}, "Output of the process"), output);

  view.append(
    el("div", { class: "title" }, title, state, el("div", { class: "actions" }, sample, save, stop, resume)),
    failure, facts, done,
    el("h2", {}, "Loss and learning rates"), el("div", { class: "charts" }, loss.figure, rates.figure),
    samples, exported.view, el("h2", {}, "Log"), lines,
    el("details", {}, el("summary", {}, "Settings"), settings), outputs,
  );

  async function act(action, text) {
    try {
      await post(`/api/runs/${id}/${action}`);
      say(text);
      await refresh();
    } catch (error) {
      say(error.message);
    }
  }

  async function refresh() {
    try {
      const answer = await get(`/api/runs/${id}`);
      run = answer.run;
      output.textContent = answer.output;
      outputs.hidden = answer.output === "";
      await exported.show(run);
    } catch (error) {
      say(error.message);
      return;
    }
    document.title = `${run.name} – SODA`;
    title.textContent = run.name;
    settings.textContent = run.settings;
    failure.textContent = run.error ?? "";
    failure.hidden = !run.error;
    columns.replaceChildren(...run.prompts.map((prompt) => el("li", {}, prompt)));
    follow();
    showState();
    showSamples();
  }

  function showState() {
    if (!run) return;
    state.className = `state ${run.state}`;
    state.textContent = run.state === "running" && log.stage ? log.stage : run.state;
    const goesOn = ["running", "starting"].includes(run.state);
    for (const button of [sample, save, stop]) button.hidden = run.state !== "running";
    resume.hidden = goesOn || run.state === "finished";
    const step = log.steps.at(-1)?.step ?? run.step;
    const pace = median(log.steps.slice(-40));
    const first = log.lines[0]?.time;
    const last = log.last;
    done.max = run.steps || 1;
    done.value = step;
    const means = mean(values("loss"));
    const entries = [
      ["Step", `${step} / ${run.steps}`],
      ["Loss", number(means.at(-1)?.[1] ?? run.loss)],
      ["Validation", number(log.validation.at(-1)?.values.validation_loss)],
      ["A step", duration(pace)],
      [goesOn ? "Left" : "Took", goesOn ? duration(pace * (run.steps - step)) : duration(last - first)],
      ...(log.memory ? [["GPU memory", `${Math.round(log.memory / 2 ** 20)} MiB`]] : []),
      ["Method", run.method],
      ["Base", run.base],
      ["Data", run.data],
    ];
    facts.replaceChildren(...entries.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
  }

  function showSamples() {
    if (!run) return;
    const steps = run.has_after ? [...run.samples, run.steps] : run.samples;
    const names = run.has_after ? [...run.samples, "after"] : run.samples;
    samples.hidden = !run.has_before && steps.length === 0;
    if (samples.hidden) return;
    at.max = Math.max(steps.length - 1, 0);
    at.parentElement.hidden = steps.length < 2;
    const index = shownStep === null ? steps.length - 1 : Math.min(shownStep, steps.length - 1);
    if (shownStep === null) at.value = Math.max(index, 0);
    const address = (name) => `/api/runs/${id}/images/${name}`;
    const before = run.has_before ? address("before") : null;
    atText.textContent = steps.length ? `step ${steps[index]}` : "";
    slides.show(before, steps.length ? address(names[index]) : before);
  }

  function follow() {
    const wanted = !document.hidden && run.state !== "starting" && !(log.ended && run.state !== "running");
    if (!wanted || source) return;
    log.ended = false;
    source = new EventSource(`/api/runs/${id}/events?from=${log.at}`);
    source.addEventListener("lines", (event) => {
      log.at = Number(event.lastEventId);
      let pictures = false;
      for (const text of event.data.split("\n")) {
        try {
          pictures = take(JSON.parse(text)) || pictures;
        } catch {
          // A line that a killed process left half is passed over.
        }
      }
      draw();
      if (pictures) refresh();
    });
    source.addEventListener("end", () => {
      close();
      log.ended = true;
      refresh();
    });
  }

  function close() {
    source?.close();
    source = null;
  }

  /** Takes a line of the log. True if there may be new pictures. */
  function take(line) {
    log.last = line.time;
    switch (line.event) {
      case "started":
        // A resumed run repeats the steps after its checkpoint.
        log.steps = log.steps.filter((old) => old.step <= line.step);
        log.validation = log.validation.filter((old) => old.step <= line.step);
        break;
      case "step":
        log.steps.push(line);
        return false;
      case "validation":
        log.validation.push(line);
        return false;
      case "progress":
        log.part = `${line.done} of ${line.total}`;
        return false;
      case "stage":
        log.stage = line.name;
        break;
      case "finished":
        log.memory = line.device_memory;
        break;
    }
    log.lines.push(line);
    return ["samples", "stage", "finished", "stopped", "failed"].includes(line.event);
  }

  function draw() {
    loss.draw();
    rates.draw();
    showState();
    const wasAtEnd = lines.scrollHeight - lines.scrollTop - lines.clientHeight < 30;
    const shown = log.lines.slice(-400).map((line) => el("li", { class: line.event },
      el("time", {}, new Date(line.time * 1000).toLocaleTimeString([], { hour12: false })), el("span", {}, describe(line))));
    if (lines.children.length !== shown.length || log.lines.length > 400) lines.replaceChildren(...shown);
    if (wasAtEnd) lines.scrollTop = lines.scrollHeight;
  }

  const onVisibility = () => { if (document.hidden) close(); };
  document.addEventListener("visibilitychange", onVisibility);
  const end = repeat(refresh, 4000);
  return () => {
    end();
    close();
    loss.leave();
    rates.leave();
    document.removeEventListener("visibilitychange", onVisibility);
  };
}

function describe(line) {
  switch (line.event) {
    case "started": return line.step > 0 ? `goes on after step ${line.step} of ${line.steps}` : `${line.steps} steps begin`;
    case "stage": return line.name;
    case "samples": return `samples of step ${line.step}`;
    case "finished": return "finished";
    case "warning": case "failed": return `${line.event}: ${line.text}`;
    default: return line.text;
  }
}

/** The mean of each value and up to WINDOW - 1 values before it. */
function mean(points) {
  let sum = 0;
  return points.map(([x, y], index) => {
    sum += y;
    if (index >= WINDOW) sum -= points[index - WINDOW][1];
    return [x, sum / Math.min(index + 1, WINDOW)];
  });
}

/** The median of the times between steps. Samples between two steps do not count then. */
function median(lines) {
  const gaps = lines.slice(1).map((line, index) => line.time - lines[index].time).sort((a, b) => a - b);
  return gaps.length ? gaps[gaps.length >> 1] : NaN;
}
