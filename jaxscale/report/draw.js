// A plot as SVG. Every function returns {svg, points}; a point knows its series, its index and where it is drawn.

const MOST_MARKS = 80; // of a series that marks its points; beyond, only some are marked
const SVG = "http://www.w3.org/2000/svg";
const MARKS = [
  (r) => `M${-r},0A${r},${r} 0 1 1 ${r},0A${r},${r} 0 1 1 ${-r},0Z`,
  (r) => `M${-r},${-r}H${r}V${r}H${-r}Z`,
  (r) => `M0,${-1.2 * r}L${1.2 * r},${r}H${-1.2 * r}Z`,
  (r) => `M0,${-1.4 * r}L${1.4 * r},0L0,${1.4 * r}L${-1.4 * r},0Z`,
  (r) => `M0,${1.2 * r}L${1.2 * r},${-r}H${-1.2 * r}Z`,
  (r) => `M${-r},${-r / 3}H${-r / 3}V${-r}H${r / 3}V${-r / 3}H${r}V${r / 3}H${r / 3}V${r}H${-r / 3}V${r / 3}H${-r}Z`,
  (r) => `M${-r},${-1.2 * r}L0,${-r / 3}L${r},${-1.2 * r}V${1.2 * r}L0,${r / 3}L${-r},${1.2 * r}Z`,
  (r) => `M0,${-1.4 * r}L${r / 2},${-r / 2}L${1.4 * r},0L${r / 2},${r / 2}L0,${1.4 * r}L${-r / 2},${r / 2}L${-1.4 * r},0L${-r / 2},${-r / 2}Z`,
];

/** An element with attributes and children; strings become text, never markup. */
function element(space, name, attributes, children) {
  const node = space ? document.createElementNS(space, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) if (value !== null && value !== undefined) node.setAttribute(key, value);
  for (const child of children) if (child !== null) node.append(child);
  return node;
}
const make = (name, attributes, ...children) => element(null, name, attributes, children);
const shape = (name, attributes, ...children) => element(SVG, name, attributes, children);

const canvas = document.createElement("canvas").getContext("2d");
function textWidth(text, weight = 400) {
  canvas.font = `${weight} 12px system-ui, sans-serif`;
  return canvas.measureText(text).width;
}

/** Cut to a width; the whole text is under the pointer and in the table. */
function fitted(text, width, weight = 400) {
  if (textWidth(text, weight) <= width) return text;
  let kept = text;
  while (kept.length > 4 && textWidth(`${kept}…`, weight) > width) kept = kept.slice(0, -1);
  return `${kept}…`;
}

const axisTitle = (axis) => (axis.unit && axis.unit !== axis.label && axis.unit !== "share" ? `${axis.label} (${axis.unit})` : axis.label);
/** The whole title where there is room, else without its unit. */
function titleIn(axis, log, width) {
  const more = log ? ", log" : "", whole = axisTitle(axis) + more;
  return textWidth(whole) <= width ? whole : fitted(axis.label + more, width);
}
const swatchClass = (series) => `c${series.color % 10}`;
const hatch = (order) => (order % 4 ? `url(#hatch${order % 4})` : null);

/** Points of a series that have a place on these axes. */
function placed(series, view) {
  const xs = series.columns[view.x.key] || [], ys = series.columns[view.y.key] || [];
  const found = [];
  for (let i = 0; i < Math.min(xs.length, ys.length); i++) {
    if (xs[i] === null || ys[i] === null || (view.logX && xs[i] <= 0) || (view.logY && ys[i] <= 0)) continue;
    if (view.zoom && (xs[i] < view.zoom.from || xs[i] > view.zoom.to)) continue;
    found.push({ i, x: xs[i], y: ys[i] });
  }
  return found;
}

function drawLines(plot, view, width) {
  const shown = view.series.map((series) => ({ series, points: placed(series, view) })).filter((s) => s.points.length);
  const height = width < 300 ? 220 : width < 520 ? 270 : 340;
  const svg = shape("svg", { width, height, viewBox: `0 0 ${width} ${height}` });
  if (!shown.length) return { svg: empty(svg, width), points: [] };
  const frame = axes(svg, plot, view, shown, width, height);
  const points = [];
  for (const { series, points: there } of shown) {
    const at = there.map((p) => ({ ...p, series, px: frame.sx(p.x), py: frame.sy(p.y) }));
    svg.append(curve(series, at, view, frame, shown.length));
    points.push(...at);
  }
  tags(svg, points);
  if (frame.labels) directLabels(svg, shown, frame);
  return { svg, points, frame };
}

