// A plot in the page: its controls, its legend, the point under pointer or keyboard, and the table behind it.

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
      make("figcaption", {}, make("h3", {}, plot.title), plot.series.length ? copyButtons(this) : null), this.controls, this.legend, make("div", { class: "frame" }, this.holder, this.tip), this.live,
      this.words_about = make("div", {}), this.details);
    this.tell();
    this.makeControls();
    this.listen();
  }

  /** What is said under the plot. */
  tell() {
    this.words_about.replaceChildren(...[...this.plot.about.map((text) => make("p", { class: "about" }, text)), ...this.left(), this.failed()].filter(Boolean));
  }

  /** Newer figures of the same plot: what was chosen stays chosen. */
  update(plot, sources) {
    const axis = (axes, now) => axes.find((a) => a.key === now?.key) || axes[0] || null;
    Object.assign(this, { plot, sources });
    Object.assign(this.view, { x: axis(plot.x, this.view.x), y: axis(plot.y, this.view.y) });
    this.tell();
    this.refresh();
    if (this.details.children.length > 1) this.details.replaceChildren(this.details.firstChild, ...(this.details.open ? this.behind() : []));
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
    this.whole = make("button", { type: "button", class: "small", hidden: "" }, "Whole range");
    this.whole.addEventListener("click", () => { this.zoom(null); this.holder.focus(); });
    this.controls.append(this.whole);
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
    const zoom = state.zoom?.key === view.x?.key ? state.zoom : null;
    Object.assign(view, { series: this.shown, smooth: plot.smooth ? state.smooth : 0, zoom });
    if (this.whole) this.whole.hidden = !zoom;
    const { svg, points, frame } = DRAW[plot.kind](plot, view, Math.max(240, this.holder.clientWidth));
    const words = `${plot.title}: ${axisTitle(view.y)}${view.x ? ` over ${view.x.label}` : ""}; ${new Set(points.map((p) => p.series)).size} series, ${points.length} points`;
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", words);
    this.holder.setAttribute("aria-label", `${words}. Arrow keys move from point to point.${plot.kind === "lines" ? " Plus and minus zoom along x, 0 shows all." : ""}`);
    this.holder.replaceChildren(svg);
    Object.assign(this, { svg, points, frame, at: -1 });
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
    listenForZoom(this);
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
    if (this.plot.kind === "lines" && "+=-0".includes(event.key) && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      return this.zoomBy({ "-": 2, 0: Infinity }[event.key] || 0.5);
    }
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

  // --- the stretch of x that is shown

  /** All plots of the section that have this x follow. */
  zoom(stretch) {
    this.state.zoom = stretch && { key: this.view.x.key, from: stretch[0], to: stretch[1] };
    this.state.refresh();
  }

  /** Wider or narrower about the point that is looked at, else about the middle. */
  zoomBy(factor) {
    if (!this.frame || factor === Infinity) return this.zoom(null);
    const { box, back } = this.frame;
    const about = this.at < 0 ? (box.left + box.right) / 2 : this.points[this.at].px;
    const wanted = [box.left, box.right].map((edge) => back(about + (edge - about) * factor));
    const all = bounds(this.shown.flatMap((s) => s.columns[this.view.x.key] || []).filter((v) => v !== null), this.view.x, this.view.logX);
    this.zoom(wanted[0] <= all[0] && wanted[1] >= all[1] ? null : wanted);
  }

  // --- the table

  /** The table behind the plot: header and rows, for the page and for the CSV. */
  figures() {
    const { plot } = this;
    const labelled = plot.series.some((s) => s.labels.length);
    const spread = plot.y.filter((a) => plot.series.some((s) => (s.columns[`${a.key}:n`] || []).some((n) => n)));
    const header = ["series", ...(labelled ? ["of"] : []), ...plot.x.map((a) => a.label), ...plot.y.flatMap((a) => (spread.includes(a) ? [a.label, "least", "greatest", "samples"] : [a.label])), "basis", "from"];
    const rows = plot.series.flatMap((s) => Array.from({ length: Math.max(...Object.values(s.columns).map((c) => c.length)) }, (_, i) => {
      const at = (key) => { const v = (s.columns[key] || [])[i]; return v === undefined ? null : v; };
      const cells = (a) => (spread.includes(a) ? [[at(a.key), a.unit], [at(`${a.key}:low`), a.unit], [at(`${a.key}:high`), a.unit], at(`${a.key}:n`)] : [[at(a.key), a.unit]]);
      return [s.name, ...(labelled ? [s.labels[i] || ""] : []), ...plot.x.map((a) => [at(a.key), a.unit]), ...plot.y.flatMap(cells), s.bases[i] || s.basis, { source: s.source }];
    }));
    return { header, rows };
  }

  behind() {
    const { plot, sources } = this, { header, rows } = this.figures();
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

const LEAST_DRAG = 12; // pixels, below which it was a click

/** A mouse that is drawn over a plot chooses a stretch of x. */
function listenForZoom(plot) {
  const { holder } = plot;
  if (plot.plot.kind !== "lines") return;
  let start = null, band = null;
  const at = (event) => Math.min(plot.frame.box.right, Math.max(plot.frame.box.left, event.clientX - holder.getBoundingClientRect().left));
  holder.addEventListener("pointerdown", (event) => {
    if (event.pointerType !== "mouse" || event.button || !plot.frame) return;
    start = at(event);
    holder.setPointerCapture(event.pointerId);
  });
  holder.addEventListener("pointermove", (event) => {
    if (start === null || !plot.frame) return;
    const [a, b] = [start, at(event)].sort((m, n) => m - n), { top, bottom } = plot.frame.box;
    band?.remove();
    band = shape("rect", { x: a, y: top, width: b - a, height: bottom - top, class: "band" });
    plot.svg.append(band);
  });
  const end = (event) => {
    if (start === null) return;
    const [a, b] = [start, plot.frame ? at(event) : start].sort((m, n) => m - n);
    band?.remove();
    start = band = null;
    if (event.type === "pointerup" && b - a >= LEAST_DRAG) plot.zoom([plot.frame.back(a), plot.frame.back(b)]);
  };
  holder.addEventListener("pointerup", end);
  holder.addEventListener("pointercancel", end);
  holder.addEventListener("dblclick", () => plot.zoom(null));
}
