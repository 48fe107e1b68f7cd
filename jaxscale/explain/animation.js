// The player: one collective on the ring of the chosen device, forward and back.

const CHUNK_MS = 650,
  PAUSE_MS = 350,
  MOST_IN_RING = 16;
const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

class Player {
  constructor(node) {
    Object.assign(this, { node, row: null, send: null, done: 0, steps: [], timer: null, n: 1 });
    for (const [id, act] of [
      ["ring-start", () => this.go(0)],
      ["ring-back", () => this.step(-1)],
      ["ring-play", () => this.toggle()],
      ["ring-next", () => this.step(1)],
    ])
      byId(id).addEventListener("click", act);
  }

  /** Begin with a send of a row; `sizes` is what is drawn, `whole` the mesh that the figures are of. */
  show(row, send, sizes, whole, device) {
    this.pause();
    const key = send ? `${row.id} ${send.operand} ${send.kind} ${send.axes} ${send.sent || ""}` : "",
      same = this.send && send && this.key === key;
    Object.assign(this, { row, send, sizes, whole, key });
    byId("player").hidden = !send;
    if (!send) {
      this.node.replaceChildren();
      byId("ring-step").textContent = "";
      return;
    }
    this.group = groupOf(device, send.axes, sizes).slice(0, MOST_IN_RING);
    this.n = this.group.length;
    this.steps = stepsOf(send.kind, this.n);
    this.done = same ? Math.min(this.done, this.steps.length) : 0;
    this.draw(false);
  }

  toggle() {
    if (this.timer) this.pause();
    else this.play();
  }

  play() {
    if (!this.send) return;
    if (this.done >= this.steps.length) this.go(0);
    const next = () => {
      this.move(1);
      if (this.done < this.steps.length) this.timer = setTimeout(next, CHUNK_MS + PAUSE_MS);
      else this.pause();
    };
    this.timer = setTimeout(next, PAUSE_MS);
    this.buttons();
  }

  pause() {
    clearTimeout(this.timer);
    this.timer = null;
    this.buttons();
  }
  step(by) {
    this.pause();
    this.move(by);
  }
  go(done) {
    this.pause();
    this.done = Math.min(done, this.steps.length);
    if (this.send) this.draw(false);
  }

  move(by) {
    const to = Math.min(this.steps.length, Math.max(0, this.done + by));
    if (!this.send || to === this.done) return;
    this.done = to;
    this.draw(by > 0);
    this.buttons();
  }

  buttons() {
    byId("ring-play").textContent = this.timer ? "Pause" : "Play";
    byId("ring-back").disabled = byId("ring-start").disabled = this.done === 0;
    byId("ring-next").disabled = this.done >= this.steps.length;
  }

  draw(moving) {
    const { n, group, send } = this,
      slots = stateAfter(send.kind, n, this.done),
      last = this.done ? this.steps[this.done - 1] : null;
    const room = Math.max(260, Math.min(this.node.clientWidth || 560, 760)),
      pitch = Math.min(112, room / n),
      wide = pitch * 0.8,
      tall = n > 8 ? 15 : n > 4 ? 22 : 28;
    const width = pitch * n,
      top = 36,
      height = top + n * (tall + 3) + 30;
    const at = (i, slot) => [i * pitch + (pitch - wide) / 2, top + slot * (tall + 3)];
    const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": this.told(slots) });
    const flying = [];
    slots.forEach((own, i) => {
      const [x] = at(i, 0);
      svg.append(
        ...deviceRect(group[i], x, 4, wide, 24, { rx: 5, class: "head" }).filter(Boolean),
        shape(
          "text",
          { x: x + wide / 2, y: 21, "text-anchor": "middle", class: "holder" },
          n > 8 ? String(group[i]) : `device ${group[i]}`.slice(wide < 62 ? 7 : 0),
        ),
      );
      own.forEach((chunk, slot) => {
        const [left, y] = at(i, slot),
          move = last && last.moves.find((m) => m.to === i && m.into === slot);
        svg.append(shape("rect", { x: left, y, width: wide, height: tall, class: "slot", rx: 3 }));
        if (!chunk) return;
        const node = this.chunk(chunk, i, left, y, wide, tall);
        if (move) {
          node.classList.add("arrived");
          flying.push({ node, move, from: at(move.from, move.slot), to: [left, y], size: [wide, tall] });
        } else svg.append(node);
      });
    });
    svg.append(this.loop(pitch, height, n), ...flying.map(({ node }) => node));
    this.node.replaceChildren(svg);
    if (moving && !calm()) this.fly(svg, flying);
    byId("ring-step").replaceChildren(...this.words(last, slots));
    this.buttons();
  }

