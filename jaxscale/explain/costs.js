// What a step should cost: an interpreter of the model's table, which comes with the config (`page.model_values`). It knows
// letters, layouts and rules, and no model. `predict/costs.py` and `predict/traffic.py` are the same arithmetic; a test holds that.
// `sizes` are mesh axis -> size; figures "of a device" are of one JAX device and one step.

const size = (sizes, axis) => sizes[axis] || 1;
const count = (axes, sizes) => axes.reduce((shards, axis) => shards * size(sizes, axis), 1);
const live = (axes, sizes) => axes.filter((axis) => size(sizes, axis) > 1);
const product = (values) => values.reduce((a, b) => a * b, 1);
const total = (values) => values.reduce((a, b) => a + b, 0);
const widthOf = (config) => PAGE.constants.bytes[config.step.compute_dtype];
const layersOf = ({ kinds, layers }, only) => (only ? kinds[only] : layers);

// --- sizes ----------------------------------------------------------------------------------------------------------

/** The rules on a mesh: a dim of which there are fewer than shards is kept whole as a parameter, and repeated where used. */
function rulesOn(config, sizes) {
  const { parameters, activations } = config.rules;
  return { parameters: { ...parameters, ...Object.fromEntries(fewDims(config, sizes).map((axis) => [axis, []])) }, activations };
}

/** Logical axes of which there are fewer than shards. */
const fewDims = (config, sizes) =>
  Object.values(config.table.dims)
    .filter((dim) => dim.repeats && dim.size < count(config.rules.activations[dim.axis], sizes))
    .map((dim) => dim.axis);

/** Global sizes of the dims of a microbatch by letter, as matmuls see them. */
function letterSizes(config, sizes) {
  const { dims, layers, routed } = config.table,
    found = { B: Math.floor(config.data.batch_size / config.step.microbatches), T: config.data.seq_len, S: config.data.seq_len, L: layers };
  if (routed) found[routed.rows] = Math.ceil((found.B * found.T * routed.top_k) / dims[routed.experts].size);
  for (const [letter, dim] of Object.entries(dims))
    found[letter] = dim.repeats ? Math.max(dim.size, count(config.rules.activations[dim.axis], sizes)) : dim.size;
  return found;
}

/** Global dims of a parameter, all layers; `padding`: letter -> how many of that dim do not count. */
const shapeOf = (weight, table, padding = {}) =>
  [...weight.letters].map((c) => (c === "L" ? layersOf(table, weight.only) : table.dims[c].size - (padding[c] || 0)));

/** Pairs of letters: heads of queries, and of the keys that they read. */
const headPairs = ({ attention }) => (attention ? [...attention.q].map((c, i) => [c, attention.k[i]]).filter(([q, k]) => q !== k) : []);

/** Letters of attention's values and of its result, which have those of keys and queries where no others are given. */
const ofValues = ({ q, k, v }) => ({ values: v || k, gathered: v || q });

/** Elements of an array that one device holds. */
const elements = (letters, layout, whole, sizes) => product([...letters].map((c, i) => Math.floor(whole[c] / count(layout[i], sizes))));

/** Elements of a parameter, all layers, that one device holds between steps. */
const shardOf = (weight, config, sizes) => shardOfDims(shapeOf(weight, config.table), weight.axes, config, sizes);

/** Elements that one device holds of an array with these logical axes, laid out as parameters are. */
function shardOfDims(dims, axes, config, sizes) {
  const { parameters } = rulesOn(config, sizes);
  return product(dims.map((n, i) => Math.floor(n / count(parameters[axes[i]], sizes))));
}

/** The logical axis of an activation's dim; `at`: where its sequence lies. */
const axisOf = (letter, at, { dims, routed }) =>
  ({ B: "batch", T: at })[letter] || (routed && letter === routed.rows ? "expert_rows" : dims[letter].axis);

/** Elements of an activation of one layer and microbatch on a device; `at`: the sequence's logical axis there. */
function activationElements(config, sizes, letters, at = "sequence") {
  const whole = letterSizes(config, sizes),
    { activations } = config.rules;
  const each = [...letters].map((c) => {
    const shards = count(activations[axisOf(c, at, config.table)], sizes);
    return c === "B" ? Math.floor(whole[c] / shards) : whole[c] / shards;
  });
  return product(each);
}

function activationBytes(config, sizes, name) {
  const [letters, at, only] = config.table.activations[name];
  return layersOf(config.table, only) * activationElements(config, sizes, letters, at) * widthOf(config);
}

