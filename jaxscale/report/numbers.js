"use strict";
// Numbers as a person reads them, and where the ticks of an axis stand.

const PREFIXES = [[1e24, "Y"], [1e21, "Z"], [1e18, "E"], [1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"], [1, ""]];
const TIMES = [[3600, "h"], [60, "min"], [1, "s"], [1e-3, "ms"], [1e-6, "µs"], [1e-9, "ns"]];

/** At most `digits` significant ones, but all before the point; without zeros at the end. */
function plain(value, digits = 4) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 10 ** digits && size < 1e15) return Math.round(value).toLocaleString("en-US");
  if (size >= 1e15 || size < 1e-4) return value.toExponential(Math.max(0, digits - 1)).replace(/\.?0+e/, "e");
  const rounded = Number(value.toPrecision(digits));
  return Math.abs(rounded) >= 1e4 ? rounded.toLocaleString("en-US") : String(rounded);
}

/** A figure with its unit: 1.25 ms, 43.1 %, 6.85 ktokens/s, 12 GB. */
function figure(value, unit, digits = 4) {
  if (value === null || value === undefined) return "–";
  if (unit === "share") return `${plain(value * 100, Math.min(digits, 4))} %`;
  if (unit === "s") {
    if (value === 0) return "0 s";
    const [scale, name] = timeUnit(value);
    return `${plain(value / scale, digits)} ${name}`;
  }
  if (unit === "bytes") {
    const [scale, name] = binary(value);
    return `${plain(value / scale, digits)} ${name}`;
  }
  if (unit === "bytes/s") return `${prefixed(value, digits)}B/s`;
  if (unit === "tokens/s" && Math.abs(value) < 1e6) return `${plain(value, digits)} ${unit}`;
  if (unit === "tokens/s") return `${prefixed(value, digits)} ${unit}`;
  if (unit === "FLOP/s" || unit === "FLOPs") return `${prefixed(value, digits)}${unit}`;
  return unit ? `${plain(value, digits)} ${unit}` : plain(value, Math.max(digits, 6));
}

/** The unit of time that a value is told in: minutes from two on, hours from two on. */
const timeUnit = (value) => TIMES.find(([s]) => Math.abs(value) >= s && (s <= 1 || Math.abs(value) >= 2 * s)) || TIMES[TIMES.length - 1];
const BINARY = [[2 ** 50, "PiB"], [2 ** 40, "TiB"], [2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"], [1, "B"]];
const binary = (value) => BINARY.find(([s]) => Math.abs(value) >= s) || [1, "B"];

function prefixed(value, digits) {
  const [scale, name] = PREFIXES.find(([s]) => Math.abs(value) >= s * 0.9999999) || [1, ""];
  return `${plain(value / scale, digits)} ${name}`;
}

/** The same, short: for a tick, beside a title that says the unit. */
function tickText(value, unit) {
  if (unit === "share" || unit === "s" || unit === "bytes") return figure(value, unit, 3);
  if (["bytes/s", "FLOP/s", "FLOPs", "tokens/s"].includes(unit) || Math.abs(value) >= 1e5) return prefixed(value, 4).trim();
  return plain(value, 6);
}

/** 1, 2 or 5 times a power of ten, about `count` of them, from `low` to `high`. */
function linearTicks(low, high, count) {
  const raw = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw * 0.8);
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) ticks.push(Number((i * step).toPrecision(12)));
  return ticks;
}

/** Powers of ten, with 2 and 5 between them where there are few decades; linear ones within less than one. */
function logTicks(low, high, count) {
  const decades = Math.log10(high / low);
  if (decades < 0.8) return linearTicks(low, high, count).filter((t) => t > 0);
  const every = Math.max(1, Math.ceil(decades / count));
  const factors = decades <= count / 3 ? [1, 2, 5] : decades <= count / 2 ? [1, 3] : [1];
  const ticks = [];
  for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++) {
    if (e % every) continue;
    for (const f of factors) {
      const t = Number(`${f}e${e}`);
      if (t >= low * 0.999 && t <= high * 1.001) ticks.push(t);
    }
  }
  return ticks;
}

/** Ticks for the values that are there; few different ones are their own ticks on a logarithmic axis. */
function ticksFor(values, low, high, log, count, unit) {
  const unitSize = unit === "bytes" ? binary(high)[0] : unit === "s" ? timeUnit(high)[0] : 1;
  if (!log) return linearTicks(low / unitSize, high / unitSize, count).map((t) => t * unitSize);
  const different = [...new Set(values)].sort((a, b) => a - b);
  const even = different.every((v, i) => !i || v / different[i - 1] >= 1.4);
  if (different.length > 1 && different.length <= 16 && even) return different;
  return unit === "bytes" ? powersOfTwo(low, high, count) : logTicks(low, high, count);
}

function powersOfTwo(low, high, count) {
  const first = Math.ceil(Math.log2(low) - 1e-9), last = Math.floor(Math.log2(high) + 1e-9);
  const every = Math.max(1, Math.ceil((last - first + 1) / count));
  return Array.from({ length: Math.floor((last - first) / every) + 1 }, (_, i) => 2 ** (first + i * every));
}

/** The stretch of an axis: the values with a little room, from 0 where it begins there. */
function range(values, axis, log) {
  let low = Math.min(...values), high = Math.max(...values);
  if (log) {
    if (low === high) return [low / 2, high * 2];
    const room = (high / low) ** 0.04;
    return [low / room, high * room];
  }
  if (axis.zero) low = Math.min(0, low);
  if (axis.top) high = Math.max(axis.top, high);
  if (low === high) return low === 0 ? [0, 1] : [low - Math.abs(low) / 2, high + Math.abs(high) / 2];
  const room = (high - low) * 0.05;
  return [axis.zero && low === 0 ? 0 : low - room, high + room];
}

function runningMean(values, width) {
  const half = Math.floor(width / 2);
  return values.map((v, i) => {
    if (v === null) return null;
    const near = values.slice(Math.max(0, i - half), i + half + 1).filter((n) => n !== null);
    return near.reduce((a, b) => a + b, 0) / near.length;
  });
}
