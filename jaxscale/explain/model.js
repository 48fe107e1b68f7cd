// The whole model: embedding, layers, head. Each matmul is a button that opens it, coloured by what binds it in a step.

const KINDS = { compute: "bound by compute", HBM: "by memory", network: "by a network" };
const kindOf = (bound) => (bound in MARKS ? bound : "network");

const markNode = (kind) =>
  shape("svg", { width: 14, height: 14, "aria-hidden": "true" }, shape("path", { d: markOf(kind)(5.5), transform: "translate(7 7)", class: `mark ${kind}` }));

/** What the colours and shapes mean. */
const legendNodes = () => Object.entries(KINDS).map(([kind, text]) => make("span", {}, markNode(kind), text));

/** A matmul's seconds in a step, over all passes and layers; `kind`: what it waits for in most of them. */
function inStep(name, rows) {
  const own = rows.filter((row) => row.name === name),
    by = {};
  for (const row of own) by[row.bound] = (by[row.bound] || 0) + row.times * rowSeconds(row);
  const bound = longest(by);
  return { name, row: own[0], seconds: total(Object.values(by)), bound, kind: kindOf(bound) };
}

/** Title and matmuls of each part, in the order of the forward pass. */
function partsOf(rows) {
  const { layers, layouts, kinds } = PAGE.config.table,
    micro = PAGE.config.step.microbatches;
  const forward = rows.filter((row) => row.phase === "forward");
  const first = (forward.length ? forward : rows).filter((row, i, all) => all.findIndex((r) => r.name === row.name) === i);
  const last = Math.max(...first.map((row, i) => (ATTENTION.includes(row.name) ? i : -1)));
  const found = [];
  first.forEach((row, i) => {
    const layout = layouts.find(sameRow(row)),
      inside = layout ? layout.stacked : row.times > micro,
      attention = last >= 0 && i <= last + 1; // and the matmul of its result
    const n = layout?.only ? kinds[layout.only] : layers;
    const what = attention ? "attention" : layout?.only || last < 0 ? layout?.only || "" : "MLP";
    const title = inside ? `${what ? `${what}, ` : ""}${n} layer${n === 1 ? "" : "s"}` : "head";
    if (found.at(-1)?.title !== title) found.push({ title, inside, matmuls: [] });
    found.at(-1).matmuls.push(inStep(row.name, rows));
  });
  return found;
}

class ModelPicture {
  constructor(node, open) {
    Object.assign(this, { node, open, buttons: new Map() });
  }

  /** `sent`: for the lookup of rows and its gradient, predicted as the seconds are. */
  draw(rows, sent, selected) {
    const parts = partsOf(rows),
      all = parts.flatMap((part) => part.matmuls),
      most = Math.max(...all.map((m) => m.seconds)),
      sum = total(all.map((m) => m.seconds));
    const focused = this.node.contains(document.activeElement) ? document.activeElement.dataset.name : null;
    this.buttons.clear();
    const nodes = parts.map((part) => {
      const own = total(part.matmuls.map((m) => m.seconds));
      return make(
        "div",
        { class: `part${part.inside ? " layers" : ""}`, role: "group", "aria-label": part.title },
        make("h3", {}, part.title, make("span", { class: "quiet" }, ` ${seconds(own)}, ${plain((100 * own) / sum, 2)} %`)),
        make("div", { class: "matmuls" }, part.matmuls.map((m) => this.button(m, most))),
      );
    });
    this.node.replaceChildren(...(PAGE.config.table.lookups.length ? [this.embedding(sent)] : []), ...nodes);
    this.mark(selected);
    if (focused) this.buttons.get(focused)?.focus();
  }

  /** Rows are looked up there: no matmul, so what is sent for it is all that there is to open. */
  embedding(sent) {
    const sum = total(sent.map((s) => s.bytes * s.times)),
      kind = sum ? "network" : "HBM";
    const link = make(
      "a",
      { href: "#others-section", class: `matmul ${kind}` },
      make("span", { class: "matmul-name" }, markNode(kind), "lookup"),
      make("span", { class: "quiet" }, sum ? `${bytes(sum)} sent` : "nothing sent"),
    );
    return make("div", { class: "part", role: "group", "aria-label": "embeddings" }, make("h3", {}, "embeddings"), make("div", { class: "matmuls" }, link));
  }

  button(m, most) {
    const bar = make("span", { class: `bar ${m.kind}` }),
      node = make(
        "button",
        { type: "button", class: `matmul ${m.kind}`, "data-name": m.name, "aria-pressed": "false", "aria-label": `open ${m.name}: ${seconds(m.seconds)} of a step, bound by ${boundText(m.bound)}` },
        make("span", { class: "matmul-name" }, markNode(m.kind), m.name),
        make("span", {}, seconds(m.seconds)),
        make("span", { class: "quiet" }, boundText(m.bound)),
        make("span", { class: "track", "aria-hidden": "true" }, bar),
      );
    bar.style.width = `${Math.max(1, (100 * m.seconds) / most)}%`;
    node.addEventListener("click", () => this.open(m.row.id));
    this.buttons.set(m.name, node);
    return node;
  }

  mark(selected) {
    for (const [name, node] of this.buttons) node.setAttribute("aria-pressed", String(name === selected));
  }
}
