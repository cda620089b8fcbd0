// The instruments' table: rendered by the server, its text nodes kept up to date here. Nothing is built anew as data arrives.

import { age, change, points, price, quantity } from "./format.js";

const FLASH_MS = 250;
const calm = matchMedia("(prefers-reduced-motion: reduce)");

class Row {
  constructor(element, instrument, closes) {
    this.element = element;
    this.instrument = instrument;
    this.closes = closes;
    this.cells = {};
    for (const cell of element.querySelectorAll("[data-cell]")) this.cells[cell.dataset.cell] = cell.firstChild ?? cell.appendChild(document.createTextNode(""));
    this.arrow = element.querySelector(".arrow");
    this.changeCell = element.querySelector("td.change");
    this.line = element.querySelector("polyline");
    this.flashed = new Map();
    this.values = null;
    this.shownTo = 0;
  }

  set(name, text) {
    const node = this.cells[name];
    if (node.data === text) return false;
    node.data = text;
    return true;
  }

  flash(name, direction) {
    const now = performance.now();
    if (calm.matches || now - (this.flashed.get(name) ?? 0) < FLASH_MS) return;
    this.flashed.set(name, now);
    const cell = this.cells[name].parentElement;
    const colour = getComputedStyle(document.documentElement).getPropertyValue(`--flash-${direction}`).trim();
    cell.animate([{ backgroundColor: colour }, { backgroundColor: "transparent" }], { duration: 600, easing: "ease-out" });
  }

  paint(values) {
    const before = this.values;
    this.values = values;
    const { decimals } = this.instrument;
    const moved = Number.isFinite(before?.last) && values.last !== before.last ? (values.last > before.last ? "up" : "down") : null;
    if (moved) {
      this.arrow.dataset.direction = moved;
      this.flash("last", moved);
    }
    this.set("last", price(values.last, decimals));
    const moves = change(values.last, values.reference);
    this.share = moves.share;
    if (this.set("change", moves.text)) this.changeCell.dataset.direction = moves.direction;
    const note = { close: "to the previous close", open: "to the session’s open: no earlier close is stored" }[values.referenceKind];
    if (note && this.changeCell.title !== note) this.changeCell.title = note;
    for (const side of ["bid", "ask"]) {
      // Quotes change all the time: their figures move, only a traded price lights up.
      this.set(side, price(values[side], decimals));
    }
    this.set("volume", quantity(values.volume));
    if (this.element.dataset.state !== values.state) this.element.dataset.state = values.state;
    this.set("state", values.state);
  }

  trend(start, close) {
    if (this.minute !== undefined && start > this.minute) this.closes = [...this.closes.slice(-59), close];
    else if (this.minute === start || this.closes.length === 0) this.closes = [...this.closes.slice(0, -1), close];
    else this.closes = [...this.closes.slice(-59), close];
    this.minute = start;
    this.isTrendDue = true;
  }

  drawTrend() {
    this.isTrendDue = false;
    this.line.setAttribute("points", points(this.closes, 84, 22));
    const first = this.closes[0];
    const last = this.closes.at(-1);
    this.line.dataset.direction = last > first ? "up" : last < first ? "down" : "flat";
  }
}

export class Table {
  constructor(root, facts, onChoose) {
    this.root = root;
    this.body = root.tBodies[0];
    this.onChoose = onChoose;
    this.rows = new Map();
    for (const instrument of facts.instruments) {
      const element = this.body.querySelector(`tr[data-id="${instrument.id}"]`);
      if (element) this.rows.set(instrument.id, new Row(element, instrument, facts.sparks[instrument.id] ?? []));
    }
    for (const row of this.rows.values()) if (row.closes.length > 1) row.drawTrend();
    this.dirty = new Map();
    this.body.addEventListener("click", (event) => this.choose(Number(event.target.closest("tr")?.dataset.id)));
    this.body.addEventListener("keydown", (event) => event.key === "Enter" && this.choose(Number(event.target.closest("tr")?.dataset.id)));
    for (const header of root.tHead.querySelectorAll("[data-sort]")) header.firstElementChild.addEventListener("click", () => this.sort(header));
    setInterval(() => this.#everySecond(), 1000);
  }

  /** Take rows of the `quotes` channel; they are painted with the next frame of the screen. */
  update(rows) {
    for (const [id, , ts, last, , bid, , ask, , volume, reference, referenceKind, state] of rows) {
      const number = (text) => (text === null ? NaN : Number(text));
      this.dirty.set(id, { ts: ts / 1e6, last: number(last), bid: number(bid), ask: number(ask), volume: number(volume), reference: number(reference), referenceKind, state });
    }
    this.#schedule();
  }

  /** Take rows of the `minutes` channel for the trend lines. */
  trends(rows) {
    for (const [id, , start, , , , close] of rows) if (close !== null) this.rows.get(id)?.trend(start, Number(close));
  }

  values(id) {
    return this.dirty.get(id) ?? this.rows.get(id)?.values;
  }

  #schedule() {
    if (this.isScheduled) return;
    this.isScheduled = true;
    requestAnimationFrame(() => {
      this.isScheduled = false;
      for (const [id, values] of this.dirty) this.rows.get(id)?.paint(values);
      this.dirty.clear();
    });
  }

  #everySecond() {
    const now = this.clock?.() ?? Date.now();
    for (const row of this.rows.values()) {
      if (row.values?.ts) row.set("age", age(now - row.values.ts));
      if (row.isTrendDue && row.closes.length > 1) row.drawTrend();
    }
  }

  choose(id) {
    const row = this.rows.get(id);
    if (!row) return;
    this.body.querySelector('tr[aria-selected="true"]')?.setAttribute("aria-selected", "false");
    row.element.setAttribute("aria-selected", "true");
    this.#rove(row.element);
    this.chosen = id;
    this.onChoose(row.instrument);
  }

  /** Move the focus by so many visible rows. */
  move(step) {
    const visible = [...this.body.rows].filter((element) => !element.hidden);
    const at = visible.indexOf(document.activeElement.closest?.("tr"));
    const from = at >= 0 ? at : visible.findIndex((element) => element.getAttribute("aria-selected") === "true");
    const next = visible[Math.min(visible.length - 1, Math.max(0, from + step))];
    if (!next) return;
    this.#rove(next);
    next.focus({ preventScroll: true });
    next.scrollIntoView({ block: "nearest" });
  }

  #rove(element) {
    for (const other of this.body.querySelectorAll('tr[tabindex="0"]')) other.tabIndex = -1;
    element.tabIndex = 0;
  }

  /** Show the rows whose symbol or name holds the text; gives how many. */
  filter(text) {
    const wanted = text.trim().toLowerCase();
    let count = 0;
    for (const { element, instrument } of this.rows.values()) {
      element.hidden = !`${instrument.symbol} ${instrument.name} ${instrument.asset_class}`.toLowerCase().includes(wanted);
      count += element.hidden ? 0 : 1;
    }
    return count;
  }

  sort(header) {
    const key = header.dataset.sort;
    const before = header.getAttribute("aria-sort");
    const ascending = before ? before === "descending" : key === "symbol";
    for (const other of this.root.tHead.querySelectorAll("[aria-sort]")) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const value = {
      symbol: (row) => row.instrument.symbol,
      change: (row) => row.share ?? 0,
      volume: (row) => row.values?.volume ?? 0,
      age: (row) => -(row.values?.ts ?? 0),
    }[key];
    const sign = ascending ? 1 : -1;
    const order = [...this.rows.values()].sort((a, b) => sign * (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : 0));
    this.body.append(...order.map((row) => row.element));
  }
}
