// The list of matmuls, in the order of the step: a grid that arrows move along, drawn as cards with named figures.

const COLUMNS = ["matmul", "seconds", "bound by", "case", "m × k × n a device", "FLOPs", "FLOPs/byte", "collectives"];
const PHASES = ["forward", "recomputed", "backward"];

class List {
  constructor(node, choose) {
    Object.assign(this, { node, choose, rows: [], lines: new Map() });
    node.addEventListener("keydown", (event) => this.key(event));
  }

  draw(rows, selected, atRest) {
    this.rows = rows;
    this.lines.clear();
    const focused = this.node.contains(document.activeElement);
    const body = make(
      "tbody",
      { role: "rowgroup" },
      rows.map((row) => this.line(row, row.id === selected, atRest)),
    );
    const head = make(
      "thead",
      { role: "rowgroup" },
      make(
        "tr",
        { role: "row" },
        COLUMNS.map((name) => make("th", { role: "columnheader", scope: "col" }, name)),
      ),
    );
    this.node.replaceChildren(
      make("table", { role: "grid", "aria-label": "Matmuls of the step", "aria-rowcount": rows.length }, head, body),
    );
    if (focused && this.lines.get(selected)) this.lines.get(selected).focus();
  }

  line(row, chosen, atRest) {
    const { m, k, n } = row.per_device;
    const node = make(
      "tr",
      {
        role: "row",
        "aria-selected": String(chosen),
        tabindex: chosen ? "0" : "-1",
        "data-row": row.id,
        class: `phase-${row.phase}`,
        "aria-label": `${rowTitle(row)}: ${notationText(row)}`,
      },
      make(
        "td",
        { role: "gridcell", class: "name" },
        make("span", { class: "title" }, rowTitle(row), row.times > 1 ? make("span", { class: "times" }, ` ${row.times} ×`) : null),
        make("span", { class: "notation" }, notationNodes(row)),
      ),
      cell(1, seconds(rowSeconds(row))),
      cell(2, boundText(row.bound)),
      cell(3, caseText(row.cases)),
      cell(4, [m, k, n].map(grouped).join(" × ")),
      cell(5, prefixed(row.flops, 3)),
      cell(6, plain(row.intensity, 3)),
      make(
        "td",
        { role: "gridcell", "data-label": ownBytes(row) ? `collectives, V ${bytes(ownBytes(row))}` : "collectives", class: "sends" },
        sendNodes(row, atRest),
      ),
    );
    node.addEventListener("click", () => this.choose(row.id));
    this.lines.set(row.id, node);
    return node;
  }

  mark(selected) {
    for (const [id, node] of this.lines) {
      node.setAttribute("aria-selected", String(id === selected));
      node.tabIndex = id === selected ? 0 : -1;
    }
  }

  key(event) {
    const at = this.rows.findIndex((row) => this.lines.get(row.id) === event.target),
      last = this.rows.length - 1;
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: last, PageDown: at + 8, PageUp: at - 8 }[event.key];
    if (at < 0 || to === undefined) return;
    event.preventDefault();
    const row = this.rows[Math.min(last, Math.max(0, to))];
    this.choose(row.id);
    this.lines.get(row.id).focus();
    this.lines.get(row.id).scrollIntoView({ block: "nearest" });
  }
}

const cell = (i, text) => make("td", { role: "gridcell", "data-label": COLUMNS[i], "data-figure": i }, text);

function sendNodes(row, atRest) {
  if (!row.sends.length) return "nothing";
  return row.sends.map((send) =>
    make(
      "span",
      { class: `send${send.by ? " shared" : ""}` },
      sendText(row, send),
      send.by ? `, with ${send.by}` : "",
      atRest ? compiledMark(send) : null,
    ),
  );
}

/** What the compiler did, as a sign and a word; `note`: and what it did in place of it. */
function compiledMark(send, note = false) {
  const more = note && send.note ? `: ${send.note}` : "";
  if (send.compiled === "same")
    return make("span", { class: "compiled same", title: "the compiled program has it" }, ` ✓${note ? " compiled" : ""}${more}`);
  if (send.compiled === "form")
    return make("span", { class: "compiled same", title: send.note }, ` ≈ compiled${more}`);
  if (send.compiled === "different")
    return make("span", { class: "compiled different", title: send.note || "the compiler did otherwise" }, ` ≠ compiled${more}`);
  return null;
}
