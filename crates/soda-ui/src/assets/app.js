// Which page is shown, by the part of the address after `#`.

import { showComparison } from "./comparison.js";
import { showData } from "./data.js";
import { showNew } from "./new.js";
import { showPlay } from "./play.js";
import { showRun } from "./run.js";
import { showRuns } from "./runs.js";
import { say } from "./dom.js";

const main = document.getElementById("main");
let leave = () => {};

async function show() {
  const [page = "", id = ""] = location.hash.replace(/^#\/?/, "").split("/");
  const pages = { "": showRuns, run: showRun, compare: showComparison, new: showNew, data: showData, play: showPlay };
  for (const link of document.querySelectorAll("nav a")) {
    const own = link.getAttribute("href").replace(/^#\/?/, "");
    const is = own === page || (own === "" && ["run", "compare"].includes(page));
    if (is) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  leave();
  leave = () => {};
  const view = document.createElement("div");
  main.replaceChildren(view);
  try {
    const left = await (pages[page] ?? showRuns)(view, id);
    if (view.isConnected) leave = left ?? leave;
    else left?.();
  } catch (error) {
    say(error.message);
    view.append(error.message);
  }
}

addEventListener("hashchange", () => {
  show();
  main.focus();
});
show();
