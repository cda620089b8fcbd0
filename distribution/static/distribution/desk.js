// Joins the feed to the page: strip, table, chart, tape, events, keys.

import { Chart } from "./chart.js";
import { Feed } from "./feed.js";
import { change, clock, countdown, points, price, rate } from "./format.js";
import { Events, Tape } from "./lists.js";
import { Table } from "./table.js";

const find = (selector) => document.querySelector(selector);
const facts = JSON.parse(find("#facts").textContent);
const remembered = {
  get: (name) => { try { return localStorage.getItem(name); } catch { return null; } },
  set: (name, value) => { try { localStorage.setItem(name, value); } catch { /* storage may be forbidden */ } },
};

// -- the strip

const connection = find("#connection");
const banner = find("#banner");
const rates = ["received", "validated", "stored", "sent", "quarantined", "delay"];
const trends = new Map(rates.map((name) => [name, []]));
let service = { state: "starting", reason: "", ts: 0 };
let link = { state: "connecting" };
let lags = [];
let epoch = null;

function showConnection() {
  const words = {
    connecting: ["waiting", "connecting", ""],
    lost: ["lost", "disconnected", ""],
    "signed-out": ["lost", "signed out", "sign in again to see live values"],
    open: { live: ["live", "live", lagText()], starting: ["waiting", "starting", service.reason], degraded: ["slow", "degraded", service.reason], reconnecting: ["slow", "reconnecting", service.reason] }[service.state],
  }[link.state];
  const [state, word, detail] = words ?? ["waiting", service.state, service.reason];
  connection.dataset.state = state;
  connection.querySelector("[data-word]").textContent = word;
  connection.querySelector("[data-detail]").textContent = detail;
  if (word !== "live") connection.title = detail;
  document.body.dataset.link = link.state === "open" && service.state === "live" ? "live" : link.since || service.state === "reconnecting" ? "lost" : "waiting";
  showBanner();
}

function lagText() {
  if (!lags.length) return "no ticks just now";
  const sorted = lags.map(([, ms]) => ms + feed.roundTrip / 2).sort((a, b) => a - b);
  const text = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);
  const median = text(sorted[sorted.length >> 1]);
  connection.title = `From the upstream broker to this page, in the last 3 s: median ${median}, worst ${text(sorted.at(-1))}`;
  return `lag ${median}`;
}

function showBanner() {
  const words = banner.firstElementChild;
  const button = banner.lastElementChild;
  if (link.state === "signed-out") {
    words.textContent = "You are signed out. The values below are from before.";
    button.textContent = "Sign in";
  } else if (link.since) {
    const wait = Math.max(0, Math.ceil(((link.at ?? 0) - Date.now()) / 1000));
    words.textContent = `Connection lost at ${clock(link.since, undefined)}${link.reason ? ` (${link.reason})` : ""}. The values below are from then. ${wait ? `Trying again in ${wait} s.` : "Trying again…"}`;
    button.textContent = "Try now";
  } else if (link.state === "open" && service.state === "reconnecting") {
    words.textContent = `The service has lost its broker since ${clock(service.ts / 1e6, undefined)}: ${service.reason}. It reconnects by itself, and nothing is lost meanwhile.`;
  } else {
    banner.hidden = true;
    return;
  }
  button.hidden = link.state === "open";
  banner.hidden = false;
}

function showRates(rows) {
  for (const [, , , received, validated, stored, sent, quarantined, delay] of rows) {
    [received, validated, stored, sent, quarantined, delay].forEach((value, index) => trends.get(rates[index]).push(value));
  }
  for (const name of rates) {
    const values = trends.get(name);
    values.splice(0, values.length - 300);
    const box = find(`#flow [data-rate="${name}"]`);
    const known = values.filter((value) => value !== null);
    const newest = name === "delay" ? known.at(-1) ?? NaN : values.at(-1);
    box.querySelector("[data-value]").textContent = name === "delay" && Number.isFinite(newest) ? `${newest < 10 ? newest.toFixed(1) : Math.round(newest)} ms` : rate(newest);
    if (name === "quarantined") box.classList.toggle("some", newest > 0);
    box.querySelector("polyline").setAttribute("points", points(known, 56, 18, 0));
  }
}

function showVenues() {
  for (const venue of document.querySelectorAll("[data-changes]")) {
    const left = Number(venue.dataset.changes) / 1e6 - feed.now();
    const isPast = left <= 0;
    venue.querySelector("time").textContent = isPast ? "" : ` · ${venue.dataset.state === "open" ? "closes" : "opens"} in ${countdown(left)}`;
    if (isPast) venue.querySelector("[data-word]").textContent = "changing";
  }
}

// -- the chosen instrument

const table = new Table(find("#table"), facts, choose);
const chart = new Chart(find("#chart"), find("#chart-note"), find("#chart-legend"));
const tape = new Tape(find("#tape").tBodies[0], find("#tape-note"));
const events = new Events(find("#events"), find("#events-note"));
let chosen = null;
let timeframe = remembered.get("timeframe") ?? "1m";

function choose(instrument) {
  const before = chosen;
  chosen = instrument;
  const zone = facts.zones[instrument.venue] ?? "UTC";
  find("#focus-symbol").textContent = instrument.symbol;
  find("#focus-name").textContent = `${instrument.name} · ${instrument.asset_class}${instrument.currency ? ` · ${instrument.currency}` : ""}`;
  find("#tape-zone").textContent = zone === "UTC" ? "UTC" : zone.replace("_", " ");
  history.replaceState(null, "", `#${encodeURIComponent(instrument.symbol)}`);
  showFocus();
  if (before?.id !== instrument.id) {
    tape.show(instrument, zone);
    feed.follow("trades", [instrument.symbol]);
  }
  showChart();
}

