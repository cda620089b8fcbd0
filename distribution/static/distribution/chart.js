// The chosen instrument's chart: history from the server, the bar in the making from closed minutes and the live one.

import { clock, price, quantity } from "./format.js";

const LENGTH = { "1m": 60, "5m": 300, "15m": 900, "1h": 3600, "4h": 14400, "1d": 86400 };
const HISTORY = 500;

export class Chart {
  constructor(element, note, legend) {
    this.element = element;
    this.note = note;
    this.legend = legend;
    this.timeframe = "1m";
    this.zone = "UTC";
    this.request = 0;
    this.newest = new Map();
    if (!globalThis.LightweightCharts) {
      this.say("The chart library did not load.", true);
      return;
    }
    this.#build();
  }

  #build() {
    const { createChart, CandlestickSeries, HistogramSeries } = LightweightCharts;
    this.chart = createChart(this.element, {
      autoSize: true,
      layout: { attributionLogo: false, fontSize: 11, fontFamily: getComputedStyle(document.body).fontFamily },
      rightPriceScale: { borderVisible: false, scaleMargins: { top: 0.08, bottom: 0.24 } },
      timeScale: { borderVisible: false, timeVisible: true, secondsVisible: false, rightOffset: 4, tickMarkFormatter: (time, kind) => this.#tick(time, kind) },
      localization: { timeFormatter: (time) => this.#moment(time) },
      crosshair: { mode: 0 },
    });
    this.candles = this.chart.addSeries(CandlestickSeries, { borderVisible: false });
    this.volumes = this.chart.addSeries(HistogramSeries, { priceScaleId: "", priceFormat: { type: "volume" }, lastValueVisible: false, priceLineVisible: false });
    this.volumes.priceScale().applyOptions({ scaleMargins: { top: 0.82, bottom: 0 } });
    this.chart.subscribeCrosshairMove((event) => this.#point(event));
    this.paint();
  }

  /** Take the colours of the theme. */
  paint() {
    if (!this.chart) return;
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    this.colours = { up: colour("--up"), down: colour("--down"), upSoft: colour("--up-soft"), downSoft: colour("--down-soft") };
    this.chart.applyOptions({
      layout: { background: { type: "solid", color: colour("--panel") }, textColor: colour("--muted") },
      grid: { vertLines: { color: colour("--grid") }, horzLines: { color: colour("--grid") } },
    });
    const { up, down } = this.colours;
    this.candles.applyOptions({ upColor: up, downColor: down, wickUpColor: up, wickDownColor: down });
    if (this.bars) this.#drawAll();
  }

  say(text, isError = false) {
    this.note.textContent = text;
    this.note.hidden = !text;
    this.note.classList.toggle("wrong", isError);
  }

  /** Show an instrument; loads its history. */
  async show(instrument, timeframe, zone) {
    if (!this.chart) return;
    this.instrument = instrument;
    this.timeframe = timeframe;
    this.zone = zone;
    this.bars = null;
    this.minutes = new Map();
    const row = this.newest.get(instrument.id);
    if (row) this.minutes.set(row[2] / 1e9, minuteBar(row));
    this.candles.setData([]);
    this.volumes.setData([]);
    this.candles.applyOptions({ priceFormat: { type: "price", precision: instrument.decimals, minMove: 10 ** -instrument.decimals } });
    this.say("Loading bars…");
    await this.load();
  }

  async load() {
    const request = ++this.request;
    const query = new URLSearchParams({ instrument: this.instrument.id, timeframe: this.timeframe, limit: HISTORY });
    try {
      const response = await fetch(`/api/desk/bars?${query}`, { headers: { accept: "application/json" } });
      if (!response.ok) throw new Error(response.status === 401 ? "you are signed out" : `the server answered ${response.status}`);
      const answer = await response.json();
      if (request === this.request) this.#take(answer);
    } catch (error) {
      if (request === this.request) this.say(`No bars: ${error.message}. They are asked for again when the connection is back.`, true);
    }
  }

  #take(answer) {
    const isFirst = !this.bars;
    this.bars = new Map(answer.bars.map((bar) => [bar[0] / 1e9, toBar(bar)]));
    this.open = { start: answer.open_start / 1e9, end: answer.open_end / 1e9 };
    for (const bar of answer.minutes) if (!this.minutes.has(bar[0] / 1e9)) this.minutes.set(bar[0] / 1e9, toBar(bar));
    // In a short bar's case the last one may have begun long ago: nobody has traded since, so nothing has closed it.
    const newest = Math.max(-Infinity, ...this.minutes.keys());
    if (LENGTH[this.timeframe] <= 900 && newest < this.open.start && newest > Math.max(-Infinity, ...this.bars.keys())) this.#roll(newest);
    this.#fold();
    this.#drawAll();
    this.say(this.bars.size ? "" : "No bars yet. The first appears with the next trade.");
    if (isFirst) this.chart.timeScale().setVisibleLogicalRange({ from: Math.max(-20, this.bars.size - 110), to: this.bars.size + 4 });
  }

  /** Take rows of the `minutes` channel: minutes in the making. Those of other instruments are kept for when they are chosen. */
  minutesOf(rows) {
    for (const row of rows) {
      const [id, , start, , , , close] = row;
      if (close === null) continue;
      this.newest.set(id, row);
      if (id !== this.instrument?.id || !this.minutes) continue;
      this.minutes.set(start / 1e9, minuteBar(row));
      this.#live(start / 1e9);
    }
  }

  /** Take a row of a `bars` channel: a bar that closed or was revised. */
  closed(timeframe, [id, , start, open, high, low, close, volume, trades]) {
    if (id !== this.instrument?.id || !this.bars) return;
    const bar = toBar([start, open, high, low, close, volume]);
    // Its last trade was cancelled: there is no such bar any more.
    if (trades === 0) {
      if (timeframe === this.timeframe && this.bars.delete(bar.time)) this.#drawAll();
      if (timeframe === "1m" && this.minutes.delete(bar.time)) this.#live(bar.time);
      return;
    }
    if (timeframe === this.timeframe) {
      this.bars.set(bar.time, bar);
      this.#draw(bar);
    }
    if (timeframe === "1m" && this.minutes.has(bar.time) && this.timeframe !== "1m") {
      this.minutes.set(bar.time, bar);
      this.#live(bar.time);
    }
  }

  #live(minute) {
    if (!this.bars || !this.open) return;
    if (minute >= this.open.end) this.#roll(minute);
    const bar = this.#fold();
    if (bar) {
      this.#draw(bar);
      if (!this.note.hidden && !this.note.classList.contains("wrong")) this.say("");
    }
  }