/** What is said in place of a plot, in as many lines as the width needs. */
function empty(svg, width) {
  ["nothing to show:", "no run or record is switched on,", "or none has figures here"].forEach((line, i) => svg.append(shape("text", { x: width / 2, y: 50 + 17 * i, "text-anchor": "middle", class: "tick" }, line)));
  return svg;
}

/** Grid, ticks and titles; returns the scales and the box of the plot. */
function axes(svg, plot, view, shown, width, height) {
  const xs = shown.flatMap((s) => s.points.map((p) => p.x)), ys = shown.flatMap((s) => s.points.map((p) => p.y));
  const spread = shown.filter((s) => s.series.marks && s.series.line !== "none").flatMap((s) => s.points.flatMap((p) => sampled(s.series, p.i, view)));
  const [x0, x1] = view.zoom ? [view.zoom.from, view.zoom.to] : bounds(xs, view.x, view.logX), [y0, y1] = bounds([...ys, ...spread], view.y, view.logY);
  const yTicks = ticksFor(ys, y0, y1, view.logY, 7, view.y.unit).filter((t) => t >= y0 && t <= y1);
  const left = 12 + Math.max(...yTicks.map((t) => textWidth(tickText(t, view.y.unit))), 20);
  const wide = Math.max(...shown.map((s) => textWidth(s.series.name, 600)));
  const labels = wide < width * 0.34 && width >= 520 && shown.length > 1 && shown.length <= 8 && shown.every((s) => s.series.line !== "none");
  const right = labels ? wide + 14 : 16;
  const box = { left, right: width - right, top: 30, bottom: height - 44 };
  const sx = scale(x0, x1, box.left, box.right, view.logX), sy = scale(y0, y1, box.bottom, box.top, view.logY);
  const xTicks = spaced(ticksFor(xs, x0, x1, view.logX, Math.max(2, Math.floor((box.right - box.left) / 56)), view.x.unit), view.x, sx);
  for (const t of yTicks) {
    svg.append(shape("line", { x1: box.left, x2: box.right, y1: sy(t), y2: sy(t), class: "grid" }));
    svg.append(shape("text", { x: box.left - 6, y: sy(t) + 4, "text-anchor": "end", class: "tick ytick" }, tickText(t, view.y.unit)));
  }
  for (const t of xTicks) {
    svg.append(shape("line", { x1: sx(t), x2: sx(t), y1: box.top, y2: box.bottom, class: "grid" }));
    svg.append(shape("text", { x: sx(t), y: box.bottom + 17, "text-anchor": "middle", class: "tick xtick" }, tickText(t, view.x.unit)));
  }
  svg.append(shape("line", { x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom, class: "axis" }));
  svg.append(shape("text", { x: 4, y: 14, class: "title-y" }, titleIn(view.y, view.logY, width - 8)));
  const under = titleIn(view.x, view.logX, width - 8);
  svg.append(shape("text", { x: Math.max((box.left + box.right) / 2, textWidth(under) / 2 + 4), y: height - 8, "text-anchor": "middle", class: "title-x" }, under));
  const back = scale(box.left, box.right, x0, x1, false); // from pixels
  const backLog = (px) => x0 * (x1 / x0) ** ((px - box.left) / (box.right - box.left));
  return { sx, sy, box, labels, back: view.logX ? backLog : back };
}

/** Of many values, without spreading them over the stack. */
function bounds(values, axis, log) {
  let low = Infinity, high = -Infinity;
  for (const v of values) { if (v < low) low = v; if (v > high) high = v; }
  return range([low, high], axis, log);
}

function scale(from, to, start, end, log) {
  if (log) return (v) => start + ((Math.log(v) - Math.log(from)) / (Math.log(to) - Math.log(from))) * (end - start);
  return (v) => start + ((v - from) / (to - from)) * (end - start);
}

/** The ticks whose texts do not touch. */
function spaced(ticks, axis, sx) {
  const kept = [];
  let edge = -Infinity;
  for (const t of ticks) {
    const half = textWidth(tickText(t, axis.unit)) / 2 + 5;
    if (sx(t) - half < edge) continue;
    edge = sx(t) + half;
    kept.push(t);
  }
  return kept;
}

/** A line that is a bound or an ideal has no marks: nothing was found at its points. */
const marked = (series, count) => series.marks || (series.line === "solid" && count > 1);

