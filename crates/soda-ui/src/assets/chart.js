// A line chart on a canvas, with axes, a cursor for pointer and arrow keys, and the colours of the page.

import { el, number } from "./dom.js";

const LEFT = 52, RIGHT = 10, TOP = 8, BOTTOM = 24;

/**
 * Makes a chart. `series` has objects with `name`, `color` (a class), `points` (a function that gives
 * [x, y] pairs by rising x), `dots`, and `end` (a function that gives a point with a large dot). `at` names an x,
 * which is a step by default, and `room` is the part of its range that is left free at both ends. Call `draw` after
 * the points changed.
 */
export function chart({ label, series, log = false, at = (x) => `step ${Math.round(x)}`, room = 0 }) {
  const canvas = el("canvas", { role: "img", tabindex: 0, "aria-label": label });
  const keys = series.map((one) => el("span", { class: `key ${one.color}` }, one.name));
  const readout = el("span", { class: "number" });
  const figure = el("figure", {}, canvas, el("figcaption", {}, ...keys, readout));
  let cursor = null;

  const scaleY = (value) => (log ? Math.log10(value) : value);
  const usable = ([x, y]) => Number.isFinite(x) && Number.isFinite(y) && (!log || y > 0);

  function draw() {
    const ratio = devicePixelRatio || 1;
    const { clientWidth: width, clientHeight: height } = canvas;
    if (width === 0) return;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const style = getComputedStyle(figure);
    const color = (name) => style.getPropertyValue(`--${name}`).trim();
    pen.font = `11.5px ${style.fontFamily}`;
    const lines = series.map((one) => one.points().filter(usable));
    const all = lines.flat();
    if (all.length === 0) {
      pen.fillStyle = color("faint");
      pen.fillText("no values yet", LEFT, height / 2);
      return;
    }
    const [x0, x1] = range(all.map(([x]) => x), room);
    const [y0, y1] = range(all.map(([, y]) => scaleY(y)), 0.06);
    const px = (x) => LEFT + ((x - x0) / (x1 - x0)) * (width - LEFT - RIGHT);
    const py = (y) => height - BOTTOM - ((scaleY(y) - y0) / (y1 - y0)) * (height - TOP - BOTTOM);
    pen.lineWidth = 1;
    pen.strokeStyle = color("line");
    pen.fillStyle = color("soft");
    pen.textBaseline = "middle";
    pen.textAlign = "right";
    for (const tick of ticks(y0, y1, log ? 5 : 4)) {
      const y = Math.round(height - BOTTOM - ((tick - y0) / (y1 - y0)) * (height - TOP - BOTTOM)) + 0.5;
      pen.beginPath(); pen.moveTo(LEFT, y); pen.lineTo(width - RIGHT, y); pen.stroke();
      pen.fillText(number(log ? 10 ** tick : tick, 3), LEFT - 8, y);
    }
    pen.textAlign = "center";
    pen.textBaseline = "alphabetic";
    for (const tick of ticks(x0, x1, Math.max(2, Math.floor(width / 130)))) {
      pen.fillText(String(tick), Math.min(px(tick), width - 14), height - 6);
    }
    for (const [index, one] of series.entries()) {
      const tone = color(one.color.replace("c-", ""));
      if (one.dots) {
        pen.fillStyle = tone;
        pen.globalAlpha = lines[index].length > 400 ? 0.25 : 0.5;
        for (const [x, y] of thinned(lines[index], width)) pen.fillRect(px(x) - 1, py(y) - 1, 2, 2);
        pen.globalAlpha = 1;
      } else {
        pen.strokeStyle = tone;
        pen.lineWidth = 1.75;
        pen.lineJoin = "round";
        pen.beginPath();
        for (const [x, y] of thinned(lines[index], width)) pen.lineTo(px(x), py(y));
        pen.stroke();
        if (lines[index].length < 40) {
          pen.fillStyle = tone;
          for (const [x, y] of lines[index]) { pen.beginPath(); pen.arc(px(x), py(y), 2.5, 0, 7); pen.fill(); }
        }
        const end = one.end?.();
        if (end && usable(end)) { pen.fillStyle = tone; pen.beginPath(); pen.arc(px(end[0]), py(end[1]), 5, 0, 7); pen.fill(); }
      }
    }
    if (cursor !== null) {
      const x = Math.min(Math.max(cursor, x0), x1);
      pen.strokeStyle = color("faint");
      pen.lineWidth = 1;
      pen.beginPath(); pen.moveTo(px(x), TOP); pen.lineTo(px(x), height - BOTTOM); pen.stroke();
      const values = series.map((one, index) => {
        const near = nearest(lines[index], x);
        return near ? `${one.name} ${number(near[1])}` : null;
      });
      readout.textContent = `${at(x)}: ${values.filter(Boolean).join(", ")}`;
    } else readout.textContent = "";
    draw.toStep = (at) => x0 + ((at - LEFT) / (width - LEFT - RIGHT)) * (x1 - x0);
    draw.span = x1 - x0;
    draw.last = x1;
  }

  canvas.addEventListener("pointermove", (event) => { cursor = draw.toStep?.(event.offsetX) ?? null; draw(); });
  canvas.addEventListener("pointerleave", () => { cursor = null; draw(); });
  canvas.addEventListener("blur", () => { cursor = null; draw(); });
  canvas.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!move || draw.span === undefined) return;
    event.preventDefault();
    cursor = (cursor ?? draw.last) + move * (draw.span > 50 ? Math.max(1, draw.span / 50) : draw.span / 50);
    draw();
  });
  const observer = new ResizeObserver(draw);
  observer.observe(canvas);
  const scheme = matchMedia("(prefers-color-scheme: dark)");
  scheme.addEventListener("change", draw);
  /** Gives the series other names. */
  const name = (names) => {
    for (const [index, text] of names.entries()) {
      series[index].name = text;
      keys[index].textContent = text;
    }
  };
  const leave = () => { observer.disconnect(); scheme.removeEventListener("change", draw); };
  return { figure, draw, name, leave };
}

/** The least and the largest value, with some room, and never equal. */
function range(values, room) {
  let low = Infinity, high = -Infinity;
  for (const value of values) { low = Math.min(low, value); high = Math.max(high, value); }
  if (low === high) { low -= Math.abs(low) * 0.1 || 1; high += Math.abs(high) * 0.1 || 1; }
  const more = (high - low) * room;
  return [low - more, high + more];
}

/** Round numbers between two values, about `count` of them. */
function ticks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((times) => times * power).find((size) => size >= rough);
  const found = [];
  for (let tick = Math.ceil(low / step); tick * step <= high; tick++) found.push(Number((tick * step).toPrecision(10)));
  return found;
}

/** At most four points for each column of pixels: the first, the extremes, the last. */
function thinned(points, width) {
  if (points.length <= 4 * width) return points;
  const size = Math.ceil(points.length / width);
  const kept = [];
  for (let start = 0; start < points.length; start += size) {
    const part = points.slice(start, start + size);
    const by = [...part].sort((a, b) => a[1] - b[1]);
    kept.push(...new Set([part[0], by[0], by[by.length - 1], part[part.length - 1]]));
  }
  return kept.sort((a, b) => a[0] - b[0]);
}

function nearest(points, x) {
  let low = 0, high = points.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < x) low = middle + 1; else high = middle;
  }
  const before = points[low - 1];
  const found = points[low];
  return before && found && x - before[0] < found[0] - x ? before : found;
}
