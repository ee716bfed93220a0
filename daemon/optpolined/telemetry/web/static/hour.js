// The chart of the last hour: coverage above, misses below, one cursor for both.

import { byId, drawn, say } from "/dom.js";
import { percent, rate, short, time, timeOfDay } from "/format.js";

const SPAN_SECONDS = { least: 600, most: 3600 };
const GAP_SECONDS = 25; // more than two samples: the daemon did not run
const TICK_SECONDS = [60, 120, 300, 600, 1200];
const TICK_WIDTH = 70; // at least
const SPACE = { left: 46, right: 12, top: 22, between: 36, bottom: 22 };
const HEIGHT = 290;

const place = byId("hour");
let moments = [];
let cursor = null; // the selected sample, or null

const niceCeiling = (value) => {
  const step = 10 ** Math.floor(Math.log10(Math.max(value, 1)));
  return [1, 2, 5, 10].map((factor) => factor * step).find((ceiling) => ceiling >= value);
};

const frame = () => {
  const width = Math.max(280, place.clientWidth);
  const inner = width - SPACE.left - SPACE.right;
  const height = (HEIGHT - SPACE.top - SPACE.between - SPACE.bottom) / 2;
  const end = moments.length ? moments.at(-1).at : Date.now() / 1000;
  const known = moments.length ? end - moments[0].at : 0;
  const span = Math.min(Math.max(known, SPAN_SECONDS.least), SPAN_SECONDS.most);
  const most = niceCeiling(Math.max(0, ...moments.map((moment) => moment.missed_per_second)));
  const panel = (top, value, ceiling, shown) =>
    ({ top, height, value, ceiling, shown, y: (at) => top + height * (1 - at / ceiling) });
  return {
    width,
    begin: end - span,
    end,
    tick: TICK_SECONDS.find((every) => (inner * every) / span >= TICK_WIDTH) ?? span,
    x: (at) => SPACE.left + inner * (1 - (end - at) / span),
    coverage: panel(SPACE.top, (moment) => moment.coverage, 1, (at) => percent(at, 0)),
    misses: panel(SPACE.top + height + SPACE.between, (moment) => moment.missed_per_second, most,
      short),
  };
};

// The points of a line, in pieces: none where a value or the daemon was missing.
const pieces = ({ x }, panel) => {
  const found = [];
  let before = null;
  for (const moment of moments) {
    const value = panel.value(moment);
    if (value !== null) {
      if (before === null || moment.at - before > GAP_SECONDS) found.push([]);
      found.at(-1).push([x(moment.at), panel.y(value)]);
      before = moment.at;
    } else before = null;
  }
  return found;
};

