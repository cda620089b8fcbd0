// Numbers, times and small shapes as text. Nothing here touches the page.

const formats = new Map();

function numberFormat(decimals) {
  let format = formats.get(decimals);
  if (!format) {
    format = new Intl.NumberFormat("en-US", { minimumFractionDigits: decimals, maximumFractionDigits: decimals });
    formats.set(decimals, format);
  }
  return format;
}

/** A price in its instrument's own precision; a dash where there is none. */
export function price(value, decimals) {
  return Number.isFinite(value) ? numberFormat(decimals).format(value) : "–";
}

/** A size or volume: whole numbers, shortened from a million on. */
export function quantity(value) {
  if (!Number.isFinite(value)) return "–";
  if (value >= 1e9) return `${numberFormat(2).format(value / 1e9)}B`;
  if (value >= 1e6) return `${numberFormat(2).format(value / 1e6)}M`;
  return numberFormat(Number.isInteger(value) || value >= 1000 ? 0 : 2).format(value);
}

/** A rate per second: one decimal below ten, so that a trickle is no zero. */
export function rate(value) {
  if (!Number.isFinite(value)) return "–";
  return value > 0 && value < 10 ? numberFormat(1).format(value) : numberFormat(0).format(value);
}

export function change(last, reference) {
  if (!Number.isFinite(last) || !(reference > 0)) return { text: "–", direction: "flat", share: 0 };
  const exact = ((last - reference) / reference) * 100;
  const share = Math.abs(exact) < 0.005 ? 0 : exact; // never "-0.00%"
  const text = `${share > 0 ? "+" : ""}${numberFormat(2).format(share)}%`;
  return { text, direction: share > 0 ? "up" : share < 0 ? "down" : "flat", share };
}

export function age(milliseconds) {
  const seconds = Math.max(0, Math.floor(milliseconds / 1000));
  if (seconds < 60) return `${seconds}s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)}m`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)}h`;
  return `${Math.floor(seconds / 86400)}d`;
}

export function countdown(milliseconds) {
  const total = Math.max(0, Math.floor(milliseconds / 1000));
  const hours = Math.floor(total / 3600);
  const two = (number) => String(number).padStart(2, "0");
  return hours >= 48 ? `${Math.floor(hours / 24)} days` : `${hours}:${two(Math.floor(total / 60) % 60)}:${two(total % 60)}`;
}

const clocks = new Map();

/** Time of day in a zone; `detail` adds milliseconds. */
export function clock(milliseconds, zone, detail = false) {
  const key = `${zone} ${detail}`;
  let format = clocks.get(key);
  if (!format) {
    const options = { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23", timeZone: zone };
    if (detail) options.fractionalSecondDigits = 3;
    format = new Intl.DateTimeFormat("en-GB", options);
    clocks.set(key, format);
  }
  return format.format(milliseconds);
}

/** Points of a polyline through the values in a box; empty below two values. */
export function points(values, width, height, floor = null) {
  if (values.length < 2) return "";
  const low = floor ?? Math.min(...values);
  const high = Math.max(...values, low);
  const span = high - low || 1;
  const step = width / (values.length - 1);
  const inner = height - 4;
  return values.map((value, index) => `${(index * step).toFixed(1)},${(2 + inner - ((value - low) * inner) / span).toFixed(1)}`).join(" ");
}