function curve(series, at, view, frame, count) {
  const group = shape("g", { class: `series ${swatchClass(series)} basis-${series.basis}`, "data-name": series.name });
  const path = (points) => points.map((p, k) => `${k ? "L" : "M"}${p.px.toFixed(1)},${p.py.toFixed(1)}`).join("");
  const smooth = view.smooth > 1 && series.line !== "dashed" && at.length > 2;
  if (series.line !== "none") group.append(shape("path", { d: path(at), class: `line ${series.line}${smooth ? " faint" : ""}` }));
  let drawn = at;
  if (smooth) {
    const means = series.columns[`${view.y.key}:mean`];
    const mean = runningMean(at.map((p) => (means && means[p.i] !== null ? means[p.i] : p.y)), view.smooth);
    drawn = at.map((p, k) => ({ ...p, py: frame.sy(mean[k]) }));
    group.append(shape("path", { d: path(drawn), class: `line ${series.line} mean` }));
  }
  const all = series.marks && at.length <= MOST_MARKS;
  const every = all ? 1 : Math.max(1, Math.floor(at.length / 8));
  const offset = all ? 0 : Math.floor((every * (series.marker % 4)) / 4);
  if (marked(series, count) || at.length === 1) {
    for (let k = offset; k < drawn.length; k += every) {
      const p = drawn[k];
      if (series.marks) group.append(...whisker(series, p, view, frame));
      group.append(shape("path", { d: MARKS[series.marker % 8](series.marks ? 4 : 3.5), transform: `translate(${p.px.toFixed(1)},${p.py.toFixed(1)})`, class: `mark${series.basis === "predicted" || series.hollow ? " hollow" : ""}` }));
    }
  }
  return group;
}

/** The least and the greatest of a point's samples, where there are several and the axis has a place for them. */
function sampled(series, i, view) {
  const low = (series.columns[`${view.y.key}:low`] || [])[i], high = (series.columns[`${view.y.key}:high`] || [])[i];
  return low === null || low === undefined || low === high || (view.logY && low <= 0) ? [] : [low, high];
}

/** A line between them; cut at the frame where points are many and their spread is not what the plot is about. */
function whisker(series, p, view, frame) {
  const [a, b] = sampled(series, p.i, view).map((v) => Math.max(frame.box.top, Math.min(frame.box.bottom, frame.sy(v))));
  if (a === undefined) return [];
  return [shape("line", { x1: p.px, x2: p.px, y1: a, y2: b, class: `whisker${series.line === "none" ? " faint" : ""}` })];
}

/** Names at the ends of the lines, pushed apart. */
function directLabels(svg, shown, frame) {
  const ends = shown.map(({ series, points }) => {
    const last = points.reduce((a, b) => (b.x >= a.x ? b : a));
    return { series, y: frame.sy(last.y) };
  }).sort((a, b) => a.y - b.y);
  ends.forEach((end, i) => { if (i) end.y = Math.max(end.y, ends[i - 1].y + 15); });
  const over = ends[ends.length - 1].y - frame.box.bottom;
  if (over > 0) {
    ends[ends.length - 1].y -= over;
    for (let i = ends.length - 2; i >= 0; i--) ends[i].y = Math.min(ends[i].y, ends[i + 1].y - 15);
  }
  for (const { series, y } of ends) {
    svg.append(shape("text", { x: frame.box.right + 8, y: y + 4, class: `label ${swatchClass(series)}` }, series.name));
  }
}

/** Short names above points, those that touch none before them. */
function tags(svg, points) {
  const taken = points.map((p) => [p.px - 4, p.py - 4, p.px + 4, p.py + 4]);
  const said = new Set();
  for (const p of points) {
    const text = p.series.tags[p.i];
    if (!text || said.has(text)) continue;
    const half = textWidth(text) / 2 + 2, box = [p.px - half, p.py - 20, p.px + half, p.py - 6];
    if (taken.some((t) => t[0] < box[2] && box[0] < t[2] && t[1] < box[3] && box[1] < t[3])) continue;
    taken.push(box);
    said.add(text);
    svg.append(shape("text", { x: p.px, y: p.py - 8, "text-anchor": "middle", class: "tag" }, text));
  }
}

// --- bars ----------------------------------------------------------------------------------------------------