  #roll(minute) {
    const length = LENGTH[this.timeframe];
    if (length <= 900) {
      this.open = { start: minute - (minute % length), end: minute - (minute % length) + length };
    } else {
      // Where a session's hours begin and end is the server's knowledge.
      this.open = { start: this.open.end, end: this.open.end + length };
      setTimeout(() => this.load(), 5000);
    }
    for (const time of this.minutes.keys()) if (time < this.open.start) this.minutes.delete(time);
  }

  /** Build the bar in the making from its minutes. */
  #fold() {
    const parts = [...this.minutes.values()].filter((bar) => bar.time >= this.open.start && bar.time < this.open.end).sort((a, b) => a.time - b.time);
    if (!parts.length) return null;
    const bar = {
      time: this.open.start,
      open: parts[0].open,
      high: Math.max(...parts.map((part) => part.high)),
      low: Math.min(...parts.map((part) => part.low)),
      close: parts.at(-1).close,
      volume: parts.reduce((sum, part) => sum + part.volume, 0),
    };
    this.bars.set(bar.time, bar);
    return bar;
  }

  #draw(bar) {
    // The library takes updates at the end only; an older bar is a revision and is drawn with all others.
    if (bar.time < this.drawnTo) return this.#drawAll();
    this.drawnTo = bar.time;
    this.candles.update(candle(bar));
    this.volumes.update(this.#volume(bar));
    this.#describe(bar);
  }

  #drawAll() {
    const bars = [...this.bars.values()].sort((a, b) => a.time - b.time);
    this.drawnTo = bars.at(-1)?.time ?? 0;
    this.candles.setData(bars.map(candle));
    this.volumes.setData(bars.map((bar) => this.#volume(bar)));
    if (bars.length) this.#describe(bars.at(-1));
  }

  #volume(bar) {
    return { time: bar.time, value: bar.volume, color: bar.close >= bar.open ? this.colours.upSoft : this.colours.downSoft };
  }

  #point(event) {
    this.isPointing = Boolean(event.time);
    const bar = this.bars?.get(event.time ?? this.drawnTo);
    if (bar) this.#write(bar);
  }

  #describe(bar) {
    if (!this.isPointing) this.#write(bar);
  }

  #write(bar) {
    const { decimals } = this.instrument;
    const [o, h, l, c] = [bar.open, bar.high, bar.low, bar.close].map((value) => price(value, decimals));
    this.legend.textContent = `${this.#moment(bar.time)}   O ${o}   H ${h}   L ${l}   C ${c}   V ${quantity(bar.volume)}`;
  }

  #moment(time) {
    const date = new Date(time * 1000);
    const day = date.toLocaleDateString("en-GB", { day: "numeric", month: "short", timeZone: this.zone });
    return this.timeframe === "1d" ? day : `${day} ${clock(date, this.zone).slice(0, 5)}`;
  }

  #tick(time, kind) {
    const date = new Date(time * 1000);
    if (kind === 0) return date.toLocaleDateString("en-GB", { year: "numeric", timeZone: this.zone });
    if (kind === 1) return date.toLocaleDateString("en-GB", { month: "short", timeZone: this.zone });
    if (kind === 2) return date.toLocaleDateString("en-GB", { day: "numeric", month: "short", timeZone: this.zone });
    return clock(date, this.zone).slice(0, 5);
  }
}

function toBar([start, open, high, low, close, volume]) {
  return { time: start / 1e9, open: Number(open), high: Number(high), low: Number(low), close: Number(close), volume: Number(volume) };
}

function minuteBar([, , start, open, high, low, close, volume]) {
  return toBar([start, open, high, low, close, volume]);
}

function candle({ time, open, high, low, close }) {
  return { time, open, high, low, close };
}