  /** Chunks travel to where they have arrived; what is added to a sum travels as it was, and the other term waits for it. */
  fly(svg, flying) {
    const before = stateAfter(this.send.kind, this.n, this.done - 1);
    const timing = { duration: CHUNK_MS, easing: "ease-in-out" };
    for (const { node, move, from, to, size: box } of flying) {
      let traveller = node;
      if (move.adds) {
        const waiting = this.chunk(before[move.to][move.into], move.to, ...to, ...box);
        traveller = this.chunk(before[move.from][move.slot], move.to, ...to, ...box);
        svg.insertBefore(waiting, flying[0].node);
        svg.append(traveller);
        node.classList.add("not-yet");
        setTimeout(() => {
          node.classList.remove("not-yet");
          waiting.remove();
          traveller.remove();
        }, CHUNK_MS);
      }
      traveller.animate([{ transform: `translate(${from[0] - to[0]}px, ${from[1] - to[1]}px)` }, { transform: "none" }], timing);
    }
  }

  /** A chunk in the colour of the device that it comes from (all-gather, all-to-all) or goes to; of a sum, how much is in it. */
  chunk({ chunk, parts }, i, x, y, width, height) {
    const { send, n, group } = this,
      sums = send.kind === "reduce-scatter" || send.kind === "all-reduce";
    const owner = group[trades(send.kind) ? parts[0] : chunk],
      share = sums ? parts.length / n : 1;
    const from = group[parts[0]],
      to = group[chunk];
    const label = sums ? `${share === 1 ? "Σ" : `${parts.length}/${n}`}` : trades(send.kind) ? `${from}→${to}` : String(chunk);
    const text = sums ? (width > 50 ? `${chunk}: ${label}` : label) : send.kind === "all-gather" && width > 60 ? `chunk ${chunk}` : label;
    const node = shape("g", { class: "chunk", "data-chunk": chunk, "data-parts": parts.join(" "), "data-at": i });
    node.append(
      shape("rect", { x, y, width, height, rx: 3, class: "slot" }),
      shape("rect", { x, y, width, height, rx: 3, class: `device faint ${colorClass(owner)}` }),
      ...deviceRect(owner, x, y, width * share, height, { rx: 3 }).filter(Boolean),
    );
    if (height >= 12 && width >= text.length * 6)
      node.append(shape("text", { x: x + width / 2, y: y + height / 2 + 4, "text-anchor": "middle", class: "holder" }, text));
    return node;
  }

  /** The ring's way back from the last device to the first. */
  loop(pitch, height, n) {
    const y = height - 12,
      left = pitch / 2,
      right = pitch * n - pitch / 2;
    return shape("g", { class: "loop" }, shape("path", { d: `M${right},${y - 8}V${y}H${left}V${y - 8}m-4,5l4,-5l4,5` }));
  }

  told(slots) {
    return `After step ${this.done} of ${this.steps.length}: ${slots
      .map(
        (own, i) =>
          `device ${this.group[i]} has ${own
            .filter(Boolean)
            .map((c) => (c.parts.length > 1 ? `${c.chunk} with ${c.parts.length} terms` : c.chunk))
            .join(", ")}`,
      )
      .join("; ")}`;
  }

  words(last, slots) {
    const { send, n, group } = this,
      real = count(send.axes, this.whole),
      sketch = real !== n;
    const rounds = send.kind === "all-reduce" ? 2 * (real - 1) : real - 1,
      each = send.bytes / real;
    const head = make(
      "strong",
      {},
      `Step ${this.done} of ${this.steps.length}${last && send.kind === "all-reduce" ? ` (${last.phase})` : ""}. `,
    );
    const what = last
      ? last.words
      : `Before: ${send.kind === "all-gather" ? "each device has one chunk." : trades(send.kind) ? `each device has ${send.kind === "all-to-all" ? "a block" : "rows"} for every device.` : "each device has its own term of every chunk of the sum."}`;
    const lines = [make("p", {}, head, what)];
    if (last && n <= 8)
      lines.push(
        make(
          "p",
          { class: "moves" },
          last.moves
            .map((m) => `${group[m.from]} → ${group[m.to]}: ${trades(last.phase) ? (last.phase === "all-to-all" ? "its block" : "its rows") : `chunk ${m.slot}`}`)
            .join("; "),
        ),
      );
    const done = this.done === this.steps.length ? ` Done: ${WHY[send.kind] || ""}.` : "";
    lines.push(
      make(
        "p",
        {},
        `Sent so far by each device: ${bytes(sketch ? (each * rounds * this.done) / this.steps.length : sentAfter(send.bytes, n, this.done))} (${bytes(each)} a step, ${bytes(each * rounds)} in all).${finished(send.kind, n, slots) ? done : ""}`,
      ),
    );
    if (sketch)
      lines.push(make("p", { class: "quiet" }, `A sketch with ${n} devices: the real ring has ${real}, and takes ${rounds} steps.`));
    return lines;
  }
}
