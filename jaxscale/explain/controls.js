// The sliders and the summary of the whole step.

const FACTORS = [1 / 8, 1 / 4, 1 / 2, 3 / 4, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 32, 64];
const wideDims = (config) => Object.values(config.table.dims).filter((dim) => dim.wide);

/** A slider over a list of values. */
class Slider {
  constructor(name, text, values, value, change) {
    Object.assign(this, { name, text, values, change });
    this.output = make("output", { for: `slider-${name}` });
    this.input = make("input", { type: "range", id: `slider-${name}`, min: 0, max: values.length - 1, step: 1 });
    this.input.addEventListener("input", () => {
      this.tell();
      change();
    });
    this.node = make("div", { class: "slider" }, make("label", { for: `slider-${name}` }, text), this.input, this.output);
    this.value = value;
  }

  get value() {
    return this.values[Number(this.input.value)];
  }
  set value(value) {
    this.input.value = String(this.values.indexOf(value));
    this.tell();
  }
  tell() {
    const words = this.words ? this.words(this.value) : grouped(this.value);
    this.output.textContent = words;
    this.input.setAttribute("aria-valuetext", words);
  }
}

/** The config as the sliders say: batch, sequence, and width with all that goes with it. */
function changedConfig(config, { batch, length, width }) {
  const scaled = (dim) => (dim.wide ? { ...dim, size: Math.round(dim.size * width) } : dim),
    dims = Object.fromEntries(Object.entries(config.table.dims).map(([letter, dim]) => [letter, scaled(dim)]));
  return { ...config, table: { ...config.table, dims }, data: { ...config.data, batch_size: batch, seq_len: length } };
}

function sliderValues(config) {
  const { table, data, step, loss } = config,
    whole = (n) => Number.isInteger(n) && n > 0;
  const times = (n, most) => Array.from({ length: 2 * most + 1 }, (_, i) => n * 2 ** (i - most)).filter(whole);
  return {
    batch: times(data.batch_size, 8).filter((n) => n % step.microbatches === 0),
    length: times(data.seq_len, 6).filter(
      (n) => (!table.longest || n <= table.longest) && (!loss.chunk || n % loss.chunk === 0),
    ),
    width: FACTORS.filter((f) => wideDims(config).every((dim) => whole(dim.size * f))),
  };
}

class Controls {
  constructor(node, change) {
    const { config, machines, explained } = PAGE,
      values = sliderValues(config);
    this.change = change;
    this.sliders = Object.fromEntries(
      PAGE.constants.ready.map((axis) => [axis, new Slider(axis, axis, machines.sizes[axis], size(explained.mesh, axis), change)]),
    );
    this.sliders.batch = new Slider("batch", "batch", values.batch, config.data.batch_size, change);
    this.sliders.length = new Slider("length", "sequence", values.length, config.data.seq_len, change);
    this.sliders.width = new Slider("width", "width", values.width, 1, change);
    const [letter, dim] = Object.entries(config.table.dims).find(([, dim]) => dim.wide && dim.label);
    this.sliders.width.words = (f) => `${letter} ${grouped(dim.size * f)}`;
    this.sliders.width.tell();
    this.chip = make(
      "select",
      { id: "chip" },
      Object.keys(machines.chips).map((name) => make("option", { value: name }, name)),
    );
    this.chip.value = explained.chip;
    this.chip.addEventListener("change", change);
    this.reset = make("button", { type: "button", id: "reset" }, "Back to the explained mesh");
    this.reset.addEventListener("click", () => this.back());
    const group = (title, ...children) => make("fieldset", {}, make("legend", {}, title), children);
    node.replaceChildren(
      group(
        "Mesh",
        PAGE.constants.ready.map((axis) => this.sliders[axis].node),
      ),
      group(
        "Model and batch",
        ["batch", "length", "width"].map((name) => this.sliders[name].node),
        make("p", { class: "quiet", id: "width-note" }),
      ),
      group(
        "Machine",
        make("div", { class: "slider" }, make("label", { for: "chip" }, "chip"), this.chip),
        make("p", { id: "machine", class: "quiet" }),
        this.reset,
      ),
    );
  }

