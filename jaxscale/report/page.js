// The page: its sections, the choices that go for all plots of one, its tables, and where everything is from.

const PAGE = JSON.parse(document.getElementById("data").textContent);
const MOST_LINES = 20; // of a sample before a button shows the rest

function sectionNode(section, sources) {
  const state = { off: new Set(), x: null, smooth: 0, zoom: null };
  const figures = section.plots.map((plot) => new PlotFigure(plot, sources, state));
  state.refresh = () => figures.forEach((f) => f.refresh());
  const node = make("section", { id: section.id, "aria-labelledby": `${section.id}-title` }, make("h2", { id: `${section.id}-title` }, section.title));
  const words = make("div", {});
  const tell = (now, from) => words.replaceChildren(...now.about.map((text) => make("p", { class: "about" }, text)), ...now.tables.map((t) => tableNode(t, from)), ...textNodes(now.texts, from));
  tell(section, sources);
  node.append(words);
  const controls = sectionControls(section, sources, state, state.refresh);
  if (controls.children.length) node.append(controls);
  node.append(make("div", { class: section.wall ? "figures wall" : "figures" }, ...figures.map((f) => f.node)));
  const update = (now, from) => { tell(now, from); figures.forEach((f, i) => f.update(now.plots[i], from)); };
  return { node, figures, refresh: state.refresh, update };
}

/** A text with its prompt; of a long one the first lines, until a button shows the rest. */
function lines(t) {
  const all = t.text.split("\n"), short = all.length > MOST_LINES + 1;
  const text = document.createTextNode(short ? `${all.slice(0, MOST_LINES).join("\n")}\n…` : t.text);
  const node = make("div", {}, make("pre", {}, make("strong", { title: "the prompt" }, t.prompt), text));
  if (!short) return node;
  const more = make("button", { type: "button" }, `Show all ${all.length.toLocaleString("en-US")} lines`);
  more.addEventListener("click", () => { text.data = t.text; more.remove(); });
  node.append(more);
  return node;
}

/** What models wrote: the newest of each run, the others on demand. */
function textNodes(texts, sources) {
  const whole = (t) => make("figure", { class: "text" }, make("figcaption", {}, [sources[t.source].name, t.about].filter(Boolean).join(", ")),
    lines(t), t.left_out ? make("p", { class: "about" }, `${t.left_out.toLocaleString("en-US")} more characters are in the run's samples.jsonl.`) : null);
  const first = texts.filter((t, i) => i === texts.findIndex((other) => other.source === t.source));
  const rest = texts.filter((t) => !first.includes(t));
  if (!texts.length) return [];
  const more = rest.length ? [make("details", { class: "behind more-texts" }, make("summary", {}, `${rest.length} more sample${rest.length > 1 ? "s" : ""}`), ...rest.map(whole))] : [];
  return [make("p", { class: "about" }, "The prompt is in bold; what follows it was sampled from the model."), make("div", { class: "texts" }, ...first.map(whole)), ...more];
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
  const own = t.sources.length > 0; // each row is from one source
  const said = own && t.rows.every((row, i) => row[0] === sources[t.sources[i]].name); // and its first cell names it
  const header = own && !said ? [...t.columns, "from"] : t.columns;
  const rows = own ? t.rows.map((row, i) => (said ? [{ source: t.sources[i] }, ...row.slice(1)] : [...row, { source: t.sources[i] }])) : t.rows;
  if (!own) return make("div", { class: "open-table" }, table(t.title, header, rows, sources));
  if (!t.closed) return make("div", { class: "open-table" }, table(t.title, header, rows, sources),
    make("details", { class: "behind" }, make("summary", {}, "Where these figures are from"), provenance([...new Set(t.sources)], sources)));
  const details = make("details", { class: "behind" }, make("summary", {}, `${t.title}: ${t.rows.length} rows`));
  details.addEventListener("toggle", () => { if (details.open && details.children.length === 1) details.append(table(t.title, header, rows, sources), provenance([...new Set(t.sources)], sources)); });
  return details;
}

/** The number, and its unit smaller beside it. */
const headline = (text) => [text.split(" ")[0], make("span", { class: "unit" }, text.slice(text.split(" ")[0].length))];

/** The headlines: a figure each, with what it is of. */
const tileNodes = (tiles) => tiles.map((t) => make("div", { class: "tile" }, make("dt", {}, t.label), make("dd", { class: "tile-figure", title: String(t.figure.value) }, ...headline(figure(t.figure.value, t.figure.unit))), make("dd", { class: "tile-about" }, t.about)));

/** Files of a directory that are not ours. */
function skippedNode(skipped) {
  const count = skipped.length === 1 ? "1 file was" : `${skipped.length} files were`;
  return make("details", { class: "behind", id: "skipped" }, make("summary", {}, `${count} passed over: not records of a benchmark, a ladder or a law`), make("ul", {}, ...skipped.map((path) => make("li", {}, path))));
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

function heading(page) {
  const kinds = page.sources.reduce((found, s) => { const k = s.kind === "run" ? "run" : "record"; found[k] = (found[k] || 0) + 1; return found; }, {});
  const holds = Object.entries(kinds).map(([k, n]) => `${n} ${k}${n === 1 ? "" : "s"}`).join(" and ");
  document.getElementById("made").textContent = `${holds}; made ${page.made.replace("T", " ").replace("+00:00", " UTC")}. Every figure is marked measured, compiled or predicted; shown to 7 digits at most.`;
  const tiles = document.getElementById("tiles");
  tiles.replaceChildren(...tileNodes(page.tiles));
  tiles.hidden = !page.tiles.length;
}

let shown = null; // the sections, as they are drawn

function start() {
  const main = document.getElementById("main"), nav = document.getElementById("nav");
  heading(PAGE);
  document.getElementById("version").textContent = `jaxscale ${PAGE.version}`;
  main.append(hatches());
  shown = PAGE.sections.map((section) => sectionNode(section, PAGE.sources));
  main.append(...shown.map((s) => s.node), sourcesNode(PAGE.sources));
  if (PAGE.skipped.length) main.append(skippedNode(PAGE.skipped));
  for (const s of main.querySelectorAll("section")) nav.append(make("li", {}, make("a", { href: `#${s.id}` }, s.querySelector("h2").textContent)));
  shown.forEach((s) => s.refresh());
  addEventListener("hashchange", openTarget);
  if (location.hash) openTarget();
}

start();
