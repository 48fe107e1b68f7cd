// The roofline: each matmul by its intensity and the FLOP/s that it can reach, logarithmic along both axes.

const MARKS = {
  compute: (r) => `M${-r},0A${r},${r} 0 1 1 ${r},0A${r},${r} 0 1 1 ${-r},0Z`,
  HBM: (r) => `M${-r},${-r}H${r}V${r}H${-r}Z`,
  network: (r) => `M0,${-1.2 * r}L${1.2 * r},${r}H${-1.2 * r}Z`,
};
const markOf = (bound) => MARKS[bound] || MARKS.network;

class Roofline {
  constructor(node, choose) {
    Object.assign(this, { node, choose });
  }

  /** `rates`: what the chip reaches; `peak`: its datasheet's FLOP/s and bytes/s in the dtype of the step. */
  draw(rows, rates, chip, selected) {
    const width = Math.max(300, Math.min(this.node.clientWidth || 560, 720)),
      height = width < 480 ? 290 : 340;
    const box = { left: 58, right: width - 14, top: 18, bottom: height - 44 };
    const reach = (row) => ({
      x: row.intensity,
      y: row.flops / rowSeconds(row),
      roof: row.flops / Math.max(row.seconds.compute, row.seconds.HBM),
    });
    const points = rows.map((row) => ({ row, ...reach(row) })).filter((p) => p.x > 0 && p.y > 0 && Number.isFinite(p.x * p.y));
    const ridge = rates.matmul_flops / rates.memory,
      xs = [...points.map((p) => p.x), ridge],
      ys = points.map((p) => p.y);
    const [x0, x1] = [Math.min(...xs) / 2.5, Math.max(...xs) * 4],
      peak = chip.device_flops * (rates.matmul_flops / chip.best);
    const [y0, y1] = [Math.min(...ys, peak / 20) / 2, peak * 2];
    const sx = logScale(x0, x1, box.left, box.right),
      sy = logScale(y0, y1, box.bottom, box.top);
    const svg = shape("svg", {
      viewBox: `0 0 ${width} ${height}`,
      width,
      height,
      role: "group",
      "aria-label": "Roofline: FLOP/s over FLOPs for each byte of memory",
    });
    this.axes(svg, sx, sy, [x0, x1, y0, y1], box, width);
    const line = (flops, memory, name) => {
      const from = Math.max(x0, y0 / memory);
      svg.append(
        shape("path", { d: `M${sx(from)},${sy(from * memory)}L${sx(flops / memory)},${sy(flops)}H${box.right}`, class: `roof ${name}` }),
      );
    };
    line(rates.matmul_flops, rates.memory, "reached");
    line(peak, chip.device_bandwidth, "peak");
    this.marks(svg, merged(points, sx, sy), sx, sy, selected, box);
    this.node.replaceChildren(svg);
  }

  axes(svg, sx, sy, [x0, x1, y0, y1], box, width) {
    for (const t of logTicks(y0, y1, 6))
      svg.append(
        shape("line", { x1: box.left, x2: box.right, y1: sy(t), y2: sy(t), class: "grid" }),
        shape("text", { x: box.left - 6, y: sy(t) + 4, "text-anchor": "end", class: "tick" }, tickText(t, "FLOP/s")),
      );
    for (const t of logTicks(x0, x1, width < 480 ? 4 : 7))
      svg.append(
        shape("line", { x1: sx(t), x2: sx(t), y1: box.top, y2: box.bottom, class: "grid" }),
        shape("text", { x: sx(t), y: box.bottom + 16, "text-anchor": "middle", class: "tick" }, tickText(t, "")),
      );
    svg.append(
      shape("text", { x: 4, y: 11, class: "tick" }, "FLOP/s of a device"),
      shape(
        "text",
        { x: (box.left + box.right) / 2, y: box.bottom + 36, "text-anchor": "middle", class: "tick" },
        "intensity: FLOPs a byte of HBM",
      ),
    );
  }

