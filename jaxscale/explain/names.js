// Words and notation: `x[B_data,fsdp, T, D]` with real subscripts, mesh sizes, and what a case or a collective is.

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes and children; strings become text, never markup. */
function element(space, name, attributes, children) {
  const node = space ? document.createElementNS(space, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {}))
    if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value);
  for (const child of children.flat(Infinity)) if (child !== null && child !== undefined) node.append(child);
  return node;
}
const make = (name, attributes, ...children) => element(null, name, attributes, children);
const shape = (name, attributes, ...children) => element(SVG, name, attributes, children);
const byId = (id) => document.getElementById(id);

const pencil = document.createElement("canvas").getContext("2d");
/** Pixels of a text in an SVG here. */
function textWidth(text, size = 12, weight = 400) {
  pencil.font = `${weight} ${size}px system-ui, sans-serif`;
  return pencil.measureText(text).width;
}

const WHY = {
  "all-gather": "every device ends with all chunks",
  "reduce-scatter": "every device ends with one chunk of the sum",
  "all-reduce": "a reduce-scatter, then an all-gather: every device ends with the whole sum",
  "all-to-all": "every device trades its blocks: rows for columns",
  "ragged-all-to-all": "every row is on the device of its expert, or back on that of its token; drawn and counted as if loads were even",
};
const PURPOSE = {
  dispatch: "rows go to the devices of their experts; in the backward pass their gradients come back",
  combine: "results come back to the devices of their tokens; in the backward pass their gradients go to the experts",
  routing: "each row's expert and weight, or how many rows there are",
};

/** What a letter stands for. */
const dimName = (c, { dims, routed } = PAGE.config.table) =>
  ({ B: "batch", T: "sequence", S: "keys", L: "layers", [routed?.rows]: "rows of an expert" })[c] || dims[c]?.axis.replaceAll("_", " ");

/** x[B_{data,fsdp}, T, D] as nodes; `plain` as text, for names that are read aloud. */
function tensorNodes(name, letters, layout) {
  const parts = [make("span", { class: "tensor" }, name), "["];
  letters.forEach((c, i) => parts.push(i ? ", " : "", make("var", { title: dimName(c) }, c), layout[i].length ? make("sub", {}, layout[i].join(",")) : null));
  return [...parts, "]"].filter((part) => part !== null);
}
const tensorText = (name, letters, layout) =>
  `${name}[${letters.map((c, i) => (layout[i].length ? `${c}_${layout[i].length > 1 ? `{${layout[i].join(",")}}` : layout[i][0]}` : c)).join(", ")}]`;

const notationNodes = (row) => [
  ...tensorNodes(row.x.name, row.x.letters, row.x.stored),
  " · ",
  ...tensorNodes(row.w.name, row.w.letters, row.w.stored),
  " → ",
  ...tensorNodes(row.out.name, row.out.letters, row.out.used),
];
const notationText = (row) =>
  `${tensorText(row.x.name, row.x.letters, row.x.stored)} · ${tensorText(row.w.name, row.w.letters, row.w.stored)} -> ${tensorText(row.out.name, row.out.letters, row.out.used)}`;

const rowTitle = (row) => `${row.name}${row.what ? `, ${row.what}` : ""}${row.phase === "recomputed" ? " (recomputed)" : ""}`;
const meshText = (sizes) =>
  PAGE.constants.ready
    .filter((a) => size(sizes, a) > 1)
    .map((a) => `${a}=${sizes[a]}`)
    .join(", ") || "one device";
const caseText = (cases) => {
  const axes = Object.entries(cases).filter(([, c]) => c > 1);
  return axes.length ? axes.map(([axis, c]) => `${axis} ${c}`).join(", ") : "1";
};
const operandName = (row, send) => send.sent || row[send.operand].name;
const sendText = (row, send) => `${send.of ? `${send.of}: ` : ""}${send.kind} ${operandName(row, send)} over ${send.axes.join(", ")}`;
const seconds = (value) => figure(value, "s", 3);
const bytes = (value) => figure(value, "bytes", 4);
const boundText = (bound) => bound || "–";
