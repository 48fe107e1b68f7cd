// Tables of figures, and where their figures are from.

const MOST_ROWS = 300; // of a table before a button shows the rest

/** A cell is text, a number, [value, unit], {value, unit, basis}, {source} or null. */
function cellNode(cell, sources, head) {
  if (cell && typeof cell === "object" && "source" in cell) return make(head ? "th" : "td", head ? { scope: "row" } : {}, make("a", { href: `#source-${cell.source}` }, sources[cell.source].name));
  const [value, unit] = Array.isArray(cell) ? cell : cell && typeof cell === "object" ? [cell.value, cell.unit] : [cell, ""];
  if (typeof value === "number") return make("td", { class: "number", title: String(value) }, figure(value, unit, 5));
  return make(head ? "th" : "td", head ? { scope: "row" } : {}, value === null || value === undefined ? "–" : String(value));
}

/** A narrow screen shows a row as a card, each figure beside its name. */
function named(cell, name) {
  cell.dataset.label = name;
  return cell;
}

/** In a box of its own that scrolls, by keyboard too. */
function table(caption, header, rows, sources) {
  const body = make("tbody");
  const add = (some) => body.append(...some.map((row) => make("tr", {}, ...row.map((cell, k) => named(cellNode(cell, sources, k === 0), header[k])))));
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
