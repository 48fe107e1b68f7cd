// A plot in the page: its controls, its legend, the point under pointer or keyboard, and the table behind it.

const MOST_ROWS = 300; // of a table before a button shows the rest

class PlotFigure {
  constructor(plot, sources, state) {
    Object.assign(this, { plot, sources, state, off: new Set(), points: [], at: -1 });
    this.view = { x: plot.x[0] || null, y: plot.y[0] || null, logX: !!plot.x[0]?.log, logY: !!plot.y[0]?.log };
    this.holder = make("div", { class: "plot", tabindex: "0", role: "application", "aria-roledescription": "plot" });
    this.tip = make("div", { class: "tip", hidden: "" });
    this.live = make("p", { class: "hidden-text", "aria-live": "polite" });
    this.legend = make("ul", { class: "legend", "aria-label": plot.kind === "stack" ? "Parts" : "Series" });
    this.controls = make("div", { class: "controls" });
    this.details = make("details", { class: "behind" }, make("summary", {}, "The figures behind this plot, and where they are from"));
    this.node = make("figure", { id: `plot-${plot.id}`, "data-kind": plot.kind },
      make("figcaption", {}, make("h3", {}, plot.title)), this.controls, this.legend, make("div", { class: "frame" }, this.holder, this.tip), this.live,
      ...plot.about.map((text) => make("p", { class: "about" }, text)), ...this.left(), this.failed(), this.details);
    this.makeControls();
    this.listen();
  }

  /** What was left out of long series, in words. */
  left() {
    const cut = this.plot.series.filter((s) => s.total);
    if (!cut.length) return [];
    const most = Math.max(...cut.map((s) => s.total)).toLocaleString("en-US");
    return [make("p", { class: "about" }, `Long series are thinned: of up to ${most} points each stretch's least and greatest are shown; a running mean is of all.`)];
  }

  failed() {
    if (!this.plot.failed.length) return null;
    return make("div", { class: "failed" }, make("p", {}, `Failed (${this.plot.failed.length}):`), make("ul", {}, ...this.plot.failed.map((text) => make("li", {}, text))));
  }

  makeControls() {
    const { plot, view } = this;
    if (!plot.series.length) return;
    if (plot.y.length > 1) this.controls.append(select("show", plot.y.map((a) => a.label), (i) => { view.y = plot.y[i]; view.logY = view.y.log; this.refresh(); }));
    if (plot.kind === "lines") this.logX = this.toggle("log x", "logX");
    if (plot.kind !== "stack") this.logY = this.toggle(plot.kind === "bars" ? "log" : "log y", "logY");
  }

  toggle(text, key) {
    const box = make("input", { type: "checkbox", "data-control": key });
    box.checked = this.view[key];
    box.addEventListener("change", () => { this.view[key] = box.checked; this.refresh(); });
    this.controls.append(make("label", {}, box, ` ${text}`));
    return box;
  }

  get shown() {
    return this.plot.series.filter((s) => !this.state.off.has(s.source) && !this.off.has(s.name));
  }

  refresh() {
    const { plot, view, state } = this;
    if (!view.y || !plot.series.length) { this.holder.remove(); this.details.remove(); return; }
    const x = plot.x.find((a) => a.key === state.x) || plot.x[0] || null;
    if (x !== view.x) { view.x = x; view.logX = x.log; }
    if (this.logX) this.logX.checked = view.logX;
    if (this.logY) this.logY.checked = view.logY;
    Object.assign(view, { series: this.shown, smooth: plot.smooth ? state.smooth : 0 });
    const { svg, points } = DRAW[plot.kind](plot, view, Math.max(240, this.holder.clientWidth));
    const words = `${plot.title}: ${axisTitle(view.y)}${view.x ? ` over ${view.x.label}` : ""}; ${new Set(points.map((p) => p.series)).size} series, ${points.length} points`;
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", words);
    this.holder.setAttribute("aria-label", `${words}. Arrow keys move from point to point.`);
    this.holder.replaceChildren(svg);
    Object.assign(this, { svg, points, at: -1 });
    Object.assign(this.node.dataset, { points: points.length, series: new Set(points.map((p) => p.series)).size });
    this.tip.hidden = true;
    this.drawLegend();
  }

  drawLegend() {
    const { plot } = this;
    const entries = plot.kind === "stack" ? this.partEntries() : plot.series.filter((s) => !this.state.off.has(s.source)).map((s, i) => this.seriesEntry(s));
    const focused = [...this.legend.querySelectorAll("button")].indexOf(document.activeElement);
    this.legend.replaceChildren(...entries.map((e) => make("li", {}, e)));
    if (focused >= 0) this.legend.querySelectorAll("button")[focused]?.focus();
  }

  seriesEntry(series) {
    const button = make("button", { type: "button", "aria-pressed": String(!this.off.has(series.name)) }, swatch(series, this.plot), series.name);
    button.addEventListener("click", () => {
      if (!this.off.delete(series.name)) this.off.add(series.name);
      this.refresh();
    });
    return button;
  }