function microbatchTokens(config, sizes) {
  const { batch, sequence } = config.rules.activations,
    rows = Math.floor(Math.floor(config.data.batch_size / config.step.microbatches) / count(batch, sizes));
  return rows * Math.floor(config.data.seq_len / count(sequence, sizes));
}

// --- FLOPs ----------------------------------------------------------------------------------------------------------

function visibleKeys(config) {
  const length = config.data.seq_len,
    { windows } = config.table.attention || { windows: [] },
    keys = (window) => window * (1 - window / (2 * length));
  return total(windows.map(({ window, share }) => share * keys(Math.min(window || length, length))));
}

function trainFlopsPerToken(config) {
  const { attention, dims, layers, weights, multiplied, padding } = config.table,
    active = (w) => product(shapeOf(w, config.table, padding)) * (w.active ?? 1),
    matrices = Math.round(total(weights.filter((w) => multiplied.includes(w.name)).map(active)));
  if (!attention) return 6 * matrices;
  const keys = config.metrics.mfu === "causal" ? visibleKeys(config) : config.data.seq_len,
    heads = (letters) => product([...letters].filter((c) => c in dims).map((c) => dims[c].size));
  return 6 * matrices + 6 * layers * (heads(attention.q) + heads(ofValues(attention).gathered)) * keys;
}

/** The rows of the matmuls on a mesh: a layout may be another where an axis is missing. */
const passesOf = (config, sizes) => config.table.variants[live(PAGE.constants.ready, sizes).join("+")] || config.table.layouts;
const runsOf = (row, config) => config.step.microbatches * (row.stacked ? layersOf(config.table, row.only) : 1);

/** Every matmul of a device and step, attention apart: x[m, k] · w[k, n], and how often each pass runs it. */
function matmuls(config, sizes) {
  const whole = letterSizes(config, sizes),
    rows = passesOf(config, sizes),
    again = new Set(rows.filter((row) => row.phase === "recomputed").map((row) => row.name));
  return rows
    .filter((row) => row.phase === "forward")
    .map((row) => {
      const here = {},
        part = (letters) => product(letters.map((c) => here[c])),
        [x, w, out] = [row.x, row.w, row.out].map((t) => [...t.letters]);
      for (const t of [row.w, row.x]) [...t.letters].forEach((c, i) => (here[c] = Math.floor(whole[c] / count(t.used[i], sizes))));
      const runs = runsOf(row, config),
        shape = {
          m: part(x.filter((c) => out.includes(c))),
          k: part(x.filter((c) => !out.includes(c))),
          n: part(w.filter((c) => !x.includes(c))),
          groups: part(x.filter((c) => out.includes(c) && w.includes(c))),
        };
      return { name: row.name, ...shape, forward: runs, backward: 2 * runs, recomputed: again.has(row.name) ? runs : 0 };
    });
}

/** Elements of x, w and the result. */
const matmulElements = (m) => m.m * m.k + m.groups * m.k * m.n + m.m * m.n;
const matmulFlops = (m) => 2 * m.m * m.k * m.n;
const matmulRuns = (m) => m.forward + m.backward + m.recomputed;

function attentionCost(config, sizes) {
  const { attention, kept, layers } = config.table;
  if (!attention) return { forward: 0, backward: 0, calls: 0, backwardCalls: 0, flops: 0 };
  const both = [attention.q, ofValues(attention).gathered].map((letters) => activationElements(config, sizes, letters)),
    forward = 2 * total(both) * visibleKeys(config),
    again = kept !== null && !(attention.result in kept),
    runs = layers * config.step.microbatches,
    calls = runs * (again ? 2 : 1);
  return { forward, backward: 2.5 * forward, calls, backwardCalls: runs, flops: forward * calls + 2.5 * forward * runs };
}

// --- what is sent ---------------------------------------------------------------------------------------------------

/** Every collective of a step: {what, kind, axes, bytes (V of one run), times, phase, overlaps}. */
const traffic = (config, sizes, chip) =>
  [...matmulTraffic(config, sizes), ...otherTraffic(config, sizes, chip, expertTraffic(config, sizes, chip))].filter((t) => t.times && t.bytes);

/** Collectives that belong to no matmul: the lookup's, repeated heads', attention's and the loss's; `experts`: those of rows for experts. */
const otherTraffic = (config, sizes, chip, experts = []) => [
  ...repeatedHeads(config, sizes),
  ...sharedKeys(config, sizes),
  ...lookups(config, sizes),
  ...splitSequences(config, sizes, chip),
  ...experts,
  ...idleAxes(config, sizes),
  ...losses(config, sizes),
];
const sent = (what, kind, axes, bytes, times, phase, overlaps, weight = false) => ({ what, kind, axes, bytes, times, phase, overlaps, weight });

