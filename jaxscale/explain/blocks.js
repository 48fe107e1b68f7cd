// A matmul as three matrices cut into blocks: x at the left, w above, the result where their rows and columns meet.

const SHORT = 64; // the least of a drawn side; the others by the logarithm of their dims

const isOneMatmul = (row) =>
  row.formula.split("->")[1].toUpperCase() === row.out.letters.join("") || lettersOf(row).n.every((c) => row.out.letters.includes(c));

/** Which device holds which block: for each place the row of blocks, the column of blocks. */
function blocksOf(tensor, layout, rows, columns, sizes) {
  const along = (letters) => {
    const axes = letters.map((c) => layout[tensor.letters.indexOf(c)] || []);
    return { parts: axes.map((own) => count(own, sizes)), axes };
  };
  const down = along(rows),
    across = along(columns);
  const index = ({ parts, axes }, place) =>
    axes.reduce((found, own, i) => found * parts[i] + own.reduce((at, axis) => at * size(sizes, axis) + place[axis], 0), 0);
  const holders = new Map();
  for (const id of allDevices(sizes)) {
    const place = placeOf(id, sizes),
      key = `${index(down, place)},${index(across, place)}`;
    holders.set(key, [...(holders.get(key) || []), id]);
  }
  return {
    rows: product(down.parts),
    columns: product(across.parts),
    holders,
    of: (id) => [index(down, placeOf(id, sizes)), index(across, placeOf(id, sizes))],
  };
}

/** The three tensors with the letters along each side. */
function sidesOf(row) {
  const { batch, m, k, n } = lettersOf(row),
    rows = [...batch, ...m];
  const there = (letters) => letters.filter((c) => row.out.letters.includes(c));
  return {
    x: { tensor: row.x, rows, columns: k },
    w: { tensor: row.w, rows: [...batch, ...k], columns: n },
    out: { tensor: row.out, rows: there(rows), columns: there(n) },
  };
}

const dimOf = (tensor, letters) => product(letters.map((c) => tensor.sizes[tensor.letters.indexOf(c)] ?? 1));

class BlockPicture {
  constructor(node, choose) {
    Object.assign(this, { node, choose });
  }

  /** Several matmuls in one kernel are not drawn as one. */
  empty() {
    this.node.replaceChildren(make("p", {}, "Several matmuls in one kernel, each device for its own rows and heads."));
    this.parts = {};
  }

  /** `view`: `stored` (before and after the collectives) or `used` (what is multiplied, and what comes out). */
  draw(row, sizes, view) {
    this.sizes = sizes;
    const sides = sidesOf(row),
      dims = { m: dimOf(row.x, sides.x.rows), k: dimOf(row.x, sides.x.columns), n: dimOf(row.w, sides.w.columns) };
    const logs = Object.values(dims).map((d) => Math.log2(d + 1)),
      low = Math.min(...logs),
      high = Math.max(...logs);
    const LONG = Math.max(120, Math.min(230, ((this.node.clientWidth || 480) - 110) / 2));
    const long = (d) => (high - low < 0.5 ? 0.75 * LONG : SHORT + ((Math.log2(d + 1) - low) / (high - low)) * (LONG - SHORT));
    const parts = (key) => {
      const { tensor, rows, columns } = sides[key];
      return blocksOf(tensor, layoutFor(tensor, key, view), rows, columns, sizes);
    };
    // a box is no shorter than the text beside it, and a column no narrower than those above
    const beside = (key) => textWidth(sideText(sides[key].rows, sides[key].tensor), 11.5) + 12;
    const above = (key) => Math.max(textWidth(titleOf(key, sides[key].tensor, view), 13, 600), textWidth(sideText(sides[key].columns, sides[key].tensor), 11.5)) + 4;
    const m = Math.max(long(dims.m), 84, Math.min(300, parts("x").rows * 13), beside("x"), beside("out")),
      k = Math.max(long(dims.k), beside("w")),
      n = long(dims.n),
      left = 30,
      top = 42,
      gap = 54,
      right = left + Math.max(k, above("x")) + gap;
    const boxes = { x: [left, top + k + gap, k, m], w: [right, top, n, k], out: [right, top + k + gap, n, m] };
    const width = Math.max(right + Math.max(n, above("w"), above("out")) + 12, 340),
      height = top + k + gap + m + 30;
    const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": this.told(row, view) });
    this.parts = {};
    for (const key of ["x", "w", "out"])
      svg.append(this.tensor(key, sides[key], boxes[key], layoutFor(sides[key].tensor, key, view), view, row));
    svg.append(shape("text", { x: right - gap / 2, y: top + k + gap / 2 + 6, class: "operator", "text-anchor": "middle" }, "×"));
    this.node.replaceChildren(svg);
  }

