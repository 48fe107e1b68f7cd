// A copy of a plot: its figures as CSV, its picture as PNG. To the clipboard; where that is refused, into a file.

const STYLES = ["fill", "fill-opacity", "stroke", "stroke-width", "stroke-dasharray", "stroke-linejoin", "stroke-linecap", "stroke-opacity", "opacity", "font", "text-anchor", "paint-order"];
const SHARPNESS = 2; // pixels of a picture for each of the page

function copyButtons(plot) {
  const button = (text, kind, content) => {
    const node = make("button", { type: "button", class: "small", "data-copy": kind, "aria-label": `${text} of ${plot.plot.title}` }, text);
    node.addEventListener("click", async () => {
      const done = await copied(content, `${plot.plot.id}.${kind}`);
      node.textContent = done;
      plot.live.textContent = done;
      setTimeout(() => { node.textContent = text; }, 3000);
    });
    return node;
  };
  return make("span", { class: "copies" }, button("Copy CSV", "csv", async () => new Blob([csvOf(plot)], { type: "text/plain" })), button("Copy PNG", "png", () => pngOf(plot)));
}

/** What was done, in a word or two. */
async function copied(content, file) {
  const blob = await content();
  try {
    await navigator.clipboard.write([new ClipboardItem({ [blob.type]: blob })]);
    return "Copied";
  } catch {
    const link = make("a", { href: URL.createObjectURL(blob), download: file });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    return `Saved ${file}`;
  }
}

/** The table behind the plot in base units, by RFC 4180. */
function csvOf(plot) {
  const { header, rows } = plot.figures();
  const value = (cell) => (cell === null ? "" : Array.isArray(cell) ? value(cell[0]) : typeof cell === "object" ? plot.sources[cell.source].name : String(cell));
  const field = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const units = new Map([...plot.plot.x, ...plot.plot.y].filter((a) => a.unit).map((a) => [a.label, `${a.label} (${a.unit})`]));
  return [header.map((h) => units.get(h) || h), ...rows.map((row) => row.map(value))].map((row) => `${row.map(field).join(",")}\r\n`).join("");
}

/** The plot as it stands, with its title and the names of its series. */
async function pngOf(plot) {
  const picture = pictureOf(plot), width = Number(picture.getAttribute("width")), height = Number(picture.getAttribute("height"));
  const image = new Image(width, height);
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(new XMLSerializer().serializeToString(picture))}`;
  await image.decode();
  const board = document.createElement("canvas");
  Object.assign(board, { width: width * SHARPNESS, height: height * SHARPNESS });
  const context = board.getContext("2d");
  context.scale(SHARPNESS, SHARPNESS);
  context.drawImage(image, 0, 0, width, height);
  return new Promise((done) => { board.toBlob(done, "image/png"); });
}

function pictureOf(plot) {
  const style = getComputedStyle(plot.node), width = Number(plot.svg.getAttribute("width"));
  const entries = [...plot.legend.children].filter((li) => li.firstChild.getAttribute("aria-pressed") !== "false");
  const texts = { fill: style.color, "font-family": "system-ui, sans-serif", "font-size": "12px" };
  const parts = [shape("text", { ...texts, x: 8, y: 20, "font-size": "15px", "font-weight": 700 }, plot.plot.title)];
  let x = 8, y = 32;
  for (const entry of entries) {
    const mark = styled(entry.querySelector("svg")), long = Number(mark.getAttribute("width")) + 8 + textWidth(entry.textContent);
    if (x > 8 && x + long > width) [x, y] = [8, y + 20];
    mark.setAttribute("x", x);
    mark.setAttribute("y", y);
    parts.push(mark, shape("text", { ...texts, x: x + Number(mark.getAttribute("width")) + 6, y: y + 11 }, entry.textContent));
    x += long + 14;
  }
  const drawing = styled(plot.svg), top = y + 24;
  drawing.setAttribute("y", top);
  const height = top + Number(plot.svg.getAttribute("height"));
  const defs = styled(document.querySelector("svg defs"));
  return shape("svg", { xmlns: SVG, width, height, viewBox: `0 0 ${width} ${height}` }, defs, shape("rect", { width, height, fill: style.backgroundColor }), ...parts, drawing);
}

/** A copy that carries the page's style with it. */
function styled(node) {
  const copy = node.cloneNode(true), from = [node, ...node.querySelectorAll("*")], to = [copy, ...copy.querySelectorAll("*")];
  from.forEach((one, i) => {
    const style = getComputedStyle(one);
    for (const name of STYLES) to[i].style.setProperty(name, style.getPropertyValue(name));
  });
  for (const ring of copy.querySelectorAll(".ring, .band")) ring.remove();
  return copy;
}