/** Bytes of a number that a matmul sends. */
const sentWidth = (row, config) => (config.table.float32.includes(row.name) ? 4 : widthOf(config));

/** V counts the gathered operand, the whole partial sum, or the shard that is left to be summed. */
const sentLayout = (operand, send) => (send.operand === "out" && send.kind === "reduce-scatter" ? operand.stored : operand.used);

function matmulTraffic(config, sizes) {
  const whole = letterSizes(config, sizes);
  return passesOf(config, sizes).flatMap((row) =>
    row.sends
      .filter((send) => live(send.axes, sizes).length)
      .map((send) => {
        const operand = row[send.operand],
          gradient = row.what === "gradient of w",
          weight = send.operand === (gradient ? "out" : "w"),
          bytes = elements(operand.letters, sentLayout(operand, send), whole, sizes) * sentWidth(row, config),
          what = `${row.name} ${weight ? (gradient ? "gradient" : "weight") : "rows"}`;
        return { what, kind: send.kind, axes: live(send.axes, sizes), bytes, times: runsOf(row, config), phase: row.phase, overlaps: send.overlaps, weight };
      }),
  );
}

/** Heads of which there are few are kept whole, and each device takes the one that its queries read. */
function repeatedHeads(config, sizes) {
  const few = fewDims(config, sizes),
    whole = letterSizes(config, sizes),
    { dims } = config.table;
  return passesOf(config, sizes)
    .filter((row) => row.what === "gradient of w")
    .flatMap((row) =>
      [...row.out.letters]
        .filter((c) => few.includes(dims[c].axis))
        .map((c) => {
          const layout = row.out.used.map((axes, i) => (row.out.letters[i] === c ? [] : axes)),
            bytes = elements(row.out.letters, layout, whole, sizes) * widthOf(config);
          return sent(`${row.name} gradient`, "all-gather", live(config.rules.activations[dims[c].axis], sizes), bytes, runsOf(row, config), "backward", true);
        }),
    );
}

/** The part of keys that all heads share, moved to where attention runs, and its gradient: see `models/latent.py`. */
function sharedKeys(config, sizes) {
  const { attention, dims, kept, layers } = config.table,
    { activations } = config.rules;
  if (!attention || !attention.shared) return [];
  const [residual, sequence, heads] = ["residual_sequence", "sequence", dims[attention.q[2]].axis].map((name) => live(activations[name], sizes)),
    gathered = residual.filter((a) => !sequence.includes(a)),
    bytes = activationElements(config, sizes, attention.shared) * widthOf(config),
    runs = config.step.microbatches * layers,
    found = [];
  if (gathered.length) found.push(sent("shared keys", "all-gather", gathered, bytes, runs * (kept === null ? 1 : 2), "forward", false));
  if (heads.length) found.push(sent("shared keys' gradients", "all-reduce", heads, bytes, runs, "backward", true));
  return found;
}