  partEntries() {
    const parts = [...new Set(this.plot.series.flatMap((s) => s.labels))];
    return parts.map((part, order) => {
      const mine = this.points.filter((p) => p.series.labels[p.i] === part);
      const text = this.shown.length === 1 && mine.length ? `${part} ${figure(mine[0].y, this.view.y.unit, 3)}` : part;
      return make("span", {}, partSwatch(order), text);
    });
  }

  // --- the point that is looked at

  listen() {
    const { holder } = this;
    const near = (event) => {
      const box = holder.getBoundingClientRect();
      this.look(this.nearest(event.clientX - box.left, event.clientY - box.top));
    };
    holder.addEventListener("pointermove", near);
    holder.addEventListener("pointerdown", near);
    holder.addEventListener("pointerleave", () => this.look(-1));
    holder.addEventListener("blur", () => this.look(-1));
    holder.addEventListener("keydown", (event) => this.key(event));
    this.details.addEventListener("toggle", () => { if (this.details.open && this.details.children.length === 1) this.details.append(...this.behind()); });
    new ResizeObserver(() => { if (this.svg && Math.abs(Number(this.svg.getAttribute("width")) - Math.max(240, holder.clientWidth)) > 1) this.refresh(); }).observe(holder);
  }

  nearest(x, y) {
    const flat = this.plot.kind === "lines" ? 1 : 0.05; // a bar is found by its height
    let best = -1, least = Infinity;
    this.points.forEach((p, k) => {
      const d = ((p.px - x) * flat) ** 2 + (p.py - y) ** 2;
      if (d < least) [best, least] = [k, d];
    });
    return best;
  }

  key(event) {
    const { points, at } = this;
    if (!points.length) return;
    const own = (step) => { // along the same series
      for (let k = at + step; k >= 0 && k < points.length; k += step) if (at < 0 || points[k].series === points[at].series) return k;
      return Math.max(at, 0);
    };
    const other = (step) => { // the point of the next series that is nearest along x
      const all = [...new Set(points.map((p) => p.series))];
      const next = all[all.indexOf(points[Math.max(at, 0)].series) + step];
      const candidates = points.map((p, k) => [Math.abs(p.px - points[Math.max(at, 0)].px), k, p.series]).filter((c) => c[2] === next);
      return candidates.length ? candidates.reduce((a, b) => (b[0] < a[0] ? b : a))[1] : Math.max(at, 0);
    };
    const inOrder = (step) => Math.min(points.length - 1, Math.max(0, at + step));
    const lines = this.plot.kind === "lines";
    const moves = {
      ArrowRight: () => (lines ? own(1) : inOrder(1)), ArrowLeft: () => (lines ? own(-1) : inOrder(-1)),
      ArrowDown: () => (lines ? other(1) : inOrder(1)), ArrowUp: () => (lines ? other(-1) : inOrder(-1)),
      Home: () => (lines && at >= 0 ? points.findIndex((p) => p.series === points[at].series) : 0),
      End: () => (lines && at >= 0 ? points.length - 1 - [...points].reverse().findIndex((p) => p.series === points[at].series) : points.length - 1),
      Escape: () => -1,
    };
    if (!moves[event.key]) return;
    event.preventDefault();
    this.look(moves[event.key]());
    this.live.textContent = this.at < 0 ? "" : this.words(points[this.at]).join(", ");
  }

  /** What is known of a point, a line each. */
  words({ series, i }) {
    const { view, sources, plot } = this;
    const column = (key) => (series.columns[key] || [])[i];
    const lines = [series.name];
    if (series.labels[i]) lines.push(series.labels[i]);
    if (view.x) lines.push(`${view.x.label}: ${figure(column(view.x.key), view.x.unit)}`);
    lines.push(`${view.y.label}: ${figure(column(view.y.key), view.y.unit)}`);
    if (plot.kind === "stack") for (const a of plot.y) if (a !== view.y) lines.push(`${a.label}: ${figure(column(a.key), a.unit)}`);
    const n = column(`${view.y.key}:n`);
    if (n) lines.push(`${figure(column(`${view.y.key}:low`), view.y.unit)} to ${figure(column(`${view.y.key}:high`), view.y.unit)} in ${n} samples`);
    lines.push(`${series.bases[i] || series.basis}, ${sources[series.source].name}`);
    return lines;
  }

  look(index) {
    this.at = index;
    this.svg?.querySelector(".ring")?.remove();
    this.tip.hidden = index < 0;
    if (index < 0) return;
    const p = this.points[index];
    this.svg.append(shape("circle", { cx: p.px, cy: p.py, r: 8, class: "ring" }));
    this.tip.replaceChildren(...this.words(p).map((text, k) => make(k ? "span" : "strong", {}, text)));
    const wide = this.holder.clientWidth, tip = this.tip.offsetWidth;
    this.tip.style.left = `${Math.max(0, Math.min(wide - tip, p.px + (p.px > wide / 2 ? -tip - 14 : 14)))}px`;
    const above = p.py - this.tip.offsetHeight - 12;
    this.tip.style.top = `${above >= -40 ? above : p.py + 14}px`;
  }

  // --- the table

