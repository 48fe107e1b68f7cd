// The collectives, step by step on a ring of n devices, as sets of chunks; `animation.js` draws them. No page here.
//
// A chunk is {chunk, parts}: which part of the tensor, and whose contributions are added up in it. Device i's
// neighbour is (i + 1) mod n. Every move of a step happens at the same time.

const ring = (i, n) => ((i % n) + n) % n;
const trades = (kind) => kind.endsWith("all-to-all");
const everyone = (n) => Array.from({ length: n }, (_, i) => i);

/** {phase, words, moves: [{from, to, slot, into}]} for each step; V / n bytes a device and step. */
function stepsOf(kind, n) {
  if (kind === "all-gather") return gatherSteps(n, "all-gather");
  if (kind === "reduce-scatter") return scatterSteps(n, "reduce-scatter");
  if (kind === "all-reduce") return [...scatterSteps(n, "reduce-scatter"), ...gatherSteps(n, "all-gather")];
  if (trades(kind)) return exchangeSteps(n, kind);
  return [
    {
      phase: kind,
      words: "Each device sends what it has to its neighbour.",
      moves: everyone(n).map((i) => ({ from: i, to: ring(i + 1, n), slot: 0, into: 0 })),
    },
  ];
}

function gatherSteps(n, phase) {
  return Array.from({ length: n - 1 }, (_, s) => ({
    phase,
    words: s ? "Each device passes on the chunk that it has just got." : "Each device sends its own chunk to its neighbour.",
    moves: everyone(n).map((i) => ({ from: i, to: ring(i + 1, n), slot: ring(i - s, n), into: ring(i - s, n) })),
  }));
}

function scatterSteps(n, phase) {
  return Array.from({ length: n - 1 }, (_, s) => ({
    phase,
    words: s
      ? "Each device adds its own term to the sum that it has just got, and passes it on."
      : "Each device sends its term of one chunk to its neighbour, which adds its own.",
    moves: everyone(n).map((i) => ({ from: i, to: ring(i + 1, n), slot: ring(i - s - 1, n), into: ring(i - s - 1, n), adds: true })),
  }));
}

function exchangeSteps(n, phase) {
  const block = phase === "all-to-all" ? "the block" : "the rows";
  return Array.from({ length: n - 1 }, (_, s) => ({
    phase,
    words: `Each device sends ${block} for the device ${s + 1} place${s ? "s" : ""} on, past those between.`,
    moves: everyone(n).map((i) => ({
      from: i,
      to: ring(i + s + 1, n),
      slot: ring(i + s + 1, n),
      into: ring(i + s + 1 + (s + 1), n),
      trades: true,
    })),
  }));
}

/** Before the first step: slots[device][slot] = {chunk, parts} or null. */
function startOf(kind, n) {
  return everyone(n).map((i) =>
    everyone(n).map((slot) => {
      if (kind === "all-gather") return slot === i ? { chunk: i, parts: [i] } : null;
      if (trades(kind)) return { chunk: slot, parts: [i] };
      if (kind === "collective-permute") return slot ? null : { chunk: i, parts: [i] };
      return { chunk: slot, parts: [i] };
    }),
  );
}

/** After `done` steps. */
function stateAfter(kind, n, done) {
  let slots = startOf(kind, n);
  for (const step of stepsOf(kind, n).slice(0, done)) {
    const next = slots.map((own) => [...own]);
    if (step.moves[0].trades) for (const { from, slot } of step.moves) next[from][slot] = null;
    for (const { from, to, slot, into, adds } of step.moves) {
      const moved = slots[from][slot],
        there = slots[to][into];
      next[to][into] = adds ? { chunk: moved.chunk, parts: [...there.parts, ...moved.parts].sort((a, b) => a - b) } : moved;
      if (adds) next[from][slot] = null;
    }
    slots = next;
  }
  return slots;
}

/** Is every device left with what the collective promises? */
function finished(kind, n, slots) {
  const whole = (c) => c !== null && c.parts.length === n;
  if (kind === "all-gather") return slots.every((own) => own.every((c, slot) => c !== null && c.chunk === slot));
  if (kind === "reduce-scatter") return slots.every((own, i) => whole(own[i]) && own.every((c, slot) => slot === i || c === null));
  if (kind === "all-reduce") return slots.every((own) => own.every(whole));
  if (trades(kind))
    return slots.every((own, i) => own.every((c) => c !== null && c.chunk === i) && new Set(own.map((c) => c.parts[0])).size === n);
  return slots.every((own, i) => own[0].chunk === ring(i - 1, n));
}

/** Bytes that a device has sent after `done` steps, of a collective of V bytes. */
const sentAfter = (bytes, n, done) => (bytes / n) * done;