/** A table's rows by token: see `models/embedding.py`. */
function lookups(config, sizes) {
  const { parameters, activations } = rulesOn(config, sizes),
    tokens = microbatchTokens(config, sizes),
    parts = config.step.microbatches,
    found = [];
  const [batch, residual, sequence] = ["batch", "residual_sequence", "sequence"].map((name) => live(activations[name], sizes));
  for (const table of config.table.weights.filter((w) => config.table.lookups.includes(w.name))) {
    const [rows, columns] = table.axes.map((axis) => live(parameters[axis], sizes)),
      vocab = rows.filter((a) => !batch.includes(a) && !sequence.includes(a)),
      trades = [batch, sequence].map((axes) => columns.filter((a) => axes.includes(a))),
      trade = trades.flat(),
      extra = residual.filter((a) => !sequence.includes(a)),
      fits = residual.join() === [...sequence, ...extra].join() && extra.every((a) => vocab.includes(a)),
      scatter = fits ? extra : [],
      summed = vocab.filter((a) => !scatter.includes(a)),
      bytes = tokens * shapeOf(table, config.table)[1] * widthOf(config),
      here = [vocab, trade],
      whole = Object.fromEntries([...table.letters].map((c) => [c, config.table.dims[c].size])),
      held = elements(table.letters, here, whole, sizes),
      gathered = [...rows, ...columns].filter((a) => !vocab.includes(a) && !trade.includes(a)),
      over = [...batch, ...sequence].filter((a) => !vocab.includes(a) && !trade.includes(a));
    if (gathered.length) {
      const wide = PAGE.constants.bytes[config.step.param_dtype];
      found.push(sent(`${table.name} weight`, "all-gather", gathered, held * wide, parts, "forward", false, true));
    }
    let ids = tokens * 4;
    for (const axes of trades.filter((axes) => axes.length)) {
      ids *= count(axes, sizes);
      found.push(
        sent("token ids", "all-gather", axes, ids, parts, "forward", false),
        sent("looked-up rows", "all-to-all", axes, bytes / count(scatter, sizes), 2 * parts, "forward", false),
      );
    }
    if (scatter.length)
      found.push(
        sent("looked-up rows", "reduce-scatter", scatter, bytes, parts, "forward", false),
        sent("rows' gradients", "all-gather", scatter, bytes, parts, "backward", false),
      );
    if (summed.length) found.push(sent("looked-up rows", "all-reduce", summed, bytes / count(scatter, sizes), parts, "forward", false));
    const sliced = residual.filter((a) => !sequence.includes(a) && !scatter.includes(a));
    if (sliced.length) found.push(sent("rows' gradients", "all-gather", sliced, bytes, parts, "backward", false));
    if (over.length) found.push(sent(`${table.name} gradient`, "all-reduce", over, held * 4, parts, "backward", true, true));
  }
  return found;
}

/** Keys and values where sequences are split, and their gradients: see `models/context.py`. */
function splitSequences(config, sizes, chip) {
  const { attention, kept, layers } = config.table,
    axes = live(config.rules.activations.sequence, sizes);
  if (!attention || !axes.length) return [];
  const shards = count(axes, sizes),
    width = widthOf(config),
    own = total([attention.k, ofValues(attention).values].map((letters) => activationElements(config, sizes, letters))),
    again = kept === null || attention.result in kept ? 0 : 1,
    platform = PAGE.machines.chips[chip].node ? "gpu" : "tpu";
  const keys = (...rest) => sent("keys and values", ...rest),
    gradients = (...rest) => sent("gradients of keys and values", ...rest);
  return attention.windows.flatMap(({ window, share, ways }) => {
    const way = ways[platform],
      runs = Math.round(config.step.microbatches * layers * share);
    if (way === "gather")
      return [
        keys("all-gather", axes, own * shards * width, 2 * runs, "forward", true),
        gradients("reduce-scatter", axes, own * shards * width, runs, "backward", true),
      ];
    if (way === "ring")
      return [
        keys("collective-permute", axes, own * width, ((shards - 1) * (2 + again) - again) * runs, "forward", true),
        gradients("collective-permute", axes, own * 4, shards * runs, "backward", true),
      ];
    const tokens = Math.floor(config.data.seq_len / shards),
      multiple = attention.multiples[platform],
      wanted = Math.ceil((window - 1) / multiple) * multiple,
      hops = Math.min(shards - 1, Math.ceil(wanted / tokens)),
      parts = Array.from({ length: hops }, (_, hop) => Math.min(tokens, wanted - hop * tokens));
    return parts.flatMap((part) => [
      keys("collective-permute", axes, (own / tokens) * part * width, (1 + again) * runs, "forward", false),
      gradients("collective-permute", axes, (own / tokens) * part * width, runs, "backward", false),
    ]);
  });
}

/** Attention's gradients over axes along which all devices attend to the same heads and rows. */
function idleAxes(config, sizes) {
  const { attention, dims, layers } = config.table,
    { activations } = config.rules;
  if (!attention) return [];
  const used = ["batch", "sequence", dims[attention.q[2]].axis].flatMap((axis) => activations[axis]),
    axes = live(PAGE.constants.ready, sizes).filter((a) => !used.includes(a)),
    each = (letters) => activationElements(config, sizes, letters) * widthOf(config),
    runs = config.step.microbatches * layers;
  if (!axes.length) return [];
  return [attention.q, attention.k, ofValues(attention).values].map((letters) =>
    sent("attention's gradients", "all-reduce", axes, each(letters), runs, "backward", true),
  );
}

/** Three numbers a token over the shards of the vocabulary. */
function losses(config, sizes) {
  const axes = live(config.rules.activations.vocab, sizes);
  if (!config.table.logits || !axes.length) return [];
  return [sent("losses", "all-reduce", axes, microbatchTokens(config, sizes) * 4, 3 * config.step.microbatches, "forward", false)];
}