/** A bar for each label and series; the label stands above its bars, so that a narrow screen has room for both. */
function drawBars(plot, view, width) {
  const labels = [...new Set(view.series.flatMap((s) => s.labels))];
  const values = view.series.flatMap((s) => [...(s.columns[view.y.key] || []), ...(s.columns[`${view.y.key}:high`] || [])]).filter((v) => v !== null && (!view.logY || v > 0));
  const svg = shape("svg", { width });
  if (!values.length) { svg.setAttribute("height", 100); return { svg: empty(svg, width), points: [] }; }
  const [low, high] = range(values, view.y, view.logY);
  const room = 14 + Math.max(...values.map((v) => textWidth(figure(v, view.y.unit, 3))));
  const sx = scale(view.logY ? low : Math.min(0, low), high, 8, width - room, view.logY);
  const points = [];
  let y = 26;
  svg.append(shape("text", { x: 8, y: 14, class: "title-y" }, titleIn(view.y, view.logY, width - 16)));
  for (const label of labels) {
    const mine = view.series.flatMap((series) => series.labels.flatMap((l, i) => (l === label && (series.columns[view.y.key] || [])[i] !== null ? [{ series, i }] : [])));
    if (!mine.length) continue;
    svg.append(shape("text", { x: 8, y: y + 13, class: "category" }, fitted(label, width - 16, 600)));
    y += 18;
    for (const { series, i } of mine) {
      const value = series.columns[view.y.key][i];
      if (view.logY && value <= 0) continue;
      points.push(bar(svg, { series, i, x: i, y: value, py: y + 8 }, view, sx, plot.series.indexOf(series)));
      y += 19;
    }
    y += 8;
  }
  svg.setAttribute("height", y);
  svg.setAttribute("viewBox", `0 0 ${width} ${y}`);
  return { svg, points };
}

function bar(svg, point, view, sx, order) {
  const { series, i, y: value, py } = point;
  const start = view.logY ? 8 : sx(0), end = sx(value);
  const box = { x: Math.min(start, end), y: py - 7, width: Math.max(1, Math.abs(end - start)), height: 15 };
  const basis = series.bases[i] || series.basis;
  const group = shape("g", { class: `series ${swatchClass(series)} basis-${basis}`, "data-name": series.name });
  group.append(shape("rect", { ...box, class: `bar${basis === "predicted" ? " hollow" : ""}` }));
  const pattern = basis === "predicted" ? "url(#hatch-predicted)" : hatch(order);
  if (pattern) group.append(shape("rect", { ...box, fill: pattern }));
  let edge = Math.max(start, end);
  const [low, high] = sampled(series, i, view);
  if (low !== undefined) {
    group.append(shape("line", { x1: sx(low), x2: sx(high), y1: py, y2: py, class: "whisker" }));
    edge = Math.max(edge, sx(high));
  }
  group.append(shape("text", { x: edge + 5, y: py + 5, class: "value" }, figure(value, view.y.unit, 3)));
  svg.append(group);
  return { ...point, px: end };
}

/** A bar a series, cut into its labels. */
function drawStack(plot, view, width) {
  const parts = [...new Set(plot.series.flatMap((s) => s.labels))];
  const total = (series) => (series.columns[view.y.key] || []).reduce((a, v) => a + (v || 0), 0);
  const svg = shape("svg", { width });
  const most = Math.max(...view.series.map(total), 0);
  if (!most) { svg.setAttribute("height", 100); return { svg: empty(svg, width), points: [] }; }
  const sx = scale(0, view.y.unit === "share" ? Math.max(1, most) : most, 8, width - 8, false);
  const points = [];
  let y = 26;
  svg.append(shape("text", { x: 8, y: 14, class: "title-y" }, axisTitle(view.y)));
  for (const series of view.series) {
    svg.append(shape("text", { x: 8, y: y + 13, class: "category" }, fitted(series.name, width - 16, 600)));
    y += 19;
    let sum = 0;
    series.labels.forEach((label, i) => {
      const value = (series.columns[view.y.key] || [])[i];
      if (!value) return;
      const x = sx(sum), wide = sx(sum + value) - x, order = parts.indexOf(label);
      sum += value;
      points.push(segment(svg, { series, i, x: i, y: value, px: x + wide / 2, py: y + 15 }, { x, y, wide, order, label }, view));
    });
    y += 42;
  }
  svg.setAttribute("height", y);
  svg.setAttribute("viewBox", `0 0 ${width} ${y}`);
  return { svg, points };
}

function segment(svg, point, { x, y, wide, order, label }, view) {
  const box = { x, y, width: Math.max(0.5, wide - 1), height: 30 };
  const group = shape("g", { class: `series c${order % 10}`, "data-name": label });
  group.append(shape("rect", { ...box, class: "bar" }));
  if (hatch(order)) group.append(shape("rect", { ...box, fill: hatch(order) }));
  const text = figure(point.y, view.y.unit, 2);
  if (textWidth(text) + 10 < wide) group.append(shape("text", { x: x + wide / 2, y: y + 19, "text-anchor": "middle", class: "inside" }, text));
  svg.append(group);
  return point;
}

const DRAW = { lines: drawLines, bars: drawBars, stack: drawStack };
