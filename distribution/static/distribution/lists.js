// The tape of trades and the feed of events: a fixed number of lines whose text is replaced; all of it text, never markup.

import { clock, price, quantity } from "./format.js";

const TAPE_LINES = 60;
const EVENT_LINES = 100;
const WORDS = ["odd lot", "average", "derived", "out of sequence", "prior reference", "cash", "next day", "seller", "extended", "official open", "official close", "opening", "closing", "sweep"];

export class Tape {
  constructor(body, note) {
    this.body = body;
    this.note = note;
    this.trades = [];
    this.lines = [];
  }

  /** Begin anew with an instrument. */
  show(instrument, zone) {
    this.instrument = instrument;
    this.zone = zone;
    this.trades = [];
    this.number = 0;
    this.note.textContent = "Waiting for the next trade…";
    this.#schedule();
  }

  /** Take rows of the `trades` channel. */
  add(rows) {
    for (const [id, number, ts, text, size, conditions] of rows) {
      if (id !== this.instrument?.id || number <= this.number) continue;
      this.number = number;
      const value = Number(text);
      const before = this.trades[0];
      const direction = !before || value === before.value ? before?.direction ?? "flat" : value > before.value ? "up" : "down";
      this.trades.unshift({ ts: ts / 1e6, value, size: Number(size), conditions, direction });
    }
    this.trades.length = Math.min(this.trades.length, TAPE_LINES);
    this.#schedule();
  }

  #schedule() {
    if (this.isScheduled) return;
    this.isScheduled = true;
    requestAnimationFrame(() => {
      this.isScheduled = false;
      this.#paint();
    });
  }

  #paint() {
    this.note.hidden = this.trades.length > 0;
    while (this.lines.length < this.trades.length) this.lines.push(this.#line());
    this.lines.forEach((line, index) => {
      const trade = this.trades[index];
      line.row.hidden = !trade;
      if (!trade) return;
      line.time.data = clock(trade.ts, this.zone, true);
      line.price.data = price(trade.value, this.instrument.decimals);
      line.size.data = quantity(trade.size);
      line.row.dataset.direction = trade.direction;
      line.row.title = conditionWords(trade.conditions);
      line.row.classList.toggle("aside", trade.conditions !== 0);
    });
  }

  #line() {
    const row = this.body.insertRow();
    const cell = (name) => {
      const element = row.insertCell();
      element.className = name;
      return element.appendChild(document.createTextNode(""));
    };
    return { row, time: cell("time"), price: cell("num"), size: cell("num size") };
  }
}

function conditionWords(bits) {
  return WORDS.filter((_, bit) => bits & (1 << bit)).join(", ");
}

export class Events {
  constructor(list, note) {
    this.list = list;
    this.note = note;
    this.number = 0;
  }

  /** Forget everything: a new epoch numbers anew. */
  clear() {
    this.number = 0;
    this.list.replaceChildren();
  }

  /** Take rows of the `events` channel. */
  add(rows) {
    for (const [, number, ts, kind, severity, , text, link] of rows) {
      if (number <= this.number) continue;
      this.number = number;
      this.list.prepend(this.line(ts / 1e6, kind, severity, text, link));
    }
    while (this.list.children.length > EVENT_LINES) this.list.lastElementChild.remove();
    this.note.hidden = this.list.children.length > 0;
  }

  /** Build one line; a link is followed only inside this site. */
  line(time, kind, severity, text, link) {
    const item = document.createElement("li");
    item.dataset.kind = kind;
    item.dataset.severity = severity;
    const when = document.createElement("time");
    when.textContent = clock(time, Intl.DateTimeFormat().resolvedOptions().timeZone);
    when.title = new Date(time).toISOString();
    const word = document.createElement("b");
    word.textContent = kind;
    const words = document.createElement(link.startsWith("/") ? "a" : "span");
    words.textContent = text;
    words.title = text;
    if (link.startsWith("/")) words.href = link;
    item.append(when, word, words);
    return item;
  }
}