  back() {
    for (const axis of PAGE.constants.ready) this.sliders[axis].value = size(PAGE.explained.mesh, axis);
    Object.assign(this.sliders.batch, { value: PAGE.config.data.batch_size });
    Object.assign(this.sliders.length, { value: PAGE.config.data.seq_len });
    this.sliders.width.value = 1;
    this.chip.value = PAGE.explained.chip;
    this.change();
  }

  /** What the sliders say; `instead`: values of some of them in place of where they stand. */
  read(instead = {}) {
    const value = (name) => instead[name] ?? this.sliders[name].value,
      sizes = Object.fromEntries(PAGE.constants.ready.map((axis) => [axis, value(axis)]));
    const [batch, length, width] = ["batch", "length", "width"].map(value);
    const own = PAGE.explained,
      atRest =
        PAGE.constants.ready.every((axis) => sizes[axis] === size(own.mesh, axis)) &&
        batch === PAGE.config.data.batch_size &&
        length === PAGE.config.data.seq_len &&
        width === 1 &&
        this.chip.value === own.chip;
    return { sizes, chip: this.chip.value, atRest, config: changedConfig(PAGE.config, { batch, length, width }) };
  }

  /** What the sliders came to, and which chips cannot be had for so many devices. */
  tell({ sizes, config, chip }, machine) {
    const { dims, layers } = config.table,
      named = Object.values(dims).filter((dim) => dim.label),
      list = (chosen) => [...new Set(chosen.map((dim) => `${dim.label} ${grouped(dim.size)}`))].join(", "),
      n = product(Object.values(sizes));
    byId("width-note").textContent =
      `Width: ${list(named.filter((dim) => dim.wide))} change together; ${list(named.filter((dim) => !dim.wide))} and ${layers} layers stay.`;
    byId("machine").textContent = machine.reason ? machine.reason : `${n} device${n === 1 ? "" : "s"}: ${machine.name}`;
    for (const option of this.chip.options) {
      const { reason } = machineOf(option.value, sizes);
      option.disabled = Boolean(reason) && option.value !== chip;
      option.textContent = reason && option.value !== chip ? `${option.value} (not with ${n} devices)` : option.value;
      option.title = reason || "";
    }
  }
}

/** Step seconds, MFU, and what is busy how long. */
function summaryNodes(found) {
  const most = Math.max(...Object.values(found.sums)),
    fact = (name, value, id) => make("div", { class: "fact" }, make("dt", {}, name), make("dd", { id }, value));
  const bars = Object.entries(found.sums).map(([name, value]) => {
    const bar = make("span", { class: `bar ${name in MARKS ? name : "network"}` });
    bar.style.width = `${Math.max(0.5, (100 * value) / most)}%`;
    return make(
      "li",
      { class: name === found.binds ? "binds" : "" },
      make("span", { class: "bar-name" }, name, name === found.binds ? make("em", {}, " binds") : null),
      make("span", { class: "bar-value" }, seconds(value)),
      make("span", { class: "track", "aria-hidden": "true" }, bar),
    );
  });
  return [
    make(
      "dl",
      { class: "facts" },
      fact("a step, predicted", seconds(found.best), "step-seconds"),
      fact("MFU", figure(found.mfu, "share", 4), "mfu"),
      fact("tokens/s a chip", plain(found.perChip, 4), "tokens"),
      fact("bound by", found.binds, "binds"),
    ),
    make("ul", { class: "bars", "aria-label": "Seconds of a step by what is busy" }, bars),
  ];
}

const conventionText = (found, config, chip, machine) =>
  `A step takes between ${seconds(found.overlapped)} (all overlapped) and ${seconds(found.apart)} (nothing overlapped). Its interval is ${seconds(found.best / machine.ratio)} to ${seconds(found.best * machine.ratio)}: ${machine.why}. ${config.optimizer.left_out && `Not counted: ${config.optimizer.left_out}. `}MFU by the convention ${config.metrics.mfu}: ${PAGE.constants.conventions[config.metrics.mfu]}; of ${figure(PAGE.machines.chips[chip].flops, "FLOP/s", 4)} a chip, dense ${PAGE.machines.chips[chip].dtype} (${PAGE.machines.chips[chip].source}), on ${machine.chips} chip${machine.chips === 1 ? "" : "s"}.`;
