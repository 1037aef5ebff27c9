// Two grids of samples over each other, with a slider between them.

import { el, plain } from "./dom.js";

/** Makes the view. `show(before, after, label)` sets the addresses of the images. */
export function compare() {
  const after = plain(el("img", { alt: "Samples of the adapter" }));
  const before = plain(el("img", { alt: "Samples of the base model, at the left of the slider" }));
  const slider = el("input", { type: "range", min: 0, max: 100, value: 50, "aria-label": "Share of the samples before training" });
  // Each column of the grid is cut at the slider. A grid of one row has square columns.
  const cut = () => {
    const columns = Math.max(1, Math.round(before.naturalWidth / (before.naturalHeight || 1)));
    before.style.maskImage = `linear-gradient(to right, black ${slider.value}%, transparent ${slider.value}%)`;
    before.style.maskSize = `${100 / columns}% 100%`;
  };
  before.addEventListener("load", cut);
  slider.addEventListener("input", cut);
  const stage = el("div", { class: "stage" }, after, before);
  const label = el("label", {}, "before", slider, "after");
  const view = el("div", {}, el("div", { class: "compare", tabindex: 0, role: "group", "aria-label": "Samples" }, stage));
  cut();
  return {
    view,
    label,
    show(left, right) {
      if (after.getAttribute("src") !== right) after.src = right;
      before.hidden = !left;
      label.hidden = !left || left === right;
      if (left && before.getAttribute("src") !== left) before.src = left;
    },
  };
}
