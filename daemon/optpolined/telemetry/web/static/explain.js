// One site explained, in a dialog; #site=... in the address says which.

import { NoAnswer, ask } from "/ask.js";
import { byId, element, say } from "/dom.js";
import { percent, plural, rate, time } from "/format.js";

const dialog = byId("explain");
const body = byId("explain-body");

const chosen = () => new URLSearchParams(location.hash.slice(1)).get("site");

const listing = (title, code) => element("figure", {},
  element("figcaption", {}, title,
    element("small", {}, ` ${code.address}, ${plural(code.size, "byte")}`)),
  element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": title },
    element("table", { class: "code" }, element("tbody", {}, ...code.lines.map((line) =>
      element("tr", {}, element("td", {}, line.address), element("td", {}, line.code),
        element("td", {}, line.text)))))));

const facts = (told) => {
  const { row } = told;
  const targets = row.targets.map((target) =>
    (target.share === null ? target.name : `${target.name} (${percent(target.share)})`));
  const pairs = [
    ["State", row.state],
    ["Reason", row.reason || "–"],
    ["Form", row.form],
    ["Calls directly", targets.join(", ") || "nothing"],
    ["Calls a second", rate(row.calls_per_second)],
    ["Misses a second", rate(row.misses_per_second)],
    ["Instruction", `${told.kind} by ${told.register}, at ${row.address}`],
  ];
  return element("dl", {}, ...pairs.flatMap(([name, value]) =>
    [element("dt", {}, name), element("dd", {}, value)]));
};

const past = (events) => element("div",
  { class: "scroll", tabindex: 0, role: "region", "aria-label": "Decisions and changes" },
  element("table", { class: "past" },
    element("thead", {}, element("tr", {}, ...["Time", "Epoch", "What", "Form", "Why"].map((name) =>
      element("th", { scope: "col" }, name)))),
    element("tbody", {}, ...events.map((event) => element("tr", {},
      element("td", {}, time(event.at)),
      element("td", { class: "number" }, String(event.epoch)),
      element("td", {}, event.state ? `${event.kind}: ${event.state}` : event.kind),
      element("td", {}, [event.form, event.targets.join(", ")].filter(Boolean).join(": ")),
      element("td", {}, event.reason))))));

const show = (told) => {
  say("explain-title", told.row.site);
  body.replaceChildren(
    facts(told),
    ...told.parts.map((part) => element("section", { class: "part" },
      element("h3", {}, told.parts.length > 1 ? `The ${part.name}` : "What stands there"),
      element("div", { class: "pair" }, listing("As it was built", part.original),
        listing("As it is now", part.standing)))),
    element("section", { class: "block" }, element("h3", {}, "The block behind it"),
      told.block ? listing("In the arena", told.block) : element("p", {}, "none: it has no block")),
    element("section", {}, element("h3", {}, "Decisions and changes"),
      told.history.length ? past(told.history) : element("p", {}, "nothing that is remembered")));
};

// Show the site that the address of the page names; close the dialog where it names none.
export const showExplain = async () => {
  const site = chosen();
  if (site === null) {
    if (dialog.open) dialog.close();
    return;
  }
  say("explain-title", site);
  if (!dialog.open) {
    body.replaceChildren();
    dialog.showModal();
  }
  body.setAttribute("aria-busy", "true");
  try {
    const told = await ask("/api/explain", { site });
    if (chosen() === site) show(told);
  } catch (error) {
    if (!(error instanceof NoAnswer)) throw error;
    if (chosen() === site) body.replaceChildren(element("p", { role: "alert" }, error.message));
  } finally {
    body.removeAttribute("aria-busy");
  }
};

byId("explain-close").addEventListener("click", () => dialog.close());
byId("explain-again").addEventListener("click", showExplain);
dialog.addEventListener("click", (event) => {
  if (event.target === dialog) dialog.close(); // a click outside of it
});
dialog.addEventListener("close", () => {
  if (chosen() !== null) history.replaceState(null, "", location.pathname);
});
