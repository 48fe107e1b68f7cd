// The timeline of a pipeline: which microbatch each stage works on in each tick, for as many of both as the sliders say.

/** Of each stage the microbatch of each tick, forward and backward; null: nobody reads it. As Python's `Schedule`. */
function ticksOf(stages, microbatches) {
  const ramp = stages - 1,
    every = Array.from({ length: microbatches + 2 * ramp }, (_, t) => t),
    real = (m) => (m >= 0 && m < microbatches ? m : null);
  return Array.from({ length: stages }, (_, s) => ({
    forward: every.map((t) => real(t - s)),
    backward: every.map((t) => real(t - 2 * ramp + s)),
  }));
}

const bubbleOf = (stages, microbatches) => (stages - 1) / (microbatches + stages - 1);

class Timeline {
  /** Of the explained step: `PAGE.explained.stages`, and `PAGE.explained.step`. */
  constructor(node, found, whole) {
    this.found = found;
    const most = Math.max(32, 2 * found.microbatches),
      again = () => this.draw();
    this.stages = new Slider("stages", "stages", found.choices, found.ticks.length, again);
    this.microbatches = new Slider("microbatches", "microbatches", Array.from({ length: most }, (_, i) => i + 1), found.microbatches, again);
    this.tick = make("input", { type: "range", id: "slider-tick", min: 0, step: 1, value: 0 });
    this.tick.addEventListener("input", () => this.mark());
    this.table = make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Stages by ticks" });
    this.words = make("p", { id: "tick-words", "aria-live": "polite" });
    this.bubble = make("p", { id: "bubble" });
    const beside = (what) => (found.compiled ? `, ${bytes(found.compiled[what] || 0)} compiled` : "");
    node.replaceChildren(
      make("p", {}, `The other parts of this page are of ${found.words}. A step of all stages takes ${seconds(whole.seconds)}, predicted.`),
      make("div", { class: "stage-sliders" }, this.stages.node, this.microbatches.node),
      this.bubble,
      this.table,
      make("div", { class: "slider tick" }, make("label", { for: "slider-tick" }, "tick"), this.tick, make("output", { for: "slider-tick" })),
      this.words,
      make(
        "ul",
        { class: "plain quiet", "aria-label": "Sent along the stages" },
        Object.keys({ ...found.sent, ...found.compiled }).map((what) =>
          make("li", {}, `${what}: ${bytes(found.sent[what] || 0)} of a device and step, predicted${beside(what)}`),
        ),
      ),
    );
    this.draw();
  }

  draw() {
    const [S, M] = [this.stages.value, this.microbatches.value],
      rows = ticksOf(S, M),
      cell = (m, t) => make("td", { "data-tick": t, class: m === null ? "idle" : `held d${m % 8}` }, m === null ? "" : String(m));
    const line = (s, pass) =>
      make("tr", {}, make("th", { scope: "row" }, pass === "forward" ? `stage ${s} ` : "", make("span", { class: "quiet" }, pass)), rows[s][pass].map(cell));
    this.rows = rows;
    this.table.replaceChildren(
      make("table", { class: "timeline" }, make("tbody", {}, rows.flatMap((_, s) => [line(s, "forward"), line(s, "backward")]))),
    );
    this.bubble.textContent = `${rows[0].forward.length} ticks; ${plain(100 * bubbleOf(S, M), 3)} % of the stages' time is the bubble, (S-1)/(M+S-1). A stage that waits computes and sends as in other ticks, and nobody reads it.`;
    this.tick.max = String(rows[0].forward.length - 1);
    this.mark();
  }

  /** The chosen tick: its column, and in words what each stage does. */
  mark() {
    const t = Number(this.tick.value);
    for (const node of this.table.querySelectorAll("td")) node.classList.toggle("now", Number(node.dataset.tick) === t);
    const does = this.rows.map((row, s) => {
      const parts = ["forward", "backward"].filter((pass) => row[pass][t] !== null).map((pass) => `${row[pass][t]} ${pass}`);
      return `stage ${s}: ${parts.join(" and ") || "waits"}`;
    });
    this.tick.nextSibling.textContent = String(t);
    this.tick.setAttribute("aria-valuetext", `tick ${t}`);
    this.words.textContent = `Microbatches in tick ${t}: ${does.join("; ")}.`;
  }
}