function showChart() {
  for (const button of document.querySelectorAll("[data-timeframe]")) button.setAttribute("aria-pressed", String(button.dataset.timeframe === timeframe));
  if (!chosen) return;
  for (const channel of [...feed.wanted.keys()]) if (channel.startsWith("bars.") && channel !== "bars.1m" && channel !== `bars.${timeframe}`) feed.drop(channel);
  for (const channel of new Set(["bars.1m", `bars.${timeframe}`])) feed.follow(channel, [chosen.symbol]);
  chart.show(chosen, timeframe, facts.zones[chosen.venue] ?? "UTC");
}

function setTimeframe(value) {
  timeframe = value;
  remembered.set("timeframe", value);
  showChart();
}

function showFocus() {
  const values = chosen && table.values(chosen.id);
  if (!values) return;
  const moves = change(values.last, values.reference);
  find("#focus-last").textContent = price(values.last, chosen.decimals);
  find("#focus-change").textContent = moves.text;
  find("#focus-change").dataset.direction = moves.direction;
}

// -- the feed

const take = {
  quotes: (rows) => { table.update(rows); showFocus(); },
  minutes: (rows) => { table.trends(rows); chart.minutesOf(rows); },
  trades: (rows) => tape.add(rows),
  events: (rows) => events.add(rows),
  pipeline: showRates,
};

function receive(frame) {
  if (frame.ch.startsWith("bars.")) for (const row of frame.rows) chart.closed(frame.ch.slice(5), row);
  else take[frame.ch]?.(frame.rows);
}

const feed = new Feed("/ws/v1/market-data", {
  state(state, detail) {
    const since = state === "open" ? null : state === "connecting" ? link.since ?? null : link.since ?? Date.now();
    const wasLost = link.since;
    link = { state, since, ...detail };
    if (state === "open" && wasLost && chosen) chart.load();
    showConnection();
  },
  welcome(frame) {
    if (epoch !== frame.e) {
      events.clear();
      for (const values of trends.values()) values.length = 0;
      tape.number = 0;
    }
    epoch = frame.e;
  },
  data(frame) {
    if (frame.ms !== undefined) lags.push([performance.now(), frame.ms]);
    receive(frame);
  },
  snap(frame) {
    if (frame.ch === "pipeline" && !frame.rec) for (const values of trends.values()) values.length = 0;
    receive(frame);
  },
  status(frame) {
    if (frame.sym !== "*") return;
    service = frame;
    showConnection();
  },
  lag(frame) {
    note("lag", "info", `Your connection was busy for ${frame.ms} ms; ${frame.skip} updates were folded into newer ones`);
  },
  gap(frame) {
    if (frame.at === "feed") note("gap", "warning", `${frame.sym}: ticks ${frame.q[0]} to ${frame.q[1]} did not arrive here; the stored state is read again`);
    else note("gap", "warning", `${frame.sym}: ${frame.q[1] - frame.q[0] + 1} rows were missed by this page`);
  },
  err(frame) {
    note("error", "warning", `${frame.code}: ${frame.msg}`);
  },
});
table.clock = () => feed.now();

function note(kind, severity, text) {
  find("#events").prepend(events.line(Date.now(), kind, severity, text, ""));
  find("#events-note").hidden = true;
}

setInterval(() => {
  const now = performance.now();
  lags = lags.filter(([at]) => now - at < 3000);
  showConnection();
  showVenues();
}, 1000);
banner.lastElementChild.addEventListener("click", () => (link.state === "signed-out" ? location.reload() : feed.retry()));

for (const [channel, symbols] of [["quotes", ["*"]], ["minutes", ["*"]], ["events", []], ["pipeline", []]]) feed.follow(channel, symbols);
const named = decodeURIComponent(location.hash.slice(1));
const first = facts.instruments.find((instrument) => instrument.symbol === named) ?? facts.instruments[0];
if (first) table.choose(first.id);

// -- keys, search, theme, help

const search = find("#search");
const help = find("#help");

function showMatches() {
  const count = table.filter(search.value);
  find("#count").textContent = search.value ? `${count} of ${facts.instruments.length}` : String(facts.instruments.length);
  find("#no-match").hidden = count > 0;
}

function clearSearch() {
  search.value = "";
  showMatches();
}

search.addEventListener("input", showMatches);
find("#no-match button")?.addEventListener("click", clearSearch);
for (const button of document.querySelectorAll("[data-timeframe]")) button.addEventListener("click", () => setTimeframe(button.dataset.timeframe));
find("#help-open").addEventListener("click", () => help.showModal());

function turnTheme() {
  const order = ["system", "dark", "light"];
  const next = order[(order.indexOf(document.documentElement.dataset.theme ?? "system") + 1) % order.length];
  if (next === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = next;
  remembered.set("theme", next);
  find("#theme").title = `Theme: ${next}`;
  chart.paint();
}

find("#theme").addEventListener("click", turnTheme);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => chart.paint());

const keys = {
  "/": () => search.focus(),
  "?": () => help.showModal(),
  t: turnTheme,
  ArrowDown: () => table.move(1),
  ArrowUp: () => table.move(-1),
};
const frames = [...document.querySelectorAll("[data-timeframe]")].map((button) => button.dataset.timeframe);
frames.forEach((value, index) => { keys[index + 1] = () => setTimeframe(value); });

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
  const isTyping = event.target === search;
  if (isTyping && event.key === "Escape") {
    clearSearch();
    search.blur();
  } else if (isTyping && event.key === "Enter") {
    const row = find("#table tbody tr:not([hidden])");
    if (row) table.choose(Number(row.dataset.id));
  } else if (keys[event.key] && (!isTyping || event.key.startsWith("Arrow"))) {
    event.preventDefault();
    keys[event.key]();
  }
});
