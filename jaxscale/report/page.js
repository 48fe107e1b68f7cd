// The page: its sections, the choices that go for all plots of one, its tables, and where everything is from.

const PAGE = JSON.parse(document.getElementById("data").textContent);

function sectionNode(section, sources) {
  const state = { off: new Set(), x: null, smooth: 0 };
  const figures = section.plots.map((plot) => new PlotFigure(plot, sources, state));
  const refresh = () => figures.forEach((f) => f.refresh());
  const node = make("section", { id: section.id, "aria-labelledby": `${section.id}-title` }, make("h2", { id: `${section.id}-title` }, section.title));
  node.append(...section.about.map((text) => make("p", { class: "about" }, text)));
  node.append(...section.tables.map((t) => tableNode(t, sources)));
  const controls = sectionControls(section, sources, state, refresh);
  if (controls.children.length) node.append(controls);
  node.append(make("div", { class: section.wall ? "figures wall" : "figures" }, ...figures.map((f) => f.node)));
  return { node, refresh };
}

function sectionControls(section, sources, state, refresh) {
  const controls = make("div", { class: "choices" });
  const used = [...new Set(section.plots.flatMap((p) => p.series.map((s) => s.source)))].sort((a, b) => a - b);
  if (used.length > 1) controls.append(group("Show", used.map((i) => choice("checkbox", `${section.id}-on-${i}`, sources[i].name, true, (on) => { if (on) state.off.delete(i); else state.off.add(i); refresh(); }))));
  const wide = section.plots.find((p) => p.x.length > 1);
  if (wide) controls.append(group("Along x", wide.x.map((axis, k) => choice("radio", `${section.id}-x`, axis.key === "seconds" ? "time" : axis.key, !k, () => { state.x = axis.key; refresh(); }))));
  if (section.plots.some((p) => p.smooth)) {
    const widths = [0, 5, 20, 100];
    controls.append(group("Smoothing", [select("running mean over", widths.map((w) => (w ? `${w} points` : "nothing")), (i) => { state.smooth = widths[i]; refresh(); })]));
  }
  return controls;
}

const group = (text, children) => make("fieldset", {}, make("legend", {}, text), ...children);

function choice(type, name, text, checked, change) {
  const box = make("input", { type, name });
  box.checked = checked;
  box.addEventListener("change", () => change(box.checked));
  return make("label", {}, box, ` ${text}`);
}

function tableNode(t, sources) {
  const header = [...t.columns, "from"];
  const rows = t.rows.map((row, i) => [...row, { source: t.sources[i] }]);
  if (!t.closed) return make("div", { class: "open-table" }, table(t.title, header, rows, sources),
    make("details", { class: "behind" }, make("summary", {}, "Where these figures are from"), provenance([...new Set(t.sources)], sources)));
  const details = make("details", { class: "behind" }, make("summary", {}, `${t.title}: ${t.rows.length} rows`));
  details.addEventListener("toggle", () => { if (details.open && details.children.length === 1) details.append(table(t.title, header, rows, sources), provenance([...new Set(t.sources)], sources)); });
  return details;
}

function sourcesNode(sources) {
  const node = make("section", { id: "sources", "aria-labelledby": "sources-title" }, make("h2", { id: "sources-title" }, "Where everything is from"));
  sources.forEach((s, i) => {
    const facts = Object.entries(s.facts).flatMap(([name, text]) => [make("dt", {}, name), make("dd", {}, text.includes("\n") ? make("pre", {}, text) : text)]);
    node.append(make("details", { id: `source-${i}`, class: "behind" }, make("summary", {}, s.name.endsWith(`(${s.kind})`) ? s.name : `${s.name} (${s.kind})`), make("dl", {}, make("dt", {}, "file"), make("dd", {}, s.file), ...facts)));
  });
  return node;
}

/** The fillings that tell neighbours apart where colours do not. */
function hatches() {
  const line = (d) => shape("path", { d, class: "hatch" });
  const pattern = (id, ...children) => shape("pattern", { id, width: 8, height: 8, patternUnits: "userSpaceOnUse" }, ...children);
  return shape("svg", { width: 0, height: 0, class: "hidden-text", "aria-hidden": "true" }, shape("defs", {},
    pattern("hatch1", line("M-2,2L2,-2M0,8L8,0M6,10L10,6")), pattern("hatch2", shape("circle", { cx: 4, cy: 4, r: 1.4, class: "hatch-dot" })),
    pattern("hatch3", line("M4,0V8")), pattern("hatch-predicted", line("M-2,6L2,10M0,0L8,8M6,-2L10,2"))));
}

/** A link to what is closed opens it. */
function openTarget() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target instanceof HTMLDetailsElement) target.open = true;
  target?.scrollIntoView();
}

function start() {
  const main = document.getElementById("main"), nav = document.getElementById("nav");
  const kinds = PAGE.sources.reduce((found, s) => { const k = s.kind === "run" ? "run" : "record"; found[k] = (found[k] || 0) + 1; return found; }, {});
  const holds = Object.entries(kinds).map(([k, n]) => `${n} ${k}${n === 1 ? "" : "s"}`).join(" and ");
  document.getElementById("made").textContent = `${holds}; made ${PAGE.made.replace("T", " ").replace("+00:00", " UTC")}. Every figure is marked measured, compiled or predicted; shown to 7 digits at most.`;
  document.getElementById("version").textContent = `jaxscale ${PAGE.version}`;
  main.append(hatches(), ...PAGE.notes.map((text) => make("p", { class: "about" }, text)));
  const sections = PAGE.sections.map((section) => sectionNode(section, PAGE.sources));
  main.append(...sections.map((s) => s.node), sourcesNode(PAGE.sources));
  for (const s of main.querySelectorAll("section")) nav.append(make("li", {}, make("a", { href: `#${s.id}` }, s.querySelector("h2").textContent)));
  sections.forEach((s) => s.refresh());
  addEventListener("hashchange", openTarget);
  if (location.hash) openTarget();
}

start();
