// The status page: what /api/status says, and what the other modules show beside it.

import { NoAnswer, ask, poll } from "/ask.js";
import { bars, byId, element, say, siteLink } from "/dom.js";
import { showExplain } from "/explain.js";
import { bytes, count, percent, plural, rate, seconds, short, span, time } from "/format.js";
import { showHour } from "/hour.js";
import { refreshSites, showStates } from "/sites.js";

const STATUS_MS = 2000;
const HISTORY_MS = 10000;
const SITES_MS = 2000;

const TONES = {
  running: "good",
  learning: "busy",
  attaching: "busy",
  auditing: "busy",
  detaching: "idle",
  detached: "idle",
};
// In these the reconcile loop answers.
const ATTENDED = new Set(["learning", "running", "frozen", "paused by somebody else",
  "stub released", "waiting for a migration"]);

let bounds = null;
let attended = false;
let heard = null;

const sum = (counts) => Object.values(counts).reduce((total, one) => total + one, 0);

const showHead = (status) => {
  document.title = `${status.guest} ${status.phase} – optpolined`;
  say("guest", status.guest);
  say("phase", status.phase);
  byId("phase").className = `pill ${TONES[status.phase] ?? "warn"}`;
  const { versions } = status;
  say("facts", [
    status.kernel && `Linux ${status.kernel}`,
    status.accelerator && `${status.accelerator}, ${plural(status.vcpus, "vCPU")}`,
    versions.qemu && `QEMU ${versions.qemu}`,
    status.seconds > 0 && `attached for ${span(status.seconds)}`,
    status.epoch > 0 && `epoch ${count(status.epoch)}`,
    versions.optpolined && `optpolined ${versions.optpolined}`,
    versions.module_abi > 0 && `module ABI ${versions.module_abi}`,
  ].filter(Boolean).join(" · ") || "\u00a0");
  say("trouble", status.trouble);
  byId("trouble").hidden = !status.trouble;
};

const showFigures = (status) => {
  say("coverage", percent(status.coverage));
  say("direct", rate(status.direct_per_second));
  say("misses", rate(status.missed_per_second));
  say("saved", short(status.cycles_saved_per_second));
  say("promoted", count(sum(status.targets_histogram)));
  say("promoted-note", `of ${count(status.eligible)} sites`);
  const { stops } = status;
  say("p99", stops.count ? seconds(stops.p99_seconds) : "–");
  say("p99-note", stops.count ? `recent; p50 ${seconds(stops.p50_seconds)}` : "none yet");
  say("overhead", percent(status.learning_overhead_share, 2));
  say("pokes", count(status.pokes));
  say("pokes-note", `${plural(status.int3_hits, "int3 hit")}`);
};

const showStops = ({ stops }) => {
  const { stops: upper } = bounds;
  const labels = [...upper.map((bound) => `≤ ${seconds(bound)}`), `> ${seconds(upper.at(-1))}`];
  bars("stops", labels.map((label, at) => {
    const found = stops.buckets[at] ?? 0;
    return [label, found, count(found)];
  }));
  say("stops-note", stops.count
    ? `${plural(stops.count, "stop")}, ${seconds(stops.sum_seconds)} in all, longest ${
      seconds(stops.max_seconds)}`
    : "none yet");
};

const byCount = (counts) => Object.entries(counts).sort(([, one], [, other]) => other - one);

const showCounts = (status) => {
  bars("states", byCount(status.states).map(([state, found]) => [state, found, count(found)]));
  const alone = [
    ...byCount(status.skipped).map(([reason, found]) => [`left: ${reason}`, found]),
    ...byCount(status.refused).map(([reason, found]) => [`refused: ${reason}`, found]),
  ];
  bars("alone", alone.length
    ? alone.map(([reason, found]) => [reason.replaceAll("_", " "), found, count(found)])
    : [["none", 0, "0"]]);
};

const showArena = ({ arena }) => {
  const free = arena.total_bytes - arena.used_bytes - arena.retired_bytes;
  const parts = [["used", arena.used_bytes], ["retired", arena.retired_bytes], ["free", free]];
  bars("arena", parts.map(([name, size]) => [name, size, bytes(size)]), arena.total_bytes || 1);
  say("arena-note", arena.degraded
    ? `too small: ${plural(arena.denied, "site")} denied, ${count(arena.waiting)} waiting`
    : `${bytes(arena.total_bytes)}, space for all`);
};

let journal = "";
const showJournal = (status) => {
  const told = JSON.stringify(status.journal);
  if (told === journal) return;
  journal = told;
  byId("journal").replaceChildren(...status.journal.map((event) => element("li", {},
    element("time", {}, time(event.at)),
    element("b", { class: event.kind }, event.kind),
    siteLink(event.site),
    element("span", {}, [event.state, event.form, event.targets.join(", "), event.reason]
      .filter(Boolean).join(" · ")))));
};

const showStatus = (status) => {
  showHead(status);
  showFigures(status);
  showStops(status);
  showCounts(status);
  showArena(status);
  showJournal(status);
  showStates(Object.keys(status.states));
};

const link = (answers, text) => {
  const at = byId("link");
  // A screen reader must not read the time every other second.
  if (answers) at.removeAttribute("role");
  else at.setAttribute("role", "alert");
  at.className = answers ? "" : "lost";
  say(at, text);
  byId("shown").classList.toggle("stale", !answers);
};

poll(STATUS_MS, async () => {
  try {
    bounds ??= await ask("/api/bounds");
    const status = await ask("/api/status");
    const returned = !attended && ATTENDED.has(status.phase);
    attended = ATTENDED.has(status.phase);
    heard = Date.now() / 1000;
    showStatus(status);
    link(true, `live, ${time(heard)}`);
    if (returned) sitesNow();
  } catch (error) {
    if (!(error instanceof NoAnswer)) throw error;
    attended = false;
    link(false, heard === null ? error.message : `${error.message}; the data below is from ${time(heard)}`);
  }
});

poll(HISTORY_MS, async () => {
  try {
    showHour(await ask("/api/history"));
  } catch (error) {
    if (!(error instanceof NoAnswer)) throw error; // poll() of the status shows that the daemon is silent
  }
});

const sitesNow = poll(SITES_MS, async () => {
  if (attended) await refreshSites();
});
for (const event of ["input", "change"]) {
  byId("filter").addEventListener(event, () => sitesNow());
}
byId("filter").addEventListener("submit", (event) => event.preventDefault());
byId("sites").tHead.addEventListener("click", () => sitesNow());

addEventListener("hashchange", showExplain);
showExplain();
