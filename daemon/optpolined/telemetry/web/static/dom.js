// Elements.  Names come from the guest, which is not trusted: all text goes in as text.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

const build = (made, attributes, children) => {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== null) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
};

export const element = (tag, attributes = {}, ...children) =>
  build(document.createElement(tag), attributes, children);

export const drawn = (tag, attributes = {}, ...children) =>
  build(document.createElementNS(SVG, tag), attributes, children);

// Writes nothing where nothing is new: a screen reader tells each change.
export const say = (target, text) => {
  const at = typeof target === "string" ? byId(target) : target;
  if (at.textContent !== text) at.textContent = text;
};

// A link to why a site is as it is; explain.js follows it.  A long name breaks before its offset.
export const siteLink = (site) => {
  const offset = site.lastIndexOf("+");
  return element("a", { href: `#site=${encodeURIComponent(site)}` },
    site.slice(0, Math.max(0, offset)), element("wbr"), site.slice(Math.max(0, offset)));
};

// Rows of [label, count, what the count is shown as], with bars; `whole` is a full bar.
export const bars = (id, rows, whole = Math.max(1, ...rows.map(([, count]) => count))) => {
  const body = byId(id).tBodies[0];
  while (body.rows.length > rows.length) body.deleteRow(-1);
  rows.forEach(([label, count, shown], at) => {
    const row = body.rows[at] ?? body.appendChild(
      element("tr", {}, element("th", { scope: "row" }),
        element("td", { "aria-hidden": "true" }, element("i")), element("td")));
    say(row.cells[0], label);
    const bar = row.cells[1].firstChild;
    bar.style.width = `${(100 * count) / whole}%`;
    bar.hidden = count === 0;
    say(row.cells[2], shown);
  });
};