  tensor(key, { tensor, rows, columns }, [x, y, width, height], layout, view, row) {
    const blocks = blocksOf(tensor, layout, rows, columns, this.sizes),
      group = shape("g", { class: `tensor-${key}` });
    const partial = key === "out" && view === "used" && tensor.unreduced.length > 0;
    const h = height / blocks.rows,
      w = width / blocks.columns;
    this.parts[key] = { blocks, nodes: new Map() };
    for (const [place, holders] of blocks.holders) {
      const [i, j] = place.split(",").map(Number);
      const block = this.block(holders, x + j * w, y + i * h, w, h, partial);
      block.append(
        shape(
          "title",
          {},
          `${tensor.name}, block ${i + 1} of ${blocks.rows} down, ${j + 1} of ${blocks.columns} across: ${partial ? "partial sums on" : "on"} device${holders.length > 1 ? "s" : ""} ${holders.join(", ")}`,
        ),
      );
      block.addEventListener("mouseenter", () => this.choose(holders[0], false));
      block.addEventListener("click", () => this.choose(holders[0], true));
      this.parts[key].nodes.set(place, block);
      group.append(block);
    }
    group.append(shape("rect", { x, y, width, height, class: "outline" }));
    const up = { x, y: y - (key === "w" ? 24 : 22), class: "block-title" };
    group.append(shape("text", up, titleOf(key, tensor, view)));
    const along = sideText(columns, tensor),
      inside = textWidth(along, 11.5) <= width;
    group.append(shape("text", { x: inside ? x + width / 2 : x, y: y - 7, "text-anchor": inside ? "middle" : "start", class: "dim" }, along));
    group.append(
      shape(
        "text",
        { x: x - 7, y: y + height / 2, "text-anchor": "middle", class: "dim", transform: `rotate(-90 ${x - 7} ${y + height / 2})` },
        sideText(rows, tensor),
      ),
    );
    return group;
  }

  /** One block: as many stripes as devices hold it, their numbers where there is room. */
  block(holders, x, y, width, height, partial) {
    const group = shape("g", { class: "block", "data-holders": holders.join(" ") }),
      shown = holders.slice(0, 8),
      stripe = width / shown.length;
    shown.forEach((id, i) => group.append(...deviceRect(id, x + i * stripe, y, stripe, height).filter(Boolean)));
    if (partial) group.append(shape("rect", { x, y, width, height, fill: "url(#partial)", class: "pattern" }));
    group.append(shape("rect", { x, y, width, height, class: "edge" }));
    const text = holders.join(" "),
      fits = (words) => width >= textWidth(words, 12, 600) + 4 && height >= 13;
    const brief = holders.length > 1 ? `${holders.length} devices` : text;
    const words = [text, brief, holders.length > 1 ? `×${holders.length}` : ""].find(fits);
    if (words) group.append(shape("text", { x: x + width / 2, y: y + height / 2 + 4, "text-anchor": "middle", class: "holder" }, words));
    return group;
  }

  /** What a device holds stands out, the rest steps back. */
  mark(id) {
    for (const { blocks, nodes } of Object.values(this.parts)) {
      const own = blocks.of(id).join(",");
      for (const [place, node] of nodes) {
        node.classList.toggle("mine", place === own);
        node.classList.toggle("others", place !== own);
      }
      if (nodes.get(own)) nodes.get(own).parentNode.insertBefore(nodes.get(own), nodes.get(own).parentNode.querySelector(".outline"));
    }
  }

  told(row, view) {
    const words = ["x", "w", "out"].map((key) => tensorText(row[key].name, row[key].letters, layoutFor(row[key], key, view)));
    return `${words[0]} times ${words[1]} gives ${words[2]}, cut into blocks; ${view === "used" ? "as they are multiplied" : "as they are stored"}`;
  }
}

const titleOf = (key, tensor, view) => `${tensor.name}${key === "out" && view === "used" && tensor.unreduced.length ? " (partial sums)" : ""}`;

/** `used`: the operands as they are multiplied and the result as that leaves it; `stored`: before, and after. */
const layoutFor = (tensor, key, view) => ((key === "out") === (view === "used") ? tensor.stored : tensor.used);
const sideText = (letters, tensor) => letters.map((c) => `${c} ${grouped(tensor.sizes[tensor.letters.indexOf(c)] ?? 1)}`).join(" · ");
const grouped = (n) => Number(n.toPrecision(6)).toLocaleString("en-US");

/** What one device does in this matmul, in a sentence or two. */
function deviceWords(id, row, sizes, view) {
  const local = (key) =>
    localSizes(row[key], layoutFor(row[key], key, view), sizes)
      .map(grouped)
      .join(" × ");
  const name = (key) => `${row[key].name} [${row[key].letters.join(", ")}]`,
    place = placeText(id, sizes);
  if (view === "stored")
    return `Device ${id} (${place}) keeps ${local("x")} of ${name("x")} and ${local("w")} of ${name("w")}; at the end ${local("out")} of ${name("out")}.`;
  const partial = row.out.unreduced.length
    ? `, a partial sum: the devices along ${row.out.unreduced.join(" and ")} have the other terms`
    : "";
  return `Device ${id} (${place}) multiplies its ${local("x")} of ${name("x")} with its ${local("w")} of ${name("w")}. It gets ${local("out")} of ${name("out")}${partial}.`;
}
