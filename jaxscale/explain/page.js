// The page: what is chosen, what follows from it, and the keys.

const PAGE = JSON.parse(document.getElementById("data").textContent);

const state = { row: null, device: 0, held: 0, view: "used", send: null, phase: "forward" };
let now = null; // what the sliders came to: {config, sizes, chip, atRest, machine, problem, rows}
let list, mesh, blocks, player, roofline, controls, model;

function compute() {
  const found = controls.read(),
    machine = machineOf(found.chip, found.sizes);
  const problem = problemOf(found);
  let rows = [];
  if (found.atRest) rows = PAGE.explained.rows.map(tracedRow);
  else if (!problem) rows = PAGE.explained.rows.map((row) => predictedRow(row, found.config, found.chip, found.sizes, machine));
  return { ...found, machine, problem, rows: withBorrowed(rows) };
}

/** Why what the sliders say cannot be, or null. */
const problemOf = ({ atRest, config, chip, sizes }) => (atRest ? null : brokenRule(config, sizes) || machineOf(chip, sizes).reason || null);

/** Everything again, after a slider was moved. */
function refresh() {
  now = compute();
  document.body.classList.toggle("impossible", Boolean(now.problem));
  const traced = meshText(PAGE.explained.mesh),
    by = PAGE.explained.compiled_by;
  byId("basis").textContent = now.atRest
    ? `Shardings and collectives as traced for ${traced}${by ? `; the marks beside them by ${by}` : `; not compiled${PAGE.explained.not_compiled ? `: ${PAGE.explained.not_compiled}` : ""}`}. Figures: predicted${PAGE.explained.assumed ? `, for ${PAGE.explained.topology}, as no topology was given` : ""}.`
    : `Predicted; the ${by ? "compiled" : "traced"} program was for ${traced} on ${PAGE.explained.topology}.`;
  byId("basis").classList.toggle("moved", !now.atRest);
  byId("problem").textContent = now.problem ? `Not possible: ${now.problem}` : "";
  byId("advice").replaceChildren(...(now.problem ? adviceNodes(remedies(controls, problemOf)) : []));
  controls.tell(now, now.machine);
  const forecastable = !now.problem && !now.machine.reason;
  const found = forecastable ? forecast(now.config, now.chip, now.sizes, now.machine) : null;
  if (found) byId("summary").replaceChildren(...summaryNodes(found));
  byId("conventions").textContent = found ? conventionText(found, now.config, now.chip, now.machine) : "";
  drawOthers();
  if (!now.problem) drawRows();
}

function shownRows() {
  return state.phase === "all" ? now.rows : now.rows.filter((row) => row.phase === state.phase);
}

function drawRows() {
  const rows = shownRows();
  if (!rows.some((row) => row.id === state.row)) state.row = rows.length ? rows[0].id : null;
  list.draw(rows, state.row, now.atRest);
  model.draw(now.rows, lookups(now.config, now.sizes), chosenName());
  drawRoofline();
  drawDetail();
}

const chosenName = () => now.rows.find((row) => row.id === state.row)?.name;

/** A matmul of the picture: chosen, and brought into view. */
function open(id) {
  choose(id);
  if (byId("detail").getBoundingClientRect().top > innerHeight * 0.6) byId("detail").scrollIntoView({ block: "start" });
}

function drawRoofline() {
  const own = PAGE.machines.chips[now.chip],
    rates = ratesOf(now.config, now.chip);
  roofline.draw(shownRows(), rates, { ...own, best: own.rates.bfloat16.matmul_flops }, state.row);
  const passes = Math.round(own.rates.bfloat16.matmul_flops / rates.matmul_flops),
    peak = passes > 1 ? `the datasheet, with a float32 matmul at 1/${passes} of the bf16 peak` : "the datasheet";
  byId("roof-note").textContent =
    `${now.chip}: the solid line is what matmuls and memory reach (${figure(rates.matmul_flops, "FLOP/s", 3)}, ${figure(rates.memory, "bytes/s", 3)}), the dashed one ${peak}. A mark below the roof waits for its collective${shownRows().some((row) => ATTENTION.includes(row.name)) ? "; attention's kernel reaches less than a matmul" : ""}.`;
}

function choose(id) {
  if (id === state.row) return;
  Object.assign(state, { row: id, send: null });
  if (!shownRows().some((row) => row.id === id)) {
    state.phase = now.rows.find((row) => row.id === id).phase;
    phaseButtons();
    list.draw(shownRows(), id, now.atRest);
  }
  list.mark(id);
  model.mark(chosenName());
  drawRoofline();
  drawDetail();
}