  behind() {
    const { plot, sources } = this;
    const labelled = plot.series.some((s) => s.labels.length);
    const spread = plot.y.filter((a) => plot.series.some((s) => (s.columns[`${a.key}:n`] || []).some((n) => n)));
    const header = ["series", ...(labelled ? ["of"] : []), ...plot.x.map((a) => a.label), ...plot.y.flatMap((a) => (spread.includes(a) ? [a.label, "least", "greatest", "samples"] : [a.label])), "basis", "from"];
    const rows = plot.series.flatMap((s) => Array.from({ length: Math.max(...Object.values(s.columns).map((c) => c.length)) }, (_, i) => {
      const at = (key) => { const v = (s.columns[key] || [])[i]; return v === undefined ? null : v; };
      const cells = (a) => (spread.includes(a) ? [[at(a.key), a.unit], [at(`${a.key}:low`), a.unit], [at(`${a.key}:high`), a.unit], at(`${a.key}:n`)] : [[at(a.key), a.unit]]);
      return [s.name, ...(labelled ? [s.labels[i] || ""] : []), ...plot.x.map((a) => [at(a.key), a.unit]), ...plot.y.flatMap(cells), s.bases[i] || s.basis, { source: s.source }];
    }));
    return [table(plot.title, header, rows, sources), provenance([...new Set(plot.series.map((s) => s.source))], sources)];
  }
}

function swatch(series, plot) {
  const svg = shape("svg", { width: 30, height: 14, class: `swatch ${swatchClass(series)}`, "aria-hidden": "true" });
  if (plot.kind === "bars") {
    const fill = series.basis === "predicted" ? "url(#hatch-predicted)" : hatch(plot.series.indexOf(series));
    svg.append(shape("rect", { x: 8, y: 1, width: 14, height: 12, class: `bar${series.basis === "predicted" ? " hollow" : ""}` }));
    if (fill) svg.append(shape("rect", { x: 8, y: 1, width: 14, height: 12, fill }));
    return svg;
  }
  if (series.line !== "none") svg.append(shape("path", { d: "M0,7H30", class: `line ${series.line}` }));
  if (marked(series, plot.series.length)) svg.append(shape("path", { d: MARKS[series.marker % 8](4), transform: "translate(15,7)", class: `mark${series.basis === "predicted" || series.hollow ? " hollow" : ""}` }));
  return svg;
}

function partSwatch(order) {
  const svg = shape("svg", { width: 16, height: 14, class: `swatch c${order % 10}`, "aria-hidden": "true" }, shape("rect", { x: 1, y: 1, width: 13, height: 12, class: "bar" }));
  if (hatch(order)) svg.append(shape("rect", { x: 1, y: 1, width: 13, height: 12, fill: hatch(order) }));
  return svg;
}

function select(text, names, change) {
  const box = make("select", {}, ...names.map((name, i) => make("option", { value: String(i) }, name)));
  box.addEventListener("change", () => change(Number(box.value)));
  return make("label", {}, make("span", { class: "whole" }, text), box);
}

/** A cell is text, a number, [value, unit], {value, unit, basis}, {source} or null. */
function cellNode(cell, sources, head) {
  if (cell && typeof cell === "object" && "source" in cell) return make("td", {}, make("a", { href: `#source-${cell.source}` }, sources[cell.source].name));
  const [value, unit] = Array.isArray(cell) ? cell : cell && typeof cell === "object" ? [cell.value, cell.unit] : [cell, ""];
  if (typeof value === "number") return make("td", { class: "number", title: String(value) }, figure(value, unit, 5));
  return make(head ? "th" : "td", head ? { scope: "row" } : {}, value === null || value === undefined ? "–" : String(value));
}

/** In a box of its own that scrolls, by keyboard too. */
function table(caption, header, rows, sources) {
  const body = make("tbody");
  const add = (some) => body.append(...some.map((row) => make("tr", {}, ...row.map((cell, k) => cellNode(cell, sources, k === 0)))));
  add(rows.slice(0, MOST_ROWS));
  const box = make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Table: ${caption}` },
    make("table", {}, make("caption", {}, caption), make("thead", {}, make("tr", {}, ...header.map((text) => make("th", { scope: "col" }, text)))), body));
  if (rows.length <= MOST_ROWS) return box;
  const more = make("button", { type: "button" }, `Show all ${rows.length.toLocaleString("en-US")} rows`);
  more.addEventListener("click", () => { add(rows.slice(MOST_ROWS)); more.remove(); });
  return make("div", {}, box, more);
}

const SHORT = ["device", "mesh", "topology", "commit", "date", "command", "basis", "FLOP convention", "MFU convention", "MFU peak", "peak"];

/** Where figures are from: file, device, commit, date, command, for each source. */
function provenance(indexes, sources) {
  return make("ul", { class: "provenance" }, ...indexes.map((i) => {
    const s = sources[i];
    const facts = SHORT.filter((k) => s.facts[k]).map((k) => `${k} ${s.facts[k]}`);
    return make("li", {}, make("a", { href: `#source-${i}` }, s.name), ` (${s.kind}), file ${s.file}; ${facts.join("; ")}`);
  }));
}