  marks(svg, groups, sx, sy, selected, box) {
    const taken = groups.map(({ x, y }) => ({ left: sx(x) - 8, right: sx(x) + 8, top: sy(y) - 8, bottom: sy(y) + 8 }));
    for (const group of groups) {
      const { x, y, roof, rows } = group,
        chosen = rows.some((row) => row.id === selected),
        px = sx(x),
        py = sy(y);
      const names = [...new Set(rows.map((row) => row.name))].join(", "),
        bound = boundText(rows[0].bound);
      const node = shape("g", {
        class: `point${chosen ? " chosen" : ""}`,
        tabindex: "0",
        role: "button",
        "aria-label": `${names}: ${plain(x, 4)} FLOPs a byte, ${figure(y, "FLOP/s", 4)}, bound by ${bound}`,
        "data-rows": rows.map((row) => row.id).join(" "),
      });
      if (roof > y * 1.02) node.append(shape("line", { x1: px, x2: px, y1: sy(roof), y2: py, class: "drop" }));
      if (chosen) node.append(shape("circle", { cx: px, cy: py, r: 11, class: "ring" }));
      node.append(
        shape("circle", { cx: px, cy: py, r: 14, class: "target" }),
        shape("path", {
          d: markOf(rows[0].bound)(chosen ? 7 : 5.5),
          transform: `translate(${px} ${py})`,
          class: `mark ${rows[0].bound in MARKS ? rows[0].bound : "network"}`,
        }),
      );
      const place = labelPlace(names, px, py, box, taken, roof <= y * 1.02);
      if (place) node.append(shape("text", { x: place.x, y: place.y, "text-anchor": place.anchor, class: "point-name" }, names));
      const pick = () => this.choose(rows[(rows.findIndex((row) => row.id === selected) + 1) % rows.length].id);
      node.addEventListener("click", pick);
      node.addEventListener("keydown", (event) => {
        if (event.key === "Enter" || event.key === " ") {
          event.preventDefault();
          event.stopPropagation();
          pick();
        }
      });
      svg.append(node);
    }
  }
}

function logScale(from, to, start, end) {
  return (v) => start + ((Math.log(Math.max(v, from * 1e-9)) - Math.log(from)) / (Math.log(to) - Math.log(from))) * (end - start);
}

/** Points that would lie on each other are one, with all their names. */
function merged(points, sx, sy) {
  const found = [];
  for (const p of points) {
    const same = found.find((g) => Math.hypot(sx(g.x) - sx(p.x), sy(g.y) - sy(p.y)) < 7 && g.rows[0].bound === p.row.bound);
    if (same) same.rows.push(p.row);
    else found.push({ x: p.x, y: p.y, roof: p.roof, rows: [p.row] });
  }
  return found;
}

/** Beside, above or below the mark, where nothing is yet; null where there is no such place. */
function labelPlace(text, x, y, box, taken, onRoof) {
  const width = textWidth(text, 12, 600) + 2,
    beside = [
      ["end", -11, 4],
      ["start", 11, 4],
      ["start", 11, 17],
      ["end", -11, -9],
      ["start", 11, -9],
      ["end", -11, 18],
      ["start", 11, 31],
      ["end", -11, 32],
      ["end", -11, -22],
      ["start", 11, 45],
    ];
  const tries = onRoof
    ? [
        ["middle", 0, 24],
        ["start", 4, 24],
        ["end", -4, -14],
        ["middle", 0, 39],
        ["end", -4, -29],
        ["middle", 0, 54],
      ]
    : beside;
  for (const [anchor, dx, dy] of tries) {
    const left = x + dx - width * { start: 0, middle: 0.5, end: 1 }[anchor],
      area = { left, right: left + width, top: y + dy - 11, bottom: y + dy + 3 };
    if (area.left < box.left || area.right > box.right + 8 || area.bottom > box.bottom || area.top < 0) continue;
    if (taken.some((o) => o.left < area.right && area.left < o.right && o.top < area.bottom && area.top < o.bottom)) continue;
    taken.push(area);
    return { anchor, x: x + dx, y: y + dy };
  }
  return null;
}