function drawDetail() {
  const row = now.rows.find((r) => r.id === state.row);
  byId("detail").hidden = !row;
  if (!row) return;
  const sketch = drawable(now.sizes),
    n = allDevices(sketch).length;
  state.device = Math.min(state.device, n - 1);
  state.held = Math.min(state.held, n - 1);
  byId("detail-title").textContent = rowTitle(row);
  byId("detail-notation").replaceChildren(...notationNodes(row));
  byId("detail-cases").replaceChildren(
    ...Object.entries(row.cases).map(([axis, c]) =>
      make("li", { class: c === 1 ? "quiet" : "" }, make("strong", {}, `${axis}: case ${c}`), `, ${PAGE.constants.cases[c]}`),
    ),
  );
  byId("detail-times").replaceChildren(
    ...Object.entries(row.seconds).map(([name, value]) =>
      make("li", { class: name === row.bound ? "binds" : "" }, `${name} ${seconds(value)}`),
    ),
  );
  byId("row-note").textContent = row.note || "";
  mesh.draw(sketch, now.sizes);
  if (isOneMatmul(row)) blocks.draw(row, sketch, state.view);
  else blocks.empty();
  sendChoices(row, sketch);
  markDevice();
}

function sendChoices(row, sketch) {
  if (state.send === null || state.send >= row.sends.length)
    state.send = Math.max(
      0,
      row.sends.findIndex((s) => !s.by),
    );
  const choices = row.sends.map((send, i) => {
    const input = make("input", { type: "radio", name: "send", id: `send-${i}`, checked: i === state.send });
    input.addEventListener("change", () => {
      state.send = i;
      play(row, sketch);
    });
    const others = send.by
      ? `; sent once, counted with ${send.by}`
      : send.shared.length
        ? `; once, also for ${send.shared.join("; ")}`
        : "";
    return make(
      "label",
      { for: `send-${i}` },
      input,
      make(
        "span",
        {},
        sendText(row, send),
        make("span", { class: "quiet" }, ` ${bytes(send.bytes)}, ${seconds(send.seconds)}${others}`),
        now.atRest ? compiledMark(send, true) : null,
      ),
    );
  });
  byId("sends").replaceChildren(
    ...(choices.length ? choices : [make("p", {}, "Nothing is sent: every device has what it multiplies, and keeps what it gets.")]),
  );
  play(row, sketch);
}

function play(row, sketch) {
  const send = row.sends[state.send] || null;
  player.show(row, send, sketch, now.sizes, state.held);
  ringNote(send, sketch);
  markDevice();
}

function ringNote(send, sketch) {
  const groups = send ? product(Object.values(sketch)) / count(send.axes, sketch) : 1;
  const purpose = send ? [send.of, send.sent].filter(Boolean).map((name) => `${name}: ${PURPOSE[name]}. `) : [];
  byId("ring-note").textContent = send
    ? `${purpose.join("")}${send.kind}: ${WHY[send.kind] || "each device sends to the next"}.${groups > 1 ? ` The other ${groups - 1} group${groups > 2 ? "s do" : " does"} the same at the same time.` : ""}`
    : "";
}

/** A collective of no matmul in the player, until a matmul is chosen. */
function playOther(other) {
  const row = now.rows.find((r) => r.id === state.row),
    sketch = drawable(now.sizes);
  const back = make("button", { type: "button", id: "leave-other" }, `Back to ${rowTitle(row)}`);
  back.addEventListener("click", () => {
    sendChoices(row, sketch);
    byId("sends").querySelector("input")?.focus();
  });
  byId("sends").replaceChildren(
    make("p", {}, `For no matmul: ${other.what}, ${other.kind} over ${other.axes.join(", ")}, ${bytes(other.bytes)}.`),
    make("p", {}, back),
  );
  player.show({ id: other.what }, { ...other, operand: "" }, sketch, now.sizes, state.held);
  ringNote(other, sketch);
  byId("ring-title").scrollIntoView({ block: "start" });
  byId("ring-play").focus();
}

/** A device under the pointer, or (`stays`) chosen. */
function chooseDevice(id, stays) {
  state.device = id;
  if (stays && state.held !== id) {
    state.held = id;
    const row = now.rows.find((r) => r.id === state.row);
    player.show(row, row.sends[state.send] || null, drawable(now.sizes), now.sizes, id);
  }
  markDevice();
}

function markDevice() {
  const row = now.rows.find((r) => r.id === state.row),
    sketch = drawable(now.sizes),
    send = row.sends[state.send];
  mesh.mark(state.device, send ? groupOf(state.device, send.axes, sketch) : []);
  blocks.mark(state.device);
  byId("device-words").textContent = deviceWords(state.device, row, now.sizes, state.view, sketch);
}

