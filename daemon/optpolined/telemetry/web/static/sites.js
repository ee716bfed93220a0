// The table of the hottest sites.  What is asked for is sought among all sites of the guest, by the
// daemon; what is here already is narrowed at once.

import { NoAnswer, ask } from "/ask.js";
import { byId, element, say, siteLink } from "/dom.js";
import { percent, rate } from "/format.js";

const TOP = 200;

const COLUMNS = {
  site: (row) => row.site,
  state: (row) => row.state,
  targets: (row) => row.targets.length,
  calls: (row) => row.calls_per_second,
  misses: (row) => row.misses_per_second,
};

const table = byId("sites");
const body = table.tBodies[0];
const shown = new Map(); // by address: the row of the table, and its data
let sort = { key: "calls", falling: true };
let rows = [];
let total = "\u00a0"; // as the daemon sends it

// The daemon looks at "function" or "module:function": no offset, no module behind the name.
const pattern = () => {
  const text = byId("text").value.trim();
  const [, name, module] = /^([^+ ]*)[^[]*(?:\[([\w-]+)\]?)?/.exec(text);
  const sought = module ? `${module}:${name}` : name;
  return /[*?[]/.test(sought) ? sought : `*${sought}*`;
};

const ESCAPED = /[.+^${}()|\\]/g;
const matcher = (glob) => {
  const source = glob.replace(ESCAPED, "\\$&").replaceAll("*", ".*").replaceAll("?", ".")
    .replaceAll("[!", "[^");
  try {
    return new RegExp(`^${source}$`, "su");
  } catch {
    return /(?:)/; // an incomplete character class
  }
};

const named = (site) => {
  const [, name, module] = /^([^+]*)[^[]*(?:\[(.*)\])?$/s.exec(site) ?? [null, site];
  return module ? `${module}:${name}` : name;
};

const targetsOf = (row) => row.targets
  .map((target) => (target.share === null ? target.name : `${target.name} ${
    percent(target.share, 0)}`)).join(", ");

const makeRow = (row) => {
  const at = element("tr", {},
    element("th", { scope: "row" }, siteLink(row.site)),
    element("td", {}, element("span", { class: "state" })),
    element("td", { class: "desk names" }),
    element("td", { class: "number" }),
    element("td", { class: "number desk" }));
  at.addEventListener("click", (event) => {
    if (!event.target.closest("a") && !getSelection().toString()) at.querySelector("a").click();
  });
  return at;
};

const fillRow = (at, row) => {
  const state = at.cells[1].firstChild;
  say(state, row.state);
  state.dataset.state = row.state;
  state.title = row.reason;
  const targets = targetsOf(row);
  say(at.cells[2], targets);
  at.cells[2].title = targets;
  say(at.cells[3], rate(row.calls_per_second));
  say(at.cells[4], rate(row.misses_per_second));
};

const show = () => {
  const value = COLUMNS[sort.key];
  const fits = matcher(pattern());
  const state = byId("state").value;
  const wanted = rows.filter((row) => fits.test(named(row.site)) && (!state || row.state === state));
  wanted.sort((one, other) => {
    const [a, b] = [value(one), value(other)];
    const order = a < b ? -1 : Number(a > b);
    return (sort.falling ? -order : order) || (one.address < other.address ? -1 : 1);
  });
  const kept = new Set(wanted.map((row) => row.address));
  for (const [address, at] of shown) {
    if (!kept.has(address)) {
      at.remove();
      shown.delete(address);
    }
  }
  wanted.forEach((row, place) => {
    const at = shown.get(row.address) ?? makeRow(row);
    shown.set(row.address, at);
    fillRow(at, row);
    // A row that is in its place is not moved, because it may have the focus.
    if (body.rows[place] !== at) body.insertBefore(at, body.rows[place] ?? null);
  });
  for (const head of table.tHead.rows[0].cells) {
    if (head.dataset.key === sort.key) {
      head.setAttribute("aria-sort", sort.falling ? "descending" : "ascending");
    } else head.removeAttribute("aria-sort");
  }
  say("count", total);
};

// Ask for the rows that the filter selects, and show them.
export const refreshSites = async () => {
  show();
  const query = { order: sort.key === "misses" ? "misses" : "calls", top: TOP, pattern: pattern() };
  const state = byId("state").value;
  try {
    const answer = await ask("/api/sites", state ? { ...query, state } : query);
    rows = answer.sites;
    total = answer.says;
    show();
  } catch (error) {
    if (!(error instanceof NoAnswer)) throw error;
    if (error.status) say("count", error.message); // otherwise the head of the page shows it
  }
};

// Offer these states to choose from.
export const showStates = (states) => {
  const choice = byId("state");
  const known = new Set(Array.from(choice.options, (option) => option.value));
  for (const state of ["skipped", ...states].sort()) {
    if (!known.has(state)) choice.append(element("option", { value: state }, state));
  }
};

table.tHead.addEventListener("click", (event) => {
  const key = event.target.closest("th")?.dataset.key;
  if (!key || !event.target.closest("button")) return;
  const text = key === "site" || key === "state";
  sort = { key, falling: sort.key === key ? !sort.falling : !text };
});
