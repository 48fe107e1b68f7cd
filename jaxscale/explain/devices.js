// Devices: their places on the mesh, their colours and patterns, and the picture of the mesh.

const MOST_DEVICES = 32; // that are drawn; a larger mesh is drawn with fewer along its longest axes

/** The same mesh, small enough to draw: the longest axis is halved until it fits. */
function drawable(sizes) {
  const found = Object.fromEntries(PAGE.constants.ready.map((a) => [a, size(sizes, a)]));
  while (product(Object.values(found)) > MOST_DEVICES) {
    const axis = longest(found);
    found[axis] = Math.ceil(found[axis] / 2);
  }
  return found;
}

/** Place on the mesh -> number, as JAX numbers them: the last axis fastest. */
const deviceAt = (place, sizes) => PAGE.constants.ready.reduce((id, axis) => id * size(sizes, axis) + place[axis], 0);

function placeOf(id, sizes) {
  const place = {};
  for (const axis of [...PAGE.constants.ready].reverse()) {
    place[axis] = id % size(sizes, axis);
    id = Math.floor(id / size(sizes, axis));
  }
  return place;
}

const allDevices = (sizes) => Array.from({ length: product(PAGE.constants.ready.map((a) => size(sizes, a))) }, (_, i) => i);
const placeText = (id, sizes) =>
  PAGE.constants.ready
    .filter((a) => size(sizes, a) > 1)
    .map((a) => `${a} ${placeOf(id, sizes)[a]}`)
    .join(", ") || "the only one";

/** The devices along some axes, with a device's place on the others, in the order of the ring. */
function groupOf(id, axes, sizes) {
  const place = placeOf(id, sizes),
    ordered = PAGE.constants.ready.filter((a) => axes.includes(a));
  return Array.from({ length: count(ordered, sizes) }, (_, i) => {
    const own = { ...place };
    for (const axis of [...ordered].reverse()) {
      own[axis] = i % size(sizes, axis);
      i = Math.floor(i / size(sizes, axis));
    }
    return deviceAt(own, sizes);
  });
}

/** Devices beside each other along any axis differ in colour; those of one colour in pattern. */
const colorClass = (id) => `d${(id + 3 * Math.floor(id / 8)) % 8}`;
const patternOf = (id) => (Math.floor(id / 8) % 4 ? `url(#pattern${Math.floor(id / 8) % 4})` : null);

/** A rectangle in a device's colour and pattern. */
function deviceRect(id, x, y, width, height, extra = {}) {
  const box = { x, y, width: Math.max(0, width), height: Math.max(0, height) };
  const pattern = patternOf(id);
  return [
    shape("rect", { ...box, ...extra, class: `device ${colorClass(id)} ${extra.class || ""}` }),
    pattern ? shape("rect", { ...box, fill: pattern, class: "pattern" }) : null,
  ];
}

/** The fillings that tell devices of one colour apart. */
function patterns() {
  const pattern = (id, ...children) => shape("pattern", { id, width: 8, height: 8, patternUnits: "userSpaceOnUse" }, ...children);
  const line = (d) => shape("path", { d, class: "hatch" });
  return shape(
    "svg",
    { width: 0, height: 0, class: "hidden-text", "aria-hidden": "true" },
    shape(
      "defs",
      {},
      pattern("pattern1", line("M-2,2L2,-2M0,8L8,0M6,10L10,6")),
      pattern("pattern2", shape("circle", { cx: 4, cy: 4, r: 1.6, class: "hatch-dot" })),
      pattern("pattern3", line("M4,0V8")),
      shape(
        "pattern",
        { id: "partial", width: 6, height: 6, patternUnits: "userSpaceOnUse" },
        shape("path", { d: "M-1,1L1,-1M0,6L6,0M5,7L7,5", class: "partial-line" }),
      ),
    ),
  );
}

/** The mesh: columns along the last axis, rows along the one before, a box for each place along the others. */
class MeshPicture {
  constructor(node, choose) {
    Object.assign(this, { node, choose, sizes: null, buttons: [] });
    node.addEventListener("keydown", (event) => this.key(event));
  }

  draw(sizes, whole) {
    this.sizes = sizes;
    this.buttons = [];
    const [column, row, ...outer] = [...PAGE.constants.ready].reverse().filter((a) => size(sizes, a) > 1),
      n = column ? size(sizes, column) : 1;
    const along = (axis) => Array.from({ length: axis ? size(sizes, axis) : 1 }, (_, i) => (axis ? { [axis]: i } : {}));
    const places = outer.reduceRight((found, axis) => found.flatMap((place) => along(axis).map((o) => ({ ...place, ...o }))), [{}]),
      named = (place) => Object.entries(place).map(([axis, i]) => `${axis} ${i}`);
    const none = Object.fromEntries(PAGE.constants.ready.map((a) => [a, 0])),
      label = (axis, i) => make("span", { class: "along", "aria-hidden": "true" }, axis ? `${axis} ${i}` : "");
    const boxes = places.map((o) =>
      make(
        "div",
        { class: "box" },
        outer.length ? make("p", { class: "along" }, named(o).join(", ")) : null,
        column ? make("p", { class: "along across" }, label(row, 0), `${column} 0 to ${n - 1} →`) : null,
        along(row).map((r, j) => {
          const cells = make(
            "div",
            { class: "cells" },
            along(column).map((c) => this.cell(deviceAt({ ...none, ...o, ...r, ...c }, sizes))),
          );
          cells.style.gridTemplateColumns = `repeat(${Math.min(n, 8)}, minmax(28px, 48px))`;
          return make("div", { class: "line" }, row ? label(row, j) : null, cells);
        }),
      ),
    );
    this.columns = Math.min(n, 8);
    this.node.replaceChildren(...boxes);
    this.node.classList.toggle("wide", n > 4);
    this.node.parentElement.style.flexBasis = n > 4 ? "400px" : "";
    const reduced = PAGE.constants.ready.some((a) => size(sizes, a) !== size(whole, a));
    byId("mesh-note").textContent = reduced
      ? `A sketch: drawn as ${meshText(sizes)} in place of ${meshText(whole)}. Figures are the whole mesh's.`
      : "";
  }

  cell(id) {
    const text = make("span", { class: "number" }, String(id));
    const node = make(
      "button",
      {
        type: "button",
        class: `cell ${colorClass(id)} p${Math.floor(id / 8) % 4}`,
        "aria-pressed": "false",
        tabindex: "-1",
        "aria-label": `device ${id}: ${placeText(id, this.sizes)}`,
        "data-device": id,
      },
      text,
    );
    node.addEventListener("click", () => this.choose(id, true));
    node.addEventListener("mouseenter", () => this.choose(id, false));
    this.buttons[id] = node;
    return node;
  }

  mark(id, group) {
    this.buttons.forEach((node, i) => {
      node.setAttribute("aria-pressed", String(i === id));
      node.tabIndex = i === id ? 0 : -1;
      node.classList.toggle("in-group", group.includes(i));
    });
  }

  key(event) {
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: this.columns, ArrowUp: -this.columns },
      step = steps[event.key];
    if (!step || !(event.target instanceof HTMLButtonElement)) return;
    event.preventDefault();
    const n = this.buttons.length,
      id = (((Number(event.target.dataset.device) + step) % n) + n) % n;
    this.choose(id, true);
    this.buttons[id].focus();
  }
}