function drawOthers() {
  const others = now.atRest
    ? [...PAGE.explained.others, ...(PAGE.explained.inserted || []).map((o) => ({ ...o, what: "added by the compiler" }))]
    : now.problem
      ? []
      : otherTraffic(now.config, now.sizes, now.chip);
  const step = (o) => {
    if (o.bytes < 4 * count(o.axes, now.sizes)) return null;
    const node = make(
      "button",
      { type: "button", class: "small", "aria-label": `step through the ${o.kind} of ${o.what}` },
      "step through",
    );
    node.addEventListener("click", () => playOther(o));
    return node;
  };
  const line = (o) =>
    make(
      "tr",
      {},
      make("th", { scope: "row" }, o.what),
      make("td", { "data-label": "kind" }, o.kind),
      make("td", { "data-label": "over" }, o.axes.join(", ")),
      make("td", { class: "number", "data-label": "bytes of one" }, bytes(o.bytes)),
      make("td", { class: "number", "data-label": "times a step" }, grouped(o.times)),
      make("td", {}, step(o)),
      now.atRest ? make("td", {}, compiledMark(o, true)) : null,
    );
  const head = make(
    "tr",
    {},
    ["what", "kind", "over", "bytes of one", "times a step", "", ...(now.atRest && PAGE.explained.compiled_by ? ["compiled"] : [])].map(
      (t, i) => make("th", { scope: "col", class: i === 3 || i === 4 ? "number" : "" }, t),
    ),
  );
  byId("others").replaceChildren(
    others.length ? make("table", {}, make("thead", {}, head), make("tbody", {}, alike(others).map(line))) : make("p", {}, "None."),
  );
}

/** Collectives that are the same, as one line. */
function alike(others) {
  const found = new Map();
  for (const o of others) {
    const key = `${o.what} ${o.kind} ${o.axes} ${o.bytes}`;
    found.set(key, { ...o, times: o.times + (found.get(key)?.times || 0) });
  }
  return [...found.values()];
}

function phaseButtons() {
  const there = [...PHASES.filter((p) => PAGE.explained.rows.some((row) => row.phase === p)), "all"];
  byId("phases").replaceChildren(
    ...there.map((phase) => {
      const node = make("button", { type: "button", "aria-pressed": String(phase === state.phase), "data-phase": phase }, phase);
      node.addEventListener("click", () => {
        state.phase = phase;
        phaseButtons();
        byId("phases").querySelector(`[data-phase="${phase}"]`).focus();
        drawRows();
      });
      return node;
    }),
  );
}

function view(name) {
  state.view = name;
  for (const node of byId("views").children) node.setAttribute("aria-pressed", String(node.dataset.view === name));
  drawDetail();
}

/** Keys for the player, wherever no control wants them. */
function key(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea") || now.problem) return;
  const own = event.target.closest("button, summary, a, [role='button']");
  const act = {
    ".": () => player.step(1),
    ",": () => player.step(-1),
    " ": own ? null : () => player.toggle(),
    s: () => view("stored"),
    m: () => view("used"),
  }[event.key];
  if (!act) return;
  event.preventDefault();
  act();
}

function start() {
  if (!PHASES.slice(0, 1).some((p) => PAGE.explained.rows.some((row) => row.phase === p))) state.phase = "all";
  document.body.append(patterns());
  list = new List(byId("list"), choose);
  mesh = new MeshPicture(byId("mesh"), chooseDevice);
  blocks = new BlockPicture(byId("blocks"), chooseDevice);
  player = new Player(byId("ring"));
  roofline = new Roofline(byId("roofline"), choose);
  model = new ModelPicture(byId("model-picture"), open);
  byId("stages").hidden = !PAGE.explained.stages;
  if (PAGE.explained.stages) {
    new Timeline(byId("timeline"), PAGE.explained.stages, PAGE.explained.step);
    byId("what-if-title").textContent = "The step of one stage, without the bubble";
  }
  for (const id of ["model-legend", "roof-legend"]) byId(id).replaceChildren(...legendNodes());
  controls = new Controls(byId("controls"), refresh);
  byId("about").textContent =
    `${PAGE.explained.name}: mesh ${meshText(PAGE.explained.mesh)} on ${PAGE.explained.topology}, ${PAGE.config.step.compute_dtype}, remat ${typeof PAGE.config.step.remat === "string" ? PAGE.config.step.remat : "by name"}, ${PAGE.config.step.microbatches} microbatch${PAGE.config.step.microbatches === 1 ? "" : "es"}`;
  byId("version").textContent = `jaxscale ${PAGE.version}, jax ${PAGE.explained.jax}`;
  for (const node of byId("views").children) node.addEventListener("click", () => view(node.dataset.view));
  for (const node of [byId("mesh"), byId("blocks")])
    node.addEventListener("mouseleave", () => {
      state.device = state.held;
      if (!now.problem) markDevice();
    });
  phaseButtons();
  refresh();
  document.addEventListener("keydown", key);
  let waiting = 0;
  addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      if (!now.problem) {
        drawRoofline();
        drawDetail();
      }
    }, 120);
  });
}

start();