const path = (points) => points.map(([x, y], at) =>
  `${at ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");

const drawPanel = (all, panel, name, title) => {
  const floor = panel.top + panel.height;
  const parts = [drawn("text", { x: SPACE.left, y: panel.top - 7, class: "title" }, title)];
  for (const part of [0, 0.5, 1]) {
    const y = panel.y(part * panel.ceiling);
    parts.push(
      drawn("line", { x1: SPACE.left, x2: all.width - SPACE.right, y1: y, y2: y, class: "grid" }),
      drawn("text", { x: SPACE.left - 6, y: y + 4, class: "tick y" },
        panel.shown(part * panel.ceiling)));
  }
  for (const points of pieces(all, panel)) {
    const [[first]] = points;
    const [last] = points.at(-1);
    parts.push(
      drawn("path", { d: `${path(points)}L${last} ${floor}L${first} ${floor}Z`, class: `${name} area` }),
      drawn("path", { d: path(points), class: `${name} line` }));
    if (points.length === 1) {
      parts.push(drawn("circle", { cx: first, cy: points[0][1], r: 2, class: `${name} dot` }));
    }
  }
  return parts;
};

const drawTimes = (all) => {
  const { begin, end, tick } = all;
  const parts = [];
  for (let at = Math.ceil(begin / tick) * tick; at <= end; at += tick) {
    const x = all.x(at);
    if (x < SPACE.left + 12 || x > all.width - SPACE.right - 8) continue;
    for (const panel of [all.coverage, all.misses]) {
      const floor = panel.top + panel.height;
      parts.push(drawn("line", { x1: x, x2: x, y1: floor, y2: floor + 4, class: "grid" }));
    }
    parts.push(drawn("text", { x, y: HEIGHT - 5, class: "tick x" }, timeOfDay(at)));
  }
  return parts;
};

const drawCursor = (all) => {
  if (cursor === null) return [];
  const moment = moments[cursor];
  const x = all.x(moment.at);
  const bottom = all.misses.top + all.misses.height;
  const parts = [drawn("line", { x1: x, x2: x, y1: SPACE.top, y2: bottom, class: "cursor" })];
  for (const [name, panel] of [["coverage", all.coverage], ["misses", all.misses]]) {
    const value = panel.value(moment);
    if (value !== null) {
      parts.push(drawn("circle", { cx: x, cy: panel.y(value), r: 3.5, class: `${name} dot` }));
    }
  }
  return parts;
};

const told = (moment) => [
  time(moment.at),
  `coverage ${percent(moment.coverage)}`,
  `misses ${rate(moment.missed_per_second)}/s`,
  `direct ${rate(moment.direct_per_second)}/s`,
  `${moment.promoted} promoted`,
  moment.phase,
].join(" · ");

const chart = drawn("svg", {
  role: "slider", tabindex: 0, "aria-label": "Coverage and misses, over the last hour",
  "aria-valuemin": 0, height: HEIGHT,
});

const draw = () => {
  const all = frame();
  chart.setAttribute("width", all.width);
  chart.setAttribute("viewBox", `0 0 ${all.width} ${HEIGHT}`);
  chart.replaceChildren(
    ...drawPanel(all, all.coverage, "coverage", "Coverage: calls that are direct"),
    ...drawPanel(all, all.misses, "misses", "Misses a second"),
    ...drawTimes(all), ...drawCursor(all));
  const text = moments.length ? told(moments[cursor ?? moments.length - 1]) : "no data yet";
  say("readout", text);
  chart.setAttribute("aria-valuemax", Math.max(0, moments.length - 1));
  chart.setAttribute("aria-valuenow", cursor ?? Math.max(0, moments.length - 1));
  chart.setAttribute("aria-valuetext", text);
};

const move = (to) => {
  cursor = to === null || !moments.length ? null : Math.min(Math.max(0, to), moments.length - 1);
  draw();
};

const nearest = (event) => {
  const { x } = frame();
  const at = event.clientX - chart.getBoundingClientRect().left;
  let best = 0;
  moments.forEach((moment, which) => {
    if (Math.abs(x(moment.at) - at) < Math.abs(x(moments[best].at) - at)) best = which;
  });
  return best;
};

const KEYS = {
  ArrowLeft: (from) => from - 1,
  ArrowRight: (from) => from + 1,
  PageDown: (from) => from - 30,
  PageUp: (from) => from + 30,
  Home: () => 0,
  End: () => Infinity,
  Escape: () => null,
};

chart.addEventListener("pointermove", (event) => move(nearest(event)));
chart.addEventListener("pointerdown", (event) => move(nearest(event)));
chart.addEventListener("pointerleave", () => move(null));
chart.addEventListener("blur", () => move(null));
chart.addEventListener("keydown", (event) => {
  const to = KEYS[event.key];
  if (!to) return;
  event.preventDefault();
  move(to(cursor ?? moments.length - 1));
});
place.append(chart);
new ResizeObserver(draw).observe(place);

// Show these moments, the oldest first.
export const showHour = (found) => {
  // The cursor stays at its sample while others are added and dropped.
  const at = cursor === null ? null : moments[cursor].at;
  moments = found;
  cursor = at === null ? null : moments.findIndex((moment) => moment.at >= at);
  if (cursor === -1) cursor = null;
  draw();
};
