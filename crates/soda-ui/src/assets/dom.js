// Elements without markup in strings: text is always text.

/** Makes an element. Props that begin with `on` are listeners; `class` and attributes are set as they are. */
export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "value") node.value = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

/** Shows the pixels of an image as they are where it is small. A larger one is smoothed. */
export function plain(image) {
  image.addEventListener("load", () => image.classList.toggle("pixels", image.naturalHeight < 260));
  return image;
}

/** Shows a sentence for a while, and tells it to screen readers. */
export function say(text) {
  const status = document.getElementById("status");
  status.textContent = text;
  clearTimeout(say.timer);
  say.timer = setTimeout(() => { status.textContent = ""; }, 6000);
}

/** A number with `digits` significant digits, or a dash. */
export function number(value, digits = 4) {
  if (typeof value !== "number" || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return Number(value.toPrecision(Math.min(digits, 3))).toExponential();
  return String(Number(value.toPrecision(digits)));
}

/** Seconds as a duration of two units. */
export function duration(seconds) {
  if (typeof seconds !== "number" || !Number.isFinite(seconds)) return "–";
  const units = [["d", 86400], ["h", 3600], ["min", 60]];
  for (const [index, [name, size]] of units.entries()) {
    if (seconds < size) continue;
    const [next, below] = units[index + 1] ?? ["s", 1];
    return `${Math.floor(seconds / size)} ${name} ${Math.floor((seconds % size) / below)} ${next}`;
  }
  return seconds < 10 ? `${seconds.toFixed(1)} s` : `${Math.round(seconds)} s`;
}

/** How long ago a time is, in seconds since 1970. */
export function ago(time) {
  const seconds = Date.now() / 1000 - time;
  if (seconds < 60) return "now";
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
  return new Date(time * 1000).toLocaleDateString();
}

/** Calls `task` now and every `pause` milliseconds while the page is visible. Returns what ends it. */
export function repeat(task, pause) {
  let timer;
  let ended = false;
  let busy = false;
  const next = async () => {
    clearTimeout(timer);
    if (ended || busy) return;
    busy = true;
    if (!document.hidden) await task();
    busy = false;
    if (!ended) timer = setTimeout(next, pause);
  };
  document.addEventListener("visibilitychange", next);
  next();
  return () => {
    ended = true;
    clearTimeout(timer);
    document.removeEventListener("visibilitychange", next);
  };
}
